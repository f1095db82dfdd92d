"""Who may look at the dashboard, what the machine's sensors say, and Prometheus' format."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps.dashboard.guard import (
    check_token,
    choose_token,
    may_enter,
    own_host,
    parse_address,
    security_headers,
)
from edge.measure.sensors import sensor_reader

LOCAL, OPEN = parse_address("127.0.0.1:8080"), parse_address("0.0.0.0:8080")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        (":8080", "127.0.0.1", 8080),
        ("8080", "127.0.0.1", 8080),
        ("localhost:0", "127.0.0.1", 0),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("[::1]:8080", "::1", 8080),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert address.loopback == (host != "0.0.0.0")


@pytest.mark.parametrize("text", ["", "here", "127.0.0.1", "::1:80", "1.2.3.4:99999", "a:b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_beyond_this_machine_there_is_always_a_token() -> None:
    assert choose_token(None, LOCAL) == ""
    first, second = choose_token(None, OPEN), choose_token(None, OPEN)
    assert first != second and len(first) >= 22
    assert check_token(first) == first
    assert choose_token("my-own-token-1", LOCAL) == "my-own-token-1"
    for wrong in ("", "short", "with a space in it", "a/b?c=d&e=f#g"):
        with pytest.raises(ValueError, match="token"):
            choose_token(wrong, OPEN)


def test_a_foreign_name_in_host_is_refused() -> None:
    own = socket.gethostname()
    for name in ("localhost", "localhost:9000", "127.0.0.1:8080", "[::1]:8080", "app.localhost"):
        assert own_host(name, LOCAL)
    for name in (
        "",
        "evil.example",
        "localhost.evil.example:8080",
        "127.0.0.1.evil.example",
        "[::",
    ):
        assert not own_host(name, LOCAL)
        assert not own_host(name, OPEN)
    assert own_host(f"{own}:8080", OPEN) and own_host(f"{own}.lan", OPEN)
    assert not own_host(f"{own}x.lan", OPEN)


def test_a_token_comes_as_bearer_cookie_or_in_the_address() -> None:
    def enter(token: str = "", **headers: str) -> bool:
        return may_enter("right-right-right", "edge_1", headers, token)

    assert enter("right-right-right")
    assert enter(Authorization="Bearer right-right-right")
    assert enter(Cookie="a=b; edge_1=right-right-right")
    assert not enter()
    assert not enter("right-right-righ")
    assert not enter(Authorization="Basic right-right-right")
    assert not enter(Cookie="edge_2=right-right-right")
    assert not enter("gültig", Cookie="{}=;;,")
    assert may_enter("", "edge_1", {}, "")


def test_a_page_may_run_its_own_script_and_no_other() -> None:
    page = "<style>a{}</style><script>one()</script>"
    policy = security_headers(page)["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(b"one()").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in security_headers()["Content-Security-Policy"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_a_jetsons_heat_power_clocks_and_load_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    rail = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "51250",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone1/temp": "-256000",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone2/temp": "48000",
            "sys/class/thermal/thermal_zone2/type": "gpu-thermal",
            f"{rail}/in1_label": "VDD_IN",
            f"{rail}/in1_input": "5000",
            f"{rail}/curr1_input": "1500",
            f"{rail}/in2_label": "VDD_CPU_GPU_CV",
            f"{rail}/in2_input": "5000",
            "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
            "sys/class/devfreq/17000000.gpu/device/load": "473",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
            "var/lib/nvpmodel/status": "pmode:0001",
            "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0",
            "proc/self/statm": "1000 500 0 0 0 0 0",
        },
    )
    read = sensor_reader(tmp_path)
    found = read()
    assert found["temperatures_c"] == {"cpu": 51.25, "gpu": 48.0}
    assert found["power_w"] == {"VDD_IN": 7.5}
    assert found["clocks_mhz"] == pytest.approx({"CPU": 1510.4, "GPU": 918})
    assert found["load_percent"] == pytest.approx({"CPU": 20, "GPU": 47.3})
    assert found["mode"] == "pmode:0001"
    write(tmp_path, {"proc/stat": "cpu  175 0 100 825 0 0 0 0 0 0"})
    assert read()["load_percent"]["CPU"] == pytest.approx(75)


def test_a_gpu_that_cannot_answer_a_question_answers_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> float:
        raise RuntimeError("Not Supported")

    library = SimpleNamespace(
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTemperature=lambda device, kind: 41,
        nvmlDeviceGetPowerUsage=lambda device: 70500,
        nvmlDeviceGetClockInfo=unsupported,
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=12, memory=3),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found = sensor_reader(tmp_path)()
    assert found["temperatures_c"] == {"GPU": 41.0}
    assert found["power_w"] == {"GPU": 70.5}
    assert found["clocks_mhz"] == {}
    assert found["load_percent"] == {"GPU": 12.0}


def test_a_machine_without_sensors_and_without_a_gpu_has_figures_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise RuntimeError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=no_driver))
    found = sensor_reader(tmp_path)()
    assert not any(
        found[key] for key in ("temperatures_c", "power_w", "clocks_mhz", "load_percent")
    )
    assert found["memory_mib"] == 0


def test_the_page_asks_no_other_place_for_anything() -> None:
    page = (Path(__file__).parent.parent / "apps" / "dashboard" / "page.html").read_text()
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+", page))
    # The name of a language is not asked for.
    assert {one for one in outside if "." in one} == {"http://www.w3.org"}
    assert not re.findall(r"\son\w+=|<\w+[^>]*\sstyle=|@import|url\(", page)
    assert "innerHTML" not in page and "eval(" not in page
