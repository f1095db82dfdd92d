"""GStreamer pipelines: through OpenCV where it can, else through a `gst-launch-1.0` child."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from edge.errors import CameraError
from edge.video.cameras import gstreamer_source, has_gstreamer
from edge.video.frame import Source, SourceOptions, public_name
from edge.video.pipe import PipeSource

__all__ = ["csi_source", "has_element", "pipeline_source", "rtsp_source"]

_HW = (720, 1280)
_CSI_HINT = (
    "is the ribbon seated and the sensor enabled (sudo /opt/nvidia/jetson-io/jetson-io.py)? After "
    "a crash: sudo systemctl restart nvargus-daemon"
)
_RTSP_HINT = "is the camera on, the address right and the password in it?"
_RAW_HINT = "try the same pipeline with gst-launch-1.0 and fakesink at its end"
_NEWEST = "appsink drop=true max-buffers=1 sync=false"


@lru_cache(maxsize=16)
def has_element(name: str) -> bool:
    """Whether GStreamer on this machine has an element, such as `nvv4l2decoder`."""
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        return False
    try:
        done = subprocess.run(
            [inspect, "--exists", name], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def csi_source(address: str, options: SourceOptions) -> Source:
    """`csi://0`, a camera on a Jetson's ribbon; `csi://0?flip=2` turns it upside down.

    The image processor of the Jetson debayers and scales (`nvarguscamerasrc`, `nvvidconv`).
    """
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    flip, sensor = query.pop("flip", "0"), parts.netloc or parts.path.strip("/") or "0"
    if query or not sensor.isdigit() or flip not in set("01234567"):
        raise CameraError(f"{address}: it takes csi://NUMBER or csi://NUMBER?flip=0..7")
    height, width = options.hw or _HW
    rate = Fraction(options.fps or 30).limit_denominator(1001)
    head = (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},"
        f"height={height},framerate={rate.numerator}/{rate.denominator},format=NV12 "
        f"! nvvidconv flip-method={flip}"
    )
    return _nvidia(address, head, (height, width), _CSI_HINT, options.fps or 30)


def rtsp_source(address: str, options: SourceOptions) -> Source:
    """RTSP through the Jetson's decoder, whatever codec the camera sends; TCP, 100 ms of buffer.

    Without `hw` frames have the camera's own size, but 1280x720 where they come through a child.
    """
    # gst-launch's own parser would end the address at a space or a bang.
    if any(mark in address for mark in ' "!'):
        raise CameraError(f"{public_name(address)}: write spaces, quotes and ! as %20, %22 and %21")
    head = (
        f'rtspsrc location="{address}" protocols=tcp latency=100 drop-on-latency=true '
        "! application/x-rtp,media=video ! decodebin ! nvvidconv"
    )
    return _nvidia(public_name(address), head, options.hw, _RTSP_HINT, options.fps)


def _nvidia(
    name: str, head: str, hw: tuple[int, int] | None, hint: str, fps: float | None
) -> Source:
    height, width = hw or _HW
    size = f",width={width},height={height}"
    if has_gstreamer():
        asked = size if hw else ""
        tail = f"video/x-raw,format=BGRx{asked} ! videoconvert ! video/x-raw,format=BGR"
        return gstreamer_source(name, f"{head} ! {tail} ! {_NEWEST}", hint)
    # nvvidconv writes I420 by itself: no conversion on the CPU, half the bytes of BGR.
    return PipeSource(name, f"{head} ! video/x-raw,format=I420{size}", (height, width), hint, fps)


def pipeline_source(pipeline: str, options: SourceOptions) -> Source:
    """`gst:PIPELINE` without its sink; through a child its size is `hw`, by default 1280x720."""
    pipeline = pipeline.strip().rstrip("!").strip()
    if not pipeline:
        raise CameraError("gst: no pipeline; it takes one such as gst:videotestsrc is-live=true")
    height, width = options.hw or _HW
    size = f",width={width},height={height}"
    name = public_name(f"gst:{pipeline}")
    if has_gstreamer():
        asked = size if options.hw else ""
        tail = f"videoconvert ! videoscale ! video/x-raw,format=BGR{asked} ! {_NEWEST}"
        whole = pipeline if "appsink" in pipeline else f"{pipeline} ! {tail}"
        return gstreamer_source(name, whole, _RAW_HINT)
    # GStreamer takes BT.709 for large pictures, OpenCV BT.601 for all.
    tail = f"videoconvert ! videoscale ! video/x-raw,format=I420,colorimetry=bt601{size}"
    return PipeSource(name, f"{pipeline} ! {tail}", (height, width), _RAW_HINT, options.fps)
