"""What a machine says of itself while it is measured: clocks, heat, load, energy, memory.

Files are those of Linux: Documentation/ABI/testing/sysfs-devices-system-cpu, sysfs-class-thermal,
sysfs-class-powercap; on a Jetson the INA3221 rails (Documentation/hwmon/ina3221 and the Jetson
Linux Developer Guide, "Power consumption"). What is not there is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import MissingDependency
from edge.optional import require

__all__ = [
    "Watch",
    "clocks_mhz",
    "energy_j",
    "energy_span_j",
    "gpu",
    "memory_bytes",
    "power_mode",
    "power_rails_w",
    "power_w",
    "sensor_reader",
    "spent_energy",
    "temperatures_c",
]

_ROOT = Path("/")
# A clock this much below where the run began is throttled, not jitter.
_SLOWER = 0.9
_HOT_C = 90.0
# What feeds the whole module; the other rails are parts of it.
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def clocks_mhz(root: Path = _ROOT) -> list[float]:
    """Present clock of each core, MHz."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
    found = (_number(path) for path in sorted(root.glob(pattern)))
    return [value / 1e3 for value in found if value is not None]


def temperatures_c(root: Path = _ROOT) -> dict[str, float]:
    """Every thermal zone by its name, degrees Celsius."""
    found: dict[str, float] = {}
    for path in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _number(path / "temp")
        # A Jetson's zone of a part that sleeps reads -256 C or an error.
        if value is not None and value > -100_000:
            name = (_text(path / "type") or path.name).removesuffix("-thermal")
            found[name if name not in found else f"{name} {path.name[12:]}"] = value / 1e3
    return found


def power_mode(root: Path = _ROOT) -> str | None:
    """The Jetson's nvpmodel mode, else the governor of the first core."""
    for name in (
        "var/lib/nvpmodel/status",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    ):
        try:
            return (root / name).read_text().strip()
        except OSError:
            continue
    return None


def gpu(root: Path = _ROOT) -> str | None:
    """Model of the first NVIDIA GPU, as its driver names it."""
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        lines = path.read_text(errors="replace").splitlines()
        for line in lines:
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def energy_j(root: Path = _ROOT) -> float | None:
    """A counter of the CPU package's energy, joules; None without a readable one."""
    micro = _number(root / "sys/class/powercap/intel-rapl:0/energy_uj")
    return None if micro is None else micro / 1e6


def energy_span_j(root: Path = _ROOT) -> float | None:
    """Where the counter of `energy_j` begins again from 0."""
    micro = _number(root / "sys/class/powercap/intel-rapl:0/max_energy_range_uj")
    return None if micro is None else micro / 1e6


def power_rails_w(root: Path = _ROOT) -> dict[str, float]:
    """Watts now of each INA3221 channel by its label: millivolts times milliamperes."""
    found = {}
    for path in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        number = path.name[2:-6]
        volts = _number(path.with_name(f"in{number}_input"))
        amperes = _number(path.with_name(f"curr{number}_input"))
        if volts is not None and amperes is not None:
            found[_text(path)] = volts * amperes / 1e6
    return found


def power_w(root: Path = _ROOT) -> float | None:
    """Watts that a Jetson's module takes now: of its input rail, without one of all rails.

    Rails without a name of their own (NC) are connected to nothing.
    """
    rails = {name: watts for name, watts in power_rails_w(root).items() if name not in ("", "NC")}
    for name in _INPUT_RAILS:
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


def memory_bytes(root: Path = _ROOT) -> int | None:
    """Resident memory of this process."""
    try:
        pages = int((root / "proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Watch:
    """Looks at the machine between blocks and says afterwards what disturbed the measurement."""

    root: Path = _ROOT
    clocks: list[float] = field(default_factory=list)
    hottest: float = 0.0
    loads: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Note clocks, heat and load of this moment."""
        found = clocks_mhz(self.root)
        if found:
            self.clocks.append(max(found))
        self.hottest = max([self.hottest, *temperatures_c(self.root).values()])
        self.loads.append(os.getloadavg()[0])

    def warnings(self, cores: int) -> list[str]:
        """One line for each thing that makes the figures doubtful."""
        told = []
        third = len(self.clocks) // 3
        if third:
            first, last = np.median(self.clocks[:third]), np.median(self.clocks[-third:])
            if last < _SLOWER * first:
                told.append(
                    f"the clock fell from {first:.0f} to {last:.0f} MHz: cool the machine or fix "
                    "its clocks"
                )
        if self.hottest >= _HOT_C:
            told.append(f"a thermal zone reached {self.hottest:.0f} C: it may be throttled")
        if self.loads and max(self.loads) > cores + 1:
            told.append(
                f"other work: load {max(self.loads):.1f} on {cores} cores; ratios of the same run "
                "hold, single figures do not"
            )
        return told


# Reading a rail takes about a millisecond of its bus; the interpreter is free meanwhile.
_EVERY_S = 0.05
Samples = list[tuple[float, float]]


@contextmanager
def spent_energy(root: Path = _ROOT) -> Iterator[list[float]]:
    """A list that holds the joules of the block once it is left; without a sensor it stays empty.

    Other work of the machine counts too. Power is added up by the trapezoidal rule, from samples
    at both ends and every 50 ms between them.
    """
    spent: list[float] = []
    before = energy_j(root)
    if before is not None:
        yield spent
        after = energy_j(root)
        if after is not None and (passed := _passed(before, after, root)) is not None:
            spent.append(passed)
    elif power_w(root) is None:
        yield spent
    else:
        samples: Samples = []
        with _sampling(root, samples):
            yield spent
        if len(samples) > 1:
            moments, watts = np.array(samples).T
            spent.append(float(np.diff(moments) @ (watts[1:] + watts[:-1]) / 2))


def _passed(before: float, after: float, root: Path) -> float | None:
    """What a counter has counted, wrapped around or not; None where that is not known."""
    if after >= before:
        return after - before
    span = energy_span_j(root)
    return None if span is None else after - before + span


@contextmanager
def _sampling(root: Path, samples: Samples) -> Iterator[None]:
    done = threading.Event()

    def sample() -> None:
        watts = power_w(root)
        if watts is not None:
            samples.append((time.perf_counter(), watts))

    def run() -> None:
        while not done.wait(_EVERY_S):
            sample()

    sample()
    thread = threading.Thread(target=run, name="power", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sample()


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
            "temperatures_c": temperatures_c(root),
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
