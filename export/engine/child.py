# mypy: disallow-subclassing-any=False
"""The builder's own process: one request as a JSON line on stdin, events as JSON lines on stdout.

A parser that crashes or a kernel that kills for memory then ends this process and not the caller's.
The end of stdin cancels the build, and so does the end of the caller.

Events: `{"event": "step", "phase", "step", "of"}`, `{"event": "taken", "builder", ...}` and, last,
`{"event": "done", ...}` or `{"event": "failed", "kind", "text", "cancelled"}`.

One path for TensorRT 10.x, 11.x and TensorRT-RTX: a strongly typed network, in which precision is a
property of the graph; nothing here sets one. The one exception is a request for a DLA.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BuildError, EdgeError
from edge.optional import require
from edge.runtime.device import driver_facts
from export.engine.layer_report import LayerInfo, from_inspector, from_log, summarise

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = None  # `take` puts tensorrt or tensorrt_rtx here; a process builds with one of them

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
# Without a GPU, TensorRT-RTX follows each real error with one that says there is no driver.
_NOISE = re.compile(r"cudaError 35|CUDA driver version is insufficient|CUDA initialization failure")


class Channel:
    """The events' way out. Libraries that print to stdout cannot get into it."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"event": event, **values}) + "\n")


def take(builder: str) -> str:
    """Import the library of `tensorrt`, `rtx` or `auto`; says why that one.

    Raises:
        MissingDependency: it is not installed.
        BuildError: `auto` finds neither.
    """
    global trt
    if builder != "auto":
        trt = require(MODULES[builder])
        return "asked for"
    name, reason = _choose()
    trt = require(name)
    return reason


def _choose() -> tuple[str, str]:
    gpu = driver_facts()
    failed = {name: _import_error(name) for name in MODULES.values()}
    if not failed["tensorrt"] and gpu is not None:
        return "tensorrt", f"installed, and there is a GPU: {gpu.name}"
    if not failed["tensorrt_rtx"]:
        why = failed["tensorrt"] or "there is no GPU, which tensorrt needs to build"
        return "tensorrt_rtx", f"it builds without a GPU; tensorrt does not serve: {why}"
    if failed["tensorrt"]:
        raise BuildError(
            'no TensorRT here: pip install "edge-deploy[rtx]" (builds without a GPU) or '
            f'"edge-deploy[tensorrt]"  ({failed["tensorrt_rtx"]}; {failed["tensorrt"]})'
        )
    raise BuildError(
        "tensorrt is installed but there is no GPU to build on; "
        'to build without one: pip install "edge-deploy[rtx]"'
    )


def _import_error(name: str) -> str:
    """Why it cannot be imported, on one line; empty where it can."""
    try:
        __import__(name)
    except Exception as error:  # a broken installation raises OSError, RuntimeError, ...
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def probe() -> list[dict[str, Any]]:
    """What is installed, for `edge doctor`: name, version, whether it can build here, why not."""
    gpu = driver_facts()
    found = []
    for name in MODULES.values():
        reason = _import_error(name)
        version = str(getattr(sys.modules.get(name), "__version__", ""))
        if not reason and name == "tensorrt" and gpu is None:
            reason = "there is no GPU, which tensorrt needs to build"
        found.append({"name": name, "version": version, "ok": not reason, "reason": reason})
    return found


@dataclass
class Log:
    """What the build said: its errors, what of sparsity, and the layers it ends with."""

    errors: list[str] = field(default_factory=list)
    sparsity: list[str] = field(default_factory=list)
    layers: str = ""

    def first_error(self) -> str:
        """The first error that is not noise; all later ones follow from it."""
        real = [text for text in self.errors if not _NOISE.search(text)] or self.errors
        return _plain(real[0]) if real else "TensorRT said nothing"


def _plain(text: str) -> str:
    """TensorRT's words on one line, without the places in its own source."""
    if "Plugin not found" in text:  # what the parser tries for an operator that it does not know
        return "TensorRT has no such operator"
    return re.sub(r" In \S+ at /_src/[^\s)]*", "", " ".join(text.split()))


def make_logger(log: Log) -> trt.ILogger:
    """The logger. One object for the process: TensorRT keeps the first that it is given."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                log.errors.append(msg)
            elif msg.startswith("Layers:"):
                log.layers = msg
            elif msg.startswith("(Sparsity)"):
                log.sparsity.append(" ".join(msg.split()))

    return Logger()


def make_monitor(channel: Channel, cancelled: threading.Event) -> trt.IProgressMonitor:
    """Sends steps; cancels when the event is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.of: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.of[phase_name] = num_steps
            channel.send("step", phase=phase_name, parent=parent_phase, step=0, of=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            of = self.of.get(phase_name, 0)
            channel.send("step", phase=phase_name, parent=None, step=step + 1, of=of)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            of = self.of.pop(phase_name, 0)
            channel.send("step", phase=phase_name, parent=None, step=of, of=of)

    return Monitor()


def parse(parser: trt.OnnxParser, network: trt.INetworkDefinition, onnx: Path, log: Log) -> None:
    """Read the graph into the parser's `network`.

    Raises:
        BuildError: with the parser's words, the node's name and its operator.
    """
    if not parser.parse_from_file(str(onnx)):
        raise BuildError(f"TensorRT cannot read it: {_parser_error(parser, log)}")
    if network.num_outputs == 0:  # empty bytes and plain text "parse", without an error
        raise BuildError("TensorRT finds no network in it")


def _parser_error(parser: trt.OnnxParser, log: Log) -> str:
    if not parser.num_errors:
        return log.first_error()
    error = parser.get_error(0)
    where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return where + _plain(error.desc())


def configure(builder: trt.Builder, request: dict[str, Any]) -> trt.IBuilderConfig:
    """Workspace limit, detailed layer report, sparsity, targets. The graph has the precision."""
    config = builder.create_builder_config()
    workspace = int(request["workspace_mib"]) << 20
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.get("sparse"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request["compute_capabilities"]:
        _set_targets(config, request["compute_capabilities"])
    return config


def _set_targets(config: Any, targets: Sequence[str]) -> None:
    library: Any = trt
    known = getattr(library, "ComputeCapability", None)
    if known is None or not hasattr(config, "set_compute_capability"):
        raise BuildError(
            "tensorrt builds for the GPU it runs on; only TensorRT-RTX takes compute capabilities"
        )
    names = [name for name in known.__members__ if name.startswith("SM")]
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if target not in names:
            raise BuildError(f"{target} is no target of TensorRT-RTX; it has {', '.join(names)}")
        config.set_compute_capability(getattr(known, target), index)


def build(request: dict[str, Any], channel: Channel, cancelled: threading.Event) -> dict[str, Any]:
    """Build the plan that `request` speaks of; what the `done` event tells.

    Raises:
        BuildError: with TensorRT's first real error.
    """
    log, started = Log(), time.monotonic()
    logger = make_logger(log)
    builder = trt.Builder(logger)
    dla = request.get("dla")
    # Never the number: the member is 1 in TensorRT 10 and 0 in TensorRT 11 and RTX.
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(0 if dla else strongly_typed)
    parse(trt.OnnxParser(network, logger), network, Path(request["onnx"]), log)
    config = configure(builder, request)
    config.progress_monitor = make_monitor(channel, cancelled)
    legacy: Any = import_module("export.engine.dla_child") if dla else None
    calibrator = legacy.ask_for_dla(builder, config, dla) if dla else None
    stays = legacy.what_stays(network, config, dla) if dla else None
    plan = builder.build_serialized_network(network, config)
    if plan is None and dla:
        raise BuildError(legacy.explain(calibrator, log.first_error()))
    if plan is None:
        raise BuildError(f"TensorRT built no engine: {log.first_error()}")
    Path(request["plan"]).write_bytes(plan)
    seconds = time.monotonic() - started
    layers = from_log(log.layers) or inspect(plan, logger)
    return {
        "seconds": round(seconds, 3),
        "layers": [asdict(layer) for layer in layers],
        "summary": summarise(layers, convolutions(network)).to_dict(),
        "dla": stays,
        "sparsity": log.sparsity,
    }


def convolutions(network: trt.INetworkDefinition) -> list[str]:
    """Names of the ONNX nodes that the network's convolutions come from."""
    wanted = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [_onnx_name(layer) for layer in layers if layer.type in wanted]


def _onnx_name(layer: trt.ILayer) -> str:
    match = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata or "")
    return match[1] if match else layer.name


def inspect(plan: trt.IHostMemory, logger: trt.ILogger) -> list[LayerInfo]:
    """The layers by the engine inspector; none where the engine cannot be loaded."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    try:
        return from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError:
        return []


def peak_rss_mib() -> int:
    """The most memory this process had resident, MiB (/proc/self/status: VmHWM)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) // 1024 if match else 0


def watch(cancelled: threading.Event) -> None:
    """Set the event at the end of stdin."""
    while os.read(0, 64):
        pass
    cancelled.set()


def serve(request: dict[str, Any], channel: Channel, cancelled: threading.Event) -> None:
    """Do what is asked and send the last event."""
    if request.get("probe"):
        channel.send("done", builders=probe())
        return
    gpu = driver_facts()
    reason = take(request["builder"])
    if request.get("dla"):
        check: Any = import_module("export.engine.dla_child").check_release
        check(trt.__name__, trt.__version__)
    facts = {
        "builder": trt.__name__,
        "version": trt.__version__,
        "reason": reason,
        "gpu": asdict(gpu) if gpu else None,
    }
    channel.send("taken", **facts)
    result = build(request, channel, cancelled)
    channel.send("done", **facts, **result, peak_rss_mib=peak_rss_mib())


def main() -> None:
    """Read the request and serve it; ends the process."""
    channel, cancelled = Channel(), threading.Event()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=watch, args=(cancelled,), daemon=True).start()
    status = 0
    try:
        serve(request, channel, cancelled)
    except EdgeError as error:
        kind = type(error).__name__
        channel.send("failed", kind=kind, text=str(error), cancelled=cancelled.is_set())
    except BaseException:
        traceback.print_exc()
        status = 1
    # An ordinary end would wait for the thread that reads stdin, or abort because of it.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
