"""Whether what docs/jetson.md asks for can be done here: its programs, Argus, the clocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from apps.doctor.check import Check
from edge.measure.sensors import power_mode
from edge.video.gstreamer import has_element

__all__ = [
    "COMMANDS",
    "import_apart",
    "jetson_checks",
    "program_checks",
    "run_program",
    "version_of",
]

# By what they are for: each program of the page, and the Debian package that brings it.
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
# Where a user's shell does not look, and sudo does.
_ADMIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def program_checks(jetson: bool) -> Iterator[Check]:
    """One finding for each purpose; those of a Jetson only on one."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_ADMIN))
    for purpose, programs in COMMANDS.items():
        if purpose == _JETSON and not jetson:
            continue
        lacking = [name for name in programs if shutil.which(name, path=path) is None]
        if not lacking:
            yield Check(purpose, "ok", ", ".join(map(os.path.basename, programs)))
            continue
        packages = sorted({programs[name] for name in lacking})
        advice = f"sudo apt install {' '.join(packages)}"
        yield Check(purpose, "missing", f"without {', '.join(lacking)}", advice)


def jetson_checks(root: Path = Path("/")) -> Iterator[Check]:
    """GStreamer's elements for the board's cameras and decoder, the power mode, the clocks."""
    lacking = [name for name in _ELEMENTS if not has_element(name)]
    if lacking:
        advice = "sudo apt install nvidia-l4t-gstreamer; in a container: its image has to bring it"
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
    """Fixed by jetson_clocks, or up to the governor, as the GPU's devfreq tells."""
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


_TIMEOUT_S = 60


def run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` and take its output as text; raises TimeoutExpired after a minute."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )


def import_apart(module: str, expression: str = "''") -> tuple[str, str]:
    """What `expression` over `module` gives in a fresh process, or "" and why it cannot.

    A broken package may end the process that imports it.
    """
    code = f"import importlib; m = importlib.import_module({module!r}); print('>', {expression})"
    try:
        done = run_program([sys.executable, "-c", code])
    except subprocess.TimeoutExpired:
        return "", f"importing it takes more than {_TIMEOUT_S} s"
    if done.returncode < 0:
        return "", f"importing it ends the process with signal {-done.returncode}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
    return done.stdout.rpartition(">")[2].strip() or "yes", ""


def version_of(*distributions: str) -> str:
    """Version of the first of `distributions` that is installed, or nothing."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
