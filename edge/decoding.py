"""JSON from outside, decoded strictly into dataclasses.

A field has the type that its dataclass declares or the file is refused by name of file and field;
numbers are finite, nesting and size are bounded. Ranges are the dataclass's own (`__post_init__`).
Written here because a device has NumPy, OpenCV and onnxruntime alone; a test holds it against
msgspec.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edge.errors import ArtifactError, EdgeError
from edge.files import plain_text, read_file

__all__ = ["decode", "decode_json", "parse_json", "read_json"]

Kind = TypeVar("Kind")
_DEPTH = 64
_LIMIT_BYTES = 256 << 20


class _Wrong(Exception):
    """What is wrong, and where below the field that is looked at."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text)
        self.where = where


def read_json(
    path: str | Path,
    kind: type[Kind],
    *,
    what: str,
    error: type[EdgeError] = ArtifactError,
    limit: int = _LIMIT_BYTES,
) -> Kind:
    """Read a JSON file as `kind`, a dataclass or a type of plain values.

    Args:
        what: what the file should be, for the message: "a calibration table".

    Raises:
        ArtifactError: or `error`; missing, too large, not JSON, or a field of another type.
    """
    return decode_json(read_file(path, limit=limit, error=error), kind, str(path), what, error)


def decode_json(
    data: bytes | str,
    kind: type[Kind],
    source: str,
    what: str,
    error: type[EdgeError] = ArtifactError,
) -> Kind:
    """Decode JSON text as `kind`.

    Args:
        source: the file's name, for the message.

    Raises:
        ArtifactError: or `error`; not JSON, or a field of another type.
    """
    return decode(parse_json(data, source, what, error), kind, source, what, error)


def parse_json(
    data: bytes | str, source: str, what: str, error: type[EdgeError] = ArtifactError
) -> Any:
    """Parse JSON with finite numbers, no repeated keys and bounded nesting.

    Raises:
        ArtifactError: or `error`; it is not that.
    """
    try:
        value = json.loads(
            data, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once
        )
        _check_depth(value)
        _check_text(data, value)
        return value
    except (ValueError, RecursionError) as cause:
        said = "nested too deeply" if isinstance(cause, RecursionError) else plain_text(str(cause))
        raise error(f"{source}: not {what}: {said}") from cause


def decode(
    value: Any, kind: type[Kind], source: str, what: str, error: type[EdgeError] = ArtifactError
) -> Kind:
    """Turn parsed JSON into `kind`; keys that the dataclass does not have are passed over.

    Raises:
        ArtifactError: or `error`; a field is missing, of another type, or out of its range.
    """
    try:
        return cast(Kind, _build(kind, value))
    except _Wrong as cause:
        where = f"{cause.where.lstrip('.')}: " if cause.where else ""
        raise error(f"{source}: not {what}: {plain_text(where + str(cause))}") from cause


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is out of a number's range")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return found


def _check_text(data: bytes | str, value: Any) -> None:
    """Refuse halves of surrogate pairs, which escapes can spell and which no file can hold."""
    escape = b"\\u" if isinstance(data, bytes) else "\\u"
    if escape in data:  # type: ignore[operator]
        json.dumps(value, ensure_ascii=False).encode()


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {_DEPTH} levels")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, value: Any) -> Any:
    if kind is Any or kind is object:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value)
    if origin is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
        raise _Wrong(f"{_short(value)} is none of {', '.join(map(str, get_args(kind)))}")
    if dataclasses.is_dataclass(kind):
        return _fields(cast(type[Any], kind), value)
    if origin is tuple:
        return _tuple(get_args(kind), value)
    if origin in (list, Sequence):
        return [_at(f"[{i}]", get_args(kind)[0], item) for i, item in enumerate(_list(value))]
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _Wrong(f"takes an object, not {_short(value)}")
        return {key: _at(f".{key}", get_args(kind)[1], item) for key, item in value.items()}
    return _plain(kind, value)


def _plain(kind: Any, value: Any) -> Any:
    if kind is type(None):
        if value is not None:
            raise _Wrong(f"takes null, not {_short(value)}")
        return None
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _Wrong(f"{_short(value)} is out of a number's range") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (dict, list) and isinstance(value, kind):
        return value
    if kind in (str, int, bool) and type(value) is kind:
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise _Wrong(f"takes {names.get(kind, getattr(kind, '__name__', kind))}, not {_short(value)}")


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    said: list[_Wrong] = []
    for kind in kinds:
        try:
            return _build(kind, value)
        except _Wrong as wrong:
            said.append(wrong)
    # The alternative that got furthest says most.
    raise max(said, key=lambda wrong: len(wrong.where))


def _fields(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, dict):
        raise _Wrong(f"takes an object, not {_short(value)}")
    hints, given = _hints(cast(Hashable, kind)), {}
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        if field.name in value:
            given[field.name] = _at(f".{field.name}", hints[field.name], value[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _Wrong("is missing", f".{field.name}")
    try:
        return kind(**given)
    except (ValueError, TypeError, OverflowError) as error:
        raise _Wrong(str(error)) from error


def _tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    items = _list(value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_at(f"[{i}]", kinds[0], item) for i, item in enumerate(items))
    if len(items) != len(kinds):
        raise _Wrong(f"takes {len(kinds)} values, not {len(items)}")
    pairs = zip(kinds, items, strict=True)
    return tuple(_at(f"[{i}]", kind, item) for i, (kind, item) in enumerate(pairs))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f"takes a list, not {_short(value)}")
    return value


def _at(where: str, kind: Any, value: Any) -> Any:
    try:
        return _build(kind, value)
    except _Wrong as wrong:
        wrong.where = where + wrong.where
        raise


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, TypeError):
        text = type(value).__name__
    return text if len(text) <= 40 else text[:40] + "…"
