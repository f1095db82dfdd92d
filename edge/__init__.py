"""edge: trained detectors to verified INT8/FP16 TensorRT engines, with an honest report.

The public names of the library, for frames and results:

    import edge

    with edge.Detector.open("out/yolo.int8.onnx") as detector, edge.open_source("0") as source:
        for frame in source:
            found = detector(frame.image)
            edge.draw(frame.image, found, detector.spec.classes)

`calibration` and `export` have the names that make artifacts. `import edge` needs NumPy alone; what
needs more is imported when its name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge.detections import Detections
from edge.errors import (
    ArtifactError,
    BuildError,
    CalibrationError,
    CameraError,
    CompressionError,
    DataError,
    DeviceError,
    EdgeError,
    EngineMismatch,
    MissingDependency,
)
from edge.letterbox import Letterbox
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from edge.measure.bench import BenchOptions, BenchResult, bench
    from edge.measure.detect import DetectOptions, DetectResult, detect_pictures
    from edge.measure.evaluate import EvaluateOptions, EvaluateResult, evaluate
    from edge.runtime.detector import Detector
    from edge.video.draw import draw
    from edge.video.sources import open_source

__all__ = [
    "ArtifactError",
    "BenchOptions",
    "BenchResult",
    "BuildError",
    "CalibrationError",
    "CameraError",
    "CompressionError",
    "DataError",
    "DetectOptions",
    "DetectResult",
    "Detections",
    "Detector",
    "DeviceError",
    "EdgeError",
    "EngineMismatch",
    "EvaluateOptions",
    "EvaluateResult",
    "HeadSpec",
    "InputContract",
    "Letterbox",
    "Manifest",
    "MissingDependency",
    "ModelSpec",
    "TensorSpec",
    "__version__",
    "bench",
    "detect_pictures",
    "draw",
    "evaluate",
    "open_source",
]

__version__ = "0.2.0"

# Names whose modules need OpenCV or onnxruntime, imported when they are first used.
_LAZY = {
    "Detector": "edge.runtime.detector",
    "draw": "edge.video.draw",
    "BenchOptions": "edge.measure.bench",
    "BenchResult": "edge.measure.bench",
    "DetectOptions": "edge.measure.detect",
    "DetectResult": "edge.measure.detect",
    "EvaluateOptions": "edge.measure.evaluate",
    "EvaluateResult": "edge.measure.evaluate",
    "bench": "edge.measure.bench",
    "detect_pictures": "edge.measure.detect",
    "evaluate": "edge.measure.evaluate",
    "open_source": "edge.video.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
