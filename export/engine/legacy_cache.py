"""TensorRT's calibration cache, which the DLA of TensorRT 10.7 and older takes its scales from.

Text: a line `TRT-<version>-EntropyCalibration2`, then for each tensor `name: scale`, which is
amax / 127 as the eight hexadecimal digits of a float32, highest byte first (TensorRT's README of
sampleINT8, "Calibration file"; NVIDIA/TensorRT#625). The version is NvInferVersion.h's number:
10.3.0 is 100300, and before TensorRT 10 8.5.1 was 8501.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

from edge.errors import CalibrationError
from edge.files import write_file

__all__ = ["cache_text", "read_cache", "version_number", "write_cache"]

_LEVELS = 127


def version_number(version: str) -> int:
    """The number in a cache's first line, from a version such as 10.3.0.30.

    Raises:
        ValueError: not three numbers with dots between.
    """
    try:
        major, minor, patch = (int(part) for part in version.split(".")[:3])
    except ValueError:
        raise ValueError(f"{version!r} is no version of TensorRT, such as 10.3.0") from None
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def cache_text(amax: Mapping[str, float], version: str) -> str:
    """The cache of thresholds `amax` by tensor, for one version of TensorRT.

    Raises:
        CalibrationError: a threshold is not a positive number, or a name cannot stand in a line.
        ValueError: `version` is none.
    """
    lines = [f"TRT-{version_number(version)}-EntropyCalibration2"]
    for name, value in amax.items():
        if not 0 < value < math.inf or "\n" in name:
            raise CalibrationError(f"tensor {name!r}: its threshold {value} gives no INT8 scale")
        lines.append(f"{name}: {struct.pack('>f', value / _LEVELS).hex()}")
    return "\n".join(lines) + "\n"


def write_cache(amax: Mapping[str, float], version: str, target: str | Path) -> None:
    """Write `cache_text`, whole or not at all; `trtexec --int8 --calib=FILE` takes it as well.

    Raises:
        ArtifactError: `target` cannot be written.
        CalibrationError, ValueError: as `cache_text`.
    """
    write_file(Path(target), cache_text(amax, version).encode())


def read_cache(source: str | Path) -> dict[str, float]:
    """Thresholds by tensor, of a cache that TensorRT or `write_cache` wrote.

    Raises:
        CalibrationError: missing, or of another form (names the line).
    """
    try:
        first, *lines = Path(source).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CalibrationError(f"{source}: not a calibration cache: {error}") from error
    if not first.startswith("TRT-") or "Calibration" not in first:
        raise CalibrationError(f"{source}: not a calibration cache: it begins with {first[:40]!r}")
    return dict(_entry(line, f"{source}:{number}") for number, line in enumerate(lines, 2) if line)


def _entry(line: str, where: str) -> tuple[str, float]:
    name, _, digits = line.rpartition(": ")
    try:
        (scale,) = struct.unpack(">f", bytes.fromhex(digits))
    except (ValueError, struct.error) as error:
        raise CalibrationError(f"{where}: not `tensor: 8 hexadecimal digits`: {line!r}") from error
    return name, scale * _LEVELS
