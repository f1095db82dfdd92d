"""What of this machine works, and what to do about the rest: `edge doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apps.doctor.cameras import check_cameras
from apps.doctor.check import Check
from apps.doctor.engines import check_engines
from apps.doctor.machine import L4T, check_jetson, check_machine
from apps.doctor.packages import check_onnxruntime, check_opencv, check_optional
from apps.doctor.programs import program_checks
from edge.files import write_json
from edge.measure.host import fingerprint

__all__ = ["Check", "doctor"]


def doctor(json_path: str | Path | None = None) -> dict[str, Any]:
    """Look at everything that this project can use; a check that fails itself is a problem.

    Returns:
        `host`, `ok` (no problem; what is merely missing is none), `can_run_onnx`,
        `can_run_engines`, `can_build_engines`, and `checks`: `name`, `status` (`ok`, `missing`,
        `problem`), `found`, `advice`.

    Raises:
        ArtifactError: `json_path` cannot be written.
    """
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(_safely, _CHECKS))
    checks = [check for part in parts for check in part]
    well = {check.name for check in checks if check.status == "ok"}
    result: dict[str, Any] = {
        "host": fingerprint(),
        "ok": all(check.status != "problem" for check in checks),
        "can_run_onnx": {"onnxruntime", "OpenCV"} <= well,
        "can_run_engines": "engines run here" in well,
        "can_build_engines": any(name.startswith("builder ") for name in well),
        "checks": [asdict(check) for check in checks],
    }
    write_json(result, json_path)
    return result


def _safely(check: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(check())
    except Exception as error:  # a report of what is broken must not break
        name = check.__name__.strip("_").removeprefix("check_").replace("_", " ")
        return [Check(name, "problem", f"the check itself failed: {error!r}", "please report this")]


def _programs() -> Iterable[Check]:
    yield from program_checks(L4T.is_file())


_CHECKS: tuple[Callable[[], Iterable[Check]], ...] = (
    check_machine,
    check_jetson,
    check_onnxruntime,
    check_opencv,
    check_engines,
    check_optional,
    check_cameras,
    _programs,
)
