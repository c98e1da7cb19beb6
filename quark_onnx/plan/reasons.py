"""Why a layer is left as it is: all there is, in the words of the report and of docs/supported.md."""

from __future__ import annotations

from enum import Enum
from typing import NewType

__all__ = ["Reason", "Why"]

Why = NewType("Why", str)  # made here and nowhere else


class Reason(Enum):
    """A reason, with places for what it is about, and what it means for the user.

    Attributes:
        text: of the report.
        advice: of docs/supported.md.
    """

    text: str
    advice: str

    def __init__(self, text: str, advice: str) -> None:
        self.text, self.advice = text, advice

    def why(self, **about: object) -> Why:
        """The text with its places filled.

        Raises:
            KeyError: one of them is not given.
        """
        return Why(self.text.format(**about))

    # The node.
    IN_BODY = (
        "it lies in the body of {op_type} {name!r}: only layers of the main graph are tuned",
        "Bodies of If, Loop and Scan are not quantized. A constant If can be folded before.",
    )
    UNKNOWN_KIND = (
        "this kind of layer is not tuned yet",
        "More than three spatial axes, MatMul by a vector, an attribute or a domain that is not in the tables above.",
    )
    OTHER_OPERATOR = ("no solver tunes the weights of this operator", "They stay in float.")
    WEIGHT_FIRST_IN_GEMM = (
        "its weight is the first input of Gemm: only that of MatMul is tuned there",
        "Write it as a MatMul, or transpose it.",
    )
    STACK_OF_MATRICES = (
        "its weight is a stack of matrices",
        "MatMul by a constant of three or more axes: one product per batch entry.",
    )
    ALPHA_0 = ("Gemm with alpha 0 has no weight to tune", "The output is the bias.")
    CONSTANT_INPUT = ("its input is constant", "The output does not depend on the data.")
    CONSTANT_TARGET = ("its float output is constant", "The same, in the float model.")

    # The weight.
    WEIGHT_COMPUTED = (
        "its weight is computed by the model, not constant",
        "A product of two activations, as in attention.",
    )
    WEIGHT_IN_ANOTHER_FORM = (
        "its weight is neither a float32 initializer nor an integer one behind DequantizeLinear",
        "Something stands between, as a Transpose of a weight that another node reads too, or Q and DQ of floats.",
    )
    WEIGHT_NOT_QUANTIZED = (
        "its weight is not quantized",
        "The node is excluded, or its operator not quantized: see `ExtraOpTypesToQuantize`.",
    )
    WEIGHT_TYPE = (
        "weights of type {type} are not tuned yet",
        "The integers are of a type not in the table of formats.",
    )
    WEIGHT_SCALE = (
        "its weight scale is neither one constant per tensor nor one per output channel or block",
        "Scales along the inputs, or computed by the model.",
    )
    ANOTHER_WEIGHT = (
        "its weight is not near that of the float model: was another float model quantized?",
        "finetune() was given two models that are not one.",
    )
    NOT_IN_FLOAT_MODEL = (
        "the float model has no such layer: neither its name, its output's nor its weight's is there",
        "The tool that quantized the model joined or split layers.",
    )
    WEIGHT_IS_OUTPUT = ("its weight {weight!r} is an output of the model too", "Tuning would change that output.")
    WEIGHT_READ_ELSEWHERE = (
        "its weight {weight!r} is read by {op_type} {name!r} too, which is not tuned",
        "Tuning would change what that node does, as an embedding whose table is the last layer's weight.",
    )
    WEIGHT_ARRANGED_OTHERWISE = (
        "its weight is arranged in another way in {first!r} than in {other!r}",
        "Layers share a weight, one of them transposed, with other groups, or with other scales.",
    )
    SHARED_WEIGHT = (
        "it shares its weight with {others}, and {but}",
        '`solver="gradient"` and `selective_update` take one layer at a time.',
    )

    # The bias.
    BIAS_COMPUTED = ("its bias is computed by the model, not constant", "The third input depends on the data.")
    BIAS_IN_ANOTHER_FORM = (
        "its bias is neither a float32 initializer nor an integer one behind DequantizeLinear",
        "Another node stands between.",
    )
    BIAS_SCALE = (
        "its bias is not one integer per output, quantized with constant scales",
        "A scalar, or a matrix; or its scale is computed.",
    )
    BIAS_TYPE = ("a bias of type {type} is not tuned yet", "Integers of 4 or 2 bits.")
    BIAS_PER_ROW = ("its bias differs from row to row", "The third input of Gemm is a matrix.")

    # Bias correction.
    NO_BIAS = ("it has no bias", "Only integers that are there are changed.")
    BIAS_NOT_OWN = ("its bias is not an integer initializer of its own", "It stayed in float, or is shared.")

    # Normalizations.
    BIAS_SHAPE = ("its bias has the shape {bias}, its scale {scale}", "One broadcasts along axes that the other has.")
    TRAINING_MODE = (
        "in training mode it normalizes with the mean and variance of the batch",
        "Export the model for inference.",
    )
    STASH_TYPE = ("its mean and variance are {type} (stash_type), not FLOAT", "They are computed in 16 bits.")
    READ_TWICE = ("it reads {tensor!r} as two of its inputs", "Tuning the one would change the other.")
    STATISTICS = (
        "its mean or variance is neither a float32 initializer nor an integer one with one scale",
        "They are computed, or quantized per channel.",
    )

    # The options.
    EXCLUDED = ("it is excluded by the QConfig", "`exclude`, `layer_type_config` or `NodesToQuantize` names it.")
    NOT_THE_LARGEST = (
        "select_max_mem_layer: its data needs {size:.3g} MiB, that of {largest!r} {most:.3g} MiB",
        "Only the layer whose data needs the most memory was asked for.",
    )

    # The device.
    DEVICE = (
        "the device of optim_device failed while the layer's data was gathered: {problem}",
        "With `QUARK_ONNX_DEVICE_FALLBACK=1`; the CPU tunes the layers behind it.",
    )

    # What comes out when a layer was solved.
    NOTHING_BETTER = (
        "nothing is better than what was there on held-out rows (with the gradient solver: on all rows)",
        "No output gets closer to the float model's; more data may help.",
    )
    DATA_DOES_NOT_FIT = (
        "its data does not fit: {problem}",
        "The shapes at run time are not those of such a layer, or the gradient solver gets samples of several shapes.",
    )
    TOO_LARGE = (
        "least squares over its {inputs} inputs would take {needed:.0f} MiB of memory, and {free:.0f} MiB are free",
        'Give more memory (`MaxMemory`), or let the published loop take it: `solver="auto"` or "gradient".',
    )
    OUT_OF_MEMORY = (
        "out of memory: {problem}",
        "What was finetuned before stays. Give fewer samples (`data_size`), smaller items, or `mem_opt_level=2`.",
    )
    TAKEN_BACK = (
        "with it, the whole model is worse on the samples that it is compared on: {error}",
        "What is better for the layers is not for the whole. More data may help; `keep_worse=True` keeps the integers.",
    )
    MODEL_NOT_BETTER = (
        "the whole model did not get better: {change}",
        "`selective_update` gave the layer its old integers back.",
    )
