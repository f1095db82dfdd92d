"""Files of others, damaged by chance or on purpose: one line of an error, or a right answer.

The harness is `tools/fuzz_readers.py`; here it runs for seconds, and over files that once broke a
reader.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("torch")


def fuzzed(*options: str | Path) -> list[dict[str, object]]:
    """What the harness finds."""
    command = [sys.executable, str(ROOT / "tools" / "fuzz_readers.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert bool(found) == done.returncode
    return found


def test_every_reader_refuses_or_reads_what_is_a_little_wrong() -> None:
    assert fuzzed("--each", 15, "--seed", 1) == []


@pytest.mark.slow
def test_every_reader_refuses_or_reads_it_for_a_minute() -> None:
    assert fuzzed("--each", 150, "--seed", 2) == []


def test_files_that_once_broke_a_reader_no_longer_do(edge_data: Path) -> None:
    folder = edge_data / "hostile"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert fuzzed("--hostile", folder) == []


def test_the_harness_finds_a_reader_that_breaks(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "broken.py").write_text(
        "import edge.names\n"
        "def read_names(path):\n"
        "    text = path.read_text()\n"
        "    if text == 'loop': exec('while True: pass')\n"
        "    if text == 'memory': held = b'x' * (400 << 20)\n"
        "    if text == 'crash': __import__('os').abort()\n"
        "    if text == 'nonsense': return ('\\x1b[2J',)\n"
        "    if text == 'wrong': {}['no such key']\n"
        "    return ('a',)\n"
        "edge.names.read_names = read_names\n"
        "import fuzz_readers, sys\n"
        "sys.exit(fuzz_readers.main(sys.argv[1:]))\n"
    )
    for name in ("loop", "memory", "crash", "nonsense", "right", "wrong"):
        (tmp_path / "names" / name).write_text(name)
    command = [sys.executable, str(tmp_path / "broken.py"), "--only", "names"]
    done = subprocess.run(
        [*command, "--hostile", str(tmp_path)],
        env={"PYTHONPATH": f"{ROOT / 'tools'}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {Path(f["file"]).name: f["what"] for f in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"loop", "memory", "crash", "nonsense", "wrong"}, done.stderr
    assert "more than 2 s" in found["loop"] and "MiB" in found["memory"]
    assert "KeyError" in found["wrong"] and "control characters" in found["nonsense"]
