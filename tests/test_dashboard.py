"""The dashboard's server: what it tells, whom it lets in, and visitors that behave badly."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest

from apps.dashboard.dashboard import dashboard
from apps.dashboard.guard import parse_address
from edge.errors import CameraError
from edge.measure.sensors import memory_bytes
from tests.support.camera_parts import ROOT, Held, free_port, open_files, pictures, wait_for
from tests.support.dashboard_parts import App, running
from tests.support.small_models import write_small


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write_small(path)
    return path


def held(fps: float = 20, hw: tuple[int, int] = (120, 160), name: str = "held") -> Held:
    return Held(pictures(8, hw), fps=fps, name=name)


class Visitor:
    """Opens a stream and reads it when it is told to."""

    def __init__(self, port: int, path: str = "/stream/0", buffer: int | None = None) -> None:
        self.door = socket.socket()
        if buffer:
            self.door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.door.settimeout(10)
        self.door.connect(("127.0.0.1", port))
        self.door.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.file = self.door.makefile("rb")

    def head(self) -> int:
        status = int(self.file.readline().split()[1])
        while self.file.readline().strip():
            pass
        return status

    def picture(self) -> np.ndarray:
        assert self.file.readline() == b"--frame\r\n"
        length = 0
        while line := self.file.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"Content-Length" else length
        image = cv2.imdecode(np.frombuffer(self.file.read(length), np.uint8), cv2.IMREAD_COLOR)
        assert self.file.readline() == b"\r\n"
        return np.asarray(image)

    def close(self) -> None:
        self.file.close()
        self.door.close()


def test_it_tells_what_the_app_knows(artifact: Path) -> None:
    with running(artifact, [held(), held(name="other")], track=True, baseline=artifact) as app:
        wait_for(lambda: len(json.loads(app.get("/state")[1])["series"]) >= 2)
        told = json.loads(app.get("/state")[1])
        later = json.loads(app.get(f"/state?after={told['series'][0]['t']}")[1])
        assert [one["name"] for one in told["now"]["sources"]] == ["held", "other"]
        assert told["now"]["frames"] > 20 and told["now"]["baseline"]["frames"] > 0
        assert told["now"]["tracks"] is not None and told["sensors"]["memory_mib"] > 10
        assert later["series"][0]["t"] > told["series"][0]["t"]
        answer, health = app.get("/healthz")
        assert answer.status == 200 and json.loads(health)["ok"]
        answer, page = app.get("/")
        assert answer.status == 200 and b"<title>edge camera" in page
        for path, status in (("/x", 404), ("/stream/2", 404), ("/frame/-1", 404)):
            assert app.get(path)[0].status == status
        assert app.get("/state?after=x")[0].status == 400
        for path in ("/", "/state", "/metrics", "/x"):
            answer, _ = app.get(path)
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_prometheus_understands_the_metrics(artifact: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    sources = [held(name='a "quoted\\ name'), held(name="b")]
    with running(artifact, sources, baseline=artifact, baseline_share=1) as app:
        wait_for(lambda: json.loads(app.get("/state")[1])["now"]["frames"] > 20)
        time.sleep(0.6)
        text = app.get("/metrics")[1].decode()
    families = {one.name: one for one in parser.text_string_to_metric_families(text)}
    assert families["edge_fps"].samples[0].value > 5
    frames = {one.labels["source"]: one.value for one in families["edge_frames"].samples}
    assert set(frames) == {'a "quoted\\ name', "b"} and min(frames.values()) > 5
    assert families["edge_frames"].type == "counter"
    ages = families["edge_frame_age_seconds"]
    assert ages.type == "summary"
    counts = [one.value for one in ages.samples if one.name.endswith("_count")]
    assert counts == list(frames.values())
    assert all(0 < one.value < 5 for one in ages.samples if "quantile" in one.labels)
    states = [one.labels["state"] for one in families["edge_source_state"].samples if one.value]
    assert states == ["live", "live"]
    assert families["edge_info"].samples[0].labels["precision"] == "fp32"
    assert families["edge_baseline_agreement_ratio"].samples[0].value == 1.0


def test_who_asks_for_the_head_gets_no_body(artifact: Path) -> None:
    with running(artifact, [held()]) as app:
        for path in ("/healthz", "/", "/stream/0", "/metrics"):
            with socket.create_connection(("127.0.0.1", app.port), 10) as door:
                door.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                head, _, body = door.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and body == b""


def test_a_stream_shows_new_pictures_in_the_size_that_was_asked_for(artifact: Path) -> None:
    with running(artifact, [held(hw=(720, 1280))]) as app:
        visitor = Visitor(app.port, "/stream/0?width=500")
        assert visitor.head() == 200
        seen = [visitor.picture() for _ in range(5)]
        visitor.close()
        assert {one.shape for one in seen} == {(270, 480, 3)}
        assert len({one.tobytes() for one in seen}) >= 3
        answer, data = app.get("/frame/0?width=99999999999")
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1] == 960


def test_a_foreign_name_is_refused_and_this_machines_own_are_not(artifact: Path) -> None:
    with running(artifact, [held()]) as app:
        for name in ("evil.example", f"evil.example:{app.port}", "localhost.evil.example"):
            for path in ("/", "/state", "/stream/0", "/metrics", "/healthz"):
                assert app.get(path, {"Host": name})[0].status == 403
        for name in ("localhost", "127.0.0.1:1234", "[::1]"):
            assert app.get("/healthz", {"Host": name})[0].status == 200


def test_beyond_this_machine_nothing_is_told_without_the_token(artifact: Path) -> None:
    with running(artifact, [held()], "0.0.0.0:0") as app:
        token = parse_qs(urlsplit(app.url).query)["token"][0]
        for path in ("/", "/state", "/stream/0", "/frame/0", "/metrics", "/healthz", "/x"):
            answer, text = app.get(path)
            assert answer.status == 401 and token.encode() not in text
            wrong = {"Authorization": f"Bearer {token[:-1]}", "Cookie": f"edge_{app.port}=x"}
            assert app.get(path, wrong)[0].status == 401
        assert app.get("/metrics", {"Authorization": f"Bearer {token}"})[0].status == 200
        answer, _ = app.get(f"/?token={token}")
        assert answer.status == 303 and answer.headers["Location"] == "/"
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
        for path in ("/", "/state"):
            assert app.get(path, {"Cookie": cookie.partition(";")[0]})[0].status == 200


def test_fifty_visitors_and_some_that_never_read_hold_nothing_up(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.dashboard.server._Visit.timeout", 1.5)
    before = open_files()
    with running(artifact, [held(hw=(480, 640), fps=15)]) as app:
        lazy = [Visitor(app.port, "/stream/0?width=1920", 4096) for _ in range(5)]
        crowd = [Visitor(app.port, "/stream/0?width=480") for _ in range(45)]
        assert [one.head() for one in crowd] == [200] * 45
        for _ in range(2):
            assert all(one.picture().shape == (360, 480, 3) for one in crowd)
        assert app.get("/healthz")[0].status == 200
        done = json.loads(app.get("/state")[1])["now"]["frames"]
        # Who never reads is let go as soon as no more fits into the buffers.
        wait_for(lambda: all(_let_go(one) for one in lazy), 30)
        wait_for(lambda: json.loads(app.get("/state")[1])["now"]["frames"] > done)
        for one in [*lazy, *crowd]:
            one.close()
    wait_for(lambda: open_files() <= before)


def _let_go(visitor: Visitor) -> bool:
    """Whether the other side has closed, seen without reading what it has sent."""
    # TCP_INFO begins with the state; 1 is ESTABLISHED (linux/tcp.h).
    return visitor.door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1


def test_too_many_visitors_are_told_so(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.dashboard.server._MOST_VISITORS", 3)
    with running(artifact, [held()]) as app:
        streams = [Visitor(app.port) for _ in range(3)]
        assert [one.head() for one in streams] == [200] * 3
        late = Visitor(app.port)
        assert late.head() == 503
        for one in [*streams[:1], late]:
            one.close()
        wait_for(lambda: app.get("/healthz")[0].status == 200, 20)
        for one in streams[1:]:
            one.close()


def test_a_request_that_never_ends_is_cut_off(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.dashboard.server._REQUEST_S", 0.6)
    with (
        running(artifact, [held()]) as app,
        socket.create_connection(("127.0.0.1", app.port)) as door,
    ):
        door.settimeout(0.1)
        end = time.monotonic() + 10
        gone = False
        while not gone:
            assert time.monotonic() < end
            try:
                door.sendall(b"G")
                gone = door.recv(10) == b""
            except TimeoutError:
                continue
            except OSError:
                gone = True


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00" * 400 + b"\r\n\r\n"])
def test_nonsense_is_answered_or_cut_off_and_does_no_harm(artifact: Path, request_: bytes) -> None:
    with running(artifact, [held()]) as app:
        with socket.create_connection(("127.0.0.1", app.port), timeout=10) as door:
            door.sendall(request_)
            answer = door.recv(200)
            # Who does not name a version of the protocol gets an answer of the oldest.
            assert answer == b"" or b" 400 " in answer or answer.startswith(b"Bad request")
        assert app.get("/healthz")[0].status == 200


def test_an_address_that_cannot_be_had_is_one_clear_error() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        with pytest.raises(CameraError, match=rf"127.0.0.1:{port}: another program uses this"):
            dashboard(parse_address(f"127.0.0.1:{port}")).__enter__()
    with pytest.raises(CameraError, match="does not have that address"):
        dashboard(parse_address("192.0.2.7:0")).__enter__()


def start(artifact: Path, port: int, folder: Path) -> subprocess.Popen[str]:
    flags = ["--source", "scenes://?size=96x128&fps=20", "--headless", "--threads", "1"]
    flags += ["--serve", f"127.0.0.1:{port}", "--stats", str(folder / "s.json")]
    script = "import sys; from apps.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", script, "camera", str(artifact), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_with_visitors_connected_and_a_second_app_on_the_port(
    artifact: Path, tmp_path: Path
) -> None:
    port = free_port()
    child = start(artifact, port, tmp_path)
    app = App(port)
    try:
        wait_for(lambda: _answers(app), 30)
        visitors = [Visitor(port) for _ in range(8)]
        assert [one.head() for one in visitors] == [200] * 8
        visitors[0].picture()
        second = start(artifact, port, tmp_path)
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 2
        assert "another program uses this port" in errors and "Traceback" not in errors
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, errors = child.communicate(timeout=20)
        assert time.monotonic() - began < 15
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 0, errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "s.json").read_text())["frames"] > 0
    for one in visitors:
        while one.file.read(1 << 16):
            pass
        one.close()


def _answers(app: App) -> bool:
    try:
        return app.get("/healthz")[0].status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_when_the_app_ends_nothing_of_the_dashboard_stays(artifact: Path) -> None:
    before, threads = open_files(), set(threading.enumerate())
    with running(artifact, [held()]) as app:
        visitors = [Visitor(app.port) for _ in range(3)]
        assert [one.head() for one in visitors] == [200] * 3
    for one in visitors:
        while one.file.read(1 << 16):
            pass
        one.close()
    wait_for(lambda: set(threading.enumerate()) <= threads and open_files() <= before)


def raw(port: int, request: bytes) -> bytes:
    """What comes back for these bytes, all of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as door:
        try:
            door.sendall(request)
            door.shutdown(socket.SHUT_WR)
            return door.makefile("rb").read()
        except OSError:
            return b""


def test_a_request_is_limited_before_and_without_the_token(artifact: Path) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 60_000) for number in range(90))
    with running(artifact, [held()], "0.0.0.0:0") as app:
        for path in (b"/", b"/" + b"a" * 50_000):
            with socket.create_connection(("127.0.0.1", app.port), timeout=10) as door:
                door.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n" % path + lines[:40_000])
                head = door.recv(4000)
            assert head.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 414 ")), head[:60]
        # Megabytes of headers are not read to their end.
        with (
            socket.create_connection(("127.0.0.1", app.port), timeout=10) as door,
            pytest.raises(OSError),
        ):
            for _ in range(50):
                door.sendall(b"GET / HTTP/1.1\r\n" + lines)
                time.sleep(0.02)


def test_headers_cost_no_memory(artifact: Path) -> None:
    with running(artifact, [held()], "0.0.0.0:0") as app:
        before = memory_bytes() or 0
        doors = []
        for _ in range(90):
            door = socket.create_connection(("127.0.0.1", app.port), timeout=10)
            door.setblocking(False)
            doors.append(door)
        line = b"X: " + b"a" * 60_000 + b"\r\n"
        for _ in range(30):
            for door in doors:
                try:
                    door.send(b"GET / HTTP/1.1\r\n" + line)
                except OSError:
                    continue
            time.sleep(0.02)
        assert (memory_bytes() or 0) - before < 60 << 20
        for door in doors:
            door.close()
        wait_for(lambda: app.get("/x")[0].status == 401)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:0"])
def test_a_token_in_the_address_adds_no_header(artifact: Path, address: str) -> None:
    with running(artifact, [held()], address) as app:
        for token in ("%0d%0aX-Evil:%20yes", "a%0aSet-Cookie:%20b=c", "%00", "a;%20Path=/x"):
            request = f"GET /?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            head = raw(app.port, request.encode()).partition(b"\r\n\r\n")[0]
            assert head and b"X-Evil" not in head and b"Set-Cookie" not in head


def test_nonsense_before_the_token_is_not_written_to_the_log(
    artifact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(artifact, [held()], "0.0.0.0:0") as app:
        capfd.readouterr()
        for target in (b"http://[", b"//[x", b"http://[::1", b"/%", b"/?token=%ff"):
            for _ in range(20):
                answer = raw(app.port, b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % target)
                assert b" 400 " in answer[:20] or b" 401 " in answer[:20]
        for cookie in (b"a=" + b'"' * 900, b"\xff\xfe=1", b"$Version=9;" * 80):
            request = b"GET / HTTP/1.1\r\nHost: [\r\nCookie: %s\r\n\r\n" % cookie
            assert raw(app.port, request)
        said = capfd.readouterr().err
    assert "Traceback" not in said and len(said.splitlines()) <= 1


def test_two_hundred_visitors_leave_frames_young_and_memory_small(artifact: Path) -> None:
    with running(artifact, [held(hw=(480, 640), fps=15)]) as app:
        before = memory_bytes() or 0
        doors = [Visitor(app.port, "/stream/0?width=480") for _ in range(200)]
        served = sum(one.head() == 200 for one in doors)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for one in doors[:served]:
                one.door.setblocking(False)
                try:
                    while one.door.recv(1 << 16):
                        pass
                except OSError:
                    continue
        grown = (memory_bytes() or 0) - before
        for one in doors:
            one.close()
        wait_for(lambda: app.get("/healthz")[0].status == 200)
        stats = json.loads(app.get("/state")[1])["now"]
    assert served == 100 and grown < 100 << 20
    assert stats["frame_age_ms"]["p99"] < 1000
