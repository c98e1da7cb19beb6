"""The configuration of one quantization: `QConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

from quark.onnx.errors import ConfigError

from .algorithm import AlgoConfig, AutoMixprecisionConfig, BiasCorrectionConfig, CLEConfig, FastFinetuneConfig
from .extra_options import ExtraOptions, extra_options, known_options
from .fast_finetune_options import with_options
from .frozen import FrozenConfig, FrozenMapping, instance, told_how_to_change, unexpected_keyword
from .node_selection import NodeChoice, NodeChoices, node_choices
from .ready import ready_configuration
from .spec import QLayerConfig, QTensorConfig
from .validate import Check, Flag, checks, problem, strings

__all__ = ["ExtraOptions", "QConfig"]

Value = TypeVar("Value")

_NOTHING: FrozenMapping[Any, Any] = FrozenMapping()


def _layers(value: object, targets: Callable[[object], Value]) -> FrozenMapping[QLayerConfig | None, Value]:
    if not isinstance(value, Mapping):
        raise TypeError
    if not all(layer is None or isinstance(layer, QLayerConfig) for layer in value):
        raise TypeError
    return FrozenMapping({layer: targets(names) for layer, names in value.items()})


def _specific_layers(value: object) -> FrozenMapping[QLayerConfig | None, tuple[NodeChoice, ...]]:
    layers = _layers(value, node_choices.convert)
    if None in layers:
        raise TypeError
    return layers


def _layer_types(value: object) -> FrozenMapping[QLayerConfig | None, tuple[str, ...]]:
    return _layers(value, strings("").convert)


def _layers_from_pairs(written: object) -> object:
    """JSON keys are strings, so that a dict with layer keys is written as a list of [layer, names] pairs."""
    pairs = written if isinstance(written, (list, tuple)) else ()
    if not pairs or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return written
    return {None if layer is None else QLayerConfig.from_dict(layer): names for layer, names in pairs}


def _algorithms(value: object) -> tuple[AlgoConfig, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if not all(isinstance(algorithm, AlgoConfig) for algorithm in value):
        raise TypeError
    if sum(isinstance(algorithm, FastFinetuneConfig) for algorithm in value) > 1:
        raise ValueError("only one of AdaRoundConfig and AdaQuantConfig, once: both tune the same weights")
    for kind in (CLEConfig, BiasCorrectionConfig, AutoMixprecisionConfig):
        if sum(isinstance(algorithm, kind) for algorithm in value) > 1:
            raise ValueError(f"{kind.__name__} once")
    return tuple(value)


def _algorithms_from_dicts(written: object) -> object:
    return [AlgoConfig.from_dict(item) for item in written] if isinstance(written, (list, tuple)) else written


SpecificLayers = Annotated[
    FrozenMapping[QLayerConfig, tuple[NodeChoice, ...]],
    Check(f"a dict from QLayerConfig to {node_choices.expected}", _specific_layers, _layers_from_pairs),
]
LayerTypes = Annotated[
    FrozenMapping[QLayerConfig | None, tuple[str, ...]],
    Check("a dict from QLayerConfig or None to a list of op types", _layer_types, _layers_from_pairs),
]
Algorithms = Annotated[
    tuple[AlgoConfig, ...], Check("a list of algorithm configs", _algorithms, _algorithms_from_dicts)
]
Options = Annotated[ExtraOptions, Check("a dict", extra_options)]


@told_how_to_change
@dataclass(frozen=True, init=False, repr=False)
class QConfig(FrozenConfig):
    """The configuration of one quantization. Never changed by its use.

    Args:
        global_config: how the whole model is quantized: the weight and one of input_tensors and activation.
        specific_layer_config: other specs for the tensors of some nodes, which are named as for `exclude`.
        layer_type_config: other specs for the tensors of some op types; the key None leaves op types in float.
        exclude: nodes that stay in float: names, regular expressions that start with "^" and are matched from
            the start of a name, and ([start nodes], [end nodes]) subgraphs: the nodes on all ways from a start to an
            end.
        algo_config: the algorithms; at most one of AdaRoundConfig and AdaQuantConfig. Whatever their order here,
            CLEConfig works before quantization, then come BiasCorrectionConfig and finetuning.
        use_external_data_format: save the tensors in a file beside the model.
        extra_options: see `ExtraOptions`.
        **options: the same options as loose keywords, as older scripts write them.

    A tensor that several of these name gets the spec that is written last: of `global_config`, then of
    `layer_type_config`, then of `specific_layer_config`; within one of these, entry by entry, node by node, the inputs
    of a node before its outputs. What a QLayerConfig leaves None it does not change.

    Raises:
        ConfigError: a wrong value.
        ConfigTypeError: a wrong type, or an unknown keyword.
    """

    global_config: Annotated[QLayerConfig, instance(QLayerConfig)]
    specific_layer_config: SpecificLayers = _NOTHING
    layer_type_config: LayerTypes = _NOTHING
    exclude: NodeChoices = ()
    algo_config: Algorithms = ()
    use_external_data_format: Flag = False
    extra_options: Options = _NOTHING  # type: ignore[assignment]

    def __init__(
        self,
        global_config: QLayerConfig,
        specific_layer_config: Mapping[QLayerConfig, Sequence[NodeChoice]] | None = None,
        layer_type_config: Mapping[QLayerConfig | None, Sequence[str]] | None = None,
        exclude: Sequence[NodeChoice] | None = None,
        algo_config: Sequence[AlgoConfig] | None = None,
        use_external_data_format: bool = False,
        *,
        extra_options: ExtraOptions | Mapping[str, object] | None = None,
        **options: object,
    ) -> None:
        set_field = partial(object.__setattr__, self)
        set_field("global_config", global_config)
        set_field("specific_layer_config", {} if specific_layer_config is None else specific_layer_config)
        set_field("layer_type_config", {} if layer_type_config is None else layer_type_config)
        set_field("exclude", () if exclude is None else exclude)
        set_field("algo_config", () if algo_config is None else algo_config)
        set_field("use_external_data_format", use_external_data_format)
        set_field("extra_options", _merged({} if extra_options is None else extra_options, options))
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        layer = self.global_config
        if layer.inputs is None:
            raise ConfigError(problem("QConfig.global_config", layer, "input_tensors (or activation) too"))
        if layer.weight is None:
            raise ConfigError(problem("QConfig.global_config", layer, "weight too"))
        for name in ("specific_layer_config", "layer_type_config"):
            for layer in getattr(self, name):
                if layer is not None and layer.activation is not None:
                    raise ConfigError(problem(f"QConfig.{name}", layer, "input_tensors instead of activation"))
        _ = self.fast_finetune  # raises what is wrong with the extra option FastFinetune

    @property
    def activation_spec(self) -> QTensorConfig:
        """How activations are quantized."""
        assert self.global_config.inputs is not None  # __post_init__ saw to it
        return self.global_config.inputs

    @property
    def weight_spec(self) -> QTensorConfig:
        """How constant weights are quantized."""
        assert self.global_config.weight is not None  # __post_init__ saw to it
        return self.global_config.weight

    @property
    def fast_finetune(self) -> FastFinetuneConfig | None:
        """The AdaRound or AdaQuant configuration, if there is one, with the extra option FastFinetune in it."""
        found = next((algorithm for algorithm in self.algo_config if isinstance(algorithm, FastFinetuneConfig)), None)
        options = self.extra_options.get("FastFinetune")
        return found if options is None else with_options(found, options)

    @property
    def equalisation(self) -> CLEConfig | None:
        """The configuration of cross-layer equalisation, if it is listed."""
        return next((algorithm for algorithm in self.algo_config if isinstance(algorithm, CLEConfig)), None)

    @property
    def bias_correction(self) -> BiasCorrectionConfig | None:
        """The configuration of bias correction, if it is listed."""
        return next((algorithm for algorithm in self.algo_config if isinstance(algorithm, BiasCorrectionConfig)), None)

    @property
    def auto_mixprecision(self) -> AutoMixprecisionConfig | None:
        """The configuration of the search for formats, if it is listed."""
        return next(
            (algorithm for algorithm in self.algo_config if isinstance(algorithm, AutoMixprecisionConfig)), None
        )

    def taken(self) -> QConfig:
        """A copy that nobody else can change: as specs may be (`QTensorConfig.set_symmetric`), and `OpenConfig`.

        Raises:
            ConfigError: a value that was set since is wrong.
        """
        return QConfig(
            self.global_config.taken(),
            {layer.taken(): nodes for layer, nodes in self.specific_layer_config.items()},
            {layer and layer.taken(): types for layer, types in self.layer_type_config.items()},
            self.exclude,
            self.algo_config,
            self.use_external_data_format,
            extra_options=self.extra_options,
        )

    @staticmethod
    def get_default_config(name: str) -> QConfig:
        """The ready configuration of this name, a key of `get_default_config_mapping()`.

        Raises:
            ConfigError: there is none.
        """
        ready: QConfig = ready_configuration(name)
        return ready


def _merged(extra_options: object, loose: Mapping[str, object]) -> object:
    """`extra_options` with the loose keywords of the constructor added."""
    known = known_options()
    for keyword in loose:
        if keyword not in known:
            raise unexpected_keyword(QConfig, keyword, [*checks(QConfig), *known])
    if not isinstance(extra_options, Mapping):
        return extra_options
    for keyword in loose:
        if keyword in extra_options:
            expected = f"{keyword} either in extra_options or as a keyword, not both"
            raise ConfigError(problem(f"QConfig.{keyword}", loose[keyword], expected))
    return {**extra_options, **loose}
