"""What a process is told to end by: Ctrl-C, `kill`, a terminal that has gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["interrupting", "on_end"]


@contextmanager
def on_end(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` at SIGINT, SIGTERM and SIGHUP, as long as the context lasts.

    Only a main thread can; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # The terminal has gone, an ssh connection say; under nohup that is ignored and stays so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: handle()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """All of them end the context as Ctrl-C does, so that what it has on the disk is deleted."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with on_end(interrupt):
        yield
