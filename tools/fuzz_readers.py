"""Feed every reader of files with mutated files: each gives one line of an EdgeError, or is right.

    python tools/fuzz_readers.py --each 1000 --seed 0
    python tools/fuzz_readers.py --each 100000 --only edgez --out findings/
    python tools/fuzz_readers.py --only cfg --files some.cfg other.cfg

An input may take 2 s and 300 MiB over the state before it. A child process reads them, so that what
never ends or crashes is ended and counted too. Prints one JSON object a finding and ends with
status 1 if there is one. A mutant is a function of the reader, the seed and its number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# One thread a library: a process with more cannot be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
from fuzz_mutations import MUTATIONS
from fuzz_targets import TARGETS, Names, Stock, Target

from edge.errors import EdgeError
from edge.files import plain_text

MEMORY_MIB = 300
# Beyond what is measured: no input may take the machine's memory.
_HARD_MIB = 2048
# A call into C that does not return is ended from outside after so many times the limit.
_HANG_FACTOR = 4
_START_S = 60


@dataclass(frozen=True)
class Finding:
    """What was wrong with how a reader took an input; `input` is its number."""

    reader: str
    input: int
    what: str


class TooSlow(BaseException):
    """An input took longer than its limit; no `except Exception` may take it for an answer."""


def mutant(target: Target, name: str, stock: Stock, seed: int, number: int) -> bytes:
    """The mutant of this number."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    seeds = target.seeds(stock)
    data = seeds[int(rng.integers(len(seeds)))]
    return MUTATIONS[target.mutation](data, rng)


def nonsense(value: Any, depth: int = 0) -> str:
    """What of a result cannot be: NaN, infinity or a control character; "" where all is well."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} accepted"
    if isinstance(value, Names):
        wrong = [name for name in value if plain_text(name) != name]
        return f"control characters accepted: {wrong[0][:40]!r}" if wrong else ""
    if isinstance(value, dict):
        return next(filter(None, (nonsense([k, v], depth + 1) for k, v in value.items())), "")
    if isinstance(value, (list, tuple, set, frozenset)):
        return next(filter(None, (nonsense(each, depth + 1) for each in value)), "")
    if is_dataclass(value) and not isinstance(value, type):
        parts = (getattr(value, field.name) for field in fields(value))
        return next(filter(None, (nonsense(each, depth + 1) for each in parts)), "")
    if hasattr(value, "numpy") or isinstance(value, np.ndarray):
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        return "" if array.dtype.kind not in "fc" or np.isfinite(array).all() else "NaN accepted"
    return ""


def place(error: BaseException) -> str:
    """Where in the project an exception came from, as file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename and "tools/" not in f.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def fed(target: Target, data: bytes, stock: Stock) -> str:
    """Read one input; "" or what is wrong with how it ended."""
    with TemporaryDirectory(prefix="edge-fuzz-") as folder:
        path = Path(folder, target.file)
        for name, content in {**target.beside(stock), target.file: data}.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_bytes(content)
        before = _reset_peak()
        signal.setitimer(signal.ITIMER_REAL, target.seconds)
        try:
            found = nonsense(target.read(path, stock))
        except EdgeError as error:
            found = "" if str(error).strip() else "an error without words"
        except TooSlow:
            found = f"more than {target.seconds:g} s"
        except (Exception, RecursionError) as error:
            found = f"{type(error).__name__}@{place(error)}: {str(error)[:80]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        grown = _status_kib("VmHWM") - before
        if not found and grown > MEMORY_MIB << 10:
            found = f"{grown >> 10} MiB"
        return found


def _reset_peak() -> int:
    """Begin to measure the peak of memory anew; the memory now, KiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")


def _status_kib(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(match[1]) if match else 0


def serve(name: str, stock: Stock, inputs: Iterator[tuple[int, bytes]], out: int) -> None:
    """The child: read the inputs of one reader, and write a line before and after each."""
    target = TARGETS[name]

    def alarm(*_: object) -> None:
        raise TooSlow

    def say(text: str) -> None:
        os.write(out, f"{text}\n".encode())

    # The first read imports what it needs, which is no cost of the file.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for data in target.seeds(stock):
        found = fed(target, data, stock)
        if found and not found.endswith("MiB"):
            say(json.dumps(f"a valid file is refused: {found}"))
    signal.signal(signal.SIGALRM, alarm)
    used = _status_kib("VmSize") << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (_HARD_MIB << 20), resource.RLIM_INFINITY))
    for number, data in inputs:
        say(str(number))
        say(json.dumps(fed(target, data, stock)))
    say("end")


def findings(name: str, stock: Stock, inputs: Sequence[Callable[[], bytes]]) -> Iterator[Finding]:
    """What is wrong with which inputs of one reader; -1 is the valid files."""
    first = 0
    while first < len(inputs):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                rest = ((number, inputs[number]()) for number in range(first, len(inputs)))
                serve(name, stock, rest, into)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(into)
        number, wait = -1, float(_START_S)
        try:
            while (line := _line(out, wait)) != "end":
                wait = TARGETS[name].seconds * _HANG_FACTOR
                if line is None:
                    yield Finding(name, number, "crashed, or gave no answer for seconds")
                    break
                if line.isdigit():
                    number = int(line)
                elif json.loads(line):
                    yield Finding(name, number, json.loads(line))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(out)
        if number < first and line != "end":
            return
        first = len(inputs) if line == "end" else number + 1


def _line(stream: int, seconds: float) -> str | None:
    """The child's next line; None after `seconds` without one, or at its end."""
    text, end = b"", time.monotonic() + seconds
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        byte = os.read(stream, 1) if ready else b""
        if not byte:
            return None
        text += byte
    return text.decode().strip()


def hostile(folder: Path, name: str) -> list[Path]:
    """Files for one reader: those in the folder of its name, and those of its kind in others."""
    own = sorted((folder / name).glob("*"))
    others = [each for each in folder.iterdir() if each.is_dir() and each.name not in TARGETS]
    suffixes = TARGETS[name].suffixes
    more = (path for other in others for path in other.iterdir() if path.suffix in suffixes)
    return [*own, *sorted(more)]


def warm_up() -> None:
    """Import what is heavy once, in one thread, so that children can be forked quickly."""
    import cv2
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch

    import export.pipeline  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def main(argv: list[str] | None = None) -> int:
    """Feed the readers and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=100, metavar="N", help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), help="these readers")
    parser.add_argument("--files", nargs="*", default=[], metavar="F", help="in place of mutants")
    parser.add_argument(
        "--hostile", metavar="DIR", help="feed the files of a folder per reader in place of mutants"
    )
    parser.add_argument("--out", metavar="DIR", help="where to keep the inputs that were found")
    args = parser.parse_args(argv)
    warm_up()
    stock, found = Stock(), 0
    for name in args.only or sorted(TARGETS):
        started = time.monotonic()
        files = hostile(Path(args.hostile), name) if args.hostile else args.files
        inputs: list[Callable[[], bytes]] = [Path(file).read_bytes for file in files]
        if not files and not args.hostile:
            inputs = [
                partial(mutant, TARGETS[name], name, stock, args.seed, number)
                for number in range(args.each)
            ]
        for finding in findings(name, stock, inputs):
            found += 1
            file = {"file": str(files[finding.input])} if files else {}
            print(json.dumps(vars(finding) | file), flush=True)
            if args.out and finding.input >= 0:
                Path(args.out).mkdir(parents=True, exist_ok=True)
                kept = Path(args.out, f"{name}-{args.seed}-{finding.input}")
                kept.write_bytes(inputs[finding.input]())
        seconds = time.monotonic() - started
        print(f"{name}: {len(inputs)} inputs, {seconds:.1f} s", file=sys.stderr)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
