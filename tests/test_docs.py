"""Every command that the documentation shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from apps import cli
from apps.regress.suite import Margins, Suite, read_suite

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# A page of figures shows no commands in blocks.
WITH_COMMANDS = [page for page in PAGES if page.stem != "measurements"]
_COMMAND = re.compile(r"(?:.*/)?(edge|export-engine|torchrun .* -m apps\.cli) (.+)")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Program and arguments of each command in the page's blocks."""
    lines = "\n".join(blocks(page)).replace("ExecStart=", "").splitlines()
    found = [match for line in lines if (match := _COMMAND.fullmatch(line.strip()))]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_each_command_of_a_page_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda parser, argv: parser.parse_args(argv) and 0)
    shown = commands(page)
    assert shown
    for program, arguments in shown:
        run = cli.export_engine if program == "export-engine" else cli.main
        try:
            run(arguments)
        except SystemExit as error:
            raise AssertionError(f"{page.name}: {program} {shlex.join(arguments)}") from error


def test_a_link_from_a_page_leads_to_a_page() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_suite_of_the_page_is_one_and_the_page_has_every_key(tmp_path: Path) -> None:
    page = ROOT / "docs" / "regress.md"
    text = next(block for block in blocks(page) if block.startswith("schema"))
    (tmp_path / "suite.toml").write_text(text)
    assert read_suite(tmp_path / "suite.toml").entries[0].margins.speedup == 4.0
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)", " ".join(row.split("|")[1] for row in rows)))
    known = {field.name for kind in (Suite, Margins) for field in fields(kind)}
    assert known - {"path", "entries"} <= named
