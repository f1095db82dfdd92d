"""From a model to its engine: ONNX, calibration table, quantized ONNX, engine and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.graph import Graph
from calibration.scales import check_readable
from calibration.table import find_table
from edge.built_in import BUILT_IN
from edge.errors import ArtifactError
from edge.files import make_folder
from edge.reporting import say
from edge.runtime.device import driver_facts
from export.engine.build import Build, EngineFacts, built_engine, engine_facts, why_no_builder
from export.engine.dla import check_dla_options, dla_engine
from export.foreign.importing import ImportResult, import_model, is_foreign
from export.graph.rows import write_rows_beside
from export.graph.sparsity import check_sparse
from export.int8.score_threshold import FittedScore
from export.lowering import Lowered, TableFacts, lower_precision
from export.options import ExportOptions
from export.search.facts import half_beside, half_twin, verdict_of
from export.search.loss import known_loss, measure_loss, note_loss
from export.search.mixed import SearchResult
from export.search.verdict import Verdict
from export.source import DEFAULT_MODEL, fp32_onnx

__all__ = ["ExportResult", "export_engine"]


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        model, precision, labels: of the graph that the engine is built from.
        files: paths by kind: fp32, calibration, fp16, int8, mixed, precision_map, engine, scales.
        engine: what was built; None where nothing was, with `reason`.
        calibration: the table, of INT8.
        search: of a mixture within a budget.
        scores: the score threshold that fits the graph, where labelled pictures were given.
        verdict: which precision to ship. Only of INT8 with raw heads; of a graph that was
            quantized elsewhere only where its engine runs and the FP16 file lies beside it.
        imported: what a file of others was recognised as.
    """

    model: str
    precision: str
    labels: tuple[str, ...]
    files: Mapping[str, Path]
    engine: EngineFacts | None
    reason: str = ""
    calibration: TableFacts | None = None
    search: SearchResult | None = None
    scores: FittedScore | None = None
    verdict: Verdict | None = None
    imported: ImportResult | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as `export-engine --json` writes it."""
        fields = dict(vars(self))
        if self.engine is not None:
            del fields["reason"]
        imported = fields.pop("imported")
        return fields if imported is None else {"import": imported, **fields}


def export_engine(
    model: str | Path = DEFAULT_MODEL, options: ExportOptions | None = None
) -> ExportResult:
    """Make every file between a model and its engine, and the engine where a builder is there.

        result = export_engine("yolo.cfg", ExportOptions(precision="int8", calib="pictures/"))
        print(result.files["engine"], result.verdict.sentence)

    Args:
        model: built-in or zoo name, .cfg, .npz, .safetensors, .edgez or .onnx. An .onnx that is
            quantized already goes straight to the builder, which needs neither torch nor onnx.
        options: see `ExportOptions`.

    Raises:
        ArtifactError, CalibrationError, DataError, BuildError, MissingDependency: one line each.
    """
    options = options or ExportOptions()
    if options.dla is not None:
        kept = (*options.keep, *filter(None, (options.max_map_drop, options.precision_map)))
        build = options.build
        check_dla_options(options.dla, options.precision, build.builder, kept, build.sparse)
    folder = make_folder(options.output)
    given = _opened(model)
    imported = None
    if is_foreign(given):
        own = options.model
        imported = import_model(
            model, names=own.names, data=options.accuracy_data, hw=own.hw, output=folder
        )
        given = Graph(imported.file)
        options = replace(options, model=replace(own, names=None, hw=None))
    ready = given if isinstance(given, Graph) and _is_ready(given, options) else None
    if ready is None:
        made = _lowered(given, options, folder)
        graph, files = made.graph, {"fp32": made.source.path, **made.files}
    else:
        if options.build.sparse:
            check_sparse(ready)
        made, graph, files = None, ready, {}
    manifest = graph.manifest
    files[manifest.precision] = graph.path
    if options.output_form == "rows":
        graph = Graph(write_rows_beside(graph.path, folder))
        files["rows"] = graph.path
    engine, reason = None, why_no_builder(options.build) if options.dla is None else ""
    if options.dla is not None:
        engine = _for_dla(made, options, folder)
    elif not reason:
        engine = built_engine(graph, Build(folder, options.build))
    if engine is not None:
        files["engine"] = Path(engine.file)
        if engine.dla is not None:
            files["scales"] = engine.dla.cache
    named = (manifest.spec.name, manifest.precision, manifest.labels)
    result = ExportResult(*named, files, engine, reason, imported=imported)
    if made is not None:
        result = replace(result, calibration=made.facts, search=made.search, scores=made.scores)
    judged = options.verdict and options.dla is None and options.output_form == "raw"
    if judged and manifest.precision in ("int8", "mixed"):
        result = _with_verdict(result, graph, made, folder, options)
    return result


def _opened(model: str | Path) -> Graph | str | Path:
    """The model itself, opened where it is an ONNX file."""
    is_onnx = str(model) not in BUILT_IN and Path(model).suffix == ".onnx"
    return Graph(model) if is_onnx else model


def _is_ready(graph: Graph, options: ExportOptions) -> bool:
    """Whether the graph has the precision asked for already."""
    own = graph.manifest.precision
    asked = options.precision or own
    return own == asked or (own == "mixed" and asked == "int8")


def _lowered(model: Graph | str | Path, options: ExportOptions, folder: Path) -> Lowered:
    """The graph of the precision asked for, with what it loses noted in its manifest.

    The engine is bound to the graph with its manifest, so that has to come first.
    """
    int8, calib = options.precision == "int8", options.calib
    table = find_table(calib) if int8 and calib is not None else None
    if int8 and calib is not None and table is None:
        check_readable(calib, options.recipe.images)
    source = fp32_onnx(model, folder, options.model)
    if options.build.sparse:
        check_sparse(source)
    made = lower_precision(source, options, table, folder)
    quantized = made.graph.manifest.precision in ("int8", "mixed")
    if made.table is None or not quantized or not options.verdict or options.dla is not None:
        return made
    loss = measure_loss(
        source,
        made.graph,
        made.table,
        selection=made.selection,
        budget=options.max_map_drop,
    )
    return replace(made, graph=note_loss(made.graph, loss))


def _with_verdict(
    result: ExportResult,
    graph: Graph,
    made: Lowered | None,
    folder: Path,
    options: ExportOptions,
) -> ExportResult:
    """Add the verdict: always on a graph made here, else only where its engine can be measured."""
    engine = None if result.engine is None else Path(result.engine.file)
    if made is None and (engine is None or driver_facts() is None):
        return result
    half = half_twin(graph) if made is None else half_beside(made.source)
    if half is None and made is None:
        say(f"no verdict: it takes the FP16 file made beside {graph.path.name}, in the same folder")
        return result

    def build(half: Graph) -> Path | None:
        if why_no_builder(options.build):
            return None
        return Path(built_engine(half, Build(folder, options.build)).file)

    verdict = verdict_of(
        graph,
        half,
        known_loss(graph),
        source=None if made is None else made.source,
        frames=() if made is None or made.selection is None else made.selection.frames,
        engine=engine,
        build=build,
    )
    files = dict(result.files) | ({} if half is None else {"fp16": half.path})
    return replace(result, verdict=verdict, files=files)


def _for_dla(made: Lowered | None, options: ExportOptions, folder: Path) -> EngineFacts:
    if made is None or made.table is None or options.dla is None:
        raise ArtifactError("--dla takes the FP32 file and its table, not a quantized graph")
    report = dla_engine(
        made.source,
        made.table,
        folder,
        core=options.dla,
        calib=options.calib,
        workspace_mib=options.build.workspace_mib,
    )
    return engine_facts(report)
