"""From a word on the command line to a source of frames, and which cameras are here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2

from edge.errors import CameraError
from edge.video.address import filled_in, public_name
from edge.video.cameras import network_source, v4l2_source
from edge.video.devices import CameraInfo, list_cameras
from edge.video.files import folder_source, scene_source, video_source
from edge.video.frame import Frame, Source, SourceOptions
from edge.video.gstreamer import csi_source, has_element, pipeline_source, rtsp_source
from edge.video.mjpeg import MjpegSource

__all__ = [
    "CameraInfo",
    "Frame",
    "Source",
    "SourceOptions",
    "default_source",
    "list_cameras",
    "make_source",
    "open_source",
    "public_name",
]

WORLD = "scenes://?seed=1&night=0.3"
_KNOWN = (
    "0, /dev/video0, csi://0, rtsp://, http://, gst:PIPELINE, scenes://, a video, an image or a "
    "folder"
)


def open_source(
    spec: str | Path | None = None,
    *,
    hw: tuple[int, int] | None = None,
    fps: float | None = None,
    pixel_format: str | None = None,
    fast: bool = True,
) -> Source:
    """Open a camera, stream, file, folder or the built-in world, to iterate over its frames.

        with edge.open_source("rtsp://admin:{env:CAMERA_PASSWORD}@10.0.0.7/stream") as source:
            for frame in source:
                found = detector(frame.image)

    Args:
        spec: as `make_source`; None takes the first camera that is here, else the built-in world.
        hw: height and width in pixels to ask of a camera.
        fps: frames a second to ask of a camera; a file is played at this rate.
        pixel_format: of a V4L2 camera, four characters such as MJPG or YUYV.
        fast: give every frame of a file as fast as it is asked for; False plays it as a camera
            would, and drops what is not taken in time.

    Raises:
        CameraError: it is not there, busy, or of no known kind.
    """
    word = default_source() if spec is None else str(spec)
    source = make_source(word, SourceOptions(hw, fps, pixel_format, fast))
    source.open()
    return source


def make_source(word: str, options: SourceOptions | None = None) -> Source:
    """Return the source that a word names, not yet opened.

    Args:
        word: `0`, `/dev/video0`, `csi://0`, `rtsp://...`, `http://...`, `gst:PIPELINE`,
            `scenes://?seed=1&night=0.3&fps=30&size=720x1280`, a video (`?fast=1` after its name:
            as fast as possible), an image or a folder of images. `{env:NAME}` and `{file:PATH}` in
            it stand for what the variable or file holds, such as a password.
        options: size, rate and format to ask for.

    Raises:
        CameraError: there is no such kind, file or variable.
    """
    options = options or SourceOptions()
    if not word.strip():
        # An unset variable of a shell; as a path it would be the current folder.
        raise CameraError(f"the source is empty; known: {_KNOWN}")
    word = filled_in(word)
    if (word.isascii() and word.isdigit()) or word.startswith("/dev/"):
        return v4l2_source(word, options)
    kind = word.partition(":")[0].lower() if ":" in word else ""
    if kind == "csi":
        return csi_source(word, options)
    if kind in ("rtsp", "rtsps"):
        # Without NVIDIA's decoder GStreamer has nothing that FFmpeg has not.
        hardware = has_element("nvv4l2decoder") and has_element("rtspsrc")
        return rtsp_source(word, options) if hardware else network_source(word)
    if kind in ("http", "https"):
        return MjpegSource(word)
    if kind == "gst":
        return pipeline_source(word[4:], options)
    if kind == "scenes" or word == "scenes":
        return scene_source(word, options)
    return _file(word, options)


def _file(word: str, options: SourceOptions) -> Source:
    path = Path(word).expanduser()
    if not path.exists() and (found := re.fullmatch(r"(.+)\?fast=([01])", word)):
        path = Path(found[1]).expanduser()
        options = replace(options, fast=found[2] == "1")
    if not path.exists():
        raise CameraError(
            f"{public_name(word)}: there is no such file, folder or kind of source; known: {_KNOWN}"
        )
    if path.is_dir() or cv2.haveImageReader(str(path)):
        return folder_source(path, options)
    return video_source(path, options)


def default_source() -> str:
    """Return the first camera that is here, else the built-in world."""
    cameras = list_cameras()
    return cameras[0].source if cameras else WORLD
