"""The JSON of commands from two checkouts, key by key.

    python tools/compare_json.py OLD NEW 'evaluate m.onnx --data d --json {json}' ...

Each command runs with PYTHONPATH set to OLD and then to NEW; `{json}` is the file it writes and
`{out}` an empty folder. Keys and their order, types and lengths must be equal; numbers too, but
for those of keys that measure time or memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What a second run of the same program finds differently.
_MEASURED = (
    *("_ms", "fps", "speedup", "memory_bytes", "seconds", "warnings", "energy", "text", "verdict"),
    *(
        "frames",
        "backend",
        "layers",
        "sha256",
        "bytes",
        "share",
        "loss",
        "load",
        "file",
        "artifact",
    ),
    "peak_rss_mib",
)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """A line for each difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            yield f"{where or 'top'}: keys {list(old)} became {list(new)}"
        for key in (key for key in old if key in new):
            yield from differences(old[key], new[key], f"{where}.{key}")
        return
    measured = any(word in where for word in _MEASURED)
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new) and not measured:
            yield f"{where}: {len(old)} items became {len(new)}"
        for index, pair in enumerate(zip(old, new, strict=False)):
            yield from differences(*pair, f"{where}[{index}]")
        return
    number = {type(old), type(new)} <= {int, float}
    if (type(old) is not type(new) or old != new) and not (
        measured and (type(old) is type(new) or number)
    ):
        yield f"{where}: {old!r} became {new!r}"


def run(tree: Path, command: str) -> Any:
    """Run a command of a checkout and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        filled = command.format(json=target, out=Path(folder) / "out")
        # What lies in an output folder is named by a pipe behind the command.
        argv, _, inside = filled.partition(" | ")
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(
            [sys.executable, "-m", "apps.cli", *shlex.split(argv)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        path = Path(inside.strip()) if inside else target
        if not path.is_file():
            raise SystemExit(f"{argv}: wrote no JSON in {tree}: {done.stderr[-500:]}")
        return json.loads(path.read_bytes())


def main() -> int:
    """Compare every command; 1 where one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("commands", nargs="+")
    args = parser.parse_args()
    failed = False
    for command in args.commands:
        old, new = (run(tree.resolve(), command) for tree in (args.old, args.new))
        found = list(differences(old, new))
        print(f"{'equal' if not found else 'DIFFERS'}: {command}")
        for line in found[:20]:
            print(f"    {line}")
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
