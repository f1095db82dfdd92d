"""Verdicts as JUnit XML, which every CI shows, by the schema of Jenkins: xunit's junit-10.xsd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from apps.regress.gate import Gate
from edge.files import write_file

__all__ = ["write_junit"]


def write_junit(suite: str, gates: Sequence[Gate], target: str | Path) -> None:
    """Write a test case for each gate; one that cannot tell or was not compared is skipped."""
    worse = sum(gate.verdict == "worse" for gate in gates)
    skipped = sum(_skips(gate) for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(worse), "errors": "0", "time": "0"}
    # The schema of Jenkins and of pytest knows `skipped` of a suite, and not of all suites.
    root = ElementTree.Element("testsuites", {"name": "edge regress", **counts})
    parent = ElementTree.SubElement(
        root, "testsuite", {"name": suite, "skipped": str(skipped), **counts}
    )
    for gate in gates:
        names = {"classname": f"{suite}.{gate.artifact}", "name": gate.name, "time": "0"}
        case = ElementTree.SubElement(parent, "testcase", names)
        if gate.verdict == "worse":
            failure = ElementTree.SubElement(
                case, "failure", {"message": gate.said, "type": "regression"}
            )
            failure.text = "\n".join((gate.said, *gate.where))
        elif _skips(gate):
            ElementTree.SubElement(case, "skipped", {"message": f"{gate.verdict}: {gate.said}"})
        else:
            ElementTree.SubElement(case, "system-out").text = f"{gate.verdict}: {gate.said}"
    ElementTree.indent(root)
    write_file(Path(target), ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _skips(gate: Gate) -> bool:
    return gate.verdict in ("cannot tell", "not compared")
