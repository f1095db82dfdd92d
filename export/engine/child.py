# mypy: disallow-subclassing-any=False
"""The builder's own process: reads one request from stdin and writes events to stdout.

Requests and events are lines of JSON, see `export.engine.protocol`; an event's class is in its
field `event`: `step`, `done` or `failed`. A parser that crashes, or a kernel that kills a process
for its memory, then ends this process and not the caller's. The end of stdin cancels the build, and
so does the end of the caller.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.decoding import decode, parse_json
from edge.errors import BuildError, EdgeError
from edge.files import to_plain
from edge.optional import require
from edge.runtime.device import driver_facts
from export.engine import dla_child
from export.engine.layer_report import LayerInfo, from_inspector, from_log, summarise
from export.engine.protocol import (
    BuilderInfo,
    Builders,
    BuildRequest,
    Built,
    Failed,
    Step,
)

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = None  # `take` puts tensorrt or tensorrt_rtx here; a process builds with one of them

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
# Without a GPU, TensorRT-RTX follows each real error with one that says there is no driver.
_NOISE = re.compile(r"cudaError 35|CUDA driver version is insufficient|CUDA initialization failure")


class Channel:
    """The way out for events. Libraries that print to stdout cannot write into it."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, event: Step | Builders | Built | Failed) -> None:
        """Write one event."""
        name = {Step: "step", Failed: "failed"}.get(type(event), "done")
        with self._lock:
            self._file.write(json.dumps({"event": name, **to_plain(event)}) + "\n")


def take(builder: str) -> str:
    """Import the library of `tensorrt`, `rtx` or `auto`, and return why it is that one.

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
        return "tensorrt_rtx", f"it builds without a GPU; tensorrt cannot be used: {why}"
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
    """Return why a module cannot be imported, on one line; "" where it can."""
    try:
        __import__(name)
    except Exception as error:  # a broken installation raises OSError, RuntimeError, ...
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def probe() -> tuple[BuilderInfo, ...]:
    """Say of each builder whether it can build here."""
    gpu, found = driver_facts(), []
    for name in MODULES.values():
        reason = _import_error(name)
        version = str(getattr(sys.modules.get(name), "__version__", ""))
        if not reason and name == "tensorrt" and gpu is None:
            reason = "there is no GPU, which tensorrt needs to build"
        found.append(BuilderInfo(name, version, not reason, reason))
    return tuple(found)


@dataclass
class Log:
    """What TensorRT wrote during the build: errors, lines about sparsity, the layers at its end."""

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
    """Make the logger; one for the whole process, as TensorRT keeps the first that it gets."""

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
    """Make a monitor that sends the steps and cancels the build when the event is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.of: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.of[phase_name] = num_steps
            channel.send(Step(phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            of = self.of.get(phase_name, 0)
            channel.send(Step(phase_name, step + 1, of))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            of = self.of.pop(phase_name, 0)
            channel.send(Step(phase_name, of, of))

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


def configure(builder: trt.Builder, request: BuildRequest) -> trt.IBuilderConfig:
    """Set workspace limit, detailed layer report, sparsity and targets; the graph has the rest."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request.compute_capabilities:
        _set_targets(config, request.compute_capabilities)
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


def build(request: BuildRequest, channel: Channel, cancelled: threading.Event) -> Built:
    """Build the plan that `request` asks for.

    Raises:
        BuildError: TensorRT refuses; has its first real error.
        MissingDependency: the builder is not installed.
    """
    gpu = driver_facts()
    reason = take(request.builder)
    if request.dla is not None:
        dla_child.check_release(trt.__name__, trt.__version__)
    log, started = Log(), time.monotonic()
    logger = make_logger(log)
    builder = trt.Builder(logger)
    # Never the number: the member is 1 in TensorRT 10 and 0 in TensorRT 11 and RTX.
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(0 if request.dla else strongly_typed)
    parse(trt.OnnxParser(network, logger), network, Path(request.onnx), log)
    config = configure(builder, request)
    config.progress_monitor = make_monitor(channel, cancelled)
    calibrator, stays = None, None
    if request.dla is not None:
        calibrator = dla_child.ask_for_dla(builder, config, request.dla)
        stays = dla_child.what_stays(network, config, request.dla)
    plan = builder.build_serialized_network(network, config)
    if plan is None and request.dla is not None:
        raise BuildError(dla_child.explain(calibrator, log.first_error()))
    if plan is None:
        raise BuildError(f"TensorRT built no engine: {log.first_error()}")
    Path(request.plan).write_bytes(plan)
    seconds = time.monotonic() - started
    layers = from_log(log.layers) or inspect(plan, logger)
    return Built(
        builder=trt.__name__,
        version=trt.__version__,
        reason=reason,
        gpu=gpu,
        seconds=round(seconds, 3),
        peak_rss_mib=peak_rss_mib(),
        summary=summarise(layers, convolutions(network)),
        layers=tuple(layers),
        sparsity=tuple(log.sparsity),
        dla=stays,
    )


def convolutions(network: trt.INetworkDefinition) -> list[str]:
    """Return the names of the ONNX nodes that the network's convolutions come from."""
    wanted = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [_onnx_name(layer) for layer in layers if layer.type in wanted]


def _onnx_name(layer: trt.ILayer) -> str:
    match = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata or "")
    return match[1] if match else layer.name


def inspect(plan: trt.IHostMemory, logger: trt.ILogger) -> list[LayerInfo]:
    """Ask the engine inspector for the layers; none where the engine cannot be loaded."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    try:
        return from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError:
        return []


def peak_rss_mib() -> int:
    """The most memory that this process had resident, MiB (/proc/self/status: VmHWM)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) // 1024 if match else 0


def watch(cancelled: threading.Event) -> None:
    """Set the event at the end of stdin."""
    while os.read(0, 64):
        pass
    cancelled.set()


def serve(line: str, channel: Channel, cancelled: threading.Event) -> None:
    """Do what the request asks for and send the last event."""
    source, what = "stdin", "a request for the builder"
    request = parse_json(line, source, what)
    if isinstance(request, dict) and "probe" in request:
        channel.send(Builders(probe()))
    else:
        channel.send(build(decode(request, BuildRequest, source, what), channel, cancelled))


def main() -> None:
    """Read the request, serve it and end the process."""
    channel, cancelled = Channel(), threading.Event()
    line = sys.stdin.readline()
    threading.Thread(target=watch, args=(cancelled,), daemon=True).start()
    status = 0
    try:
        serve(line, channel, cancelled)
    except EdgeError as error:
        channel.send(Failed(type(error).__name__, str(error), cancelled.is_set()))
    except BaseException:
        traceback.print_exc()
        status = 1
    # An ordinary end would wait for the thread that reads stdin, or abort because of it.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
