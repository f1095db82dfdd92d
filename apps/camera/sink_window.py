"""A window on the screen, where OpenCV has windows and there is a screen."""

from __future__ import annotations

import os
import re
import sys
import threading

import cv2

from apps.camera.result import Result
from edge.errors import CameraError

__all__ = ["WindowSink", "why_no_window"]


def why_no_window() -> str:
    """What keeps a window from opening; empty if nothing does."""
    found = re.search(r"GUI:\s+(\S+)", cv2.getBuildInformation())
    if found is None or found[1] == "NONE":
        return (
            "this OpenCV has no windows: pip uninstall opencv-python-headless, then pip install "
            "opencv-python (a Jetson: apt install python3-opencv); or use --headless"
        )
    linux = sys.platform.startswith("linux")
    if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no screen (DISPLAY is not set); use --headless"
    return ""


class WindowSink:
    """Shows the newest result of each source; Q or Escape ends the app.

    Args:
        stop: set when the user has seen enough.

    Raises:
        CameraError: as `why_no_window` says.
    """

    pictures, depth, newest = True, 1, True

    def __init__(self, stop: threading.Event) -> None:
        if reason := why_no_window():
            raise CameraError(f"window: {reason}")
        self.name, self._stop = "window", stop

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        try:
            cv2.imshow(f"edge: {result.name}", result.picture())
            key = cv2.waitKey(1) & 0xFF
        except cv2.error as error:
            raise CameraError(f"window: {' '.join(str(error).split())}") from error
        if key in (ord("q"), ord("Q"), 27):
            self._stop.set()

    def close(self) -> None:
        """See `Sink.close`."""
        cv2.destroyAllWindows()
