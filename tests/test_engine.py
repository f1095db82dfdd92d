"""Engines by the real TensorRT-RTX builder, and what is said when a build cannot be had."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.artifact import read_manifest
from edge.errors import ArtifactError, BuildError, MissingDependency
from edge.files import sha256_of
from edge.onnx_metadata import MANIFEST_KEY
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec
from export.engine.build import available_builders, build_engine
from export.engine.layer_report import (
    data_type,
    from_inspector,
    from_log,
    read_layer_report,
    summarise,
)
from export.engine.options import BuildOptions

onnx = pytest.importorskip("onnx")

SIDE = 32
SPEC = ModelSpec(
    "mini",
    "darknet",
    ("car", "van"),
    InputContract((SIDE, SIDE)),
    (HeadSpec.of_grid("head", "yolo", (SIDE, SIDE), ((4.0, 2.5),)),),
)
CONVOLUTIONS = ("body.0.conv", "body.1.conv", "head.conv")


def _manifest(precision: Any) -> Manifest:
    return Manifest(
        SPEC,
        precision,
        (TensorSpec("images", (1, 3, SIDE, SIDE)),),
        (TensorSpec("head", (1, 7, SIDE, SIDE)),),
        made_by=(("onnx", "1"),),
        arguments=(("opset", "19"),),
        labels=("random weights",),
    )


class _Graph:
    """Three convolutions with LeakyReLU between them: float, half, or INT8 by Q/DQ."""

    def __init__(self, precision: str) -> None:
        self.precision, self.nodes, self.weights = precision, [], []  # type: ignore[var-annotated]
        self.kind = np.float16 if precision == "fp16" else np.float32

    def node(self, operator: str, inputs: list[str], output: str, name: str, **values: Any) -> str:
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name=name, **values))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, x: str, name: str, output: str, shape: tuple[int, int, int, int]) -> str:
        weight = np.random.default_rng(len(self.nodes)).normal(0, 0.1, shape).astype(self.kind)
        bias = self.constant(f"{name}.bias", np.zeros(shape[0], self.kind))
        if self.precision == "int8":
            x, w = self.quantized(x, name), self.quantized_weight(weight, name)
        else:
            w = self.constant(f"{name}.weight", weight)
        pads = [shape[-1] // 2] * 4
        return self.node("Conv", [x, w, bias], output, name, pads=pads, kernel_shape=shape[2:])

    def quantized(self, x: str, name: str) -> str:
        scale = self.constant(f"{name}.s", np.float32(0.02))
        zero = self.constant(f"{name}.z", np.int8(0))
        q = self.node("QuantizeLinear", [x, scale, zero], f"{x}.q", f"{name}.quantize")
        return self.node("DequantizeLinear", [q, scale, zero], f"{x}.dq", f"{name}.dequantize")

    def quantized_weight(self, weight: Any, name: str) -> str:
        scales = np.abs(weight).max((1, 2, 3)) / 127
        stored = np.round(weight / scales[:, None, None, None]).astype(np.int8)
        q = self.constant(f"{name}.weight", stored)
        scale = self.constant(f"{name}.ws", scales.astype(np.float32))
        zero = self.constant(f"{name}.wz", np.zeros(len(scales), np.int8))
        return self.node("DequantizeLinear", [q, scale, zero], f"{name}.w", f"{name}.wdq", axis=0)

    def model(self, manifest: Manifest | None, channels: int = 8) -> Any:
        half, x = self.precision == "fp16", "images"
        if half:
            x = self.node("Cast", [x], "images.half", "in", to=onnx.TensorProto.FLOAT16)
        for index, taken in enumerate((3, channels)):
            name = f"body.{index}.conv"
            x = self.conv(x, name, f"{name}.out", (channels, taken, 3, 3))
            x = self.node("LeakyRelu", [x], f"body.{index}.out", f"body.{index}.act", alpha=0.1)
        x = self.conv(x, "head.conv", "raw" if half else "head", (7, channels, 1, 1))
        if half:
            self.node("Cast", [x], "head", "out", to=onnx.TensorProto.FLOAT)
        return self.finish(manifest)

    def finish(self, manifest: Manifest | None) -> Any:
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self.nodes,
            "mini",
            [info("images", kind, [1, 3, SIDE, SIDE])],
            [info("head", kind, [1, 7, SIDE, SIDE])],
            self.weights,
        )
        opset = [onnx.helper.make_opsetid("", 19)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
        if manifest is not None:
            onnx.helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})
        return model


def _onnx(folder: Path, precision: str, channels: int = 8, manifest: bool = True) -> Path:
    path = folder / f"mini.{precision}.onnx"
    model = _Graph(precision).model(_manifest(precision) if manifest else None, channels)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float"), ("fp16", "half")])
def test_the_graphs_precision_is_the_engines(tmp_path: Path, precision: str, dtype: str) -> None:
    path = _onnx(tmp_path, precision)
    report = build_engine(path, tmp_path / "out" / "mini.engine", BuildOptions("rtx"))
    assert report.summary.taking(dtype) == CONVOLUTIONS
    assert _names(tmp_path / "out") == [
        "mini.engine",
        "mini.engine.json",
        "mini.engine.layers.json",
    ]


@pytest.mark.usefixtures("rtx")
def test_an_int8_engine_tells_what_it_is(tmp_path: Path) -> None:
    path, target = _onnx(tmp_path, "int8"), tmp_path / "mini.int8.engine"
    steps: list[tuple[str, int, int]] = []
    report = build_engine(
        path,
        target,
        BuildOptions("rtx", workspace_mib=256, targets=("SM86", "SM89")),
        progress=lambda *step: steps.append(step),
    )
    assert report.summary.taking("int8") == CONVOLUTIONS
    assert report.builder == "tensorrt_rtx" and report.reason == "asked for"
    assert report.seconds > 0 and report.peak_rss_mib > 50
    assert len(steps) > 20 and all(0 <= step <= of for _, step, of in steps)

    manifest = read_manifest(target)
    assert manifest == report.manifest
    assert manifest.spec == SPEC and manifest.precision == "int8"
    assert manifest.labels == ("random weights",)
    assert manifest.sha256 == sha256_of(target) and manifest.parent_sha256 == sha256_of(path)
    made_by, arguments = dict(manifest.made_by), dict(manifest.arguments)
    assert made_by["onnx"] == "1" and made_by["tensorrt_rtx"] == report.version
    assert made_by["targets"] == "SM86, SM89"
    assert json.loads(arguments["workspace_mib"]) == 256 and arguments["opset"] == "19"

    layers = json.loads((tmp_path / "mini.int8.engine.layers.json").read_text())
    assert len(layers["layers"]) == report.summary.layers == len(report.layers)
    assert set(layers) == {"summary", "layers"}
    read = read_layer_report(target)
    assert (read.summary, read.layers) == (report.summary, report.layers)


@pytest.mark.usefixtures("rtx")
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    path = _onnx(tmp_path, "int8")
    reports = [build_engine(path, tmp_path / f"{n}.engine", BuildOptions("rtx")) for n in "ab"]
    assert reports[0].manifest.sha256 == reports[1].manifest.sha256


@pytest.mark.usefixtures("rtx")
def test_an_engine_of_before_is_replaced(tmp_path: Path) -> None:
    path, target = _onnx(tmp_path, "fp32"), tmp_path / "m.engine"
    target.write_bytes(b"old")
    build_engine(path, target, BuildOptions("rtx"))
    assert read_manifest(target).precision == "fp32"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "not an ONNX file"), (os.urandom(4096), "not an ONNX file"), (b"\x3a\x00", "manifest")],
    ids=["empty", "random", "empty graph"],
)
def test_what_is_no_model_of_ours_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words) as caught:
        build_engine(path, tmp_path / "bad.engine")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert _names(tmp_path) == ["bad.onnx"]


def _broken(path: Path, how: str) -> None:
    model = onnx.load(str(path))
    if how == "unknown operator":
        model.graph.node[1].op_type = "Nonsense"
    elif how == "empty graph":
        del model.graph.node[:], model.graph.output[:], model.graph.initializer[:]
    elif how == "wrong shape":
        model.graph.initializer[1].dims[1] = 5
    path.write_bytes(model.SerializeToString())


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unknown operator", r"node 'body.0.act' \(Nonsense\): TensorRT has no such operator"),
        ("empty graph", "no network in it"),
        ("wrong shape", "cannot read it"),
    ],
)
def test_a_graph_that_tensorrt_refuses_is_one_line(tmp_path: Path, how: str, words: str) -> None:
    path = _onnx(tmp_path, "fp32")
    _broken(path, how)
    with pytest.raises(BuildError, match=words) as caught:
        build_engine(path, tmp_path / "m.engine", BuildOptions("rtx"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "cudaError 35" not in str(caught.value)
    assert _names(tmp_path) == [path.name]


def test_a_truncated_model_and_one_without_manifest_are_refused(tmp_path: Path) -> None:
    path = _onnx(tmp_path, "fp32", manifest=False)
    with pytest.raises(ArtifactError, match="without a manifest"):
        build_engine(path, tmp_path / "m.engine")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="not an ONNX file, or cut short"):
        build_engine(path, tmp_path / "m.engine")
    assert _names(tmp_path) == [path.name]


@pytest.mark.usefixtures("rtx")
def test_a_target_that_rtx_has_not_is_named(tmp_path: Path) -> None:
    path = _onnx(tmp_path, "fp32")
    with pytest.raises(BuildError, match=r"SM87 is no target.*SM86, SM89"):
        build_engine(path, tmp_path / "m.engine", BuildOptions("rtx", targets=("SM87",)))
    assert _names(tmp_path) == [path.name]


def test_wrong_arguments_are_value_errors(tmp_path: Path) -> None:
    path = _onnx(tmp_path, "fp32")
    wrong: list[dict[str, Any]] = [{"builder": "trtexec"}, {"workspace_mib": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            build_engine(path, tmp_path / "m.engine", BuildOptions(**options))
    with pytest.raises(ValueError, match="builds no engine"):
        build_engine(path, tmp_path / "m.engine", BuildOptions("none"))
    with pytest.raises(ValueError, match=r"ends in \.engine"):
        build_engine(path, tmp_path / "m.plan")


# ---------------------------------------------------------------- the child's end


@pytest.fixture
def fake_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace tensorrt_rtx, in the child, by a module of this text."""

    def put(text: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "tensorrt_rtx.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))

    return put


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"SIGKILL.*MiB.*swap.*workspac",
        ),
        ("import ctypes; ctypes.string_at(0)", r"SIGSEGV.*MiB"),
        ("import os; print('last words', file=__import__('sys').stderr); os.abort()", "last words"),
        ("raise OSError('libnvinfer is of another version')", "libnvinfer is of another version"),
        ("raise SystemExit(3)", "status 1"),
    ],
    ids=["killed", "segfault", "abort", "broken installation", "exit"],
)
def test_a_child_that_dies_says_how(tmp_path: Path, fake_rtx: Any, text: str, words: str) -> None:
    path = _onnx(tmp_path, "fp32")
    fake_rtx(text)
    with pytest.raises(BuildError, match=words) as caught:
        build_engine(path, tmp_path / "out" / "m.engine", BuildOptions("rtx"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert _names(tmp_path / "out") == []


def test_the_dead_childs_memory_is_told(tmp_path: Path, fake_rtx: Any) -> None:
    path = _onnx(tmp_path, "fp32")
    fake_rtx(
        "import os, signal, time; held = bytearray(300 << 20); time.sleep(0.7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(BuildError) as caught:
        build_engine(path, tmp_path / "m.engine", BuildOptions("rtx"))
    held = re.search(r"held (\d+) MiB; (\d+) MiB were available", str(caught.value))
    assert held is not None and 300 <= int(held[1]) <= 400 and int(held[2]) > 100


def test_a_build_that_takes_too_long_is_stopped(
    tmp_path: Path, fake_rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _onnx(tmp_path, "fp32")
    fake_rtx("import time; time.sleep(60)")
    monkeypatch.setattr("export.engine.process._CANCEL_GRACE_S", 0.2)
    with pytest.raises(BuildError, match=r"more than 0\.5 s"):
        build_engine(path, tmp_path / "out" / "m.engine", BuildOptions("rtx"), timeout_s=0.5)
    assert _names(tmp_path / "out") == []


def test_a_missing_builder_names_its_extra(tmp_path: Path, fake_rtx: Any) -> None:
    path = _onnx(tmp_path, "fp32")
    fake_rtx("raise ModuleNotFoundError('No module named tensorrt_rtx')")
    with pytest.raises(MissingDependency, match=r"edge-deploy\[rtx\]"):
        build_engine(path, tmp_path / "m.engine", BuildOptions("rtx"))
    assert not [info for info in available_builders() if info.name == "tensorrt_rtx" and info.ok]


@pytest.mark.usefixtures("rtx")
def test_an_exception_in_progress_cancels_the_build(tmp_path: Path) -> None:
    path = _onnx(tmp_path, "int8", channels=64)

    def interrupt(*step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(path, tmp_path / "out" / "m.engine", BuildOptions("rtx"), progress=interrupt)
    assert _names(tmp_path / "out") == []


@pytest.mark.usefixtures("rtx")
def test_ctrl_c_leaves_nothing_and_no_child(tmp_path: Path) -> None:
    path, target = _onnx(tmp_path, "fp32"), tmp_path / "out" / "m.engine"
    code = (
        "import os, signal, sys; from export.engine.build import BuildOptions, build_engine\n"
        # Whoever started the tests in the background may have had it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def tell(*step): os.kill(os.getpid(), signal.SIGINT)\n"
        "build_engine(sys.argv[1], sys.argv[2], BuildOptions('rtx'), progress=tell)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", code, str(path), str(target)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert _names(tmp_path / "out") == []


@pytest.mark.usefixtures("rtx")
def test_the_builder_obeys_a_cancel(tmp_path: Path) -> None:
    request = {
        "builder": "rtx",
        "workspace_mib": 64,
        "compute_capabilities": [],
        "onnx": str(_onnx(tmp_path, "int8")),
        "plan": str(tmp_path / "plan"),
    }
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-m", "export.engine.child"],
        input=json.dumps(request) + "\n",  # and then the end of stdin
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "failed" and last["cancelled"] and "ancel" in last["text"]
    assert not (tmp_path / "plan").exists()


@pytest.mark.usefixtures("rtx")
def test_auto_takes_what_is_there_and_says_why(tmp_path: Path) -> None:
    builders = {info.name: info for info in available_builders()}
    assert set(builders) == {"tensorrt", "tensorrt_rtx"}
    assert builders["tensorrt_rtx"].ok and builders["tensorrt_rtx"].version
    report = build_engine(_onnx(tmp_path, "fp32"), tmp_path / "m.engine")
    wanted = "tensorrt" if builders["tensorrt"].ok else "tensorrt_rtx"
    assert report.builder == wanted
    assert builders["tensorrt"].reason in report.reason


# ---------------------------------------------------------------- the layer report


def test_the_inspectors_json_of_both_generations_reads_alike() -> None:
    def tensor(key: str, value: str) -> dict[str, str]:
        return {"Name": "t", key: value}

    def engine(key: str, words: dict[str, str]) -> str:
        conv = {
            "Name": "body.0.conv + PWN(body.0.act)",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor(key, words["int8"])],
            "Outputs": [tensor(key, words["half"])],
            "Metadata": "[ONNX Layer: body.0.conv]\x1e[ONNX Layer: body.0.act]",
        }
        move = {
            "Name": "Reformatting CopyNode for Input Tensor 0 to body.0.conv",
            "LayerType": "Reformat",
            "Inputs": [tensor(key, words["float"])],
            "Outputs": [tensor(key, words["int8"])],
            "Metadata": "",
        }
        return json.dumps({"Layers": [move, conv], "Bindings": ["images"]})

    old = {
        "int8": "Thirty-two wide channel vectorized row major Int8 format.",
        "half": "Channel major FP16 format where channel % 8 == 0",
        "float": "Row major linear FP32",
    }
    layers = from_inspector(engine("Format/Datatype", old))
    new = {"int8": "Int8", "half": "Half", "float": "Float"}
    assert layers == from_inspector(engine("DataType", new))
    assert (layers[1].inputs, layers[1].outputs) == (("int8",), ("half",))
    summary = summarise(layers, ["body.0.conv", "head.conv"])
    assert summary.reformats == 1 and summary.taking("int8") == ("body.0.conv",)
    assert summary.taking("unknown") == ("head.conv",)


def test_names_alone_and_foreign_json_are_handled() -> None:
    layers = from_inspector('{"Layers": ["body.0.conv + body.0.act"]}')
    assert summarise(layers, ["body.0.conv"]).convolutions[0].dtype == "unknown"
    for text in ("{}", "nonsense"):
        with pytest.raises(ValueError):
            from_inspector(text)
    assert from_log("") == [] and from_log("Layers:\nno layer\n") == []


@pytest.mark.parametrize(
    ("words", "dtype"),
    [("Int8", "int8"), ("Half", "half"), ("BFloat16", "bfloat16"), ("N/A", "n/a"), ("", "")],
)
def test_data_types_are_read_from_words(words: str, dtype: str) -> None:
    assert data_type(words) == dtype
