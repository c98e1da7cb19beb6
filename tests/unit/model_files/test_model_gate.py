"""Every model is checked once, when it is read: the message names what is wrong; what onnxruntime runs passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from small_models import MODELS, build

from quark.onnx.errors import ModelError
from quark.onnx.model_files.model_file import load_model

Change = Callable[[onnx.ModelProto], object]


def chain() -> onnx.ModelProto:
    """x (N, 4) through MatMul with w, Add of b and an If, to y."""
    return build(
        """(float[N,4] x) => (float[N,4] y) {
            [product] p = MatMul(x, w)
            [plus] s = Add(p, b)
            [choice] c = If (yes) <
                then_branch = then_graph () => (float[N,4] t) { t = Relu(s) },
                else_branch = else_graph () => (float[N,4] e) { e = Neg(s) }
            >
            [last] y = Identity(c)
        }""",
        w=np.eye(4), b=np.ones(4), yes=np.asarray(True),
    )  # fmt: skip


def tensor(model: onnx.ModelProto, name: str = "w") -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def typed(model: onnx.ModelProto, **fields: object) -> None:
    """w gets other fields than raw_data."""
    w = tensor(model)
    w.CopyFrom(TensorProto(name="w", **fields))


def sparse(dims: list[int], values: list[float], indices: np.ndarray) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.remove(tensor(model))
        model.graph.sparse_initializer.append(
            onnx.SparseTensorProto(
                dims=dims,
                values=numpy_helper.from_array(np.array(values, np.float32), "w"),
                indices=numpy_helper.from_array(indices, "w_indices"),
            )
        )

    return change


def body(model: onnx.ModelProto) -> onnx.GraphProto:
    return model.graph.node[2].attribute[0].g


WRONG: dict[str, tuple[Change, str]] = {
    "negative dims": (lambda m: tensor(m).dims.__setitem__(0, -4), r"initializer 'w' has the negative dims \[-4, 4\]"),
    "dims that overflow": (lambda m: tensor(m).dims.extend([2**40, 2**40]), "'w' has the dims .* no memory"),
    "dims that overflow beside a zero": (lambda m: tensor(m).dims.extend([0, 2**62, 2**62]), "'w' .* no memory"),
    "dims that lie": (
        lambda m: tensor(m).dims.append(2**29), r"'w' is cut short: FLOAT of dims .* has 64 of \d+ bytes"),
    "too much data": (lambda m: tensor(m).dims.__setitem__(0, 3), "'w' holds too much: .* has 64 of 48 bytes"),
    "an unknown type": (lambda m: setattr(tensor(m), "data_type", 99), "'w' has the data type 99"),
    "no type": (lambda m: setattr(tensor(m), "data_type", 0), "'w' has the data type 0"),
    "floats in the field of integers": (
        lambda m: typed(m, dims=[4, 4], data_type=1, int32_data=range(16)), "has 0 of 16 entries of float_data"),
    "half of the integers": (
        lambda m: typed(m, dims=[4, 4], data_type=TensorProto.INT8, int32_data=range(8)), "has 8 of 16 entries"),
    "complex numbers without their second halves": (
        lambda m: typed(m, dims=[2], data_type=TensorProto.COMPLEX64, float_data=[1, 2]), "has 2 of 4 entries"),
    "4 bits, one byte short": (
        lambda m: typed(m, dims=[3, 3], data_type=TensorProto.INT4, raw_data=bytes(4)), "has 4 of 5 bytes"),
    "2 bits, one byte too many": (
        lambda m: typed(m, dims=[3, 3], data_type=TensorProto.UINT2, int32_data=[0] * 4), "has 4 of 3 entries"),
    "strings as bytes": (
        lambda m: typed(m, dims=[4], data_type=TensorProto.STRING, raw_data=b"abcd"), "holds strings as raw data"),
    "too few strings": (
        lambda m: typed(m, dims=[4], data_type=TensorProto.STRING, string_data=[b"a"]), "has 1 of 4 entries"),
    "a segment": (lambda m: setattr(tensor(m).segment, "begin", 0), "'w' is stored in segments"),
    "data elsewhere": (
        lambda m: setattr(tensor(m), "data_location", TensorProto.EXTERNAL), "pass the model's path|in ''"),
    "sparse index -1": (sparse([4, 4], [1, 2], np.array([0, -1])), "indices that are negative or lie outside"),
    "sparse index beyond": (sparse([4, 4], [1, 2], np.array([[0, 0], [1, 4]])), "negative or lie outside"),
    "sparse without an index": (sparse([4, 4], [1, 2], np.array([0])), r"indices of dims \[1\] for 2 values"),
    "sparse of 64 GiB": (sparse([2**27, 2**27], [1], np.array([0])), "'w', dense, takes .* GiB"),
    "a constant of a node that lies": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["k"], name="const", value=TensorProto(
            dims=[5], data_type=1, float_data=[1]))), "the attribute 'value' of node 'const' .* 1 of 5"),
    "a tensor made twice": (lambda m: m.graph.node[1].output.__setitem__(0, "p"), r"node 'plus' \(Add\) makes 'p'"),
    "a node that makes an input": (
        lambda m: m.graph.node[1].output.__setitem__(0, "x"), "'plus' .* makes 'x', as an i"),
    "an input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "two tensors have the name 'x'"),
    "an input without a name": (lambda m: setattr(m.graph.input[0], "name", ""), "an input has no name"),
    "an initializer without a name": (lambda m: setattr(tensor(m, "b"), "name", ""), "an initializer has no name"),
    "a tensor that nobody makes": (
        lambda m: m.graph.node[1].input.__setitem__(1, "lost"), r"node 'plus' \(Add\) reads 'lost', which"),
    "the same in a body": (
        lambda m: body(m).node[0].input.__setitem__(0, "lost"), "in the body 'then_branch' of node 'choice' .*'lost'"),
    "an output that nobody makes": (lambda m: setattr(m.graph.output[0], "name", "z"), "the output 'z' is made by no"),
    "no output": (lambda m: m.graph.ClearField("output"), "has no output"),
    "a circle": (
        lambda m: m.graph.node[0].input.__setitem__(0, "s"),
        r"circle: node 'plus'.* -> node 'product'.* -> node 'plus'"),
    "a circle of one": (lambda m: m.graph.node[1].input.__setitem__(0, "s"), r"circle: node 'plus'.* -> node 'plus'"),
    "an attribute of a caller": (
        lambda m: m.graph.node[1].attribute.add(name="k", ref_attr_name="outer", type=2), "'k' stands for 'outer'"),
    "an attribute of a wrong type": (
        lambda m: m.graph.node[3].__setattr__("op_type", "Flatten") or m.graph.node[3].attribute.append(
            helper.make_attribute("axis", "one")), "not valid ONNX: .*axis"),
    "an attribute twice": (
        lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("k", 1)] * 2), "two tensors .*'k'|'k'"),
    "an operator that is not there": (
        lambda m: setattr(m.graph.node[1], "op_type", "Plus9"), "not valid ONNX: .*Plus9"),
    "no op_type": (lambda m: setattr(m.graph.node[1], "op_type", ""), "has no op_type"),
    "a negative opset": (lambda m: setattr(m.opset_import[0], "version", -3), "opset .* is -3"),
    "no opset of ONNX": (lambda m: setattr(m.opset_import[0], "domain", "com.example"), "does not say which opset"),
    "an input of 8 EiB": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 2**60), "'x' takes .* GiB"),
    "an input of an unknown type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77), "'x' has the data type 77"),
    "an input that is a sequence": (
        lambda m: m.graph.input.append(helper.make_tensor_sequence_value_info("seq", 1, None)),
        r"the input 'seq' is a sequence, .* tensors only: .*extract_model"),
    "an input that is optional": (
        lambda m: m.graph.input.append(helper.make_value_info("maybe", helper.make_optional_type_proto(
            helper.make_tensor_type_proto(1, [2])))), "the input 'maybe' is optional, "),
    "an input that is a map": (
        lambda m: m.graph.input.append(helper.make_value_info("scores", helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(1, ())))), "the input 'scores' is a map, "),
    "an input without a type": (
        lambda m: m.graph.input[0].type.tensor_type.ClearField("elem_type"), "the input 'x' has no element type"),
    "a constant of 4 EiB": (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.array([2**30, 2**30]), "size"))
        and m.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["big"], name="fill")), "'fill' .* GiB"),
}  # fmt: skip


@pytest.mark.parametrize("as_file", [False, True], ids=["proto", "file"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_is_refused_and_says_why(case: str, as_file: bool, tmp_path: Path) -> None:
    change, message = WRONG[case]
    model = chain()
    change(model)
    given: onnx.ModelProto | Path = model
    if as_file:
        given = tmp_path / "wrong.onnx"
        given.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"the float model.*: .*{message}|{message}"):
        load_model(given, role="float model")


@pytest.mark.parametrize("text", [b"product", b"a comment", b"a tool", b"a graph"])
def test_what_is_no_text(text: bytes, tmp_path: Path) -> None:
    """The name of a tensor, and properties."""
    model = chain()
    model.producer_name, model.graph.doc_string = "a tool", "a graph"
    onnx.helper.set_model_props(model, {"comment": "a comment"})
    content = model.SerializeToString().replace(text, b"\xff\xfe" + text[2:])
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"UTF-8|utf-8"):
        load_model(tmp_path / "m.onnx", role="model")


def test_functions_that_call_each_other_without_end() -> None:
    model = chain()
    for name, other in (("F", "G"), ("G", "F")):
        node = helper.make_node(other, ["a"], ["b"], domain="mine")
        model.functions.append(
            helper.make_function("mine", name, ["a"], ["b"], [node], [helper.make_opsetid("mine", 1)])
        )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ModelError, match=r"recursive: 'F' calls 'G' calls 'F'|recursive: 'G' calls 'F' calls 'G'"):
        load_model(model, role="model")


def test_a_function_that_is_given_more_than_it_takes() -> None:
    model = chain()
    node = helper.make_node("Neg", ["a"], ["b"])
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "mine"
    with pytest.raises(ModelError, match=r"node 'plus' \(F\) has 2 inputs and 1 outputs: .* has 1 and 1"):
        load_model(model, role="model")
    del model.graph.node[1].input[1]
    assert load_model(model, role="model") == model


def result(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@given(st.permutations(range(4)))
@settings(deadline=None)
def test_nodes_are_put_in_order(order: list[int]) -> None:
    model, x = chain(), np.arange(8, dtype=np.float32).reshape(2, 4) - 3
    wanted, nodes = result(model, {"x": x}), list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes[index] for index in order)
    loaded = load_model(model, role="model")
    assert [node.name for node in loaded.graph.node] == ["product", "plus", "choice", "last"]
    onnx.checker.check_model(loaded, full_check=True)
    np.testing.assert_array_equal(result(loaded, {"x": x}), wanted)


def test_nodes_in_order_stay_where_they_are() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { b = Neg(x) a = Relu(x) d = Abs(x) c = Add(a, b) y = Add(c, d) }"
    model = build(text)
    assert load_model(model, role="model") == model


def test_a_body_may_use_a_name_that_the_graph_makes_later() -> None:
    model = chain()
    for branch in model.graph.node[2].attribute:
        branch.g.node[0].output[0] = branch.g.output[0].name = "y"
    assert load_model(model, role="model") == model


def test_the_last_of_two_initializers_of_one_name_counts() -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 7, np.float32), "b"))
    loaded = load_model(model, role="model")
    assert [t.name for t in loaded.graph.initializer].count("b") == 1
    np.testing.assert_array_equal(numpy_helper.to_array(tensor(loaded, "b")), 7)


def test_a_node_without_outputs_is_taken_out() -> None:
    model = chain()
    model.graph.node.append(helper.make_node("MatMul", ["x", "w"], [], name="useless"))
    assert [node.name for node in load_model(model, role="model").graph.node][-1] == "last"


@pytest.mark.parametrize("name", MODELS)
def test_models_pass_as_they_are(name: str) -> None:
    model = MODELS[name]()
    assert load_model(model, role="model") == model


def test_onnx_own_test_models_pass_where_onnxruntime_runs_them() -> None:
    """Refused are those with inputs that are no tensors, and what onnxruntime refuses as well."""
    models = [case.model for case in collect_testcases(None)[::7]]
    refused = [(model, message) for model in models if (message := objection(model))]
    assert len(refused) < len(models) // 20
    for model, message in refused:
        if "data is taken for tensors only" not in message:
            assert not runs(model), message


def objection(model: onnx.ModelProto) -> str:
    try:
        load_model(model, role="model")
    except ModelError as error:
        return str(error)
    return ""


def runs(model: onnx.ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options)
    except Exception:  # onnxruntime's exceptions have no base of their own
        return False
    return True


# ---- files ---------------------------------------------------------------------------------------


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="is no regular file"):
        load_model(tmp_path / "pipe.onnx", role="model")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a model, model/m.onnx, whose weight lies in model/w.bin; and a file beside the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    (tmp_path / "secret").write_bytes(bytes(64))
    save(folder, location="w.bin")
    return folder


def save(folder: Path, **entries: str) -> None:
    model = chain()
    w = tensor(model)
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        w.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def test_external_data_is_read(outside: Path) -> None:
    loaded = load_model(outside / "m.onnx", role="model")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor(loaded)), np.eye(4))
    assert loaded.graph.node == chain().graph.node


EXTERNAL = {
    "the folder above": ({"location": "../secret"}, "only files in the model's own folder"),
    "the folder above, by a detour": ({"location": "a/../../secret"}, "only files in the model's own folder"),
    "an absolute path": ({"location": "/etc/passwd"}, "only files in the model's own folder"),
    "a link that leaves": ({"location": "link"}, "a link that leaves the model's folder"),
    "a folder": ({"location": "."}, "is no regular file"),
    "a pipe": ({"location": "pipe"}, "is no regular file"),
    "no name": ({"location": ""}, "no name of a file"),
    "NUL": ({"location": "w\0"}, "no name of a file"),
    "no such file": ({"location": "absent"}, "there is no such file"),
    "an offset beyond": ({"location": "w.bin", "offset": "4"}, r"takes 64 bytes: 64 are to be read from 4 on"),
    "a negative offset": ({"location": "w.bin", "offset": "-4"}, "from -4 on"),
    "text": ({"location": "w.bin", "offset": "four"}, "the offset 'four', which is no number"),
    "another length": ({"location": "w.bin", "length": "60"}, "60 are to be read"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data_elsewhere_is_not_read(case: str, outside: Path) -> None:
    entries, message = EXTERNAL[case]
    (outside / "link").symlink_to("../secret")
    os.mkfifo(outside / "pipe")
    save(outside, **entries)
    with pytest.raises(ModelError, match=message):
        load_model(outside / "m.onnx", role="model")
