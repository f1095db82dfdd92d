"""Tells systemd that the app is ready, alive or stopping (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

__all__ = ["Watchdog", "notify"]


def notify(text: str) -> bool:
    """Send `text` to the socket that systemd named; return whether there is one that takes it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            # A full queue (ten messages by default) must not hold up the camera.
            door.setblocking(False)
            door.sendto(text.encode(), address)
    except OSError:
        return False
    return True


class Watchdog:
    """Says `WATCHDOG=1` as often as the unit's `WatchdogSec` asks for, while all is well."""

    def __init__(self) -> None:
        limit_us = os.environ.get("WATCHDOG_USEC", "")
        self._every_s = int(limit_us) / 3e6 if limit_us.isdigit() else 0.0
        self._next = 0.0

    def beat(self, alive: Callable[[], bool]) -> None:
        """Say it if it is time and `alive` agrees; called in every round of the loop."""
        now = time.monotonic()
        if self._every_s and now >= self._next and alive():
            self._next = now + self._every_s
            notify("WATCHDOG=1")
