"""`export-engine --sparse`: the 2:4 pattern is found in each precision, and told the builder."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.commands.export import print_export
from edge.artifact import layers_path, read_manifest
from edge.errors import ArtifactError
from export.engine.build import build_engine
from export.engine.options import BuildOptions
from export.graph.sparsity import check_sparse, sparse_convolutions
from export.int8.quantize import write_half
from export.pipeline import export_engine
from tests.support.steps import exported, flat_options

onnx = pytest.importorskip("onnx")

FEW = "scenes://?seed=500000&count=4"
TINY = Path(__file__).resolve().parent.parent / "edge" / "assets" / "tiny-yolo-scenes.onnx"


def halved(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two smallest of every four input channels are zero, place by place."""
    out: NDArray[np.float32] = weight.copy()
    rows, channels, height, width = weight.shape
    for o, start, y, x in itertools.product(
        range(rows), range(0, channels, 4), range(height), range(width)
    ):
        least = np.argsort(np.abs(out[o, start : start + 4, y, x]))[:2]
        out[o, start + least, y, x] = 0
    return out


def prune(target: Path, *names: str) -> list[str]:
    """The built-in detector with some convolutions in the pattern, all that can be by default."""
    model = onnx.load(str(TINY))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    done = []
    for node in model.graph.node:
        if node.op_type == "Conv" and (not names or node.name in names):
            tensor = weights[node.input[1]]
            array = onnx.numpy_helper.to_array(tensor)
            if array.shape[1] % 4 == 0:
                tensor.CopyFrom(onnx.numpy_helper.from_array(halved(array), tensor.name))
                done.append(node.name)
    onnx.save(model, str(target))
    return done


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("pruned") / "tiny-yolo-scenes.fp32.onnx"
    names = prune(path)
    assert len(names) > 5
    return path, names


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


def test_only_the_pruned_convolutions_are_found(tmp_path: Path) -> None:
    names = prune(tmp_path / "x.onnx", "layers.2.conv", "layers.8.conv")
    assert names == ["layers.2.conv", "layers.8.conv"]
    assert list(sparse_convolutions(tmp_path / "x.onnx")) == names
    assert sparse_convolutions(TINY) == ()


def test_one_weight_too_many_breaks_the_pattern(tmp_path: Path) -> None:
    names = prune(tmp_path / "x.onnx", "layers.2.conv", "layers.8.conv")
    model = onnx.load(str(tmp_path / "x.onnx"))
    node = next(n for n in model.graph.node if n.name == names[1])
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[-1, :4, -1, -1] = (0, 1, 1, 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(tmp_path / "y.onnx"))
    assert list(sparse_convolutions(tmp_path / "y.onnx")) == names[:1]


def test_half_keeps_the_pattern(pruned: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, names = pruned
    write_half(path, tmp_path / "h.onnx")
    assert list(sparse_convolutions(tmp_path / "h.onnx")) == names


@pytest.mark.usefixtures("rtx")
def test_an_int8_engine_of_sparse_weights_says_so(
    pruned: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, names = pruned
    options = {"calib": FEW, "builder": "rtx", "verdict": False, "output": tmp_path}
    result = export_engine(path, flat_options(precision="int8", sparse=True, **options))
    # Equalisation, rounding and bias correction have left every zero where it was.
    assert result.engine is not None and list(result.engine.sparse) == names
    assert set(result.engine.convolutions) == {"int8"}
    arguments = dict(read_manifest(result.engine.file).arguments)
    assert arguments["sparse"] == "true"
    print_export(result)
    said = " ".join(capsys.readouterr().err.split())
    assert f"two of four weights are zero in {len(names)} convolutions" in said


@pytest.mark.usefixtures("rtx")
def test_without_the_option_no_manifest_speaks_of_it(
    pruned: tuple[Path, list[str]], tmp_path: Path
) -> None:
    report = build_engine(pruned[0], tmp_path / "x.engine", BuildOptions("rtx"))
    assert report.sparse == () and "sparse" not in dict(report.manifest.arguments)
    assert "sparsity" not in json.loads(layers_path(report.engine).read_text())


def test_dense_weights_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"two zero weights.*--two-four") as caught:
        exported(precision="int8", sparse=True, calib=FEW, output=tmp_path)
    assert "tiny-yolo-scenes.fp32.onnx" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-yolo-scenes.fp32.onnx"]
    with pytest.raises(ArtifactError, match="two zero weights"):
        build_engine(TINY, tmp_path / "x.engine", BuildOptions(sparse=True))
    assert not (tmp_path / "x.engine").exists()


def test_a_dla_takes_no_sparse_weights(pruned: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--sparse"):
        exported(pruned[0], precision="int8", dla=0, sparse=True, output=tmp_path)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match=r"x\.onnx: not an ONNX file"):
        check_sparse(tmp_path / "x.onnx")


@pytest.mark.usefixtures("rtx")
def test_the_builders_flag_is_set_as_asked() -> None:
    code = (
        "from export.engine import child\n"
        "child.take('rtx')\n"
        "flag = child.trt.BuilderFlag.SPARSE_WEIGHTS\n"
        "builder = child.trt.Builder(child.make_logger(child.Log()))\n"
        "for sparse in (False, True):\n"
        "    asked = child.BuildRequest('rtx', 64, '', '', sparse=sparse)\n"
        "    print(child.configure(builder, asked).get_flag(flag))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.usefixtures("rtx")
def test_what_tensorrt_says_of_sparsity_is_kept() -> None:
    code = (
        "from export.engine import child\n"
        "child.take('rtx')\n"
        "log = child.Log()\n"
        "logger, info = child.make_logger(log), child.trt.ILogger.Severity.INFO\n"
        "logger.log(info, '(Sparsity) Layers eligible for sparse math: a,\\n b')\n"
        "logger.log(info, 'Total Activation Memory: 7')\n"
        "print(log.sparsity, log.errors)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['(Sparsity) Layers eligible for sparse math: a, b'] []"
