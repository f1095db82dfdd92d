"""A reserve on a disk, for whatever else must be written there."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

__all__ = ["need_room"]

_RESERVE = 64 << 20


def need_room(folder: Path) -> None:
    """Check that more than a reserve is free: 64 MiB, or an eighth of a small disk.

    A full disk would cost a video its index, and other programs their files.

    Raises:
        OSError: less is free, or there is no such folder.
    """
    usage = shutil.disk_usage(folder)
    if usage.free < min(_RESERVE, usage.total // 8):
        free = f"{usage.free / 2**20:.0f} MiB"
        raise OSError(errno.ENOSPC, f"the disk is full but for a reserve of {free}", str(folder))
