"""What long work says while it runs: lines and progress, for whoever listens.

The library never prints. A program that wants to show lines and progress calls `listen` once, as
the command line does; until then `say` is silent and `track` only passes its items on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

__all__ = ["Listener", "Update", "bar", "listen", "phases", "progress", "say", "ticking", "track"]

Thing = TypeVar("Thing")
# Takes (done, total, text); a total of None is not known yet, a text of None stays as it is.
Update = Callable[[int, "int | None", "str | None"], None]


class Listener(Protocol):
    """A program that shows what the library says.

    Both methods may be called from any thread, and must not raise where nobody reads any more.
    """

    def say(self, text: str) -> None:
        """Show one line."""

    def progress(self, what: str, total: int | None) -> AbstractContextManager[Update]:
        """Show how far `what` has come while the context lasts, by what `Update` is given."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> Listener | None:
    """Send lines and progress to `listener`; None silences them. Returns the one before."""
    global _listener
    before, _listener = _listener, listener
    return before


def say(text: str) -> None:
    """Tell the listening program one line; without one, nothing happens."""
    if _listener is not None:
        _listener.say(text)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Update]:
    """Give the function that reports how far the work has come: (done, total, text).

    A total of None is not known, or stays as it is; a text replaces `what`.
    """
    if _listener is None:
        yield lambda done, total, text: None
    else:
        with _listener.progress(what, total) as update:
            yield update


def track(things: Iterable[Thing], what: str, total: int) -> Iterator[Thing]:
    """Pass `things` on and report how many of `total` have been taken."""
    with progress(what, total) as update:
        for done, thing in enumerate(things):
            update(done, total, None)
            yield thing
        update(total, total, None)


@contextmanager
def ticking(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Give a function to call, with any arguments, each time one of `total` is done."""
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 1
        update(done, total, None)

    with progress(what, total) as update:
        yield tick


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes (done, total)."""
    with progress(what) as update:
        yield lambda done, total: update(done, total, None)


@contextmanager
def phases(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that takes (phase, done, total), for work that runs in named phases."""
    with progress(what) as update:
        yield lambda phase, done, total: update(done, total, f"{what}: {phase}")
