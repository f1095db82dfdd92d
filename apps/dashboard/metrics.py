"""The figures of the running app in Prometheus' text format, version 0.0.4.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Base units are seconds,
bytes, watts and degrees Celsius, as Prometheus recommends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from apps.camera.stats import BaselineStats, CameraStats, SourceStats

__all__ = ["CONTENT_TYPE", "metrics_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float]
_STATES = ("connecting", "live", "lost", "ended")


def metrics_text(now: CameraStats, sensors: Mapping[str, Any]) -> str:
    """Return all families of metrics.

    Args:
        now: `LiveState.snapshot`.
        sensors: see `sensor_reader`.
    """
    families = [*_of_app(now), *_of_sources(now.sources), *_of_machine(sensors)]
    if now.baseline is not None:
        families += _of_baseline(now.baseline)
    return "".join(families)


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP edge_{name} {text}", f"# TYPE edge_{name} {kind}"]
    lines += [f"edge_{name}{_labels(labels)} {float(value)!r}" for labels, value in samples]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _of_app(now: CameraStats) -> Iterator[str]:
    facts = {"artifact": now.artifact, "precision": now.precision, "backend": now.backend}
    yield _family("info", "gauge", "What runs.", [(facts, 1)])
    yield _family("up", "gauge", "1 if the app works.", [({}, now.health.alive)])
    yield _family("healthy", "gauge", "1 if all is well.", [({}, now.health.ok)])
    yield _family("uptime_seconds", "gauge", "Seconds since the start.", [({}, now.seconds)])
    yield _family("fps", "gauge", "Frames a second of the last moment.", [({}, now.fps_now)])
    if now.engine_share is not None:
        share: list[Sample] = [({}, now.engine_share)]
        yield _family("engine_share", "gauge", "Share of the time that the engine ran.", share)
    stages = [({"stage": name}, spent / 1e3) for name, spent in now.stages_ms.items()]
    yield _family("stage_seconds", "gauge", "Median time of a stage.", stages)
    seen = [({"class": name}, count) for name, count in now.detections.items()]
    yield _family("detections_total", "counter", "Boxes by class.", seen)
    tracks = [({"class": name}, count) for name, count in (now.tracks or {}).items()]
    yield _family("tracks_total", "counter", "Tracked objects by class.", tracks)
    written = [({"sink": one.name}, one.written) for one in now.sinks]
    yield _family("sink_written_total", "counter", "Results written.", written)
    dropped = [({"sink": one.name}, one.dropped) for one in now.sinks]
    yield _family("sink_dropped_total", "counter", "Results left out.", dropped)


def _of_sources(sources: Sequence[SourceStats]) -> Iterator[str]:
    names = [{"source": one.name, "index": str(n)} for n, one in enumerate(sources)]
    counters = {
        "frames": "Frames detected.",
        "captured": "Frames read.",
        "dropped": "Frames that a newer one replaced.",
        "damaged": "Frames that could not be decoded.",
        "reconnects": "How often the source came back.",
    }
    for key, text in counters.items():
        samples = [
            (name, float(getattr(one, key))) for name, one in zip(names, sources, strict=True)
        ]
        yield _family(f"{key}_total", "counter", text, samples)
    states = [
        ({**name, "state": state}, one.state == state)
        for name, one in zip(names, sources, strict=True)
        for state in _STATES
    ]
    yield _family("source_state", "gauge", "1 if the source is in this state.", states)
    yield _ages(names, sources)


def _ages(names: list[dict[str, str]], sources: Sequence[SourceStats]) -> str:
    lines = [
        "# HELP edge_frame_age_seconds From capture until the detections are there.",
        "# TYPE edge_frame_age_seconds summary",
    ]
    for name, one in zip(names, sources, strict=True):
        age, count = one.frame_age_ms, one.frames
        for quantile, key in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")):
            labels = _labels({**name, "quantile": quantile})
            lines.append(f"edge_frame_age_seconds{labels} {age[key] / 1e3!r}")
        lines.append(f"edge_frame_age_seconds_sum{_labels(name)} {age['mean'] * count / 1e3!r}")
        lines.append(f"edge_frame_age_seconds_count{_labels(name)} {float(count)!r}")
    return "\n".join(lines) + "\n"


def _of_machine(sensors: Mapping[str, Any]) -> Iterator[str]:
    named = (
        ("temperature_celsius", "Temperature of a thermal zone.", "zone", "temperatures_c", 1.0),
        ("power_watts", "Power of a rail.", "rail", "power_w", 1.0),
        ("clock_hertz", "Current clock.", "unit", "clocks_mhz", 1e6),
        ("load_ratio", "Share of the time in use.", "unit", "load_percent", 0.01),
    )
    for name, text, label, key, factor in named:
        samples = [({label: each}, value * factor) for each, value in sensors[key].items()]
        yield _family(name, "gauge", text, samples)
    memory: list[Sample] = [({}, sensors["memory_mib"] * 2**20)]
    yield _family("memory_bytes", "gauge", "Resident memory of the app.", memory)


def _of_baseline(beside: BaselineStats) -> Iterator[str]:
    yield _family(
        "baseline_frames_total",
        "counter",
        "Frames compared with the baseline.",
        [({}, beside.frames)],
    )
    for name, value, text in (
        ("baseline_fps", beside.fps, "Frames a second of the baseline, of the median frame."),
        ("baseline_speedup_ratio", beside.speedup, "How much faster the detector is."),
        ("baseline_agreement_ratio", beside.agreement, "Share of the baseline's boxes found."),
    ):
        if value is not None:
            yield _family(name, "gauge", text, [({}, value)])
