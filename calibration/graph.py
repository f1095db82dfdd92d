"""An ONNX graph opened once and handed on: path, model, manifest and sha256."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.optional import require

__all__ = ["Graph"]


class Graph(OnnxFile):
    """An ONNX file of edge with its parsed model; whatever is asked for is read once.

    The model is shared by all who hold the graph: copy it before changing it.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: str | Path, data: bytes | None = None, model: Any = None) -> None:
        super().__init__(path, data)
        if model is not None:
            self._keep(model)

    @staticmethod
    def open(onnx: str | Path | OnnxFile) -> Graph:
        """Return `onnx` itself if it is a graph, else a graph of the file; nothing is read yet."""
        if isinstance(onnx, Graph):
            return onnx
        return Graph(onnx.path, onnx.data) if isinstance(onnx, OnnxFile) else Graph(onnx)

    @property
    def data(self) -> bytes:
        """The file's bytes; once the model is parsed they are made from it."""
        if "model" in self.__dict__:
            return bytes(self.model.SerializeToString())
        return super().data

    @cached_property
    def model(self) -> Any:
        """The onnx `ModelProto`.

        Raises:
            ArtifactError: the file cannot be read, or is not ONNX.
        """
        data = super().data
        try:
            model = require("onnx").load_from_string(data)
        except Exception as error:  # protobuf's and onnx's exceptions share no other base
            raise ArtifactError(f"{self.path}: not an ONNX file: {error}") from error
        self._keep(model)
        return model

    @property
    def convolutions(self) -> list[Any]:
        """The Conv nodes, in the graph's order."""
        return [node for node in self.model.graph.node if node.op_type == "Conv"]

    def _keep(self, model: Any) -> None:
        """Hold the model in place of the bytes, whose sha256 is taken first."""
        if self._data is None:
            self._data = bytes(model.SerializeToString())
        _ = self.sha256
        self.__dict__["model"] = model
        self._data = None
