"""Motion-JPEG over HTTP, as IP cameras and `mjpg_streamer` send it (multipart/x-mixed-replace)."""

from __future__ import annotations

import re
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from edge.errors import CameraError
from edge.video.cameras import OpenCvSource, network_source
from edge.video.frame import Frame, Image, bare_address, public_name

__all__ = ["MjpegSource"]

_CONNECT_S, _STALL_S = 5.0, 5.0
_MAX_PART = 64 << 20
_MAX_DAMAGED = 100
_HINT = "is the camera on and the address that of its stream, not of its web page?"


class MjpegSource:
    """A live `Source` of the parts of a multipart reply; another kind of stream goes to FFmpeg.

    FFmpeg would read this too, but collects a second of frames before it gives the first.

    Args:
        address: `http://` or `https://`, with USER:PASSWORD@ where the camera wants them.
    """

    live = True

    def __init__(self, address: str) -> None:
        self.name, self._address = public_name(address), address
        self.fps: float | None = None
        self.damaged, self.note = 0, ""
        self._reply: Any = None
        self._other: OpenCvSource | None = None
        self._boundary = b""
        self._index = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        """See `Source.open`."""
        self._closed.clear()
        self._index = 0
        try:
            reply = _opener(self._address).open(bare_address(self._address), timeout=_CONNECT_S)
        except (OSError, ValueError, HTTPException) as error:
            status = isinstance(error, urllib.error.HTTPError)
            reason = error if status else getattr(error, "reason", None) or error
            raise CameraError(f"{self.name}: no answer: {reason}; {_HINT}") from error
        kind = reply.headers.get("Content-Type", "")
        if not kind.startswith("multipart/"):
            reply.close()
            self._open_other()
            return
        found = re.search(r'boundary="?([^";,\s]+)', kind)
        # Some cameras name the boundary with the dashes that precede it in the stream.
        self._boundary = b"--" + (found[1].encode().lstrip(b"-") if found else b"")
        self._reply = reply

    def _open_other(self) -> None:
        self._other = network_source(self._address)
        self._other.open()
        self.fps = self._other.fps

    def read(self) -> Frame | None:
        """See `Source.read`."""
        if self._other is not None:
            return self._other.read()
        for _ in range(_MAX_DAMAGED):
            image = self._part()
            if self._closed.is_set():
                return None
            if image is not None:
                frame = Frame(image, time.monotonic(), self._index)
                self._index += 1
                return frame
            self.damaged += 1
        raise CameraError(f"{self.name}: {_MAX_DAMAGED} damaged pictures on end; {_HINT}")

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        with self._lock:
            if self._reply is not None:
                self._reply.close()
            if self._other is not None:
                self._other.close()
            self._reply = self._other = None

    def _part(self) -> Image | None:
        """The next part's picture; None: it is damaged, or the source was closed."""
        with self._lock:
            if self._reply is None:
                return None
            try:
                data = self._bytes(time.monotonic() + _STALL_S)
            except (OSError, ValueError, HTTPException) as error:
                raise CameraError(f"{self.name}: lost: {error or 'time-out'}; {_HINT}") from error
        return _decode(data)

    def _bytes(self, deadline: float) -> bytes:
        length = _length(self._header(deadline))
        if length is None:
            return self._until_boundary(deadline)
        if not 0 <= length <= _MAX_PART:
            raise ValueError(f"a picture of {length} bytes")
        data = bytearray()
        while len(data) < length:
            self._check(deadline)
            data += self._some(self._reply.read1(length - len(data)))
        return bytes(data)

    def _header(self, deadline: float) -> list[bytes]:
        while not self._line(deadline).startswith(self._boundary):
            pass
        lines: list[bytes] = []
        while line := self._line(deadline).strip():
            lines.append(line)
        return lines

    def _until_boundary(self, deadline: float) -> bytes:
        lines: list[bytes] = []
        size = 0
        while True:
            line = self._line(deadline)
            if line.startswith(self._boundary):
                # The next header begins here, and its reader wants to see the boundary.
                self._pushed = line
                return b"".join(lines)
            lines.append(line)
            size += len(line)
            if size > _MAX_PART:
                raise ValueError(f"no boundary in {size} bytes")

    _pushed = b""

    def _line(self, deadline: float) -> bytes:
        if self._pushed:
            line, self._pushed = self._pushed, b""
            return line
        self._check(deadline)
        return self._some(self._reply.readline(1 << 16))

    def _check(self, deadline: float) -> None:
        if self._closed.is_set():
            raise ValueError("closed")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no whole picture in {_STALL_S:.0f} s")

    @staticmethod
    def _some(data: bytes) -> bytes:
        if not data:
            raise ConnectionError("the camera closed the connection")
        return data


def _decode(data: bytes) -> Image | None:
    # Decoders fill what is missing with grey and say nothing, so look for both end marks.
    if not data.startswith(b"\xff\xd8") or data.rstrip(b"\0\r\n ")[-2:] != b"\xff\xd9":
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, np.uint8)


def _length(header: list[bytes]) -> int | None:
    for line in header:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return None


def _opener(address: str) -> urllib.request.OpenerDirector:
    parts = urlsplit(address)
    # A camera is on this network: the proxy for web pages does not know it.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if parts.username is not None:
        known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        user, word = unquote(parts.username), unquote(parts.password or "")
        known.add_password(None, bare_address(address), user, word)
        handlers.append(urllib.request.HTTPBasicAuthHandler(known))
        handlers.append(urllib.request.HTTPDigestAuthHandler(known))
    return urllib.request.build_opener(*handlers)
