"""The accuracy of a torch module, computed as for its export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edge.data.datasets import Dataset, Item, load
from edge.data.metrics import Metrics, evaluate_detections
from edge.detections import Detections
from edge.runtime.ops_cpu import Decoder, Preprocessor, nms
from edge.spec import ModelSpec

__all__ = ["validate"]


def validate(
    model: nn.Module,
    spec: ModelSpec,
    dataset: Dataset,
    *,
    score: float = 0.005,
    iou: float = 0.45,
    limit: int = 500,
) -> Metrics:
    """Return the average precision of `model` over `dataset`, as `edge evaluate` computes it.

    Args:
        model: takes (1, 3, *spec.contract.hw) on the device of its parameters; it is put into eval
            mode.
        dataset: at least one of its items has a box of a class of the model.
        score, iou, limit: thresholds and boxes per image, as `Detector` takes them.

    Raises:
        DataError: an image cannot be read, or there is no class in common.
    """
    device = next(model.parameters()).device
    preprocess, decode = Preprocessor(spec.contract), Decoder(spec, multi_label=True)
    found: list[Detections] = []
    items: list[Item] = []
    model.eval()
    for item in dataset.items:
        frame, labelled = load(item)
        tensor, fit = preprocess(frame)
        with torch.no_grad():
            outputs = model(torch.from_numpy(tensor).to(device))
        raw: Sequence[np.ndarray] = [output.float().cpu().numpy() for output in outputs]
        boxes = nms(decode(list(raw), score), iou, limit)
        height, width = frame.shape[:2]
        edges = np.clip(fit.to_source(boxes.xyxy), 0, (width, height, width, height))
        found.append(replace(boxes, xyxy=edges.astype(np.float32)))
        items.append(labelled)
    return evaluate_detections(replace(dataset, items=tuple(items)), found, spec.classes)
