"""A measurement is one JSON line that holds all that its figures come from."""

from __future__ import annotations

import base64
import json
import math
import time
import tracemalloc
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from apps.regress.measurement import Measurement, read_measurements, same_host, write_measurements
from edge.errors import DataError
from edge.measure.results import ClassResults
from edge.measure.sensors import (
    Watch,
    clocks_mhz,
    energy_j,
    gpu,
    memory_bytes,
    power_mode,
    power_rails_w,
    power_w,
    spent_energy,
    temperatures_c,
)

RESULTS = {
    "cat": ClassResults(
        "cat",
        np.array([1, 0, 2], np.int32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([True, False, True]),
        np.array([0, 1, 2], np.int32),
    )
}


def measurement(**changes: object) -> Measurement:
    one = Measurement(
        name="a",
        label="a 64x64 int8",
        artifact="a.onnx",
        sha256="0" * 64,
        bytes=1000,
        backend="fake",
        precision="int8",
        data="set",
        data_sha256="1" * 64,
        images=3,
        host={"cpu": "x", "cores": 2, "packages": {"numpy": "1"}},
        threads=2,
        fps={"engine": 200.0, "pipeline": 100.0},
        latency_ms={"pipeline": {"p50": 10.0, "p95": 11.0, "p99": 12.0}},
        speedup=3.0,
        map50=0.5,
        map50_95=0.4,
        by_class={},
        by_size={},
        memory_bytes=None,
        energy_j=None,
        frames_us={
            "engine": [[5_000], [5_000]],
            "pipeline": [[9_000, 10_000, 12_000], [10_000]],
            "baseline": [[30_000], [20_000]],
        },
        stages_us={"engine": [[5_000, 6_000, 7_000], [6_000]]},
        results=RESULTS,
        small={},
        made="2026-01-01T00:00:00+00:00",
    )
    return replace(one, **changes)


def test_lines_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_measurements([measurement(), measurement(name="b", energy_j=0.5)], path)
    assert len(path.read_text().splitlines()) == 2
    a, b = read_measurements(path)
    assert (a.name, b.name, b.energy_j) == ("a", "b", 0.5)
    for each in fields(Measurement):
        if each.name != "results":
            assert getattr(a, each.name) == getattr(measurement(), each.name)
    for each in fields(ClassResults):
        np.testing.assert_array_equal(
            getattr(a.results["cat"], each.name), getattr(RESULTS["cat"], each.name)
        )


def test_pairs_are_the_logs_of_neighbouring_blocks() -> None:
    assert measurement().pairs == pytest.approx([math.log(1 / 3), math.log(1 / 2)])
    assert measurement(frames_us={"pipeline": [[1]], "engine": []}).pairs == []
    assert measurement().rival_pairs == []
    rival = {"pipeline": [[20, 40]], "faster_than": [[15]]}
    assert measurement(frames_us=rival).rival_pairs == pytest.approx([math.log(2)])


def test_keys_of_newer_writers_are_ignored_and_newer_schemas_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    data = json.loads(measurement().to_json())
    path.write_text(json.dumps({**data, "colour": "red"}))
    assert read_measurements(path)[0].name == "a"
    path.write_text(json.dumps({**data, "schema": 3}))
    with pytest.raises(DataError, match=r"m\.jsonl:1: .*schema 3, this reads 1 and 2.*--update"):
        read_measurements(path)


def test_a_record_of_schema_1_has_the_medians_that_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    data = json.loads(measurement().to_json())
    del data["frames_us"], data["stages_us"]
    rounds = {"engine": [5.0, 5.0], "pipeline": [10.0, 10.0004], "baseline": [30.0, 20.0]}
    path.write_text(json.dumps({**data, "schema": 1, "rounds_ms": rounds}))
    old = read_measurements(path)[0]
    assert old.pairs == pytest.approx(measurement().pairs)
    assert old.frames_us["pipeline"] == [[10_000], [10_000]]
    assert (old.stages_us, old.map50) == ({}, 0.5)
    write_measurements([old], path)
    assert read_measurements(path)[0].pairs == old.pairs


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\x00"])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_measurements(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_measurements(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": float("nan")}, "NaN is not a number"),
        ({"bytes": 0}, "bytes is 0"),
        ({"bytes": 0.5}, "bytes: takes a whole number"),
        ({"map50": 1.5}, "map50 is 1.5"),
        ({"host": []}, "host: takes an object"),
        ({"host": {"packages": 3}}, "host.packages"),
        ({"fps": {"engine": 1.0}}, "fps: pipeline is missing"),
        ({"fps": {"engine": 0.0, "pipeline": 1.0}}, "fps.engine is 0"),
        ({"latency_ms": {"pipeline": {"p50": 1.0}}}, "latency_ms.pipeline: p95, p99 is missing"),
        ({"frames_us": {"engine": [[1]], "pipeline": [[0]]}}, "frames_us.pipeline is 0"),
        ({"frames_us": {"engine": [[1]], "pipeline": [[]]}}, "a block without a frame"),
        (
            {"frames_us": {"engine": [[1]], "pipeline": [[1]], "baseline": []}},
            "frames_us.baseline: not as many blocks",
        ),
        ({"by_class": {"cat": {"ap50": 10**400}}}, "out of a number's range"),
        ({"by_size": {"small": {}}}, "by_size.small: map50 is missing"),
        ({"results": {"cat": {"detections": 10**12, "images": 1, "columns": ""}}}, "cannot be"),
        ({"camera": {"source": "x"}}, "p50, p95, p99 is missing"),
    ],
)
def test_a_figure_that_would_disable_a_gate_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**json.loads(measurement().to_json()), **change}))
    with pytest.raises(DataError) as error:
        read_measurements(path)
    assert words in str(error.value) and f"{path}:1" in str(error.value)
    assert "measure again: --update" in str(error.value)


def test_results_that_unpack_to_more_than_they_say_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    bomb = base64.b64encode(zlib.compress(bytes(1 << 30), 9)).decode()
    data = json.loads(measurement().to_json())
    data["results"] = {"cat": {"detections": 3, "images": 3, "columns": bomb}}
    path.write_text(json.dumps(data))
    tracemalloc.start()
    with pytest.raises(DataError, match="cut short"):
        read_measurements(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 64 << 20


def test_every_hostile_baseline_is_one_line(edge_data: Path) -> None:
    for path in sorted((edge_data / "hostile" / "baseline-jsonl").glob("*.jsonl")):
        with pytest.raises(DataError) as error:
            read_measurements(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_another_machine_is_told_and_other_packages_are_not() -> None:
    one = measurement()
    assert same_host(one, measurement(host={**one.host, "packages": {"numpy": "2"}})) == []
    assert same_host(one, measurement(host={**one.host, "cpu": "y"})) == ["cpu was y, is x"]
    assert same_host(one, measurement(threads=4)) == ["threads were 4, are 2"]


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for core, khz in ((0, 2_000_000), (1, 1_500_000)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{khz}\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "45500\n")
    put(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "2500000\n")
    put(tmp_path, "proc/self/statm", "5000 300 200 1 0 1 0\n")
    put(tmp_path, "proc/driver/nvidia/gpus/0/information", "Model: \t\t NVIDIA X\nIRQ: 1\n")
    return tmp_path


def test_sensors_read_what_linux_shows(machine: Path) -> None:
    assert clocks_mhz(machine) == [2000, 1500]
    assert list(temperatures_c(machine).values()) == [45.5]
    assert (power_mode(machine), energy_j(machine), gpu(machine)) == (
        "performance",
        2.5,
        "NVIDIA X",
    )
    assert (memory_bytes(machine) or 0) % 300 == 0


def test_sensors_that_are_absent_are_left_out(tmp_path: Path) -> None:
    assert clocks_mhz(tmp_path) == [] and temperatures_c(tmp_path) == {}
    for absent in (power_mode, energy_j, memory_bytes, gpu, power_w):
        assert absent(tmp_path) is None
    with spent_energy(tmp_path) as spent:
        pass
    assert spent == []


RAILS = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    """The files of an Orin Nano: three channels, and the driver's sum without a current."""
    rails = ((1, "VDD_IN", 5000, 1500), (2, "VDD_CPU_GPU_CV", 5000, 600), (3, "NC", 5000, 99))
    for number, name, millivolts, milliamperes in rails:
        put(tmp_path, f"{RAILS}/in{number}_label", f"{name}\n")
        put(tmp_path, f"{RAILS}/in{number}_input", f"{millivolts}\n")
        put(tmp_path, f"{RAILS}/curr{number}_input", f"{milliamperes}\n")
    put(tmp_path, f"{RAILS}/in7_label", "sum of shunt voltages\n")
    put(tmp_path, f"{RAILS}/in7_input", "12\n")
    return tmp_path


def test_a_jetsons_power_is_that_of_its_input_and_else_of_all_rails(jetson: Path) -> None:
    rails = power_rails_w(jetson)
    assert rails == pytest.approx({"VDD_IN": 7.5, "VDD_CPU_GPU_CV": 3.0, "NC": 0.495})
    assert power_w(jetson) == pytest.approx(7.5)
    put(jetson, f"{RAILS}/in1_label", "VIN_SYS_5V0\n")
    assert power_w(jetson) == pytest.approx(10.5)


def test_a_jetsons_energy_is_its_power_times_the_time(jetson: Path) -> None:
    began = time.perf_counter()
    with spent_energy(jetson) as spent:
        time.sleep(0.12)
    whole = time.perf_counter() - began
    assert 7.5 * 0.12 <= spent[0] <= 7.5 * whole
    with spent_energy(jetson) as spent:
        put(jetson, f"{RAILS}/curr1_input", "3000\n")
        time.sleep(0.3)
    # Twice the current for all but the first 50 ms.
    assert spent[0] > 1.4 * 7.5 * 0.3


def test_a_counter_that_begins_anew_is_counted_on(machine: Path) -> None:
    counter = "sys/class/powercap/intel-rapl:0/energy_uj"
    with spent_energy(machine) as spent:
        put(machine, counter, "4000000\n")
    assert spent == [1.5]
    with spent_energy(machine) as spent:
        put(machine, counter, "500000\n")
    assert spent == []
    put(machine, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000\n")
    put(machine, counter, "9000000\n")
    with spent_energy(machine) as spent:
        put(machine, counter, "500000\n")
    assert spent == [1.5]


def test_watch_tells_of_throttling_heat_and_other_work(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 0.0, 0.0))
    watch = Watch(machine)
    for khz in (2_000_000,) * 3 + (1_500_000,) * 3:
        put(machine, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", str(khz))
        watch.look()
    assert watch.warnings(2) == [
        "the clock fell from 2000 to 1500 MHz: cool the machine or fix its clocks"
    ]
    put(machine, "sys/class/thermal/thermal_zone0/temp", "95000")
    monkeypatch.setattr("os.getloadavg", lambda: (5.5, 0.0, 0.0))
    watch.look()
    heat, load = watch.warnings(2)[1:]
    assert "95 C" in heat
    assert "load 5.5 on 2 cores" in load
