"""The part of YAML that descriptions of data sets use, read strictly.

Top-level keys with scalars, lists and mappings of scalars, in block or flow form, and comments.
Block scalars (`|`, `>`) are passed over. Whatever else YAML has, such as anchors, tags and deeper
nesting, is refused with its line, and nothing is ever executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from edge.errors import DataError
from edge.files import plain_text

__all__ = ["Value", "parse_yaml"]

Value = str | list[str] | dict[str, str] | None
_KEY = re.compile(r"""("[^"]*"|'[^']*'|[^\s:#\[\]{},&*!|>%@`"'-][^:#]*?)\s*:(?:\s+(.*)|)$""")


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


class _Refused(Exception):
    pass


def parse_yaml(text: str, source: str) -> dict[str, Value]:
    """Return the top-level keys; scalars are text, and an empty value is None.

    Raises:
        DataError: it is not of this form; file and line are named.
    """
    lines = [
        _Line(number, len(raw) - len(raw.lstrip(" ")), _without_comment(raw).strip())
        for number, raw in enumerate(text.splitlines(), 1)
    ]
    lines = [line for line in lines if line.text and line.text not in ("---", "...")]
    found: dict[str, Value] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        try:
            if line.indent:
                raise _Refused("indented without a key above it")
            key, rest = _key_and_rest(line.text)
            if key in found:
                raise _Refused(f"the key {key!r} stands twice")
            end = at + 1
            while end < len(lines) and (lines[end].indent or lines[end].text.startswith("- ")):
                end += 1
            block = lines[at + 1 : end]
            found[key] = _value(rest, block)
        except _Refused as error:
            raise DataError(
                f"{source}:{line.number}: {plain_text(line.text)[:60]!r}: {error}; it takes YAML "
                "whose keys have text, lists or mappings"
            ) from None
        at = end
    return found


def _without_comment(raw: str) -> str:
    """Cut off a comment: a # at the beginning or after a blank, outside of quotes."""
    quote = ""
    for at, sign in enumerate(raw):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (at == 0 or raw[at - 1] in " [{,:"):
            quote = sign
        elif sign == "#" and (at == 0 or raw[at - 1] in " \t"):
            return raw[:at]
    return raw


def _key_and_rest(text: str) -> tuple[str, str]:
    found = _KEY.match(text)
    if found is None:
        raise _Refused("neither KEY: VALUE nor a list item")
    return _scalar(found[1]), (found[2] or "").strip()


def _value(rest: str, block: list[_Line]) -> Value:
    if rest[:1] in ("|", ">"):
        return None
    if rest and block and not _is_open(rest):
        raise _Refused("a value and an indented block")
    if _is_open(rest):
        return _flow(" ".join([rest, *(line.text for line in block)]))
    if rest:
        return _scalar(rest)
    if not block:
        return None
    if block[0].text.startswith("- ") or block[0].text == "-":
        return list(_items(block))
    return dict(_pairs(block))


def _is_open(text: str) -> bool:
    return text[:1] in ("[", "{")


def _items(block: list[_Line]) -> Iterator[str]:
    for line in block:
        if line.indent != block[0].indent or not line.text.startswith("- "):
            raise _Refused(f"line {line.number} is not an item of its list")
        yield _scalar(line.text[2:].strip())


def _pairs(block: list[_Line]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for line in block:
        key, rest = _key_and_rest(line.text)
        if line.indent != block[0].indent or key in seen:
            raise _Refused(f"line {line.number} is not a key of its mapping, or a repeated one")
        seen.add(key)
        yield key, _scalar(rest)


def _flow(text: str) -> Value:
    closing = "]" if text[0] == "[" else "}"
    if not text.endswith(closing):
        raise _Refused(f"its {closing} is missing")
    parts = [part.strip() for part in _split(text[1:-1])]
    parts = parts[:-1] if parts and not parts[-1] else parts
    if closing == "]":
        return [_scalar(part) for part in parts]
    pairs = [_key_and_rest(part) for part in parts]
    if len({key for key, _ in pairs}) != len(pairs):
        raise _Refused("a key stands twice")
    return {key: _scalar(rest) for key, rest in pairs}


def _split(text: str) -> Iterator[str]:
    """Yield what stands between commas, outside of quotes."""
    quote, start = "", 0
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and not text[start:at].strip():
            quote = sign
        elif sign == ",":
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _scalar(text: str) -> str:
    if text[:1] in ('"', "'"):
        if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1] or "\\" in text:
            raise _Refused("quotes that do not close, or escapes")
        return text[1:-1]
    if not text:
        raise _Refused("a value is missing")
    if text[0] in "&*!|>%@`[]{},?":
        raise _Refused(f"{text[:1]!r} begins something other than text")
    return text
