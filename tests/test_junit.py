"""What a CI reads: the schema of Jenkins accepts the file, and its counts are the gates'."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.regress.gate import Clue, Gate
from apps.report.junit import write_junit

# From pytest's source distribution; MIT, as it says itself.
SCHEMA = Path(__file__).resolve().parent / "golden" / "junit-10.xsd"
CLUES = (
    Clue("class", 'dog & "cat" <3', "-30.1", "-40.0 to -20.0", 0.3),
    Clue("class", "ape", "-3.0"),
    Clue("layer", "layers.9.pool", "9.2 dB", "was 30.1 dB"),
)
GATES = [
    Gate("a <b>", "map50", "worse", 'mAP fell by 5 points & "more"', clues=CLUES),
    Gate("a <b>", "small", "cannot tell", "run longer: 80 more images"),
    Gate("a <b>", "class dog", "not compared", "no stored result"),
    Gate("é", "bytes", "same", "file 1.00 -> 1.00 MB"),
    Gate("é", "speedup", "better", "4 times"),
]


@pytest.mark.parametrize("gates", [GATES, GATES[3:], GATES[:1], []])
def test_the_schema_of_jenkins_accepts_it(tmp_path: Path, gates: list[Gate]) -> None:
    xmlschema = pytest.importorskip("xmlschema", reason="pip install xmlschema")
    schema = xmlschema.XMLSchema(SCHEMA)
    write_junit("street", gates, tmp_path / "j.xml")
    schema.validate(tmp_path / "j.xml")
    text = (tmp_path / "j.xml").read_text()
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        schema.validate(text.replace("<testsuites ", '<testsuites skipped="1" '))


def test_a_parser_of_others_counts_the_gates(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser", reason="pip install junitparser")
    write_junit("street", GATES, tmp_path / "j.xml")
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "j.xml"))
    assert (suite.name, suite.tests, suite.failures, suite.skipped, suite.errors) == (
        *("street", 5, 1, 2),
        0,
    )
    cases = list(suite)
    assert [case.name for case in cases] == [gate.name for gate in GATES]
    assert cases[0].classname == "street.a <b>"
    assert [[type(one).__name__ for one in case.result] for case in cases] == [
        ["Failure"],
        ["Skipped"],
        ["Skipped"],
        [],
        [],
    ]
    failure = cases[0].result[0]
    assert failure.message == GATES[0].said
    assert failure.text.splitlines() == [
        GATES[0].said,
        'most in: dog & "cat" <3 -30.1 (-40.0 to -20.0), ape -3.0',
        "first layer that departs: layers.9.pool 9.2 dB (was 30.1 dB)",
    ]
    assert cases[3].system_out == "same: file 1.00 -> 1.00 MB"
