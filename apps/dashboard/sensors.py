"""Temperatures, power, clocks and load of the machine as it is now.

Sources: Linux' sysfs (see `edge.measure.sensors`), on a Jetson the INA3221 rails and the GPU's
devfreq (Jetson Linux Developer Guide, "Power consumption" and "GPU"), and NVML through `pynvml`
where that is installed. What is not there is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.errors import MissingDependency
from edge.measure.sensors import clocks_mhz, energy_j, gpu, memory_bytes, power_mode, power_rails_w
from edge.optional import require

__all__ = ["sensor_reader"]

_ROOT = Path("/")
Reader = Callable[[], dict[str, Any]]


def sensor_reader(root: Path = _ROOT) -> Reader:
    """Return a function that reads all sensors, for one thread at a time.

    It returns `temperatures_c`, `power_w`, `clocks_mhz` and `load_percent` by name, `memory_mib`
    (of this process), `mode` and `gpu`.
    """
    cpu_power, cpu_load, nvml = _cpu_power(root), _cpu_load(root), _nvml()
    model = gpu(root)

    def read() -> dict[str, Any]:
        clocks = clocks_mhz(root)
        found: dict[str, Any] = {
            "temperatures_c": _zones(root),
            "power_w": {**power_rails_w(root), **cpu_power()},
            "clocks_mhz": {**({"CPU": max(clocks)} if clocks else {}), **_gpu_clock(root)},
            "load_percent": {**cpu_load(), **_gpu_load(root)},
            "memory_mib": (memory_bytes(root) or 0) / 2**20,
            "mode": power_mode(root),
            "gpu": model,
        }
        for key, values in nvml().items():
            found[key].update(values)
        return found

    return read


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _zones(root: Path) -> dict[str, float]:
    found = {}
    for path in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _number(path / "temp")
        # A Jetson's zone of a part that sleeps reads -256 C or an error.
        if value is not None and value > -100_000:
            name = (_text(path / "type") or path.name).removesuffix("-thermal")
            found[name if name not in found else f"{name} {path.name[12:]}"] = value / 1e3
    return found


def _gpu_devices(root: Path) -> list[Path]:
    # Of the devices with a devfreq, a Jetson's GPU is the one that tells its load.
    return [path.parent.parent for path in sorted(root.glob("sys/class/devfreq/*/device/load"))]


def _gpu_clock(root: Path) -> dict[str, float]:
    return _scaled([path / "cur_freq" for path in _gpu_devices(root)], 1e-6)


def _gpu_load(root: Path) -> dict[str, float]:
    """Return the load of the GPU; the file counts in tenths of a percent."""
    return _scaled([path / "device" / "load" for path in _gpu_devices(root)], 0.1)


def _scaled(paths: list[Path], factor: float) -> dict[str, float]:
    value = _number(paths[0]) if paths else None
    return {} if value is None else {"GPU": value * factor}


def _cpu_power(root: Path) -> Reader:
    """Return a reader of the watts of the CPU package between two calls."""
    last: list[tuple[float, float]] = []

    def read() -> dict[str, float]:
        joules, now = energy_j(root), time.monotonic()
        if joules is None:
            return {}
        before = last.pop() if last else (joules, now)
        last.append((joules, now))
        passed = now - before[1]
        # The counter wraps around; such a reading tells nothing.
        return {"CPU": (joules - before[0]) / passed} if passed > 0 and joules >= before[0] else {}

    return read


def _cpu_load(root: Path) -> Reader:
    """Return a reader of the cores' load between two calls; /proc/stat, proc(5)."""
    last: list[tuple[float, float]] = [(0.0, 0.0)]

    def read() -> dict[str, float]:
        # user nice system idle iowait irq softirq steal, in ticks
        ticks = [float(word) for word in _text(root / "proc/stat").split()[1:9]]
        if len(ticks) < 8:
            return {}
        before, last[0] = last[0], (sum(ticks), ticks[3] + ticks[4])
        passed = last[0][0] - before[0]
        return {"CPU": 100 * (1 - (last[0][1] - before[1]) / passed)} if passed > 0 else {}

    return read


def _nvml() -> Reader:
    """Return a reader of the first GPU that NVIDIA's driver shows; a Jetson's shows none."""
    try:
        library = require("pynvml")
        library.nvmlInit()
        device = library.nvmlDeviceGetHandleByIndex(0)
    except MissingDependency:
        return dict
    except Exception:  # pynvml's errors share no base with anything: no driver, no GPU
        return dict
    questions: dict[str, Callable[[], float]] = {
        "temperatures_c": lambda: library.nvmlDeviceGetTemperature(device, 0),
        "power_w": lambda: library.nvmlDeviceGetPowerUsage(device) / 1e3,
        "clocks_mhz": lambda: library.nvmlDeviceGetClockInfo(device, library.NVML_CLOCK_SM),
        "load_percent": lambda: library.nvmlDeviceGetUtilizationRates(device).gpu,
    }

    def read() -> dict[str, dict[str, float]]:
        found = {}
        for key, ask in questions.items():
            # Some boards answer some questions with "not supported".
            with suppress(Exception):
                found[key] = {"GPU": float(ask())}
        return found

    return read
