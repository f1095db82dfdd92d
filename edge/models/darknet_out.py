"""Darknet cfgs with other options, as text that Darknet and OpenCV read alike."""

from __future__ import annotations

from collections.abc import Mapping

from edge.models.darknet_cfg import DarknetCfg, parse_cfg

__all__ = ["with_options"]


def with_options(cfg: DarknetCfg, changes: Mapping[int, Mapping[str, object]]) -> DarknetCfg:
    """`cfg` with options of some layers set, by layer number; all other text stays.

    Doubled keys go, since readers differ on which of them counts.
    """
    lines: list[str] = []
    index = -2
    for raw in cfg.text.splitlines():
        bare = "".join(raw.partition("#")[0].split())
        new = changes.get(index, {}) if index >= 0 else {}
        if bare.startswith("["):
            index += 1
            new = changes.get(index, {}) if index >= 0 else {}
            lines += [raw, *(f"{key}={value}" for key, value in new.items())]
        elif bare.startswith(";") or bare.partition("=")[0] not in new:
            lines.append(raw)
    return parse_cfg("\n".join(lines) + "\n", cfg.source)
