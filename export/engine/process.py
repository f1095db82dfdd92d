"""Run the builder in a process of its own and report how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from edge import errors
from edge.decoding import decode, parse_json
from edge.errors import BuildError, EdgeError
from edge.files import to_plain
from export.engine.protocol import BuildRequest, Failed, ProbeRequest, Step

__all__ = ["memory_available_mib", "run_child"]

Answer = TypeVar("Answer")
_ROOT = Path(__file__).resolve().parent.parent
_TICK_S = 0.2
_CANCEL_GRACE_S = 5.0


def memory_available_mib() -> int:
    """Memory that a new program can use without swapping, MiB (/proc/meminfo); 0 if unknown."""
    return _status_mib(Path("/proc/meminfo"), "MemAvailable")


def run_child(
    request: BuildRequest | ProbeRequest,
    kind: type[Answer],
    on_step: Callable[[Step], None] | None = None,
    timeout_s: float | None = None,
) -> Answer:
    """Send `request` to a process of `export.engine.child` and return its answer.

    Whatever ends this call early (Ctrl-C, an `on_step` that raises) ends the child first.

    Args:
        kind: of the answer.

    Raises:
        BuildError: the child crashed, was killed, or took more than `timeout_s`.
        EdgeError: the error that the child reports.
    """
    with tempfile.TemporaryFile() as stderr:
        child = _spawn(stderr)
        try:
            return _follow(child, request, kind, on_step, timeout_s, stderr)
        finally:
            _stop(child)


def _spawn(stderr: IO[bytes]) -> subprocess.Popen[str]:
    # The caller's import path, and a folder in which nothing can shadow a module of ours.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "export.engine.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches the caller alone, which cancels
    )


def _follow(
    child: subprocess.Popen[str],
    request: BuildRequest | ProbeRequest,
    kind: type[Answer],
    on_step: Callable[[Step], None] | None,
    timeout_s: float | None,
    stderr: IO[bytes],
) -> Answer:
    available, started, peak = memory_available_mib(), time.monotonic(), 0
    lines = _read_in_background(child)
    with contextlib.suppress(BrokenPipeError):
        stdin = _pipe(child.stdin)
        stdin.write(json.dumps(to_plain(request)) + "\n")
        stdin.flush()
    while True:
        peak = max(peak, _status_mib(Path(f"/proc/{child.pid}/status"), "VmHWM"))
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            raise BuildError(f"the builder took more than {timeout_s:g} s and was stopped")
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=_TICK_S)
            if line is None:
                held = f"it held {peak} MiB; {available} MiB were available when it started"
                raise BuildError(_how_it_died(child.wait(), held, _last_line(stderr)))
            event = _event(line, kind)
            if not isinstance(event, Step):
                return event
            if on_step is not None:
                on_step(event)


def _event(line: str, kind: type[Answer]) -> Answer | Step:
    """Decode one line of the child.

    Raises:
        EdgeError: the error that the child reports.
    """
    source, what = "the builder's process", "a message of it"
    event = parse_json(line, source, what, BuildError)
    name = event.pop("event", None) if isinstance(event, dict) else None
    if name == "step":
        return decode(event, Step, source, what, BuildError)
    if name == "failed":
        failed = decode(event, Failed, source, what, BuildError)
        error = getattr(errors, failed.kind, None)
        if isinstance(error, type) and issubclass(error, EdgeError):
            raise error(failed.text)
        raise BuildError(failed.text)
    return decode(event, kind, source, what, BuildError)


def _read_in_background(child: subprocess.Popen[str]) -> queue.Queue[str | None]:
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):  # `_stop` closes it meanwhile
            for line in _pipe(child.stdout):
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _stop(child: subprocess.Popen[str]) -> None:
    """The end of its stdin tells the child to cancel; one that does not listen is killed."""
    with contextlib.suppress(OSError):
        _pipe(child.stdin).close()
    try:
        child.wait(_CANCEL_GRACE_S)
    except BaseException as error:  # a second Ctrl-C must not leave it running
        child.kill()
        child.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _how_it_died(status: int, held: str, words: str) -> str:
    if status >= 0:
        return f"the builder ended with status {status}: {words or 'it said nothing'}"
    name = signal.Signals(-status).name
    said = f"; it said: {words}" if words else ""
    if name == "SIGKILL":
        return (
            f"the builder was killed by SIGKILL ({held}), most likely because memory ran out: add "
            f"swap, close other programs, or set a smaller workspace_mib{said}"
        )
    return (
        f"the builder crashed with {name} ({held}); this graph triggers a fault inside TensorRT: "
        f"try another TensorRT version or precision{said}"
    )


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _status_mib(path: Path, key: str) -> int:
    with contextlib.suppress(OSError):
        match = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.M)
        return int(match[1]) // 1024 if match else 0
    return 0


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError("the child was started without this pipe")
    return stream
