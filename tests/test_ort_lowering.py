"""Q/DQ graphs rearranged for onnxruntime: the same numbers, or stated noise, on INT8 kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from calibration.qdq import convolutions, insert_qdq
from edge.models.zoo import load_model
from edge.runtime.backend_ort import OrtBackend
from edge.runtime.onnx_proto import model_class
from edge.runtime.ort_lowering import fold_weights, is_quantized, lower
from export.graph.writer import attach_manifest, write_onnx
from tests.support.small_models import CFG, decibel, picture, run, write_small
from tests.support.tolerances import (
    BRANCH_DB,
    FLIPPED_DB,
    HALF_STEP_SHARE,
    LOWERED_DB,
    LOWERED_LOSS_DB,
    ORT_ATOL,
)

OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
HW = (64, 96)
DATA = ["yolo-fastest-1.1", "mbv2-yolov3-nano-coco"]
MODELS = ["small", "yolov3-tiny", "yolov4-tiny", "squeezedet-kitti", *DATA]
Networks = tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]


def ranges(model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """The largest magnitude of each convolution's input, as `minmax` finds it."""
    names = list(dict.fromkeys(node.input[0] for node in convolutions(model)))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inner = [name for name in names if name != "images"]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    found = {"images": float(np.abs(images).max())}
    for image in images:
        for name, value in zip(inner, run(probe, image[None], inner), strict=True):
            found[name] = max(found.get(name, 0.0), float(np.abs(value).max()))
    return found


def of_the_zoo(name: str, path: Path) -> np.ndarray:
    """Random weights, at a small size."""
    loaded = load_model(name, random_weights=True, hw=HW)
    write_onnx(loaded.module, loaded.spec, path)
    images = picture(HW, count=3)
    return images if name != "squeezedet-kitti" else (images * 255 - 110).astype(np.float32)


def of_the_data(name: str, path: Path, edge_data: Path) -> np.ndarray:
    """Trained weights: with random ones so many depthwise layers are mostly noise in INT8."""
    loaded = load_model(edge_data / "weights" / f"{name}.cfg", hw=(128, 128))
    write_onnx(loaded.module, loaded.spec, path)
    photos = [cv2.imread(str(edge_data / "photos" / f)) for f in ("dog.jpg", "horses.jpg")]
    return cv2.dnn.blobFromImages(photos, 1 / 255, (128, 128), swapRB=True)


@pytest.fixture(scope="module", params=MODELS)
def networks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """FP32 model, INT8 model, picture."""
    path = tmp_path_factory.mktemp("lowering") / "a.onnx"
    if request.param == "small":
        write_small(path)
        images = picture((48, 64), count=3)
    elif request.param in DATA:
        images = of_the_data(request.param, path, request.getfixturevalue("edge_data"))
    else:
        images = of_the_zoo(request.param, path)
    model = onnx.load(str(path))
    return model, insert_qdq(model, ranges(model, images)), images[:1]


def outputs(model: Any, image: np.ndarray, names: list[str], **options: Any) -> list[np.ndarray]:
    return run(model, image, names, **options)


def heads(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def bytes_of(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def test_folding_changes_no_number(networks: Networks) -> None:
    _, int8, image = networks
    folded = fold_weights(bytes_of(int8))
    names = heads(int8)
    # Node by node, without fusions, the graphs must be equal to the last bit.
    plain = outputs(int8, image, names, graph_optimization_level=OFF)
    for mine, wanted in zip(
        outputs(folded, image, names, graph_optimization_level=OFF), plain, strict=True
    ):
        assert np.array_equal(mine, wanted)
        assert wanted.std() > 0
    model = onnx.load_from_string(folded)
    onnx.checker.check_model(model, full_check=True)
    assert all(not node.input[1].endswith(".dequantized") for node in convolutions(model))


def optimized(model: bytes, image: np.ndarray, path: Path) -> Counter[str]:
    """Operations of the graph that onnxruntime runs."""
    run(model, image, optimized_model_filepath=str(path))
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def feeds_a_convolution(model: onnx.ModelProto, tensor: str) -> bool:
    """Through an activation and what moves values alone: only there is a scale known."""
    through = ("LeakyRelu", "Relu", "MaxPool", "Resize", "Slice", "Concat")
    for node in model.graph.node:
        if tensor not in node.input:
            continue
        if node.op_type == "Conv":
            return True
        if node.op_type in through and feeds_a_convolution(model, node.output[0]):
            return True
    return False


def test_every_convolution_that_feeds_one_gets_an_int8_kernel(
    networks: Networks, tmp_path: Path
) -> None:
    """All but the heads, those that a sum reads (no scale is known for what it adds), and the
    first, which sees a picture's three channels."""
    model, int8, image = networks
    found = optimized(lower(bytes_of(int8)), image, tmp_path / "a.onnx")
    added = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    made = [node.output[0] for node in convolutions(model)]
    wanted = sum(feeds_a_convolution(model, name) for name in made if name not in added)
    if "Add" not in {node.op_type for node in model.graph.node}:
        assert wanted == len(convolutions(model)) - len(heads(model))
    assert wanted > 0.6 * len(convolutions(model))
    wanted -= 1
    assert found["QLinearConv"] == wanted
    assert found["Conv"] + found["FusedConv"] == len(convolutions(model)) - wanted


def test_what_stays_float_reads_its_weights_as_constants(networks: Networks) -> None:
    """Nothing is dequantized for every frame."""
    found = onnx.load_from_string(lower(bytes_of(networks[1])))
    kinds = {each.name: each.data_type for each in found.graph.initializer}
    readers = {name: node for node in found.graph.node for name in node.input}
    floats = 0
    for node in convolutions(found):
        after = readers.get(node.output[0])
        if after is None or after.op_type != "QuantizeLinear":
            assert kinds[node.input[1]] == onnx.TensorProto.FLOAT
            floats += 1
    assert floats >= len(found.graph.output)


def test_lowering_costs_no_more_than_stated(networks: Networks) -> None:
    model, int8, image = networks
    names = heads(model)
    exact = outputs(fold_weights(bytes_of(int8)), image, names)
    fast = outputs(lower(bytes_of(int8)), image, names)
    fp32 = outputs(model, image, names)
    for mine, wanted, reference in zip(fast, exact, fp32, strict=True):
        quantization = decibel(reference, wanted)
        assert 14 < quantization < 60
        assert decibel(wanted, mine) > quantization - LOWERED_LOSS_DB
        assert decibel(reference, mine) > quantization - LOWERED_LOSS_DB


def test_lowered_graphs_are_valid_and_keep_names_and_metadata(networks: Networks) -> None:
    _, int8, _ = networks
    int8.metadata_props.add(key="author", value="me")
    for change in (lower, fold_weights):
        found = onnx.load_from_string(change(bytes_of(int8)))
        onnx.checker.check_model(found, full_check=True)
        assert [str(v) for v in found.graph.input] == [str(v) for v in int8.graph.input]
        assert [str(v) for v in found.graph.output] == [str(v) for v in int8.graph.output]
        assert found.metadata_props == int8.metadata_props
        assert found.opset_import == int8.opset_import
        named = [node.name for node in found.graph.node]
        assert len(set(named)) == len(named)
        made = [name for node in found.graph.node for name in node.output]
        assert len(set(made)) == len(made)
        kept = {node.name for node in int8.graph.node if node.op_type == "Conv"}
        assert kept <= set(named)


def test_lowered_twice_is_lowered_once(networks: Networks) -> None:
    _, int8, image = networks
    once = lower(bytes_of(int8))
    names = heads(int8)
    for mine, wanted in zip(run(lower(once), image, names), run(once, image, names), strict=True):
        assert decibel(wanted, mine) > 40


def one_branch(names: dict[str, float], middle: str, **attributes: Any) -> onnx.ModelProto:
    """images -> Conv a -> `middle` -> Convs b and c of one tensor, and d of what `a` gave."""
    rng = np.random.default_rng(0)
    weights, nodes = [], []

    def conv(source: str, name: str, into: int, out: int) -> None:
        weight = rng.normal(0, 0.5, (out, into, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.zeros(out, np.float32), f"{name}.bias"))
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name))

    conv("images", "a", 3, 4)
    nodes.append(helper.make_node(middle, ["a"], ["m"], name="m", **attributes))
    conv("m", "b", 4, 4)
    conv("m", "c", 4, 4)
    conv("a", "d", 4, 4)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("b", "c", "d")
    ]
    source = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph(nodes, "branch", [source], values, weights)
    opset = [helper.make_opsetid("", 19)]
    return insert_qdq(helper.make_model(graph, opset_imports=opset, ir_version=9), names)


@pytest.mark.parametrize(("at_a", "at_m"), [(1, 1), (1, 0.3), (0.3, 1)])
@pytest.mark.parametrize(
    ("middle", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.1}),
        ("Relu", {}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ],
)
def test_branches_of_different_scales_stay_apart(
    middle: str, attributes: dict[str, Any], at_a: float, at_m: float
) -> None:
    """`a` is read by `d` at one scale and, through `middle`, by `b` and `c` at another.

    Each clips what it was told to clip, and nothing of the other's.
    """
    image = np.random.default_rng(1).uniform(0, 1, (1, 3, 8, 8)).astype(np.float32)
    probe = one_branch({"images": 1.0, "m": 1.0, "a": 1.0}, middle, **attributes)
    probe.graph.output.append(helper.make_empty_tensor_value_info("a"))
    peak = float(np.abs(run(probe, image, ["a"])[0]).max())
    amax = {"images": 1.0, "m": at_m * peak, "a": at_a * peak}
    int8 = one_branch(amax, middle, **attributes)
    exact = run(fold_weights(bytes_of(int8)), image)
    fast = run(lower(bytes_of(int8)), image)
    for mine, wanted in zip(fast, exact, strict=True):
        assert decibel(wanted, mine) > BRANCH_DB


def test_mostly_negative_values_in_front_of_leaky_are_not_clipped() -> None:
    """They come out of it a tenth as large, so the range behind it says little about them."""
    rng = np.random.default_rng(0)
    first = -np.abs(rng.normal(0, 0.5, (4, 3, 1, 1))).astype(np.float32)
    first[0] *= -0.3
    second = rng.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "v"], ["a"], name="a"),
        helper.make_node("LeakyRelu", ["a"], ["m"], name="m", alpha=0.1),
        helper.make_node("Conv", ["m", "w"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(first, "v"), numpy_helper.from_array(second, "w")],
    )
    opset = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    image = rng.uniform(0, 1, (1, 3, 8, 8)).astype(np.float32)
    int8 = insert_qdq(model, ranges(model, image[:1]))
    (exact,) = run(fold_weights(bytes_of(int8)), image)
    low = float(np.einsum("oi,nihw->nohw", first[:, :, 0, 0], image).min()) * 0.1
    (fast,) = run(lower(bytes_of(int8), {"m": low}), image)
    assert decibel(run(model, image)[0], exact) > 40
    assert decibel(exact, fast) > BRANCH_DB


def test_quantizers_move_through_pooling_without_a_change() -> None:
    int8 = one_branch(
        {"images": 1.0, "m": 2.0, "a": 2.0}, "MaxPool", kernel_shape=[2, 2], strides=[2, 2]
    )
    image = np.random.default_rng(1).uniform(0, 1, (1, 3, 8, 8)).astype(np.float32)
    exact, fast = run(fold_weights(bytes_of(int8)), image), run(lower(bytes_of(int8)), image)
    for mine, wanted in zip(fast, exact, strict=True):
        # The kernels sum in integers: a value on the edge of two levels may fall to the other.
        assert (np.abs(mine - wanted) > ORT_ATOL).mean() <= HALF_STEP_SHARE


def test_a_graph_without_quantizers_is_loaded_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: bytes) -> bytes:
        raise AssertionError("an FP32 graph was rearranged")

    monkeypatch.setattr("edge.runtime.backend_ort.lower", never)
    monkeypatch.setattr("edge.runtime.backend_ort.fold_weights", never)
    write_small(tmp_path / "a.onnx")
    assert not is_quantized((tmp_path / "a.onnx").read_bytes())
    image = picture((48, 64))
    for exact in (False, True):
        with OrtBackend(tmp_path / "a.onnx", threads=1, exact=exact) as backend:
            assert "INT8" not in backend.name
            for mine, wanted in zip(
                backend.run(image), run(tmp_path / "a.onnx", image), strict=True
            ):
                assert np.array_equal(mine, wanted)


def test_a_quantized_graph_runs_on_int8_kernels_or_as_written(tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    image = picture((48, 64))
    int8 = insert_qdq(model, ranges(model, image))
    attach_manifest(int8, manifest)
    onnx.save(int8, str(tmp_path / "b.onnx"))
    assert is_quantized(bytes_of(int8))
    with OrtBackend(tmp_path / "b.onnx", threads=1) as backend:
        assert "INT8 kernels" in backend.name
        fast = backend.run(image)
    with OrtBackend(tmp_path / "b.onnx", threads=1, exact=True) as backend:
        assert "as written" in backend.name
        exact = backend.run(image)
    wanted = run(int8, image, heads(int8), graph_optimization_level=OFF)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    plain = onnxruntime.InferenceSession(bytes_of(int8), options).run(
        heads(int8), {"images": image}
    )
    for one, two, same, reference in zip(fast, exact, plain, wanted, strict=True):
        np.testing.assert_allclose(two, same, atol=ORT_ATOL * np.abs(same).max())
        # Node by node sums have another order, and a level on the edge may fall to the other side.
        assert decibel(reference, two) > FLIPPED_DB
        assert decibel(reference, one) > LOWERED_DB


def test_kept_convolutions_stay_float_when_lowered(tmp_path: Path) -> None:
    write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    image = picture((48, 64))
    names = [node.name for node in convolutions(model)]
    for keep in (names[:1], names[2:4], names[1::2], names[:-1]):
        mixed = insert_qdq(model, ranges(model, image), keep=keep)
        fast, exact = lower(bytes_of(mixed)), fold_weights(bytes_of(mixed))
        for mine, wanted in zip(
            run(fast, image, heads(model)), run(exact, image, heads(model)), strict=True
        ):
            assert decibel(wanted, mine) > LOWERED_DB
        found = optimized(fast, image, tmp_path / "o.onnx")
        assert found["Conv"] + found["FusedConv"] >= len(keep)


@pytest.mark.parametrize("act", ["leaky", "relu", "relu6", "linear", "mish", "swish", "logistic"])
def test_any_activation_is_lowered_to_the_same_network(tmp_path: Path, act: str) -> None:
    cfg = CFG.replace("activation=leaky", f"activation={act}")
    write_small(tmp_path / "a.onnx", cfg)
    model = onnx.load(str(tmp_path / "a.onnx"))
    image = picture((48, 64))
    int8 = insert_qdq(model, ranges(model, image))
    fast, exact = lower(bytes_of(int8)), fold_weights(bytes_of(int8))
    for mine, wanted in zip(
        run(fast, image, heads(model)), run(exact, image, heads(model)), strict=True
    ):
        assert decibel(wanted, mine) > LOWERED_DB


def test_weights_over_a_picture_keep_a_scale_for_each_channel(tmp_path: Path) -> None:
    """Between a dequantizer and ReLU onnxruntime rounds weights that are constants with one."""
    write_small(tmp_path / "a.onnx", CFG.replace("activation=leaky", "activation=relu"))
    model = onnx.load(str(tmp_path / "a.onnx"))
    first = convolutions(model)[0]
    stored = next(each for each in model.graph.initializer if each.name == first.input[1])
    weight = numpy_helper.to_array(stored).copy()
    weight[1:] /= 100
    stored.CopyFrom(numpy_helper.from_array(weight, stored.name))
    image = picture((48, 64))
    fast = lower(bytes_of(insert_qdq(model, ranges(model, image))))
    # Before the layout changes, a weight has the shape that it was given.
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    run(
        fast,
        image,
        graph_optimization_level=level,
        optimized_model_filepath=str(tmp_path / "o.onnx"),
    )
    ran = onnx.load(str(tmp_path / "o.onnx")).graph
    constants = {each.name: numpy_helper.to_array(each) for each in ran.initializer}
    kept = [
        one for one in constants.values() if one.shape == weight.shape and one.dtype.kind == "f"
    ]
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    assert any((np.abs(one - weight) <= 0.501 * steps).all() for one in kept)


def test_sums_of_large_products_do_not_overflow(tmp_path: Path) -> None:
    """255 x 127 + 255 x 127 is beyond the 16 bits that x86 without VNNI adds pairs in."""
    manifest = write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    for node in convolutions(model)[1:]:
        stored = next(each for each in model.graph.initializer if each.name == node.input[1])
        weight = np.abs(numpy_helper.to_array(stored))
        stored.CopyFrom(numpy_helper.from_array(np.full_like(weight, weight.mean()), stored.name))
    image = np.ones_like(picture((48, 64)))
    int8 = insert_qdq(model, ranges(model, image))
    attach_manifest(int8, manifest)
    onnx.save(int8, str(tmp_path / "b.onnx"))
    with OrtBackend(tmp_path / "b.onnx", threads=1) as fast:
        mine = fast.run(image)
    with OrtBackend(tmp_path / "b.onnx", threads=1, exact=True) as exact:
        for one, wanted in zip(mine, exact.run(image), strict=True):
            assert decibel(wanted, one) > LOWERED_DB


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "precise", "name"),
    [
        ("x86_64", "flags : fpu avx2 avx512_vnni\n", False, "(avx512_vnni)"),
        ("x86_64", "flags : fpu avx2 avx_vnni\n", False, "(avx_vnni)"),
        ("x86_64", "flags : avx512_vnni amx_int8\n", False, "(amx_int8)"),
        ("x86_64", "flags : fpu avx2 avx512f\n", True, "without VNNI"),
        ("x86_64", "flags : fpu avx2\n\nflags : avx512_vnni\n", True, "without VNNI"),
        ("AMD64", None, True, "without VNNI"),
        ("aarch64", "Features : fp asimd asimddp i8mm\n", False, "(i8mm)"),
        ("aarch64", "Features : fp asimd\n", False, "INT8 kernels"),
        ("arm64", None, False, "INT8 kernels"),
    ],
)
def test_only_a_cpu_whose_sums_overflow_gets_the_slower_int8_kernels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    cpuinfo: str | None,
    precise: bool,
    name: str,
) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    int8 = insert_qdq(model, ranges(model, picture((48, 64))))
    attach_manifest(int8, manifest)
    onnx.save(int8, str(tmp_path / "b.onnx"))
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("edge.runtime.cpu.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    entries: dict[str, str] = {}

    class Recorded(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            entries[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Recorded)
    with OrtBackend(tmp_path / "b.onnx", threads=1) as backend:
        assert backend.name.endswith(name)
    assert (entries.get("session.x64quantprecision") == "1") is precise


def test_a_weight_that_two_convolutions_share_is_folded_once(tmp_path: Path) -> None:
    block = CFG[CFG.index("[convolutional]\nbatch_normalize=1\nfilters=16\nsize=3\nstride=1") :]
    block = block[: block.index("[shortcut]")]
    manifest = write_small(tmp_path / "a.onnx", CFG.replace(block, 2 * block).replace("=-2", "=-3"))
    model = onnx.load(str(tmp_path / "a.onnx"))
    alike: dict[tuple[int, ...], Any] = {}
    shared = []
    sizes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for node in convolutions(model):
        first = alike.setdefault(sizes[node.input[1]], node)
        if first is not node:
            node.input[1] = first.input[1]
            shared.append(node.name)
    assert shared
    image = picture((48, 64))
    int8 = insert_qdq(model, ranges(model, image))
    attach_manifest(int8, manifest)
    onnx.save(int8, str(tmp_path / "b.onnx"))
    with OrtBackend(tmp_path / "b.onnx", threads=1, exact=True) as backend:
        for one, wanted in zip(backend.run(image), run(model, image), strict=True):
            assert decibel(wanted, one) > 20


def test_the_small_schema_carries_every_other_field_along(networks: Networks) -> None:
    for model in networks[:2]:
        data = bytes_of(model)
        again = onnx.load_from_string(bytes(model_class().FromString(data).SerializeToString()))
        assert again == model
