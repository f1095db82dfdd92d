#!/usr/bin/env python3
"""Make type stubs of several TensorRT releases, without a GPU, CUDA or TensorRT's libraries.

The wheels of the Python bindings are small and hold the whole Python API, but they link against
libraries that are large. So: fetch the wheel, compile empty libraries that define what it imports,
let pybind11-stubgen import it in a child process, and clean what that writes. Then

    MYPYPATH=STUBS/11.4.0 mypy --strict yourcode.py

checks every call against that release. The stubs of TensorRT-RTX serve both its own name and
`tensorrt`. Needs pip, a C compiler ($CC or gcc), binutils, pybind11-stubgen and numpy.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clean_stub import clean_stub


@dataclass(frozen=True)
class Release:
    """One release: folder of its stubs, package and version for pip, names inside the wheel."""

    label: str
    project: str
    version: str
    package: str
    extension: str


RELEASES = (
    Release("10.3.0", "tensorrt-cu12-bindings", "10.3.0", "tensorrt_bindings", "tensorrt"),
    Release("10.16.1", "tensorrt-cu13-bindings", "10.16.1.11", "tensorrt_bindings", "tensorrt"),
    Release("11.4.0", "tensorrt-cu13-bindings", "11.4.0.106", "tensorrt_bindings", "tensorrt"),
    Release(
        "rtx-1.7.1",
        "tensorrt-rtx-cu13-bindings",
        "1.7.1.116",
        "tensorrt_rtx_bindings",
        "tensorrt_rtx",
    ),
)
# Replaced by an empty library even where the real one is installed.
_EMPTIED = re.compile(r"^lib(nvinfer|nvonnxparser|tensorrt)")
_PROVIDERS = (None, "libc.so.6", "libdl.so.2", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1")
# Where packages come from is nobody's business.
_LOCATION = re.compile(r"(?:[a-z][a-z+.-]*://|\bLooking in )\S*|^.*Location .*$", re.I | re.M)


class StepError(RuntimeError):
    """One release could not be made; the text says at which step."""


def run(step: str, argv: list[str], env: dict[str, str] | None = None) -> str:
    """Standard output of a program.

    Raises:
        StepError: it failed; with the end of what it said.
    """
    done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=600, check=False)
    if done.returncode:
        said = _LOCATION.sub("<package index>", done.stderr or done.stdout).strip().splitlines()
        raise StepError(f"{step} ended with {done.returncode}: " + "\n".join(said[-8:]))
    return done.stdout


def fetch_wheel(release: Release, cache: Path) -> Path:
    """The wheel of the bindings, from `cache` or by pip."""
    pattern = f"{release.project.replace('-', '_')}-{release.version}-*.whl"
    cache.mkdir(parents=True, exist_ok=True)
    if not any(cache.glob(pattern)):
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        wanted = f"{release.project}=={release.version}"
        pip = [sys.executable, "-m", "pip", "-q", "download", *options]
        run("pip download", [*pip, "--dest", str(cache), wanted])
    wheels = sorted(cache.glob(pattern))
    if not wheels:
        raise StepError(f"pip brought no {pattern} for this Python")
    return wheels[0]


def imported_symbols(extension: Path) -> list[str]:
    """What the extension imports and neither C, C++ nor Python provides."""
    providers = list(_loaded())
    text = run("nm", ["nm", "-D", "--undefined-only", str(extension)])
    names = (line.split()[1] for line in text.splitlines() if line.split()[0] == "U")
    return sorted(
        name
        for name in names
        if "@" not in name
        and not re.match(r"_?Py", name)
        and not any(hasattr(library, name) for library in providers)
    )


def _loaded() -> Iterator[ctypes.CDLL]:
    for name in _PROVIDERS:
        try:
            yield ctypes.CDLL(name)
        except OSError:
            continue


def make_libraries(extension: Path, folder: Path) -> None:
    """Compile one library for each that the extension needs; the first defines every symbol."""
    folder.mkdir(parents=True)
    text = run("readelf", ["readelf", "-dW", str(extension)])
    names = [n for n in re.findall(r"\(NEEDED\).*\[(.+?)\]", text) if _EMPTIED.match(n)]
    bodies = ["".join(f"void *{name}(void){{return 0;}}\n" for name in imported_symbols(extension))]
    bodies += [f"int empty_{index};\n" for index in range(1, len(names))]
    for name, body in zip(names, bodies, strict=True):
        source = folder / "stub.c"
        source.write_text(body)
        flags = ["-shared", "-fPIC", "-O0", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        run(f"compiling {name}", [*_compiler(), *flags, str(source)])


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if not shutil.which(chosen[0]):
        raise StepError(f"no C compiler: {chosen[0]} not found (set CC)")
    return chosen


def stub_text(release: Release, wheel: Path) -> str:
    """The cleaned stub of the bindings in that wheel."""
    name = f"{release.package}.{release.extension}"
    with tempfile.TemporaryDirectory(prefix="trt-stubs-") as folder:
        stage = Path(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(stage)
        make_libraries(stage / release.package / f"{release.extension}.so", stage / "lib")
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(stage),
            "LD_LIBRARY_PATH": str(stage / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["--ignore-all-errors", "--print-invalid-expressions-as-is"]
        stubgen = [sys.executable, "-m", "pybind11_stubgen", *options]
        run("pybind11-stubgen", [*stubgen, name, "-o", str(stage / "pyi")], env)
        raw = (stage / "pyi" / release.package / f"{release.extension}.pyi").read_text()
    return clean_stub(raw, f"{name}.", f"{release.project} {release.version}")


def write_stub(folder: Path, names: set[str], text: str) -> None:
    """One package for each import name; whole or not at all, other runs may be reading."""
    for name in sorted(names):
        package = folder / name
        package.mkdir(parents=True, exist_ok=True)
        part = package / f"{os.getpid()}.part"
        part.write_text(text)
        part.replace(package / "__init__.pyi")


def main(argv: list[str] | None = None) -> int:
    """Make the stubs; the exit status is 1 where a release could not be made."""
    parser = argparse.ArgumentParser(description="Make type stubs of TensorRT releases.")
    parser.add_argument("--out", type=Path, default=Path("stubs"))
    parser.add_argument("--cache", type=Path, help="where wheels are kept (default: OUT/wheels)")
    parser.add_argument("--only", action="append", choices=[r.label for r in RELEASES])
    args = parser.parse_args(argv)
    failed = 0
    for release in RELEASES:
        if args.only and release.label not in args.only:
            continue
        try:
            text = stub_text(release, fetch_wheel(release, args.cache or args.out / "wheels"))
            write_stub(args.out / release.label, {release.extension, "tensorrt"}, text)
            print(f"{release.label}: {len(text.splitlines())} lines", flush=True)
        except (StepError, OSError, SyntaxError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"{release.label}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
