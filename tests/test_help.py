"""`--help` can be acted on: every option is explained, every example is a command."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from apps import cli
from apps.commands.examples import EXAMPLES, ZOO_NAMES
from edge.models.zoo import ZOO

COMMANDS = sorted(EXAMPLES)


def test_the_names_of_the_zoo_are_those() -> None:
    assert tuple(ZOO) == ZOO_NAMES


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"] if command else ["--help"])
    return capsys.readouterr().out


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^    ([a-z-]+)(?:\s|$)", help_of("", capsys), re.MULTILINE)
    assert sorted({*listed, ""}) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_shown_and_parses(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of(command, capsys)
    monkeypatch.setattr(cli, "_run", lambda parser, argv: parser.parse_args(argv) and 0)
    for line in EXAMPLES[command]:
        assert line in shown
        for part in line.partition("#")[0].split("&&"):
            program, *words = shlex.split(part)
            assert program in ("edge", "export-engine")
            if command:
                assert command in (program, words[0], "fetch")
            (cli.main if program == "edge" else cli.export_engine)(words)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command])
def test_every_option_says_more_than_its_default(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda self, *_: taken.append(self))
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    for action in taken[0]._actions:
        text = re.sub(r"\(.*?\)", "", action.help or "").strip()
        assert text, f"edge {command}: {action.option_strings or action.dest} explains nothing"
