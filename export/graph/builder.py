"""Builds an ONNX graph: nodes, constants and the shapes of values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.optional import require

__all__ = ["IMAGES", "GraphBuilder"]

IMAGES = "images"


class GraphBuilder:
    """Collects nodes and initializers; `names` has each fx node's tensor, `shapes` its shape."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[Any, str] = {}

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Append a node that is named as its one output, and return that name."""
        helper = require("onnx.helper")
        node = helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Append an initializer, and return its name."""
        numpy_helper = require("onnx.numpy_helper")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name
