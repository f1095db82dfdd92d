"""The dashboard of the running app in a browser: `edge camera --serve 127.0.0.1:8080`.

The standard library's `http.server` carries it, as the app must start on a board where nothing more
can be installed. A page asks once a second for figures that are made at most twice a second, and a
picture is encoded once for everybody who looks at it, so fifty visitors cost fifty threads that
sleep in `send`. Nothing here is for the open internet.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from apps.camera.live import LiveState
from apps.dashboard.guard import Address, choose_token
from apps.dashboard.server import Server
from edge.errors import CameraError
from edge.reporting import say

__all__ = ["dashboard"]

Beside = Callable[[LiveState], AbstractContextManager[str]]


@contextmanager
def dashboard(
    address: Address, token: str | None = None, say: Callable[[str], None] = say
) -> Iterator[Beside]:
    """Take the address now, and yield what goes into `beside` of `apps.camera.app.camera`.

    Args:
        address: see `parse_address`.
        token: what visitors need; None: no token on the loopback interface, else a random one.
        say: told the address to open, with its token.

    Yields:
        a function that serves a running state until its context ends, and yields the address.

    Raises:
        CameraError: the address is taken, or not one of this machine.
        ValueError: as `choose_token`.
    """
    key = choose_token(token, address)
    try:
        server = Server(address, key)
    except OSError as error:
        raise CameraError(f"--serve {address.host}:{address.port}: {_reason(error)}") from error

    @contextmanager
    def serve(live: LiveState) -> Iterator[str]:
        server.live = live
        thread = threading.Thread(
            target=server.serve_forever, args=(0.2,), name="dashboard", daemon=True
        )
        thread.start()
        url = address.url(server.server_port, key)
        say(f"dashboard: {url}")
        try:
            yield url
        finally:
            server.end()
            thread.join(5)

    with server:
        yield serve


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses this port; name another one, or port 0 for any that is free"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; 0.0.0.0 stands for all that it has"
    if error.errno == errno.EACCES:
        return "ports below 1024 are for the administrator; name a higher one"
    return os.strerror(error.errno) if error.errno else str(error)
