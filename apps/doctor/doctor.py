"""What of this machine works, and what to do about the rest: `edge doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from apps.doctor.check import Check
from apps.doctor.machine import check_cameras, check_jetson, check_machine, check_programs
from apps.doctor.software import check_engines, check_onnxruntime, check_opencv, check_optional
from edge.measure.host import fingerprint

__all__ = ["Diagnosis", "doctor"]


@dataclass(frozen=True)
class Diagnosis:
    """What `edge doctor` found.

    Attributes:
        host: the machine, see `edge.measure.host.fingerprint`.
        ok: whether there is no problem; what is merely missing is none.
        can_run_onnx, can_run_engines, can_build_engines: what this machine can do.
        checks: all findings, in the order of the table.
    """

    host: Mapping[str, object]
    ok: bool
    can_run_onnx: bool
    can_run_engines: bool
    can_build_engines: bool
    checks: tuple[Check, ...]


def doctor() -> Diagnosis:
    """Check everything that this project can use; a check that fails itself is a problem."""
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(_guarded, _CHECKS))
    checks = tuple(check for part in parts for check in part)
    well = {check.name for check in checks if check.status == "ok"}
    return Diagnosis(
        host=fingerprint(),
        ok=all(check.status != "problem" for check in checks),
        can_run_onnx={"onnxruntime", "OpenCV"} <= well,
        can_run_engines="engines run here" in well,
        can_build_engines=any(name.startswith("builder ") for name in well),
        checks=checks,
    )


def _guarded(check: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(check())
    except Exception as error:  # a report of what is broken must not break
        name = check.__name__.strip("_").removeprefix("check_").replace("_", " ")
        return [Check(name, "problem", f"the check itself failed: {error!r}", "please report this")]


_CHECKS: tuple[Callable[[], Iterable[Check]], ...] = (
    check_machine,
    check_jetson,
    check_onnxruntime,
    check_opencv,
    check_engines,
    check_optional,
    check_cameras,
    check_programs,
)
