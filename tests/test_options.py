"""Options dataclasses: flags made from them, and the object that the flags say."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from apps.commands.options import add_options, read_options
from edge.options import count, described, option, share


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        deep: how deep
            to go.
    """

    deep: int = option(3, check=count)


@dataclass(frozen=True)
class Outer:
    """Outer.

    Attributes:
        model: file of the model.
        kind: which of two.
        names, extra: words; 100% of them.
        best: leave out the rest.
        quick: do less.
        drop: share that may be lost.
        inner: options of the inside.
        secret: not a flag.

    Raises:
        nothing: of this is an attribute.
    """

    model: str = option(flag="model")
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    extra: tuple[str, ...] = ("x",)
    best: bool = True
    quick: bool = option(False, flag="--fast", aliases=("--hurry",))
    drop: float | None = option(None, check=share, metavar="D")
    inner: Inner = Inner()
    secret: int = option(7, hidden=True)


def parse(*words: str) -> Outer:
    parser = argparse.ArgumentParser()
    add_options(parser, Outer)
    return read_options(parser.parse_args(words), Outer)


def test_defaults_are_the_dataclasss_own() -> None:
    assert parse("m.onnx") == Outer("m.onnx")


def test_each_flag_sets_its_field() -> None:
    words = "m --kind b --names p,q --extra r --no-best --hurry --drop 0.25 --deep 9"
    assert parse(*words.split()) == Outer("m", "b", ("p", "q"), ("r",), False, True, 0.25, Inner(9))
    assert parse("m", "--fast").quick


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("m", "--drop", "2"), "2 is not between 0 and 1"),
        (("m", "--deep", "0"), "0 is not a positive number"),
        (("m", "--deep", "x"), "'x' is not a whole number"),
        (("m", "--kind", "c"), "invalid choice"),
        ((), "required: model"),
    ],
)
def test_what_does_not_fit_is_said(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert said in capsys.readouterr().err


def test_help_is_the_docstrings_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--deep DEEP how deep to go. (default: 3)" in shown
    assert "words; 100% of them." in shown
    assert "--hurry" not in shown and "secret" not in shown
    assert "nothing" not in described(Outer)
