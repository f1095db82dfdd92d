"""The calibration table: clipping thresholds by tensor, bound to one graph and one contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edge.decoding import decode, parse_json
from edge.errors import CalibrationError
from edge.files import read_file, write_json

__all__ = ["CalibrationTable", "find_table", "read_table", "write_table"]

SCHEMA = 1
_WHAT = "a calibration table"
# More than any network's rounding takes.
_LIMIT_BYTES = 256 << 20
# The largest FP32 number.
_LARGEST = 3.4028234e38
_BY_NAME = ("amax", "gains", "low", "bias", "noise_db", "gain_db", "rounding", "head_db")


@dataclass(frozen=True)
class CalibrationTable:
    """Clipping thresholds `amax` by tensor name, and what they hold for.

    Attributes:
        amax: (tensor, threshold) pairs; the INT8 scale is amax / 127.
        method: how the thresholds were chosen.
        graph_sha256: of the FP32 ONNX file that was run.
        contract_digest: of the pre-processing that the images went through.
        images: sha256 of each decoded picture used, sorted.
        gains: (tensor, gain of each channel) pairs of the equalisation; `amax` holds behind it.
        low: (tensor, lowest value) pairs behind the equalisation, where known.
        bias: (convolution, what to subtract from its bias) pairs.
        noise_db: (convolution, signal to quantization noise of its output) pairs, of its own
            operands' rounding alone.
        gain_db: (tensor or convolution, less noise than with the default) pairs, on pictures held
            back.
        rounding: (convolution, steps of its weights away from the nearest level) pairs, as
            `calibration.rounding` packs them.
        hashes: perceptual hash of each picture used, 16 hexadecimal digits, sorted.
        recipe: what was done besides the thresholds: equalise, bias, adaround.
        head_db: (recipe, signal to noise of the heads on pictures held back) pairs, where measured.
        data: where the pictures were, as it was given; empty where nobody noted it.
        asked: how many pictures of `data` were asked for, spread evenly.
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
    data: str = ""
    asked: int = 0
    made_by: str = ""
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """sha256 over what the table was made from; two tables with one key say the same."""
        content = (self.graph_sha256, self.contract_digest, sorted(self.images), self.method)
        text = json.dumps([*content, sorted(self.recipe), self.made_by], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, graph_sha256: str, contract_digest: str, source: str = "the table") -> None:
        """Refuse another graph or another pre-processing than the table was measured with.

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
    """Write `table` as JSON.

    Raises:
        ArtifactError: `target` cannot be written.
    """
    data: dict[str, Any] = asdict(table)
    for name in _BY_NAME:
        data[name] = dict(getattr(table, name))
    write_json({"key": table.key, **data}, Path(target))


@dataclass(frozen=True)
class _TableFile:
    """A table as its file has it: what a table holds in pairs, by name."""

    amax: Mapping[str, float]
    method: str
    graph_sha256: str
    contract_digest: str
    images: tuple[str, ...]
    schema: int
    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    low: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    noise_db: Mapping[str, float] = field(default_factory=dict)
    gain_db: Mapping[str, float] = field(default_factory=dict)
    rounding: Mapping[str, str] = field(default_factory=dict)
    hashes: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    head_db: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    asked: int = 0
    made_by: str = ""
    key: str | None = None

    def __post_init__(self) -> None:
        for name, amax in self.amax.items():
            if not 0 < amax <= _LARGEST:
                raise ValueError(f"the threshold of {name} is {amax}; it takes a positive FP32")
        for name, gain in self.gains.items():
            if not all(0 < value <= _LARGEST for value in gain):
                raise ValueError(f"the gains of {name} are not all positive FP32 numbers")
        for name, shift in self.bias.items():
            if not all(abs(value) <= _LARGEST for value in shift):
                raise ValueError(f"the bias of {name} is beyond FP32")

    def table(self) -> CalibrationTable:
        given = {one.name: getattr(self, one.name) for one in fields(CalibrationTable)}
        return CalibrationTable(
            **given | {name: tuple(given[name].items()) for name in _BY_NAME},
        )


def read_table(source: str | Path) -> CalibrationTable:
    """Read what `write_table` wrote.

    Raises:
        CalibrationError: the file is missing, not JSON or of a newer schema, a field is missing,
            of another type or out of its range, or the key is not that of the content.
    """
    return _decoded(read_file(source, limit=_LIMIT_BYTES, error=CalibrationError), str(source))


def find_table(calib: str | Path) -> CalibrationTable | None:
    """Read `calib` if it is a calibration table; None for a folder, `scenes://` or a COCO file.

    Raises:
        CalibrationError: as `read_table`.
    """
    path = Path(calib)
    if path.suffix != ".json" or not path.is_file():
        return None
    data = read_file(path, error=CalibrationError)
    if b'"amax"' not in data and not path.name.endswith(".calib.json"):
        return None
    return _decoded(data, str(calib))


def _decoded(data: bytes, source: str) -> CalibrationTable:
    value = parse_json(data, source, _WHAT, CalibrationError)
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CalibrationError(
            f"{source}: not {_WHAT}: schema {schema} is newer than {SCHEMA}, which this reads; "
            "update edge"
        )
    file = decode(value, _TableFile, source, _WHAT, CalibrationError)
    table = file.table()
    if file.key not in (None, table.key):
        raise CalibrationError(
            f"{source}: not {_WHAT}: its key is not that of its graph, images and method: edited "
            "or stale; calibrate again"
        )
    return table
