"""What a machine says of itself while it is measured: clocks, heat, load, energy, memory.

Files are those of Linux: Documentation/ABI/testing/sysfs-devices-system-cpu, sysfs-class-thermal,
sysfs-class-powercap; on a Jetson the INA3221 rails (Documentation/hwmon/ina3221 and the Jetson
Linux Developer Guide, "Power consumption"). What is not there is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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


def temperatures_c(root: Path = _ROOT) -> list[float]:
    """Every thermal zone, degrees Celsius."""
    found = (_number(path) for path in sorted(root.glob("sys/class/thermal/thermal_zone*/temp")))
    return [value / 1e3 for value in found if value is not None]


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
        self.hottest = max([self.hottest, *temperatures_c(self.root)])
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
    """What a counter that may have begun anew has counted; None: nobody knows."""
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
