"""Cameras for `edge doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from apps.doctor.check import Check
from apps.doctor.programs import run_program

__all__ = ["DEV", "VIDEO4LINUX", "check_cameras"]

DEV = Path("/dev")
VIDEO4LINUX = Path("/sys/class/video4linux")


def check_cameras() -> Iterable[Check]:
    """GStreamer's launcher and the video devices."""
    yield _gst_launch()
    devices = sorted(DEV.glob("video*"))
    if not devices:
        advice = "plug one in, or take a file or a stream as the source"
        yield Check("cameras", "missing", "no /dev/video*", advice)
    for device in devices:
        yield _camera(device)


def _gst_launch() -> Check:
    name = "gst-launch-1.0"
    if shutil.which(name) is None:
        return Check(
            name,
            "missing",
            "for CSI cameras",
            "apt install gstreamer1.0-tools gstreamer1.0-plugins-good",
        )
    done = run_program([name, "--version"])
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Check(name, "problem", lines[-1][:300], "apt install --reinstall gstreamer1.0-tools")
    return Check(name, "ok", (done.stdout.splitlines() or ["present"])[0])


def _camera(device: Path) -> Check:
    label = VIDEO4LINUX / device.name / "name"
    found = label.read_text(errors="replace").strip() if label.is_file() else "no name"
    if os.access(device, os.R_OK | os.W_OK):
        return Check(str(device), "ok", found)
    advice = "sudo usermod -aG video $USER, then log in again"
    return Check(str(device), "problem", f"{found}: no permission", advice)
