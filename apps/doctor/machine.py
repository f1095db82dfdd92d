"""The machine for `edge doctor`: Python, CPU, memory, which Jetson."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from apps.doctor.check import Check
from apps.doctor.programs import jetson_checks, run_program
from edge.measure.host import fingerprint
from edge.runtime.cpu import CPUINFO, INT8_FLAGS, int8_flags
from export.engine.process import memory_available_mib

__all__ = [
    "BOARD",
    "CPUINFO",
    "L4T",
    "check_jetson",
    "check_machine",
    "int8_instructions",
    "memory",
]

BOARD = Path("/proc/device-tree/model")
L4T = Path("/etc/nv_tegra_release")
# https://developer.nvidia.com/embedded/jetpack-archive: the release of L4T by JetPack's.
_JETPACK = {"32": "4", "35": "5", "36": "6", "38": "7"}
_LEAST_MIB = 1024


def check_machine() -> Iterable[Check]:
    """Python, processor, INT8 instructions, memory."""
    version = platform.python_version()
    enough = sys.version_info >= (3, 10)
    yield Check(
        "Python", "ok" if enough else "problem", version, "" if enough else "take 3.10 or later"
    )
    host = fingerprint()
    yield Check("machine", "ok", f"{host['cpu']}, {host['cores']} cores, {host['platform']}")
    yield int8_instructions()
    yield memory()


def int8_instructions() -> Check:
    """Whether the CPU multiplies INT8 faster than floats."""
    name = "INT8 instructions of the CPU"
    wanted, found = INT8_FLAGS.get(platform.machine(), ()), int8_flags(CPUINFO)
    if found:
        return Check(name, "ok", ", ".join(found))
    sought = f"none of {', '.join(wanted)}" if wanted else f"unknown for {platform.machine()}"
    return Check(name, "missing", sought, "INT8 may be no faster than FP32 here; edge bench tells")


def memory() -> Check:
    """What is free, beside what building an engine takes."""
    free = memory_available_mib()
    if free == 0:
        return Check("memory", "missing", "unknown", "")
    if free < _LEAST_MIB:
        advice = "building an engine may be killed: close programs or add swap"
        return Check("memory", "problem", f"{free} MiB available", advice)
    return Check("memory", "ok", f"{free} MiB available")


def check_jetson() -> Iterable[Check]:
    """Which board and JetPack, and its own programs; `missing` elsewhere."""
    if not L4T.is_file():
        yield Check("Jetson", "missing", "not one (no /etc/nv_tegra_release)")
        return
    board = BOARD.read_text(errors="replace").strip("\0\n ") if BOARD.is_file() else "unknown board"
    match = re.search(r"R(\d+).*?REVISION: ([\d.]+)", L4T.read_text(errors="replace"))
    if match is None:
        yield Check("Jetson", "problem", f"{board}, {L4T} cannot be read", "flash it again")
        return
    major, minor = match.groups()
    jetpack = _package_version("nvidia-jetpack") or f"{_JETPACK.get(major, 'unknown')}.x"
    yield Check("Jetson", "ok", f"{board}, JetPack {jetpack}, L4T {major}.{minor}")
    yield from jetson_checks()


def _package_version(package: str) -> str:
    """Version of an installed Debian package, or nothing."""
    if shutil.which("dpkg-query") is None:
        return ""
    done = run_program(["dpkg-query", "-W", "-f=${Version}", package])
    return done.stdout.strip() if done.returncode == 0 else ""
