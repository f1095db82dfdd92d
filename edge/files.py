"""Files read and written: whole or not at all, and never over what the user gave.

Every file that the project writes goes through `write_file`. It writes beside the target and moves
the result into place, writes through devices, pipes and `-` in place of replacing them, and refuses
a target that is one of the running command's own inputs (`protect`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError, EdgeError

__all__ = [
    "STDOUT",
    "as_name",
    "check_name",
    "make_folder",
    "plain_text",
    "protect",
    "read_file",
    "refuse_input",
    "sha256_of",
    "to_plain",
    "write_file",
    "write_json",
]

# The path that means standard output.
STDOUT = Path("-")
_CHUNK = 1 << 20
_LIMIT_BYTES = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_OTHER = re.compile(r"[^A-Za-z0-9._-]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Files that the running command reads, by device and inode.
_inputs: dict[tuple[int, int], Path] = {}


def check_name(name: str, what: str, error: type[EdgeError] = ArtifactError) -> str:
    """Return `name` if it may become part of a file name, else raise.

    Letters, digits, `.`, `_` and `-` are allowed, at most 100 of them and no dot in front, so that
    a name from outside never reaches another folder.

    Args:
        what: where the name stands, for the message.

    Raises:
        ArtifactError: or `error`; the name is not of this form.
    """
    if not _NAME.fullmatch(name):
        raise error(
            f"{what}: {plain_text(name)[:60]!r} cannot be a file name; it takes letters, digits, "
            "'.', '_' and '-', at most 100, and no dot in front"
        )
    return name


def as_name(stem: str) -> str:
    """Turn the stem of a user's own file into a name that `check_name` takes: other signs are `_`.

    A name from inside a file is checked instead, because there it may be meant to do harm.
    """
    return _OTHER.sub("_", stem)[:100].lstrip(".-") or "_"


def plain_text(text: str) -> str:
    """Return `text` with control characters replaced, so that it cannot steer a terminal."""
    return _CONTROL.sub("\ufffd", text)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal text.

    Raises:
        ArtifactError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def read_file(
    path: str | Path, *, limit: int = _LIMIT_BYTES, error: type[EdgeError] = ArtifactError
) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        ArtifactError: or `error`; the file is missing, not a regular file, too large or unreadable.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{path}: is not a regular file")
            if found.st_size > limit:
                raise error(
                    f"{path}: has {found.st_size} bytes, more than the {limit} that such a file may"
                )
            return file.read()
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause


@contextlib.contextmanager
def protect(paths: Iterable[str | Path]) -> Iterator[None]:
    """Refuse to write over these files while the context lasts; folders and names are passed by."""
    added = []
    for path in map(Path, paths):
        with contextlib.suppress(OSError, ValueError):
            found = path.stat()
            key = (found.st_dev, found.st_ino)
            if stat.S_ISREG(found.st_mode) and key not in _inputs:
                _inputs[key] = path
                added.append(key)
    try:
        yield
    finally:
        for key in added:
            _inputs.pop(key, None)


def refuse_input(path: str | Path) -> None:
    """Refuse a file to write that is one of the running command's own inputs.

    `write_file` does so itself; what writes a file in other ways, such as a video, asks here.

    Raises:
        ArtifactError: it is protected, see `protect`.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return
    if (found.st_dev, found.st_ino) in _inputs:
        raise ArtifactError(
            f"{path}: is an input of this command and is not written over; name another output"
        )


def write_file(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, so that no reader sees half a file.

    `-` is standard output. A device, pipe or link to one is written through; a regular file is
    replaced in one step, and a link to a regular file stays a link.

    Raises:
        ArtifactError: the target is an input of the running command, a folder, or cannot be
            written; nothing is left behind.
    """
    path = Path(path)
    try:
        if path == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        refuse_input(path)
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
                with path.open("wb", buffering=0) as special:
                    special.write(data)
                return
        # A link to a pipe, such as /dev/stdout, names no path; only links to files are followed.
        _replace(Path(os.path.realpath(path)) if path.is_symlink() else path, data)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def to_plain(value: Any) -> Any:
    """Return results as JSON values: dataclasses by their `to_json` or fields, paths as text."""
    if hasattr(value, "to_json"):
        return to_plain(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # NumPy's numbers, without importing NumPy for it.
    return value.item() if hasattr(value, "item") else value


def write_json(result: Any, path: str | Path | None) -> None:
    """Write a result as JSON; a path of None writes nothing, `-` is standard output.

    Raises:
        ArtifactError: as `write_file`.
    """
    if path is not None:
        text = json.dumps(to_plain(result), indent=1)
        write_file(path, text.encode() + (b"\n" if Path(path) == STDOUT else b""))


def make_folder(folder: str | Path) -> Path:
    """Make `folder` where it is missing, and those above it.

    Raises:
        ArtifactError: it cannot be made.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{path}: no folder can be made: {error.strerror}; name another one"
        ) from error
    return path
