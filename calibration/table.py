"""The calibration table: clipping thresholds by tensor, bound to one graph and one contract."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from edge.errors import CalibrationError
from edge.files import write_json

__all__ = ["CalibrationTable", "is_table", "read_table", "write_table"]

SCHEMA = 1
_BY_NAME = ("amax", "gains", "low", "bias", "noise_db", "gain_db", "rounding", "head_db")


@dataclass(frozen=True)
class CalibrationTable:
    """Clipping thresholds `amax` by tensor name, and what they hold for.

    Attributes:
        amax: (tensor, threshold) pairs; the INT8 scale is amax / 127.
        method: how the thresholds were chosen.
        graph_sha256: of the FP32 ONNX file that was run.
        contract_digest: of the pre-processing that the images went through.
        images: sha256 of each decoded image used, sorted.
        gains: (tensor, gain of each channel) pairs of the equalisation; `amax` holds behind it.
        low: (tensor, lowest value) pairs behind the equalisation, where known.
        bias: (convolution, what to subtract from its bias) pairs.
        noise_db: (convolution, signal to quantization noise of its output) pairs, of its own
            operands' rounding alone.
        gain_db: (tensor or convolution, less noise than with the default) pairs, on images held
            back.
        rounding: (convolution, steps of its weights away from the nearest level) pairs, as
            `export.int8.rounding` packs them.
        hashes: perceptual hash of each image used, 16 hexadecimal digits, sorted.
        recipe: what was done besides the thresholds: equalise, bias, adaround.
        head_db: (recipe, signal to noise of the heads on images held back) pairs, where measured.
        made_by: the version that made it.
        schema: of this file.
    """

    amax: tuple[tuple[str, float], ...]
    method: str
    graph_sha256: str
    contract_digest: str
    images: tuple[str, ...]
    gains: tuple[tuple[str, tuple[float, ...]], ...] = ()
    low: tuple[tuple[str, float], ...] = ()
    bias: tuple[tuple[str, tuple[float, ...]], ...] = ()
    noise_db: tuple[tuple[str, float], ...] = ()
    gain_db: tuple[tuple[str, float], ...] = ()
    rounding: tuple[tuple[str, str], ...] = ()
    hashes: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    head_db: tuple[tuple[str, float], ...] = ()
    made_by: str = ""
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """sha256 over what the table was made from: two tables of one key say the same."""
        content = (self.graph_sha256, self.contract_digest, sorted(self.images), self.method)
        text = json.dumps([*content, sorted(self.recipe), self.made_by], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, graph_sha256: str, contract_digest: str, source: str = "the table") -> None:
        """Refuse another graph or another pre-processing.

        Raises:
            CalibrationError: names which of the two differs.
        """
        for what, mine, theirs in (
            ("graph", self.graph_sha256, graph_sha256),
            ("input contract", self.contract_digest, contract_digest),
        ):
            if mine != theirs:
                raise CalibrationError(
                    f"{source}: its scales were measured on another {what} "
                    f"({mine[:12]}, here {theirs[:12]}); calibrate again: edge calibrate"
                )


def write_table(table: CalibrationTable, target: str | Path) -> None:
    """Write `table` as JSON, whole or not at all."""
    data: dict[str, Any] = asdict(table)
    for name in _BY_NAME:
        data[name] = dict(getattr(table, name))
    document = {"key": table.key, **data}
    write_json(document, Path(target))


def read_table(source: str | Path) -> CalibrationTable:
    """Read what `write_table` wrote.

    Raises:
        CalibrationError: missing, not JSON, of a newer schema, with a threshold or gain that is
            not a positive number, a bias that is not finite, or a key that is not that of its
            content.
    """
    try:
        data = json.loads(Path(source).read_bytes())
        if data["schema"] > SCHEMA:
            raise ValueError(f"schema {data['schema']} is newer than {SCHEMA}, which this reads")
        if "amax" not in data:
            raise ValueError("it has no amax")
        known = {f.name for f in fields(CalibrationTable)}
        key = data.get("key")
        data = {key: value for key, value in data.items() if key in known}
        for name in _BY_NAME:
            data[name] = tuple((str(k), _numbers(v)) for k, v in data.get(name, {}).items())
        for name, amax in data["amax"]:
            if not 0 < amax < float("inf"):
                raise ValueError(f"the threshold of {name} is {amax}")
        for name, gain in data["gains"]:
            if not all(0 < value < float("inf") for value in gain):
                raise ValueError(f"the gains of {name} are not all positive numbers")
        for name, shift in data["bias"]:
            if not all(map(isfinite, shift)):
                raise ValueError(f"the bias of {name} is not finite")
        for name in ("images", "hashes", "recipe"):
            data[name] = tuple(map(str, data[name] if name == "images" else data.get(name, ())))
        table = CalibrationTable(**data)
        if key not in (None, table.key):
            raise ValueError("its key is not that of its graph, images and method: edited or stale")
        return table
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{source}: not a calibration table: {error}") from error


def _numbers(value: Any) -> str | float | tuple[float, ...]:
    if isinstance(value, str):
        return value
    return tuple(float(v) for v in value) if isinstance(value, list) else float(value)


def is_table(calib: str | Path) -> bool:
    """A calibration table and no COCO json."""
    path = Path(calib)
    return path.suffix == ".json" and path.is_file() and b'"amax"' in path.read_bytes()
