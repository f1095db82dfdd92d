"""The machine for `edge doctor`: Python, CPU, memory, Jetson, cameras, programs of the docs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from apps.doctor.check import Check, run_program
from edge.measure.host import fingerprint
from edge.measure.sensors import power_mode
from edge.runtime.cpu import CPUINFO, INT8_FLAGS, int8_flags
from edge.video.gstreamer import has_element
from export.engine.process import memory_available_mib

__all__ = [
    "COMMANDS",
    "L4T",
    "check_cameras",
    "check_jetson",
    "check_machine",
    "check_programs",
    "int8_instructions",
    "jetson_software",
    "memory",
]

BOARD = Path("/proc/device-tree/model")
L4T = Path("/etc/nv_tegra_release")
DEV = Path("/dev")
VIDEO4LINUX = Path("/sys/class/video4linux")
# JetPack's major version by that of L4T: https://developer.nvidia.com/embedded/jetpack-archive
_JETPACK = {"32": "4", "35": "5", "36": "6", "38": "7"}
_LEAST_MIB = 1024
# Every program that docs/jetson.md runs, by purpose, with the Debian package that brings it.
COMMANDS: Mapping[str, Mapping[str, str]] = {
    "programs to install": {
        "apt": "apt",
        "cat": "coreutils",
        "install": "coreutils",
        "python3": "python3",
        "sudo": "sudo",
    },
    "programs for cameras": {
        "gst-launch-1.0": "gstreamer1.0-tools",
        "v4l2-ctl": "v4l-utils",
    },
    "programs for a service": {
        "journalctl": "systemd",
        "systemctl": "systemd",
        "useradd": "passwd",
        "usermod": "passwd",
    },
    "programs of a Jetson": {
        "/opt/nvidia/jetson-io/jetson-io.py": "nvidia-l4t-jetson-io",
        "jetson_clocks": "nvidia-l4t-tools",
        "nvpmodel": "nvidia-l4t-nvpmodel",
        "tegrastats": "nvidia-l4t-tools",
    },
}
_JETSON = "programs of a Jetson"
_ELEMENTS = ("nvarguscamerasrc", "nvvidconv", "nvv4l2decoder")
# sudo looks for programs here, the shell of an ordinary user may not.
_ADMIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def check_machine() -> Iterable[Check]:
    """Check Python, the processor, its INT8 instructions and the memory."""
    version = platform.python_version()
    enough = sys.version_info >= (3, 10)
    advice = "" if enough else "install Python 3.10 or later"
    yield Check("Python", "ok" if enough else "problem", version, advice)
    host = fingerprint()
    yield Check("machine", "ok", f"{host['cpu']}, {host['cores']} cores, {host['platform']}")
    yield int8_instructions()
    yield memory()


def int8_instructions() -> Check:
    """Check whether the CPU multiplies INT8 faster than floats."""
    name = "INT8 instructions of the CPU"
    wanted, found = INT8_FLAGS.get(platform.machine(), ()), int8_flags(CPUINFO)
    if found:
        return Check(name, "ok", ", ".join(found))
    sought = f"none of {', '.join(wanted)}" if wanted else f"unknown for {platform.machine()}"
    advice = "INT8 may be no faster than FP32 here; measure it with edge bench"
    return Check(name, "missing", sought, advice)


def memory() -> Check:
    """Check whether there is enough memory to build an engine."""
    free = memory_available_mib()
    if free == 0:
        return Check("memory", "missing", "unknown")
    if free < _LEAST_MIB:
        advice = "the system may kill a build of an engine: close programs or add swap"
        return Check("memory", "problem", f"{free} MiB available", advice)
    return Check("memory", "ok", f"{free} MiB available")


def check_jetson() -> Iterable[Check]:
    """Check which board and JetPack this is, and its own software; `missing` elsewhere."""
    if not L4T.is_file():
        yield Check("Jetson", "missing", "not one (no /etc/nv_tegra_release)")
        return
    board = BOARD.read_text(errors="replace").strip("\0\n ") if BOARD.is_file() else "unknown board"
    match = re.search(r"R(\d+).*?REVISION: ([\d.]+)", L4T.read_text(errors="replace"))
    if match is None:
        advice = "flash the board again with NVIDIA's SDK Manager"
        yield Check("Jetson", "problem", f"{board}, {L4T} cannot be read", advice)
        return
    major, minor = match.groups()
    jetpack = _package_version("nvidia-jetpack") or f"{_JETPACK.get(major, 'unknown')}.x"
    yield Check("Jetson", "ok", f"{board}, JetPack {jetpack}, L4T {major}.{minor}")
    yield from jetson_software()


def _package_version(package: str) -> str:
    """Version of an installed Debian package; empty where it is not installed."""
    if shutil.which("dpkg-query") is None:
        return ""
    done = run_program(["dpkg-query", "-W", "-f=${Version}", package])
    return done.stdout.strip() if done.returncode == 0 else ""


def jetson_software(root: Path = Path("/")) -> Iterator[Check]:
    """Check GStreamer's elements for camera and decoder, the power mode and the clocks."""
    lacking = [name for name in _ELEMENTS if not has_element(name)]
    if lacking:
        advice = (
            "sudo apt install nvidia-l4t-gstreamer; in a container, use an image that contains it"
        )
        yield Check("GStreamer of a Jetson", "missing", f"without {', '.join(lacking)}", advice)
    else:
        yield Check("GStreamer of a Jetson", "ok", ", ".join(_ELEMENTS))
    mode = power_mode(root)
    if mode is None:
        yield Check("power mode", "missing", "unknown", "sudo nvpmodel -q")
    else:
        yield Check("power mode", "ok", mode)
    yield _clocks(root)


def _clocks(root: Path) -> Check:
    """Check, by the GPU's devfreq, whether jetson_clocks fixed the clocks."""
    for load in sorted(root.glob("sys/class/devfreq/*/device/load")):
        device = load.parent.parent
        try:
            low, high = (int((device / name).read_text()) for name in ("min_freq", "max_freq"))
        except (OSError, ValueError):
            continue
        if low == high:
            return Check("clocks", "ok", f"the GPU's is fixed at {high / 1e6:.0f} MHz")
        span = f"the governor moves the GPU's from {low / 1e6:.0f} to {high / 1e6:.0f} MHz"
        return Check("clocks", "missing", span, "before measuring: sudo jetson_clocks")
    return Check("clocks", "missing", "unknown", "sudo jetson_clocks --show")


def check_cameras() -> Iterable[Check]:
    """Check GStreamer's launcher and the video devices."""
    yield _gst_launch()
    devices = sorted(DEV.glob("video*"))
    if not devices:
        advice = "connect a camera, or give a file or a stream as the source"
        yield Check("cameras", "missing", "no /dev/video*", advice)
    for device in devices:
        yield _camera(device)


def _gst_launch() -> Check:
    name = "gst-launch-1.0"
    if shutil.which(name) is None:
        advice = "apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
        return Check(name, "missing", "for CSI cameras", advice)
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


def check_programs() -> Iterator[Check]:
    """Check the programs that docs/jetson.md runs, one finding for each purpose."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_ADMIN))
    for purpose, programs in COMMANDS.items():
        if purpose == _JETSON and not L4T.is_file():
            continue
        lacking = [name for name in programs if shutil.which(name, path=path) is None]
        if not lacking:
            yield Check(purpose, "ok", ", ".join(map(os.path.basename, programs)))
            continue
        yield Check(purpose, "missing", f"without {', '.join(lacking)}", _install(lacking))


def _install(programs: list[str]) -> str:
    """The command that installs these programs; without sudo it takes the administrator."""
    packages = {name: package for group in COMMANDS.values() for name, package in group.items()}
    command = f"apt install {' '.join(sorted({packages[name] for name in programs}))}"
    return f"as root: {command}" if "sudo" in programs else f"sudo {command}"
