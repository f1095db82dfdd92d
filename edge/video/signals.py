"""The signals that end a process: Ctrl-C, `kill`, and a terminal that has gone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["interrupting", "until_signal"]


@contextmanager
def _handled(handle: Callable[[], None]) -> Iterator[bool]:
    """Call `handle` at SIGINT, SIGTERM and SIGHUP while the context lasts.

    Only a main thread can; in another one nothing changes, and the context is False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # The terminal has gone, such as an ssh connection; under nohup that is ignored and stays so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: handle()) for number in numbers}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """Let each signal end the context as Ctrl-C does, so that it can delete what it wrote."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def until_signal(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at the first signal; the second one ends the process at once.

    Both work while the main thread is in a call that does not return: a thread of its own hears
    them, as Python runs a handler only between two steps of the main thread.
    """
    with _handled(stop.set) as mine:
        if not mine:
            yield
            return
        ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=_listen, args=(ear, stop), name="signals", daemon=True)
        listener.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            mouth.close()
            listener.join(1)
            ear.close()


def _listen(ear: socket.socket, stop: threading.Event) -> None:
    ending = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    heard = 0
    with suppress(OSError):
        while numbers := ear.recv(16):
            for number in numbers:
                if number in ending:
                    heard += 1
                    stop.set()
                if heard > 1:
                    os._exit(128 + number)
