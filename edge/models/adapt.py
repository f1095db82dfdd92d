"""A Darknet cfg for other classes and other anchors, all else as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge.errors import ArtifactError
from edge.models.class_names import class_names
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import DarknetCfg, Section, with_options

__all__ = ["adapt_cfg", "anchor_count"]

_HEADS = ("yolo", "region")


def anchor_count(cfg: DarknetCfg) -> int:
    """Return the number of anchors that a cfg has, over all heads.

    Raises:
        ArtifactError: it has no head, or heads whose anchors differ.
    """
    counts = {section.positive("num", 1) for section in _heads(cfg)}
    lists = {section.text("anchors").replace(" ", "") for section in _heads(cfg)}
    if len(counts) != 1 or len(lists) != 1:
        raise ArtifactError(f"{cfg.source}: its heads have different anchors; adapt it by hand")
    return counts.pop()


def adapt_cfg(
    cfg: DarknetCfg, classes: int, anchors: Sequence[tuple[float, float]] | None = None
) -> DarknetCfg:
    """Return a cfg for `classes` classes: classes and anchors of the heads, filters before them.

    Args:
        anchors: width and height of each in pixels of the input, small to large, as many as the
            cfg has; without them its own stay. `[region]` gets them in cells.

    Raises:
        ArtifactError: the cfg cannot be built, has another number of anchors, or a head that does
            not follow its convolution.
    """
    with torch.device("meta"):
        network = Darknet(cfg)
    heads = _heads(cfg)
    if anchors is not None and len(anchors) != anchor_count(cfg):
        raise ArtifactError(
            f"{cfg.source}: has {anchor_count(cfg)} anchors, not {len(anchors)}; give as many"
        )
    hw, specs = network.input_hw, network.spec("", class_names(network.classes)).heads
    changes: dict[int, dict[str, object]] = {}
    for section, head in zip(heads, specs, strict=True):
        before = cfg.layers[section.index - 1]
        if before.type != "convolutional":
            raise section.error("a head is adapted only right behind its convolution")
        rows, columns = head.grid_hw
        cell = (hw[1] / columns, hw[0] / rows) if section.type == "region" else (1.0, 1.0)
        changes[before.index] = {"filters": len(head.anchors) * (5 + classes)}
        changes[section.index] = {"classes": classes}
        if anchors is not None:
            sizes = [f"{w / cell[0]:.6g},{h / cell[1]:.6g}" for w, h in anchors]
            changes[section.index]["anchors"] = ", ".join(sizes)
    return with_options(cfg, changes)


def _heads(cfg: DarknetCfg) -> list[Section]:
    heads = [section for section in cfg.layers if section.type in _HEADS]
    if not heads:
        raise ArtifactError(f"{cfg.source}: no [region] and no [yolo], so not a detector")
    return heads
