"""Run the builder in a process of its own and say plainly how it ended."""

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
from typing import IO, Any

from edge import errors
from edge.errors import BuildError

__all__ = ["memory_available_mib", "run_child"]

_ROOT = Path(__file__).resolve().parent.parent
_TICK_S = 0.2
_CANCEL_GRACE_S = 5.0


def memory_available_mib() -> int:
    """Memory that a new program can take without swapping, MiB (/proc/meminfo); 0 if unknown."""
    return _status_mib(Path("/proc/meminfo"), "MemAvailable")


def run_child(
    request: dict[str, Any],
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Have `export.engine.child` do `request`; its last event.

    Whatever ends this call early (Ctrl-C, an `on_event` that raises) ends the child first.

    Raises:
        BuildError: the child crashed, was killed, or took more than `timeout_s`.
        EdgeError: of the kind that the child met.
    """
    with tempfile.TemporaryFile() as stderr:
        child = _spawn(stderr)
        try:
            return _follow(child, request, on_event, timeout_s, stderr)
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
    request: dict[str, Any],
    on_event: Callable[[dict[str, Any]], None],
    timeout_s: float | None,
    stderr: IO[bytes],
) -> dict[str, Any]:
    available, started, peak = memory_available_mib(), time.monotonic(), 0
    lines = _read_in_background(child)
    with contextlib.suppress(BrokenPipeError):
        _stdin(child).write(json.dumps(request) + "\n")
        _stdin(child).flush()
    while True:
        peak = max(peak, _status_mib(Path(f"/proc/{child.pid}/status"), "VmHWM"))
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            raise BuildError(f"the builder took more than {timeout_s:g} s and was stopped")
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=_TICK_S)
            if line is None:
                held = f"it held {peak} MiB; {available} MiB were available when it started"
                raise BuildError(_how_it_died(child.wait(), held, _last_line(stderr)))
            event = json.loads(line)
            if event["event"] == "failed":
                raise getattr(errors, event["kind"])(event["text"])
            if event["event"] == "done":
                return dict(event)
            on_event(event)


def _read_in_background(child: subprocess.Popen[str]) -> queue.Queue[str | None]:
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under it by `_stop`
            for line in child.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _stop(child: subprocess.Popen[str]) -> None:
    """The end of its stdin tells the child to cancel; one that does not listen is killed."""
    with contextlib.suppress(OSError):
        _stdin(child).close()
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
            f"the builder was killed by SIGKILL ({held}), most likely for want of memory: add "
            f"swap, close other programs, or set a smaller workspace_mib{said}"
        )
    return (
        f"the builder crashed with {name} ({held}); this graph trips a fault inside TensorRT: "
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


def _stdin(child: subprocess.Popen[str]) -> IO[str]:
    assert child.stdin is not None
    return child.stdin
