"""Non-maximum suppression in onnxruntime, which takes boxes as an array.

OpenCV's binding reads them number by number out of Python objects, and its loop goes on after the
limit is reached, which a crowd of thousands makes slow.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.runtime.onnx_proto import model_class
from edge.runtime.session import open_session

__all__ = ["kept_by_class"]

# ONNX operator set 11: NonMaxSuppression. Element types by onnx/onnx.proto3.
_FLOAT, _INT64 = 1, 7
_OPSET, _IR_VERSION = 11, 8
_BOXES, _SCORES, _KEPT = "boxes", "scores", "kept"


def kept_by_class(
    xyxy: NDArray[np.float32], scores: NDArray[np.float32], iou: float, limit: int
) -> NDArray[np.int64]:
    """Rows of the boxes that stay, class by class, in each the best first.

    Args:
        xyxy: (N, 4) corners.
        scores: (C, N); a box is of the classes in which its score is above 0.
        iou: a box goes when its IoU with a kept box of its class is above it.
        limit: boxes of one class at most.

    Raises:
        MissingDependency: onnxruntime is not installed.
    """
    feed = {_BOXES: xyxy[None], _SCORES: scores[None]}
    kept: NDArray[np.int64] = _session(iou, limit).run([_KEPT], feed)[0][:, 2]
    return kept


# Thresholds are constants of the graph: on few boxes each input more costs more than its use.
@lru_cache(maxsize=16)
def _session(iou: float, limit: int) -> Any:
    """A session with these thresholds; running it is safe from any thread."""
    return open_session(_graph(iou, limit), "non-maximum suppression", threads=1)


def _graph(iou: float, limit: int) -> bytes:
    model = model_class()(ir_version=_IR_VERSION)
    model.opset_import.add(domain="", version=_OPSET)
    graph = model.graph
    for name in (_BOXES, _SCORES):
        graph.input.add(name=name).type.tensor_type.elem_type = _FLOAT
    constants = {
        "limit": (_INT64, np.array([limit], "<i8")),
        "iou": (_FLOAT, np.array([iou], "<f4")),
        "score": (_FLOAT, np.zeros(1, "<f4")),
    }
    for name, (kind, value) in constants.items():
        graph.initializer.add(name=name, data_type=kind, dims=[1], raw_data=value.tobytes())
    graph.node.add(op_type="NonMaxSuppression", input=[_BOXES, _SCORES, *constants], output=[_KEPT])
    graph.output.add(name=_KEPT).type.tensor_type.elem_type = _INT64
    made: bytes = model.SerializeToString()
    return made
