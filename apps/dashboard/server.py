"""The web server behind the dashboard: one request a connection, a thread for each, all bounded.

Limits hold for every visitor, before the token is looked at: 100 visitors at a time, 16 KiB and 100
lines of request, 5 seconds for a request to come in and for each picture to go out, no bodies, one
line a minute about what fails.
"""

from __future__ import annotations

import io
import json
import math
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from apps.camera.live import LiveState
from apps.camera.stats import CameraStats
from apps.dashboard.guard import Address, may_enter, own_host, security_headers
from apps.dashboard.metrics import CONTENT_TYPE, metrics_text
from edge.files import plain_text, to_plain
from edge.measure.sensors import sensor_reader
from edge.reporting import say

__all__ = ["Server"]

_PAGE = Path(__file__).with_name("page.html")
_JSON = "application/json"
_MOST_VISITORS = 100
# For a whole request to come in, and for one answer or one picture to go out.
_REQUEST_S, _SEND_S = 5.0, 5.0
# Of a request's line and headers together.
_MOST_BYTES = 16 << 10
_COMPLAIN_S = 60.0
_SEND_BUFFER = 1 << 16
_VIEW_FPS = 15.0
_STILL_S = 5.0
_FRESH_S = 0.5
_WIDTHS = (480, 960, 1920)
_QUALITY = 75


class Server(ThreadingHTTPServer):
    """Listens once made; answers between `serve_forever` and `end`.

    Attributes:
        live: what is shown; set before `serve_forever`.
        stopping: set by `end`; streams look at it.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    live: LiveState
    _complained = -math.inf

    def __init__(self, address: Address, token: str) -> None:
        self.address_family = address.family
        self.address, self.token = address, token
        self.stopping = threading.Event()
        self.page = _PAGE.read_text(encoding="utf-8")
        self.page_headers = security_headers(self.page)
        self._sensors = sensor_reader()
        self._known: tuple[float, CameraStats, dict[str, Any]] | None = None
        self._polling = threading.Lock()
        self._visitors: dict[socket.socket, float | None] = {}
        self._counting = threading.Lock()
        super().__init__((address.host, address.port), _Visit)

    def server_bind(self) -> None:
        """Bind without looking up a name, which takes seconds where no name server answers."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.address.host, self.server_address[1]

    def poll(self) -> tuple[CameraStats, dict[str, Any]]:
        """Return snapshot and sensors, which are read at most twice a second whoever asks."""
        with self._polling:
            if self._known is None or time.monotonic() - self._known[0] > _FRESH_S:
                now, sensors = self.live.snapshot(), self._sensors()
                self._known = (time.monotonic(), now, sensors)
            return self._known[1:]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a visitor in a thread of its own, or refuse it where there are too many."""
        with self._counting:
            full = len(self._visitors) >= _MOST_VISITORS
            if not full:
                self._visitors[request] = time.monotonic() + _REQUEST_S
        if full:
            with suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.1 503 Too many visitors\r\nConnection: close\r\n\r\n")
            super().shutdown_request(request)
            return
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().process_request(request, client_address)

    def settled(self, request: socket.socket) -> None:
        """Say that the whole request of this visitor has come."""
        with self._counting:
            self._visitors[request] = None

    def shutdown_request(self, request: Any) -> None:
        """Say that the visitor is served."""
        with self._counting:
            self._visitors.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on visitors that send their request too slowly; called several times a second."""
        now = time.monotonic()
        with self._counting:
            late = [one for one, end in self._visitors.items() if end is not None and end < now]
        _hang_up(late)

    def end(self) -> None:
        """Stop answering, and hang up on whoever is connected."""
        self.stopping.set()
        self.shutdown()
        with self._counting:
            left = list(self._visitors)
        _hang_up(left)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what failed, at most once a minute; a visitor that goes away is no news."""
        error, now = sys.exc_info()[1], time.monotonic()
        if isinstance(error, OSError) or now - self._complained < _COMPLAIN_S:
            return
        self._complained = now
        say(f"dashboard: a request failed: {type(error).__name__}: {plain_text(str(error))[:200]}")


def _hang_up(visitors: list[socket.socket]) -> None:
    for visitor in visitors:
        # Its thread, waiting in a read or a write, wakes up and closes it.
        with suppress(OSError):
            visitor.shutdown(socket.SHUT_RDWR)


class _Limited(io.BufferedIOBase):
    """What a visitor sends, up to a number of bytes; beyond it a line has no end."""

    def __init__(self, raw: io.BufferedIOBase, limit: int) -> None:
        self._raw, self._left = raw, limit

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> bytes:
        line = self._raw.readline(min(self._left, size) if size and size > 0 else self._left)
        self._left -= len(line)
        if not self._left:
            raise _TooLong
        return line

    def close(self) -> None:
        self._raw.close()


class _TooLong(Exception):
    """A request is longer than the dashboard reads."""


class _Visit(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "edge", ""
    protocol_version = "HTTP/1.1"
    timeout = _SEND_S
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks every second."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with one line of text."""
        self._answer(code, "text/plain; charset=utf-8", f"{message or 'Error'}\n".encode())

    def setup(self) -> None:
        """Read through the limit."""
        super().setup()
        self.rfile = _Limited(self.rfile, _MOST_BYTES)

    def handle_one_request(self) -> None:
        """Answer, also where the request is too long or no request at all."""
        try:
            super().handle_one_request()
        except _TooLong:
            self.close_connection = True
            self.requestline, self.command = "", "GET"
            self.request_version = self.protocol_version
            self.send_error(431, f"a request has at most {_MOST_BYTES} bytes")

    def do_GET(self) -> None:
        """Answer; a visitor that does not read the answer is let go."""
        self.server.settled(self.connection)
        try:
            self._admit()
        except TimeoutError:
            # What is not read must not wait in the kernel either: close by a reset.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raise

    def do_HEAD(self) -> None:
        """Answer without the body, for programs that watch over services."""
        self.do_GET()

    def _admit(self) -> None:
        """Look at who asks, then at what for."""
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self.send_error(400, "this is no address")
            return
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        given = query.get("token", "")
        cookie = f"edge_{self.server.server_port}"
        if not own_host(self.headers.get("Host", ""), self.server.address):
            self.send_error(403, "open the dashboard by its IP address or by this machine's name")
        elif not may_enter(self.server.token, cookie, dict(self.headers.items()), given):
            self.send_error(401, "a token is needed: open the address that the app printed")
        elif given and parts.path == "/" and self.server.token:
            self._remember(cookie)
        else:
            self._route(parts.path, query)

    def _remember(self, cookie: str) -> None:
        """Move the token into a cookie and out of the address bar."""
        # Lax: a link in a message leads here too. Cookies do not tell ports apart.
        crumb = f"{cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Lax"
        self._answer(303, "text/plain", b"", {"Location": "/", "Set-Cookie": crumb})

    def _route(self, path: str, query: dict[str, str]) -> None:
        plain: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/state": partial(self._state, query),
            "/metrics": self._metrics,
            "/healthz": self._health,
        }
        kind, _, number = path.strip("/").partition("/")
        count = self.server.live.source_count
        if path in plain:
            plain[path]()
        elif kind in ("stream", "frame") and number.isdecimal() and int(number) < count:
            (self._stream if kind == "stream" else self._frame)(int(number), _width(query))
        else:
            self.send_error(404, "there is nothing here")

    def _answer(
        self, code: int, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        found = {**security_headers(), **(headers or {})}
        found |= {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
        if code == 401:
            found["WWW-Authenticate"] = "Bearer"
        for name, value in found.items():
            self.send_header(name, _one_line(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _page(self) -> None:
        page = self.server.page.encode()
        self._answer(200, "text/html; charset=utf-8", page, self.server.page_headers)

    def _state(self, query: dict[str, str]) -> None:
        try:
            after = float(query.get("after", 0))
        except ValueError:
            self.send_error(400, "after: a number of seconds")
            return
        now, sensors = self.server.poll()
        series = self.server.live.series(after)
        told = {"now": now, "sensors": sensors, "series": series}
        self._answer(200, _JSON, json.dumps(to_plain(told)).encode())

    def _metrics(self) -> None:
        self._answer(200, CONTENT_TYPE, metrics_text(*self.server.poll()).encode())

    def _health(self) -> None:
        health = self.server.live.health()
        self._answer(200 if health.alive else 503, _JSON, json.dumps(to_plain(health)).encode())

    def _frame(self, source: int, width: int) -> None:
        found = self.server.live.jpeg(source, _QUALITY, width)
        if found is None:
            self.send_error(503, "no frame yet")
        else:
            self._answer(200, "image/jpeg", found[1])

    def _stream(self, source: int, width: int) -> None:
        """Send Motion-JPEG (multipart/x-mixed-replace): the newest frame, as fast as it is read.

        The boundary after each picture goes with it: browsers show a picture when that has come.
        """
        self.send_response(200)
        for name, value in security_headers().items():
            self.send_header(name, value)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(b"--frame\r\n")
        stopping, live, shown, due = self.server.stopping, self.server.live, 0, 0.0
        while not stopping.wait(max(0.0, due - time.monotonic())):
            number = live.wait(source, shown)
            # Now and then the same picture again: only writing shows that a visitor has gone.
            if number == shown and time.monotonic() < due + _STILL_S:
                continue
            found = live.jpeg(source, _QUALITY, width)
            due = time.monotonic() + 1 / _VIEW_FPS
            if found is not None:
                shown = found[0]
                head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(found[1])
                self.wfile.write(head + found[1] + b"\r\n--frame\r\n")


def _one_line(value: str) -> str:
    """Return a header's value without what would begin another header."""
    return "".join(letter if letter.isprintable() else "?" for letter in value)


def _width(query: dict[str, str]) -> int:
    """Return the offered width next to the one asked for: visitors share pictures of few sizes."""
    asked = query.get("width", "")
    wanted = int(asked) if asked.isdecimal() and len(asked) < 6 else _WIDTHS[1]
    return min(_WIDTHS, key=lambda width: abs(width - wanted))
