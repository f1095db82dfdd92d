"""The whole of a frame's way on the GPU equals the CPU's, on a fake driver and a fake TensorRT."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.detections import Detections
from edge.errors import ArtifactError, DeviceError, MissingDependency
from edge.runtime import backend_trt, compile, ops_cpu, ops_gpu
from edge.runtime.backend_trt import TrtBackend
from edge.runtime.detector import Detector
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec
from tests.support.fake_tensorrt import FakeTensorRT, write_engine

pytest_plugins = ("tests.support.fake_driver",)

HW, GRIDS, ANCHORS = (32, 48), ((2, 3), (4, 6)), ((10.0, 14.0), (23.0, 27.0))
SPEC = ModelSpec(
    "net",
    "darknet",
    ("a", "b", "c"),
    InputContract(HW),
    tuple(HeadSpec.of_grid(f"head{i}", "yolo", grid, ANCHORS) for i, grid in enumerate(GRIDS)),
)
SHAPES = {"images": (1, 3, *HW)} | {f"head{i}": (1, 16, *grid) for i, grid in enumerate(GRIDS)}
MANIFEST = Manifest(
    SPEC,
    "int8",
    (TensorSpec("images", SHAPES["images"]),),
    tuple(TensorSpec(name, SHAPES[name]) for name in ("head0", "head1")),
    made_by=(("tensorrt", "10.3.0"),),
)
WEIGHTS = np.random.default_rng(1).normal(0, 6, (16, 3)).astype(np.float32)


def network(arrays: dict[str, Any]) -> None:
    """Means over the cells' pixels, mixed: any network whose heads depend on every pixel."""
    images = arrays["images"][0]
    for index, (rows, columns) in enumerate(GRIDS):
        cells = images.reshape(3, rows, HW[0] // rows, columns, HW[1] // columns).mean((2, 4))
        arrays[f"head{index}"][0] = np.einsum("oc,cyx->oyx", WEIGHTS, (cells - 0.5) * 8)


@pytest.fixture
def trt(on_host: ctypes.CDLL, driver: ctypes.CDLL, monkeypatch: Any) -> Iterator[FakeTensorRT]:
    fake = FakeTensorRT(driver, SHAPES, network)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for cached in (backend_trt._logger, backend_trt._log):
        cached.cache_clear()
    yield fake
    backend_trt._logger.cache_clear()


def frame_of(seed: int, hw: tuple[int, int] = (40, 52)) -> Any:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return cv2.resize(small, hw[::-1], interpolation=cv2.INTER_NEAREST)


def on_cpu(frame: Any, score: float = 0.25, iou: float = 0.45) -> Detections:
    tensor, fit = ops_cpu.preprocess(frame, SPEC.contract)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    arrays["images"] = tensor
    network(arrays)
    found = ops_cpu.Decoder(SPEC)([arrays["head0"], arrays["head1"]], score)
    found = ops_cpu.nms(found, iou)
    return Detections(fit.to_source(found.xyxy), found.score, found.class_id)  # type: ignore[arg-type]


def same(found: Detections, wanted: Detections) -> None:
    assert found.class_id.tolist() == wanted.class_id.tolist()
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-5)
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, rtol=1e-5, atol=1e-3)


def test_frames_equal_the_cpus_path(tmp_path: Path, trt: FakeTensorRT) -> None:
    total = 0
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST))) as detect:
        for seed in range(30):
            frame = frame_of(seed, ((40, 52), (40, 52), (25, 90))[seed // 10])
            found = detect(frame)
            same(found, on_cpu(frame))
            total += len(found)
            assert list(detect.stages_ms) == ["preprocess", "engine", "decode", "nms"]
            assert all(0 <= each < 1000 for each in detect.stages_ms.values())
        assert detect.pipeline.graph == "" and detect.spec == SPEC
    assert total > 30


@pytest.mark.parametrize("integrated", [0, 1])
def test_pixels_go_up_once_and_boxes_come_back_once(
    tmp_path: Path, trt: FakeTensorRT, driver: ctypes.CDLL, integrated: int
) -> None:
    driver.fake_integrated(integrated)
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST)), use_graph=False) as detect:
        detect(frame_of(0))
        copies, launches = driver.fake_copies(), driver.fake_launches()
        detect(frame_of(1))
        assert driver.fake_copies() - copies == (0 if integrated else 2)
        # letterbox, decode, rank, overlap, keep
        assert driver.fake_launches() - launches == 5


def test_from_the_second_frame_on_it_is_one_graph(
    tmp_path: Path, trt: FakeTensorRT, driver: ctypes.CDLL
) -> None:
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST))) as detect:
        for _ in range(2):
            detect(frame_of(0))
        launches = driver.fake_launches()
        for seed in range(3):
            same(detect(frame_of(seed)), on_cpu(frame_of(seed)))
        assert driver.fake_launches() == launches
        detect.score, detect.iou = 0.6, 0.2
        for seed in range(3):
            same(detect(frame_of(seed)), on_cpu(frame_of(seed), 0.6, 0.2))
        assert driver.fake_launches() == launches + 10  # once plainly, once captured
        assert [name for name, _ in trt.calls].count("execute_async_v3") == 4


def test_a_refused_graph_is_told_and_frames_go_on(
    tmp_path: Path, trt: FakeTensorRT, driver: ctypes.CDLL
) -> None:
    driver.fake_refuse_capture(1)
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST))) as detect:
        for seed in range(4):
            same(detect(frame_of(seed)), on_cpu(frame_of(seed)))
        assert "cuStreamBeginCapture" in detect.pipeline.graph


def test_a_frame_written_in_place_is_not_copied(tmp_path: Path, trt: FakeTensorRT) -> None:
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST))) as detect:
        buffer = detect.pipeline.frame_buffer((40, 52))
        for seed in range(3):
            buffer[:] = frame_of(seed)
            same(detect(buffer), on_cpu(frame_of(seed)))


def test_camera_formats_come_in_as_they_are(tmp_path: Path, trt: FakeTensorRT) -> None:
    yuyv = np.random.default_rng(0).integers(0, 256, (40, 52, 2), np.uint8)
    bgr = cv2.cvtColor(yuyv, cv2.COLOR_YUV2BGR_YUY2)
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST)), layout="yuyv", score=0.1) as detect:
        same(detect(yuyv), on_cpu(bgr, 0.1))
        with pytest.raises(ValueError, match="a yuyv frame"):
            detect(bgr)


def test_heads_that_the_kernels_cannot_read_are_refused(tmp_path: Path, trt: FakeTensorRT) -> None:
    outputs = (replace(MANIFEST.outputs[0], dtype="float16"), MANIFEST.outputs[1])
    trt.half = ("head0",)
    path = write_engine(tmp_path, replace(MANIFEST, outputs=outputs))
    with TrtBackend(path) as backend, pytest.raises(ArtifactError, match="float16"):
        Detector(backend)


def test_without_a_compiler_it_does_not_fall_back_to_the_cpu(
    tmp_path: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_gpu, "compile_kernels", compile.compile_kernels)
    for name in ("nvrtc", "nvcc"):
        monkeypatch.setattr(compile, name, lambda: None)
    backend = TrtBackend(write_engine(tmp_path, MANIFEST))
    with backend, pytest.raises(MissingDependency, match=r"nvidia-cuda-nvrtc.*nvcc"):
        Detector(backend)


def test_want_of_memory_has_cudas_name(tmp_path: Path, trt: FakeTensorRT) -> None:
    with Detector(TrtBackend(write_engine(tmp_path, MANIFEST))) as detect:
        with pytest.raises(DeviceError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            detect.pipeline.frame_buffer((40_000, 40_000))
        same(detect(frame_of(0)), on_cpu(frame_of(0)))


def test_closing_twice_is_fine(tmp_path: Path, trt: FakeTensorRT) -> None:
    detect = Detector(TrtBackend(write_engine(tmp_path, MANIFEST)))
    detect.close()
    detect.close()
