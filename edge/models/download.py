"""Downloads over HTTP: resumed after a break, verified, and in place only when complete."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.files import sha256_of

__all__ = ["Progress", "download"]

Progress = Callable[[int, int], None]
_CHUNK = 1 << 18
_TIMEOUT_S = 30
_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Download a file from the first of `urls` that has it, and return its sha256.

    A transfer that broke off is continued from `target` + `.part` on the next call.

    Args:
        size: number of bytes that the file must have.
        sha256: hexadecimal digest that it must have.
        progress: called with the bytes so far and those expected; 0: unknown.

    Raises:
        ArtifactError: no location answers, or what came is not the file that was asked for.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _first_that_answers(urls, part, size, progress)
        digest = _verify(part, size, sha256)
        os.replace(part, target)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error}") from error
    return digest


def _first_that_answers(
    urls: Sequence[str], part: Path, size: int | None, progress: Progress | None
) -> None:
    failures = []
    for url in urls:
        try:
            _transfer(url, part, size, progress)
            return
        except _NETWORK as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
    raise ArtifactError("; ".join(failures) or "no download location is known")


def _transfer(url: str, part: Path, size: int | None, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        return
    try:
        reply = _open(url, have)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()
        reply = _open(url, 0)
    with reply:
        resumed = getattr(reply, "status", 200) == 206
        _store(reply, part, have if resumed else 0, size, progress)


def _open(url: str, start: int) -> Any:
    headers = {"User-Agent": "edge"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)


def _store(
    reply: Any,
    part: Path,
    have: int,
    size: int | None,
    progress: Progress | None,
) -> None:
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length else size or 0
    with part.open("ab" if have else "wb") as file:
        while chunk := reply.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(have, total)
    if have < total:
        raise ConnectionError(f"broke off after {have} of {total} bytes; call again to continue")


def _verify(part: Path, size: int | None, sha256: str | None) -> str:
    found, digest = part.stat().st_size, sha256_of(part)
    if size is not None and found != size:
        part.unlink()
        raise ArtifactError(f"what was downloaded has {found} bytes and not {size}")
    if sha256 is not None and digest != sha256:
        part.unlink()
        raise ArtifactError(f"what was downloaded has the sha256 {digest} and not {sha256}")
    return digest
