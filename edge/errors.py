"""The error tree. The command line catches `EdgeError` once: one line on stderr, exit status 2.

    EdgeError
    ├── MissingDependency (ImportError)    an optional package is needed and not there
    ├── ArtifactError     (ValueError)     a file is damaged, foreign or does not fit
    │   └── EngineMismatch                 an engine was built for another machine or TensorRT
    ├── DataError         (ValueError)     images, labels or annotations that cannot be used
    ├── CalibrationError  (ValueError)     scales cannot be had from these images or this table
    ├── CompressionError  (ValueError)     a pruning or coding plan that cannot be carried out
    ├── BuildError        (RuntimeError)   TensorRT returned no engine
    ├── DeviceError       (RuntimeError)   the GPU or its driver failed
    └── CameraError       (OSError)        a source of frames failed

A wrong argument in code stays `ValueError` or `TypeError`.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BuildError",
    "CalibrationError",
    "CameraError",
    "CompressionError",
    "DataError",
    "DeviceError",
    "EdgeError",
    "EngineMismatch",
    "MissingDependency",
]


class EdgeError(Exception):
    """Everything that a user can mend; the text says what is wrong and what to do."""


class MissingDependency(EdgeError, ImportError):
    """An optional package is not installed; the text names the extra that brings it."""


class ArtifactError(EdgeError, ValueError):
    """A model, engine or package file is damaged, foreign or does not fit."""


class EngineMismatch(ArtifactError):
    """An engine belongs to another TensorRT, GPU or manifest; the text says how to rebuild."""


class DataError(EdgeError, ValueError):
    """Images, labels or annotations that cannot be used."""


class CalibrationError(EdgeError, ValueError):
    """Calibration images or a calibration table that cannot give scales."""


class CompressionError(EdgeError, ValueError):
    """A pruning, sharing or coding plan that cannot be carried out."""


class BuildError(EdgeError, RuntimeError):
    """The TensorRT builder returned no engine."""


class DeviceError(EdgeError, RuntimeError):
    """The GPU, its driver or a kernel failed."""


class CameraError(EdgeError, OSError):
    """A source of frames cannot be opened or was lost."""
