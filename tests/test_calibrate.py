"""Calibration: what is read, what is refused, and that memory does not grow."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import calibration.collect
from calibration.collect import collect, collect_arrays, conv_inputs
from calibration.histogram import Histogram
from calibration.table import read_table, write_table
from calibration.threshold import METHODS, threshold
from edge.errors import ArtifactError, CalibrationError, DataError
from edge.files import sha256_of
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Preprocessor, preprocess
from edge.spec import Manifest
from tests.support.small_models import run, write_small
from tests.support.steps import scales
from tests.support.tolerances import CALIBRATION_GROWTH_BYTES


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrate") / "small.onnx"
    write_small(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (40 + i, 60, 3), np.uint8))
    return folder


def test_each_threshold_is_that_of_the_activations(fp32: Path, images: Path) -> None:
    model = onnx.load(str(fp32))
    manifest = read(fp32)
    tensors = conv_inputs(model)
    assert tensors[0] == "images" and len(tensors) > 6
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in tensors[1:])
    wanted = {name: Histogram() for name in tensors}
    for path in sorted(images.iterdir()):
        tensor = preprocess(cv2.imread(str(path)), manifest.spec.contract)[0]
        for name, value in zip(tensors, [tensor, *run(model, tensor, tensors[1:])], strict=True):
            wanted[name].add(value)
    for method in METHODS:
        table = scales(fp32, images, method=method, equalise=False, threads=1).table
        assert [name for name, _ in table.amax] == tensors
        for name, amax in table.amax:
            assert amax == pytest.approx(threshold(wanted[name], method), rel=0.02)
        assert table.method == method


def read(path: Path) -> Manifest:
    with Detector.open(path, threads=1) as detector:
        return detector.manifest


def test_the_table_names_its_graph_contract_and_images(fp32: Path, images: Path) -> None:
    found = scales(fp32, images, threads=1)
    assert found.table.graph_sha256 == sha256_of(fp32)
    assert found.table.contract_digest == read(fp32).spec.contract.digest
    digests = [hashlib.sha256(cv2.imread(str(p)).tobytes()).hexdigest() for p in images.iterdir()]
    assert found.table.images == tuple(sorted(digests))
    assert (found.used, found.skipped) == (4, ())
    assert all(h.seen > 0 for h in found.histograms.values())


def test_the_table_goes_through_its_file_and_refuses_another_graph(
    fp32: Path, images: Path, tmp_path: Path
) -> None:
    table = scales(fp32, images, threads=1).table
    write_table(table, tmp_path / "a.calib.json")
    assert read_table(tmp_path / "a.calib.json") == table
    other = write_small(tmp_path / "other.onnx", seed=1)
    with pytest.raises(CalibrationError, match="another graph"):
        table.check(sha256_of(tmp_path / "other.onnx"), other.spec.contract.digest)
    stretched = replace(other.spec.contract, resize="stretch")
    with pytest.raises(CalibrationError, match="another input contract"):
        table.check(sha256_of(fp32), stretched.digest)


def test_a_corrupt_image_is_named_skipped_and_counted(fp32: Path, images: Path) -> None:
    without = scales(fp32, images, threads=1)
    rng = np.random.default_rng(1)
    whole = cv2.imencode(".jpg", rng.integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "a text.jpg").write_bytes(b"no picture")
    (images / "empty.png").write_bytes(b"")
    found = scales(fp32, images, threads=1)
    assert found.used == 4 and len(found.skipped) == 3
    for name in ("cut.jpg", "a text.jpg", "empty.png"):
        assert sum(name in line for line in found.skipped) == 1
    assert found.table == without.table


def test_no_folder_and_no_images_are_refused(fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("gone", "empty"):
        with pytest.raises(DataError, match=name):
            scales(fp32, tmp_path / name, threads=1)


def test_a_folder_of_which_nothing_can_be_read_is_refused(fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "bad" / name).write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"none of its 2 images .*the first: .*a\.jpg"):
        scales(fp32, tmp_path / "bad", threads=1)


def test_no_frames_at_all_are_refused(fp32: Path) -> None:
    with pytest.raises(CalibrationError, match="no image to calibrate on"):
        collect(fp32, [], threads=1)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 4), (48, 64, 1)])
def test_frames_of_other_channels_are_refused_by_name(fp32: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"^odd\.png: .*\(H, W, 3\) uint8 BGR"):
        collect(fp32, [("odd.png", np.zeros(shape, np.uint8))], threads=1)


@pytest.mark.parametrize("shape", [(1, 3, 48, 32), (1, 1, 48, 64), (2, 3, 48, 64)])
def test_inputs_of_another_size_are_refused_by_name(fp32: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"its input is \(1, 3, 48, 64\), the image odd"):
        collect_arrays(fp32, [("odd", np.zeros(shape, np.float32))], threads=1)


def damaged(fp32: Path, target: Path, value: float) -> str:
    """The second convolution's weights hold `value`; the name of the first tensor that shows it."""
    model = onnx.load(str(fp32))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weight = next(i for i in model.graph.initializer if i.name == convolutions[1].input[1])
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, str(target))
    return str(convolutions[2].input[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_name_tensor_and_image(
    fp32: Path, images: Path, tmp_path: Path, value: float
) -> None:
    tensor = damaged(fp32, tmp_path / "nan.onnx", value)
    with pytest.raises(CalibrationError, match=rf"tensor {tensor} holds NaN .* image .*0\.png"):
        scales(tmp_path / "nan.onnx", images, threads=1)


def test_frames_go_through_the_contract_of_the_artifact(
    fp32: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contracts: list[Any] = []

    class Spy(Preprocessor):
        def __init__(self, contract: Any) -> None:
            contracts.append(contract)
            super().__init__(contract)

    # The very class that the Detector uses, by the very contract of its manifest.
    assert calibration.collect.Preprocessor is Preprocessor
    monkeypatch.setattr(calibration.collect, "Preprocessor", Spy)
    found = scales(fp32, images, threads=1, method="minmax")
    assert contracts == [read(fp32).spec.contract]
    # Bytes times 1/255: the largest level of the noise is near 1, not near 255.
    assert 0.9 < dict(found.table.amax)["images"] <= 1.0


def test_images_are_limited_and_spread(fp32: Path, images: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = scales(fp32, images, images=2, threads=1, progress=lambda *at: seen.append(at))
    assert found.used == 2 and seen == [(1, 2), (2, 2)]
    wanted = [
        hashlib.sha256(cv2.imread(str(images / f"{i}.png")).tobytes()).hexdigest() for i in (0, 2)
    ]
    assert found.table.images == tuple(sorted(wanted))


def peak_of(fp32: Path, count: int) -> int:
    tracemalloc.start()
    try:
        arrays = (
            (str(i), np.random.default_rng(i).random((1, 3, 48, 64), np.float32))
            for i in range(count)
        )
        collect_arrays(fp32, arrays, threads=1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_depend_on_the_number_of_images(fp32: Path) -> None:
    peak_of(fp32, 2)
    few, many = peak_of(fp32, 5), peak_of(fp32, 40)
    assert many - few < CALIBRATION_GROWTH_BYTES


def test_the_same_images_give_the_same_table(fp32: Path, images: Path) -> None:
    one, two = (scales(fp32, images, threads=1).table for _ in range(2))
    assert one == two


def test_a_graph_that_would_take_gigabytes_is_refused_before_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write_small(path)
    model = onnx.load(str(path))
    heads = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    next(a for a in heads.attribute if a.name == "pads").ints[0] = 1 << 20
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"its graph is damaged: .* is of shape .*10485"):
        collect_arrays(path, [("a", np.zeros((1, 3, 48, 64), np.float32))])
