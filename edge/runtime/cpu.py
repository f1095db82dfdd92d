"""Which of the CPU's instructions multiply INT8."""

from __future__ import annotations

import platform
import re
from pathlib import Path

__all__ = ["CPUINFO", "INT8_FLAGS", "int8_flags", "int8_sums_overflow"]

CPUINFO = Path("/proc/cpuinfo")
# By machine: flags of /proc/cpuinfo whose instructions multiply INT8, the fastest first.
INT8_FLAGS = {
    "x86_64": ("amx_int8", "avx512_vnni", "avx_vnni"),
    "aarch64": ("i8mm", "asimddp"),
}
_X86 = ("x86_64", "amd64", "i386", "i686")


def int8_flags(cpuinfo: Path | None = None) -> tuple[str, ...]:
    """Return the flags of this CPU whose instructions multiply INT8, the fastest first.

    Empty where it has none, and where its flags cannot be read.
    """
    wanted = INT8_FLAGS.get(platform.machine(), ())
    try:
        text = (cpuinfo or CPUINFO).read_text(errors="replace")
    except OSError:
        return ()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(flag for flag in wanted if lines and flag in lines[0].split())


def int8_sums_overflow() -> bool:
    """Return whether onnxruntime's faster INT8 kernels would overflow on this CPU.

    x86 without VNNI adds pairs of products of 8 bits in 16 bits. Where the flags cannot be read
    the answer is yes: the numbers come first.
    """
    return platform.machine().lower() in _X86 and not int8_flags()
