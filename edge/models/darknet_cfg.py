"""Darknet's cfg files: sections in order, each with its options and its first line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edge.errors import ArtifactError
from edge.files import plain_text

__all__ = ["DarknetCfg", "Section", "parse_cfg", "read_cfg", "with_options"]

T = TypeVar("T")
_MOST_INT = 2**31
# Darknet's short names (`string_to_layer_type` in its parser.c).
_LONG_NAMES = {
    "avg": "avgpool",
    "conv": "convolutional",
    "max": "maxpool",
    "network": "net",
}


@dataclass(frozen=True)
class Section:
    """One `[type]` and the options below it.

    Attributes:
        type: the name in brackets, in its long form.
        options: text by key; of a repeated key the first, as in Darknet.
        line: of the bracket, from 1.
        index: Darknet's number of the layer, from 0; -1 for `[net]`.
        source: name of the cfg, for messages.
    """

    type: str
    options: dict[str, str]
    line: int
    index: int
    source: str

    def error(self, message: str) -> ArtifactError:
        """Return an error that names the cfg, the line and the layer."""
        where = "" if self.index < 0 else f"layer {self.index} "
        return ArtifactError(f"{self.source}:{self.line}: {where}[{self.type}]: {message}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return the text of the option `key`.

        Raises:
            ArtifactError: it is missing and there is no default.
        """
        value = self.options.get(key, default)
        if value is None:
            raise self.error(f"the key {key} is missing")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; raises ArtifactError where it is missing or none."""
        return self._convert(key, _whole, None if default is None else str(default))

    def positive(self, key: str, default: int | None = None) -> int:
        """Return a whole number of 1 or more; raises ArtifactError as `integer` does."""
        value = self.integer(key, default)
        if value < 1:
            raise self.error(f"{key}={value} must be 1 or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; raises ArtifactError where it is missing or none."""
        return self._convert(key, _finite, None if default is None else str(default))

    def integers(self, key: str) -> tuple[int, ...]:
        """Return the whole numbers between commas."""
        return self._convert(key, lambda text: _split(text, _whole), None)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return the finite numbers between commas."""
        return self._convert(key, lambda text: _split(text, _finite), None)

    def _convert(self, key: str, convert: Callable[[str], T], default: str | None) -> T:
        text = self.text(key, default)
        try:
            return convert(text)
        except ValueError:
            raise self.error(f"{key}={plain_text(text)[:60]} is not a number") from None


@dataclass(frozen=True)
class DarknetCfg:
    """A parsed cfg.

    Attributes:
        source: file name, for messages.
        text: as read, so that a saved model can carry it.
        net: the `[net]` section.
        layers: the sections after it; a section's place is its `index`.
    """

    source: str
    text: str = field(repr=False)
    net: Section
    layers: tuple[Section, ...]


def _split(text: str, convert: Callable[[str], T]) -> tuple[T, ...]:
    return tuple(convert(part) for part in text.split(",") if part)


def _whole(text: str) -> int:
    """Return a whole number of 32 bits, Darknet's int."""
    number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,10}", text) else _MOST_INT
    if abs(number) >= _MOST_INT:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or "_" in text:
        raise ValueError(text)
    return number


def read_cfg(path: Path) -> DarknetCfg:
    """Read a Darknet cfg file.

    Raises:
        ArtifactError: the file is missing, empty, not text, or not in the form of a cfg.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ArtifactError(f"{path}: not a text file, so not a Darknet cfg") from None
    return parse_cfg(text, str(path))


def parse_cfg(text: str, source: str) -> DarknetCfg:
    """Parse a cfg; `source` names it in messages.

    As in Darknet's `read_cfg`, blanks do not count and lines that begin with # or ; are comments;
    what follows a # or ; within a line is cut off as well.

    Raises:
        ArtifactError: it is empty, has an option before the first section or a line that is
            neither section nor option, or begins with a section other than `[net]`.
    """
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = "".join(raw.partition("#")[0].partition(";")[0].split())
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            kind = _LONG_NAMES.get(line[1:-1], line[1:-1])
            sections.append(Section(kind, {}, number, len(sections) - 1, source))
            continue
        key, equals, value = line.partition("=")
        if not sections or not equals:
            raise ArtifactError(f"{source}:{number}: neither [section] nor key=value: {raw[:60]!r}")
        sections[-1].options.setdefault(key, value)
    if len(sections) < 2:
        raise ArtifactError(f"{source}: holds {len(sections)} sections; not a Darknet cfg")
    if sections[0].type != "net":
        raise sections[0].error("the first section must be [net]")
    return DarknetCfg(source, text, sections[0], tuple(sections[1:]))


def with_options(cfg: DarknetCfg, changes: Mapping[int, Mapping[str, object]]) -> DarknetCfg:
    """Return `cfg` with options of some layers set, by layer number; all other text stays.

    Repeated keys are removed, since readers differ on which of them counts.
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
