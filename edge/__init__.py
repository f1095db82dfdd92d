"""edge: trained Tiny-YOLO and SqueezeDet detectors to verified INT8/FP16 TensorRT engines."""

from __future__ import annotations

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

__all__ = [
    "ArtifactError",
    "BuildError",
    "CalibrationError",
    "CameraError",
    "CompressionError",
    "DataError",
    "Detections",
    "DeviceError",
    "EdgeError",
    "EngineMismatch",
    "HeadSpec",
    "InputContract",
    "Letterbox",
    "Manifest",
    "MissingDependency",
    "ModelSpec",
    "TensorSpec",
    "__version__",
]

__version__ = "0.2.0"
