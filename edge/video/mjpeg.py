"""Motion-JPEG over HTTP, as IP cameras and `mjpg_streamer` send it (multipart/x-mixed-replace).

What a camera may send is limited: every frame and every header has a deadline that trickling bytes
do not move, and bytes, header lines and pixels have their bounds.
"""

from __future__ import annotations

import http.client
import math
import re
import socket
import ssl
import struct
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from edge.errors import CameraError
from edge.video.address import bare_address, check_login, public_name
from edge.video.cameras import OpenCvSource, network_source
from edge.video.clock import SourceClock
from edge.video.frame import GuardedSource, Image

__all__ = ["MjpegSource", "jpeg_hw"]

# From the first byte of a request to the last of the answer's header, and of one frame.
_CONNECT_S, _STALL_S = 5.0, 5.0
# A closed source is noticed, and a stopped process, within this time.
_SLICE_S = 0.1
_STOPPED_S = 1.0
_MAX_PART = 32 << 20
_MAX_HEADER = 16 << 10
_CHUNK = 1 << 16
# 8K has 33 million pixels. A progressive JPEG has ten scans or so; each one costs a whole pass.
_MAX_PIXELS = 36_000_000
_MAX_SCANS = 100
_MAX_DAMAGED = 100
_HINT = "is the camera on and the address that of its stream, not of its web page?"


class _Limits:
    """What every read of a connection looks at: its deadline, and whether the source is closed."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed, self.deadline = closed, 0.0
        # Whether the process stood still or nobody read, and whether the last read had to wait.
        self.stopped = self.waited = False
        self._read = math.inf

    def allow(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def check(self) -> None:
        if self.closed.is_set():
            raise ConnectionAbortedError("closed")
        if time.monotonic() > self.deadline:
            raise TimeoutError("no whole picture in time")

    def receive(self, read: Any, *args: Any) -> int:
        self.waited = False
        self.stopped |= time.monotonic() - self._read > _STOPPED_S
        while True:
            self.check()
            began = time.monotonic()
            try:
                count = int(read(*args))
            except TimeoutError:
                count = -1
            self._read = time.monotonic()
            passed = self._read - began
            if passed > _STOPPED_S:
                self.stopped, self.waited = True, False
            elif passed > 0.002:
                self.waited = True
            if count >= 0:
                return count


class _Socket(socket.socket):
    limits: _Limits

    def recv_into(self, *args: Any) -> int:
        return self.limits.receive(super().recv_into, *args)


class _TlsSocket(ssl.SSLSocket):
    limits: _Limits | None = None

    def recv_into(self, *args: Any) -> int:
        if self.limits is None:
            return super().recv_into(*args)
        return self.limits.receive(super().recv_into, *args)


def _limited(kind: type[http.client.HTTPConnection], limits: _Limits) -> Any:
    """Return a class of connections whose sockets obey `limits`."""

    class Limited(kind):  # type: ignore[misc, valid-type]
        sock: Any

        def connect(self) -> None:
            super().connect()
            plain: Any = self.sock
            if not isinstance(plain, _TlsSocket):
                plain = _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
            plain.limits = limits
            plain.settimeout(_SLICE_S)
            self.sock = plain

    return Limited


class MjpegSource(GuardedSource):
    """A live `Source` of the parts of a multipart reply; another kind of stream goes to FFmpeg.

    FFmpeg would read this too, but collects a second of frames before it gives the first. Parts
    with an `X-Timestamp` have the camera's own time; others count from their arrival. After this
    process was stopped, what had piled up meanwhile is passed over.

    Args:
        address: `http://` or `https://`, with USER:PASSWORD@ where the camera wants them.
    """

    def __init__(self, address: str) -> None:
        super().__init__(public_name(address), live=True)
        self._address = address
        self._limits = _Limits(self._closed)
        self._reply: Any = None
        self._other: OpenCvSource | None = None
        self._boundary, self._buffer = b"", bytearray()
        self._clock = SourceClock()

    def _connect(self) -> None:
        check_login(self._address)
        self._limits = _Limits(self._closed)
        self._limits.allow(_CONNECT_S)
        self._buffer, self._clock = bytearray(), SourceClock()
        try:
            reply = _opener(self._address, self._limits).open(
                bare_address(self._address), timeout=_CONNECT_S
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason: object = getattr(error, "reason", None) or error
            if isinstance(error, urllib.error.HTTPError):
                reason = str(error)
                error.close()
            raise CameraError(f"{self.name}: no answer: {reason}; {_HINT}") from error
        kind = reply.headers.get("Content-Type", "")
        if not kind.startswith("multipart/"):
            reply.close()
            self._other = network_source(self._address)
            self._other.open()
            self.fps = self._other.fps
            return
        found = re.search(r'boundary="?([^";,\s]+)', kind)
        # Some cameras name the boundary with the dashes that precede it in the stream.
        self._boundary = b"--" + (found[1].encode().lstrip(b"-") if found else b"")
        self._reply = reply

    def _take(self) -> tuple[Image, float] | None:
        if self._other is not None:
            frame = self._other.read()
            return None if frame is None else (frame.image, frame.captured)
        for _ in range(_MAX_DAMAGED):
            if self._reply is None or self._closed.is_set():
                return None
            try:
                data, captured = self._part()
            except ConnectionAbortedError:
                return None
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise CameraError(f"{self.name}: lost: {error or 'time-out'}; {_HINT}") from error
            image = _decode(data)
            if image is not None:
                return image, captured
            self.damaged += 1
        raise CameraError(f"{self.name}: {_MAX_DAMAGED} corrupt frames in a row; {_HINT}")

    def _interrupt(self) -> None:
        other = self._other
        if other is not None:
            other.close()

    def _release(self) -> None:
        if self._reply is not None:
            self._reply.close()
        if self._other is not None:
            self._other.close()
        self._reply = self._other = None

    def _part(self) -> tuple[bytes, float]:
        """Read one part; after a stop, the first one that was not waiting already.

        Raises:
            OSError: the connection ended, or the deadline passed.
            ValueError: the part is larger than a picture can be.
        """
        while True:
            self._limits.allow(_STALL_S)
            header = self._header()
            data = self._body(header.get(b"content-length"))
            arrived = time.monotonic()
            stamp = _number(header.get(b"x-timestamp"))
            if stamp is not None:
                self._limits.stopped = False
                return data, self._clock.captured(stamp, arrived)
            if self._limits.stopped and not self._limits.waited:
                continue
            self._limits.stopped = False
            return data, arrived

    def _header(self) -> dict[bytes, bytes]:
        while not self._line(_MAX_PART).startswith(self._boundary):
            pass
        found: dict[bytes, bytes] = {}
        size = 0
        while line := self._line(_MAX_HEADER).strip():
            size += len(line)
            if size > _MAX_HEADER:
                raise ValueError(f"the header of a picture has more than {_MAX_HEADER} bytes")
            name, _, value = line.partition(b":")
            found[name.strip().lower()] = value.strip()
        return found

    def _body(self, length: bytes | None) -> bytes:
        if length is not None:
            count = int(length)
            if not 0 <= count <= _MAX_PART:
                raise ValueError(f"a picture of {count} bytes; at most {_MAX_PART} are read")
            while len(self._buffer) < count:
                self._receive()
            return self._cut(count)
        # The next boundary begins a line; its own reader wants to see it.
        searched = 0
        while (end := self._buffer.find(b"\n" + self._boundary, searched)) < 0:
            searched = max(0, len(self._buffer) - len(self._boundary))
            if len(self._buffer) > _MAX_PART:
                raise ValueError(f"no boundary in {len(self._buffer)} bytes")
            self._receive()
        return self._cut(end + 1)

    def _line(self, limit: int) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise ValueError(f"a line of more than {limit} bytes between two pictures")
            self._receive()
        return self._cut(end + 1)

    def _cut(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _receive(self) -> None:
        self._limits.check()
        data = self._reply.read1(_CHUNK)
        if not data:
            raise ConnectionError("the camera closed the connection")
        self._buffer += data


def _number(text: bytes | None) -> float | None:
    """Seconds of a stamp, if they are those of a clock."""
    try:
        value = float(text or b"")
    except ValueError:
        return None
    return value if 0 < value < 1e12 else None


def jpeg_hw(data: bytes) -> tuple[int, int] | None:
    """Return the height and width that a JPEG's header names; None if it has none (T.81, B.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF or kind == 0x01 or 0xD0 <= kind <= 0xD8:
            at += 1 if kind == 0xFF else 2
            continue
        # A frame header; C4, C8 and CC are tables and extensions.
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _decode(data: bytes) -> Image | None:
    # Decoders fill what is missing with grey and say nothing, so look for both end marks.
    if not data.startswith(b"\xff\xd8") or data.rstrip(b"\0\r\n ")[-2:] != b"\xff\xd9":
        return None
    hw = jpeg_hw(data)
    if hw is None or hw[0] * hw[1] > _MAX_PIXELS or data.count(b"\xff\xda") > _MAX_SCANS:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _opener(address: str, limits: _Limits) -> urllib.request.OpenerDirector:
    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(_limited(http.client.HTTPConnection, limits), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            context = ssl.create_default_context()
            context.sslsocket_class = _TlsSocket
            kind = _limited(http.client.HTTPSConnection, limits)
            return self.do_open(kind, request, context=context)

    parts = urlsplit(address)
    # A camera is on this network: the proxy for web pages does not know it.
    proxies = urllib.request.ProxyHandler({})
    handlers: list[urllib.request.BaseHandler] = [proxies, Http(), Https()]
    if parts.username is not None:
        known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        user, word = unquote(parts.username), unquote(parts.password or "")
        known.add_password(None, bare_address(address), user, word)
        handlers.append(urllib.request.HTTPBasicAuthHandler(known))
        handlers.append(urllib.request.HTTPDigestAuthHandler(known))
    return urllib.request.build_opener(*handlers)
