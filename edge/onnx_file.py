"""An ONNX file opened once: its bytes, metadata, manifest and sha256, each read at most once."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from edge.errors import ArtifactError
from edge.files import read_file
from edge.onnx_metadata import manifest_in, metadata_in
from edge.spec import Manifest

__all__ = ["OnnxFile"]

# protobuf takes no larger message.
_LIMIT_BYTES = (1 << 31) - 1


class OnnxFile:
    """An ONNX file of edge, read when something of it is first asked for.

    It stands for its path wherever a path is taken, so that a file which is handed on is not
    opened again.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: str | Path, data: bytes | None = None) -> None:
        self.path = Path(path)
        self._data = data

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def data(self) -> bytes:
        """The file's bytes.

        Raises:
            ArtifactError: it cannot be read.
        """
        if self._data is None:
            self._data = read_file(self.path, limit=_LIMIT_BYTES)
        return self._data

    @cached_property
    def sha256(self) -> str:
        """sha256 of the file's bytes, as hexadecimal text."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The file's `metadata_props`.

        Raises:
            ArtifactError: it cannot be read, or is not ONNX.
        """
        if self.path.suffix != ".onnx":
            raise ArtifactError(f"{self.path}: not an .onnx file")
        return metadata_in(self.data, str(self.path))

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest that edge wrote into the file.

        Raises:
            ArtifactError: it cannot be read, is not ONNX, or has no manifest.
        """
        return manifest_in(self.metadata, str(self.path))
