"""The built-in detectors, untrained, from the text of their architectures in `edge/assets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

import edge
from edge.data.world.world import CLASSES
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import read_cfg
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, read_config, squeezedet_spec
from edge.spec import ModelSpec

__all__ = ["NAMES", "build"]

NAMES = ("tiny-yolo-scenes", "squeezedet-scenes")
_ASSETS = Path(edge.__file__).parent / "assets"


def build(name: str, seed: int = 0) -> tuple[nn.Module, ModelSpec, dict[str, Any]]:
    """Return a built-in detector with random weights, its spec, and what rebuilds it.

    Raises:
        ValueError: no such built-in detector.
    """
    if name == "tiny-yolo-scenes":
        cfg = read_cfg(_ASSETS / f"{name}.cfg")
        model: Any = Darknet(cfg)
        spec, facts = model.spec(name, CLASSES), dict[str, Any](cfg=cfg.text)
    elif name == "squeezedet-scenes":
        text = (_ASSETS / f"{name}.json").read_text("utf-8")
        facts, config = {"config": json.loads(text)}, read_config(text, f"{name}.json")
        model, spec = SqueezeDet(config), squeezedet_spec(config, name)
    else:
        raise ValueError(f"{name} is not built in; built in are {', '.join(NAMES)}")
    initialise(model, spec, seed)
    return model, spec, facts
