"""Writing whole or not at all, through special files, and never over an input."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edge.errors import ArtifactError, DataError
from edge.files import check_name, plain_text, protect, read_file, write_file, write_json


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_file(link, b"new")
    assert link.is_symlink() and real.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_pipe_is_written_through_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"data")
    reader.join(5)
    assert got == [b"data"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device() -> None:
    before = os.stat(os.devnull)
    write_file(os.devnull, b"data")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and os.stat(os.devnull).st_ino == before.st_ino


def test_minus_is_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_json({"a": np.float32(0.5), "path": Path("x/y"), "rows": (1, 2)}, "-")
    assert capfdbinary.readouterr().out.split() == (
        b'{ "a": 0.5, "path": "x/y", "rows": [ 1, 2 ] }'.split()
    )


def test_an_input_is_not_written_over_by_any_of_its_names(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("mine")
    (tmp_path / "link").symlink_to(given)
    os.link(given, tmp_path / "second")
    with protect([given, "no-such-file", tmp_path]):
        for name in ("given", "link", "second"):
            with pytest.raises(ArtifactError, match="is an input of this command"):
                write_file(tmp_path / name, b"lost")
        write_file(tmp_path / "other", b"fine")
    assert given.read_text() == "mine"
    write_file(given, b"after the command")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "no" / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_file(target, b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".hidden", "..", "../x", "/x", "a/b", "a\\b", "a b", "a\n", "x" * 101, "é", "-o"]
)
def test_names_that_could_reach_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="cannot be a file name"):
        check_name(name, "spec.name", DataError)


@pytest.mark.parametrize("name", ["a", "yolov3-tiny_416.v2", "_x", "9", "x" * 100])
def test_plain_names_pass(name: str) -> None:
    assert check_name(name, "spec.name") == name


def test_a_large_file_and_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ArtifactError, match="has 11 bytes, more than the 10"):
        read_file(tmp_path / "large", limit=10)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="cannot be read"):
            read_file(path, error=DataError)
    with pytest.raises(ArtifactError, match="is not a regular file"):
        read_file(os.devnull)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert plain_text("a\x1b[31mb\r\u202ec") == "a\ufffd[31mb\ufffd\ufffdc"


def test_standard_output_that_is_a_pipe_is_written_through_by_its_name(tmp_path: Path) -> None:
    script = "from edge.files import write_json; write_json({'a': 1}, '/dev/stdout')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, '{\n "a": 1\n}'), done.stderr
