"""Which cameras this machine has, asked of the kernel without opening a stream."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CameraInfo", "list_cameras", "obstacle"]

_SYSFS = Path("/sys/class/video4linux")
# videodev2.h: _IOR('V', 0, struct v4l2_capability), a struct of 104 bytes.
_QUERYCAP = 0x80685600
_CAPTURE, _CAPTURE_MPLANE, _DEVICE_CAPS = 0x1, 0x1000, 0x80000000


@dataclass(frozen=True)
class CameraInfo:
    """A camera; `source` is what `--source` takes, and `kind` is `csi` or `v4l2`."""

    source: str
    name: str
    kind: str


def list_cameras(sysfs: Path = _SYSFS, dev: Path = Path("/dev")) -> list[CameraInfo]:
    """Return the cameras of this machine, ribbon cameras first; none where there is no V4L2."""
    if not sysfs.is_dir():
        return []
    nodes = sorted(sysfs.glob("video*"), key=lambda node: int(node.name[5:] or 0))
    ribbon: list[CameraInfo] = []
    others: list[CameraInfo] = []
    for node in nodes:
        name = _text(node / "name")
        # A Jetson's ribbon camera gives raw Bayer through V4L2 and pictures through Argus.
        if name.startswith("vi-output"):
            ribbon.append(CameraInfo(f"csi://{len(ribbon)}", name, "csi"))
        elif _captures(dev / node.name):
            others.append(CameraInfo(str(dev / node.name), name, "v4l2"))
    return ribbon + others


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return "unknown"


def _captures(device: Path) -> bool:
    """Return whether pictures come from the device."""
    try:
        return _gives_pictures(device)
    except OSError as error:
        # Busy or forbidden: still a camera, and opening it tells what is wrong.
        return error.errno != errno.ENOTTY and device.exists()


def _gives_pictures(device: Path) -> bool:
    """Ask the driver whether it gives pictures; a UVC camera has a second node of metadata only.

    Raises:
        OSError: it cannot be opened; ENOTTY: it is no V4L2 device.
    """
    import fcntl

    handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    answer = bytearray(104)
    try:
        fcntl.ioctl(handle, _QUERYCAP, answer)
    except OSError as error:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), str(device)) from error
    finally:
        os.close(handle)
    whole, own = struct.unpack_from("=II", answer, 84)
    return bool((own if whole & _DEVICE_CAPS else whole) & (_CAPTURE | _CAPTURE_MPLANE))


def obstacle(device: Path) -> str:
    """Return why no pictures can come from a V4L2 device; empty where nothing is in the way."""
    try:
        fit = _gives_pictures(device)
    except FileNotFoundError:
        return "there is no such device: plug the camera in"
    except PermissionError:
        return "no permission: sudo usermod -aG video $USER, then log in again"
    except OSError as error:
        no_camera = error.errno == errno.ENOTTY
        return "it is not a camera" if no_camera else f"cannot be opened: {error.strerror}"
    return "" if fit else "it gives no pictures; the second device of a camera has metadata only"
