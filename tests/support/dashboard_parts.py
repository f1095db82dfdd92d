"""An app with a dashboard in this process, and what visitors do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apps.camera.live import LiveState
from apps.camera.stats import CameraStats
from apps.dashboard.dashboard import dashboard
from apps.dashboard.guard import parse_address
from tests.support.camera_parts import run_camera, wait_for


@dataclass
class App:
    """The running app; `stats` once it has ended."""

    port: int = 0
    url: str = ""
    stats: CameraStats | None = None

    def get(
        self, path: str, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


@contextmanager
def running(
    artifact: Path,
    sources: list[Any],
    address: str = "127.0.0.1:0",
    token: str | None = None,
    **options: Any,
) -> Iterator[App]:
    """Ends the sources, and by that the app, in the end."""
    app, ready = App(), threading.Event()

    @contextmanager
    def announce(live: LiveState) -> Iterator[None]:
        ready.set()
        yield

    def go() -> None:
        beside = [serve, announce]
        app.stats = run_camera(artifact, sources, beside=beside, threads=1, score=0.01, **options)

    def hear(text: str) -> None:
        app.url = text.partition(": ")[2]
        app.port = urlsplit(app.url).port or 0

    with dashboard(parse_address(address), token, hear) as serve:
        thread = threading.Thread(target=go, name="app")
        thread.start()
        try:
            wait_for(lambda: ready.is_set() and app.url, 20)
            yield app
        finally:
            for source in sources:
                source.close()
            thread.join(20)
            assert not thread.is_alive()
