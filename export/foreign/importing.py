"""`edge import`: a detector that somebody else built becomes a file of edge, proved or refused.

Recognition has four steps, and each leaves its evidence: what the file says about itself, names and
shapes of its outputs, the values that they take on real pictures, and a run on labelled pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import edge
from edge.data.datasets import load, open_dataset
from edge.data.items import thin
from edge.errors import ArtifactError, DataError
from edge.files import make_folder, sha256_of, write_file, write_json
from edge.names import read_names
from edge.onnx_file import OnnxFile
from edge.onnx_metadata import MANIFEST_KEY
from edge.optional import require
from edge.reporting import say
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import InputContract, Manifest, ModelSpec, TensorSpec
from export.foreign.cutting import (
    before_suppression,
    differs,
    finish_outputs,
    maps_before_decoding,
    rows_vary,
)
from export.foreign.forms import KINDS, Hypothesis, Signature, hypotheses
from export.foreign.graph import (
    CHECKPOINTS,
    IMAGES,
    CleanGraph,
    clean,
    keep_outputs,
    read_foreign,
)
from export.foreign.metadata import Facts, read_facts, refuse_other_tasks
from export.foreign.trial import Trial, better, scales_of, variants
from export.foreign.values import Runner, draft, objections
from export.graph.writer import attach_manifest

__all__ = ["Evidence", "ImportResult", "import_model", "is_foreign", "parse_contract"]

# Pictures whose values are looked at; without any of the user's, the built-in world's.
_LOOKED_AT = 8
_SCENES = f"scenes://?seed=5&count={_LOOKED_AT}"
_CONFIDENT = 0.25
_SHOWN = 6
_FINISHED = ("rows", "detections")


@dataclass(frozen=True)
class Evidence:
    """One finding: from `metadata`, `names and shapes`, `values`, `labels`, `graph` or `user`."""

    of: str
    says: str


@dataclass(frozen=True)
class ImportResult:
    """What a foreign file was recognised as.

    Attributes:
        model: its name.
        file: the ONNX file of edge that was written.
        head: the family, as `--head` takes it.
        contract: of the input.
        classes: their names.
        sure: whether labels or the file itself confirm what was found; a warning makes it False.
        evidence: what it rests on, in the order of the steps.
        candidates: other readings that could not be ruled out.
    """

    model: str
    file: Path
    head: str
    contract: InputContract
    classes: tuple[str, ...]
    sure: bool
    evidence: tuple[Evidence, ...]
    candidates: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "model": self.model,
            "file": str(self.file),
            "head": self.head,
            "contract": asdict(self.contract),
            "classes": list(self.classes),
            "sure": self.sure,
            "evidence": [{"from": each.of, "says": each.says} for each in self.evidence],
            "candidates": list(self.candidates),
        }


def is_foreign(model: OnnxFile | str | Path) -> bool:
    """Whether a file is an ONNX file without a manifest of edge, or a checkpoint of torch.

    Raises:
        ArtifactError: an ONNX file that is damaged.
    """
    path = Path(model)
    if path.suffix in CHECKPOINTS:
        return path.is_file()
    if path.suffix != ".onnx" or not path.is_file():
        return False
    file = model if isinstance(model, OnnxFile) else OnnxFile(model)
    return MANIFEST_KEY not in file.metadata


def import_model(
    model: str | Path,
    *,
    data: str | Path | None = None,
    names: str | Path | None = None,
    head: str | None = None,
    contract: Mapping[str, Any] | None = None,
    hw: tuple[int, int] | None = None,
    output: str | Path = "out",
    json_path: str | Path | None = None,
) -> ImportResult:
    """Recognise a foreign detector and write it as `output/NAME.fp32.onnx`.

    Args:
        model: an ONNX file.
        data: pictures to look at; where they are labelled, head and contract are proved on them.
        names: class names, one on a line, where the file has none.
        head: one of `KINDS`, in place of what recognition says.
        contract: fields of the `InputContract`, in place of the family's; see `parse_contract`.
        hw: height and width of the input, where the file leaves them open.
        output: folder of the file; made where it is missing.
        json_path: where to write the result too.

    Raises:
        ArtifactError: damaged, no detector, or several readings are left: names them and the flag
            that chooses.
        DataError: `names` or `data` cannot be read.
    """
    return _Import(Path(model), data, names, head, dict(contract or {}), hw).run(
        Path(output), json_path
    )


def parse_contract(text: str) -> dict[str, Any]:
    """Fields of an `InputContract` from `channel_order=BGR,mean=104 117 123,scale=1`.

    Numbers may be fractions, such as 1/255; one number stands for three channels; `std` is the
    inverse of `scale`.

    Raises:
        ValueError: an unknown field, or a value that it cannot take.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or key not in _FIELDS:
            raise ValueError(f"{part!r}: a contract's fields are {', '.join(_FIELDS)}, as K=V")
        parsed = _FIELDS[key](value)
        if key == "std":
            key, parsed = "scale", tuple(1 / each for each in parsed)
        found[key] = parsed
    InputContract((32, 32), **found)
    return found


def _numbers(text: str) -> tuple[float, ...]:
    parts = text.split()
    if len(parts) not in (1, 3):
        raise ValueError(f"{text!r}: one number or three with spaces between")
    try:
        values = [
            float(part.partition("/")[0]) / float(part.partition("/")[2] or 1) for part in parts
        ]
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is no number or fraction") from None
    return tuple(values * 3 if len(values) == 1 else values)


_FIELDS: dict[str, Callable[[str], Any]] = {
    "resize": str,
    "placement": str,
    "rounding": str,
    "scaling": str,
    "pad_value": int,
    "channel_order": str,
    "mean": _numbers,
    "scale": _numbers,
    "std": _numbers,
}


class _Import:
    """One import on its way: what is known so far and the evidence for it."""

    def __init__(
        self,
        file: Path,
        data: str | Path | None,
        names: str | Path | None,
        head: str | None,
        asked: dict[str, Any],
        hw: tuple[int, int] | None,
    ) -> None:
        if head is not None and head not in KINDS:
            raise ArtifactError(f"--head {head}: known: {', '.join(KINDS)}")
        self.file, self.data, self.head, self.asked, self.hw = file, data, head, asked, hw
        self.named = () if names is None else read_names(Path(names))
        self.evidence: list[Evidence] = []
        # By kind: readings that differ in nothing that values show, such as the first label.
        self.siblings: dict[str, list[Hypothesis]] = {}
        # By kind: what would be in place of the fields that the user asks for.
        self.usual: dict[str, dict[str, Any]] = {}
        self.warned = False
        self.proved = False

    def run(self, folder: Path, json_path: str | Path | None) -> ImportResult:
        """The four steps, then the file."""
        proto = read_foreign(self.file)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if MANIFEST_KEY in metadata:
            raise ArtifactError(f"{self.file}: already a file of edge; use it as it is")
        facts = read_facts(metadata, self.file)
        refuse_other_tasks(facts, str(self.file))
        for said in facts.evidence:
            self.note("metadata", said)
        graph = clean(proto, str(self.file), self.hw, facts.hw)
        told = len(graph.notes)
        for note in graph.notes:
            warning = note.startswith("warning: ")
            (self.warn if warning else self.note)("graph", note.removeprefix("warning: "))
        frames = self.frames()
        readable = hypotheses(Signature(graph.outputs, graph.hw))
        if graph.varies and (not readable or rows_vary(graph, frames)):
            graph = before_suppression(graph)
        for note in graph.notes[told:]:
            self.note("graph", note)
        _refuse_no_detector(graph, str(self.file))
        kinds = {node.op_type for node in graph.model.graph.node}
        refused = sorted(kinds & {"NonZero", "NonMaxSuppression"})
        if refused:
            hint = (
                f"it has {' and '.join(refused)}, which TensorRT may refuse: for an engine export "
            )
            hint += "it without suppression (of ultralytics: nms=False)"
            self.note("graph", hint)
            say(hint)
        readings = self.by_shape(graph, facts)
        runner = Runner(graph.session(), frames)
        readings = self.by_values(readings, runner)
        trial = self.trial(graph)
        found, classes = self.by_labels(readings, facts, trial)
        found = self.contract(found, facts, graph, trial, classes)
        self.sanity(found, runner)
        found = self.before_decoding(found, graph, runner)
        others = tuple(dict.fromkeys(r.kind for r in readings if r.kind != found.kind))
        confirmed = self.proved or bool(facts.origin)
        result = self.write(graph, found, classes, folder, confirmed and not self.warned, others)
        if json_path is not None:
            write_json(result.to_json(), Path(json_path))
        return result

    def note(self, of: str, says: str) -> None:
        """Keep a finding."""
        self.evidence.append(Evidence(of, says))

    def warn(self, of: str, says: str) -> None:
        """Keep a finding that the user must hear of."""
        self.warned = True
        self.note(of, f"warning: {says}")
        say(f"warning: {says}")

    # ---------------------------------------------------------- steps

    def by_shape(self, graph: CleanGraph, facts: Facts) -> list[Hypothesis]:
        """What names and shapes allow; the number of classes is that of the names."""
        stated = self.named or facts.names
        signature = Signature(
            graph.outputs,
            graph.hw,
            len(stated),
            facts.end_to_end or facts.rows,
            any("quant" in name.lower() for node in graph.model.graph.node for name in node.output),
            graph.light_body,
        )
        found = hypotheses(signature)
        if not found and stated:
            without = hypotheses(replace(signature, classes=0))
            counts = sorted({each.classes for each in without})
            whose = "--names" if self.named else "the metadata"
            if counts:
                raise ArtifactError(
                    f"{self.file}: {whose} name{'' if self.named else 's'} {len(stated)} classes, "
                    f"but its outputs ({_list(graph.outputs)}) fit {_or(counts)}; give the right "
                    "names: --names F"
                )
        if self.head is not None:
            chosen = [each for each in found if each.kind == self.head]
            if not chosen:
                fits = sorted({each.kind for each in found}) or ["none"]
                raise ArtifactError(
                    f"{self.file}: --head {self.head} does not fit its outputs "
                    f"({_list(graph.outputs)}); what fits: {', '.join(fits)}"
                )
            self.note("user", f"--head {self.head}")
            found = chosen
        if not found:
            raise ArtifactError(
                f"{self.file}: its outputs ({_list(graph.outputs)}) for an input of "
                f"{graph.hw[0]}x{graph.hw[1]} are those of no known detector; known: "
                f"{', '.join(KINDS)}"
            )
        return [self.of_facts(each, facts, graph) for each in found]

    def of_facts(self, found: Hypothesis, facts: Facts, graph: CleanGraph) -> Hypothesis:
        """A hypothesis with the contract that file, graph and user state."""
        stated: dict[str, Any] = dict(facts.contract)
        if graph.whole_range or graph.normalises:
            stated |= {"mean": (0.0,) * 3, "scale": (1.0,) * 3}
        before = replace(found.contract, **stated)
        self.usual[found.kind] = {key: getattr(before, key) for key in self.asked}
        stated |= self.asked
        doubtful = frozenset(found.doubtful - stated.keys())
        return replace(found, contract=replace(found.contract, **stated), doubtful=doubtful)

    def frames(self) -> list[Any]:
        """A few pictures to look at the values on."""
        dataset = open_dataset(self.data or _SCENES, None, _LOOKED_AT)
        found = []
        for item in thin(dataset.items, _LOOKED_AT):
            try:
                found.append(load(item)[0])
            except DataError as error:
                say(f"left out: {error}")
        if not found:
            raise DataError(f"{self.data}: no picture of it can be read")
        return found

    def by_values(self, readings: list[Hypothesis], runner: Runner) -> list[Hypothesis]:
        """Readings that the values on real pictures do not contradict."""
        left: list[Hypothesis] = []
        against: dict[Hypothesis, str] = {}
        for each in readings:
            wrong = objections(each, runner(each.contract))
            if not wrong:
                left.append(each)
            else:
                against[each] = wrong[0]
        if not left:
            told = {f"{each.kind}: {said}": None for each, said in against.items()}
            lines = "; ".join(list(told)[:_SHOWN])
            raise ArtifactError(
                f"{self.file}: the values on {len(runner.frames)} pictures contradict every "
                f"reading of its outputs: {lines}; if the input is another, say so: --contract "
                "scale=1,channel_order=BGR"
            )
        finished = [each for each in left if each.kind in _FINISHED]
        if finished and len(finished) < len(left):
            self.note("graph", "finished boxes stand beside raw ones: the finished ones are read")
            left = finished
        # Readings of one kind that all hold differ in nothing that these pictures show.
        first: dict[str, Hypothesis] = {}
        for each in left:
            first.setdefault(each.kind, each)
            self.siblings.setdefault(each.kind, []).append(each)
        self.note("names and shapes", next(iter(first.values())).says)
        scored = {each.heads[0].score for each in first.values()}
        for each, said in list(against.items())[:_SHOWN]:
            if each.heads[0].score in scored:
                self.note("values", f"not {each.kind} ({each.says}): {said}")
        return list(first.values())

    def trial(self, graph: CleanGraph) -> Trial | None:
        """The labelled pictures; None where there are none."""
        if self.data is None:
            return None
        dataset = open_dataset(self.data, self.named or None)
        if dataset.kind == "images":
            self.note("labels", f"{self.data} has no labels, so nothing is proved on it")
            return None
        return Trial(graph.session(), dataset)

    def by_labels(
        self, readings: list[Hypothesis], facts: Facts, trial: Trial | None
    ) -> tuple[Hypothesis, tuple[str, ...]]:
        """The one reading that is left, and its classes."""
        if len(readings) == 1:
            return readings[0], self.classes(readings[0], facts)
        kinds = ", ".join(each.kind for each in readings)
        told = "; ".join(f"{each.kind}: {each.says}" for each in readings)
        if trial is not None:
            classes = self.classes(readings[0], facts)
            count = trial.pictures(len(readings))
            try:
                found = trial.ap([(each, each.contract) for each in readings], classes, count)
            except DataError as error:
                raise ArtifactError(
                    f"{self.file}: {kinds} are left, and labels cannot choose: {error}; choose: "
                    "--head KIND"
                ) from error
            order = sorted(range(len(readings)), key=lambda i: -found[i][0])
            best, second = order[0], order[1]
            for i in order:
                self.note("labels", f"{readings[i].kind}: AP {found[i][0]:.3f} on {count} pictures")
            if better(found[best][0], found[second][0]):
                return readings[best], classes
            told += f"; on {count} labelled pictures they are alike"
        raise ArtifactError(
            f"{self.file}: {len(readings)} readings are left, {kinds}: {told}; choose with "
            "--head KIND, or give labelled pictures: --data DIR"
        )

    def classes(self, found: Hypothesis, facts: Facts) -> tuple[str, ...]:
        """The classes' names: the user's, the file's, the family's, or numbers with a warning."""
        for stated, whose in ((self.named, "--names"), (facts.names, "the metadata")):
            if stated:
                if len(stated) != found.classes:
                    raise ArtifactError(
                        f"{self.file}: {len(stated)} names of {whose} for {found.classes} classes"
                    )
                if self.named and facts.names and len(self.named) != len(facts.names):
                    self.warn(
                        "metadata",
                        f"the metadata name {len(facts.names)} classes, --names {len(self.named)}; "
                        "--names counts",
                    )
                return stated
        if found.names:
            return found.names
        if found.classes == 1:
            self.note("names and shapes", "one class without a name: object")
            return ("object",)
        self.warn(
            "metadata",
            f"the file names no classes: they are numbered 0 to {found.classes - 1}; give them: "
            "--names F",
        )
        return tuple(map(str, range(found.classes)))

    def contract(
        self,
        found: Hypothesis,
        facts: Facts,
        graph: CleanGraph,
        trial: Trial | None,
        classes: Sequence[str],
    ) -> Hypothesis:
        """The input contract: what the file states, what the family has, what labels prefer."""
        self.tell_contract(found, facts, graph)
        if trial is not None:
            try:
                return self.prove(found, facts, trial, classes)
            except DataError as error:
                self.note("labels", f"nothing can be proved on them: {error}")
        if found.doubtful:
            fields = ", ".join(f"{name} {getattr(found.contract, name)}" for name in found.doubtful)
            self.note(
                "names and shapes",
                f"networks of this family differ in it, and no label proves it: {fields}; prove it "
                "with labelled pictures (--data DIR) or choose with --contract",
            )
        return found

    def tell_contract(self, found: Hypothesis, facts: Facts, graph: CleanGraph) -> None:
        """Say where the contract comes from, and warn where the user contradicts the file."""
        if facts.contract:
            self.note("metadata", f"{facts.origin} prepares pictures as {describe(found.contract)}")
        else:
            self.note(
                "names and shapes", f"this family prepares pictures as {describe(found.contract)}"
            )
        if graph.whole_range or graph.normalises:
            self.note("graph", "the graph itself scales the pixels, so they go in as 0..255")
        if not self.asked:
            return
        asked = ", ".join(f"{key} {value}" for key, value in self.asked.items())
        self.note("user", f"--contract: {asked}")
        for key, value in self.asked.items():
            stated = facts.contract.get(key, value)
            if not _alike(stated, value):
                self.warn("user", f"--contract says {key} {value}, {facts.origin} says {stated}")

    def prove(
        self, found: Hypothesis, facts: Facts, trial: Trial, classes: Sequence[str]
    ) -> Hypothesis:
        """Try the contracts that networks commonly have, one change at a time."""
        found = self.best_sibling(found, trial, classes)
        own = found.contract
        scales = scales_of(own)
        few = trial.pictures(3 * len(scales)) if len(scales) > 1 else 0
        figures = trial.ap([(found, each) for each in scales], classes, few or 1)
        best = max(range(len(scales)), key=lambda i: figures[i][0])
        if best and better(figures[best][0], figures[0][0]):
            says = f"with {_scale(scales[best])} AP is {figures[best][0]:.3f}, with {_scale(own)} "
            says += f"{figures[0][0]:.3f}, on {few} pictures"
            own = self.choose(own, scales[best], ("mean", "scale"), says, facts)
        tried = variants(own)
        count = trial.pictures(2 * (len(tried) + 1))
        figures = trial.ap([(found, own), *((found, each) for _, each in tried)], classes, count)
        ap, ap50 = figures[0]
        table = ", ".join(
            f"{what} {one:.3f}" for (what, _), (one, _) in zip(tried, figures[1:], strict=True)
        )
        self.note(
            "labels",
            f"AP {ap:.3f} (AP50 {ap50:.3f}) on {min(count, len(trial))} pictures as "
            f"{describe(own)}; with {table}",
        )
        own = self.choose_variant(found, own, facts, tried, [one for one, _ in figures])
        top = max([ap, *(one for one, _ in figures[1:])])
        if top < 0.02:
            self.warn(
                "labels",
                f"AP is {top:.3f} on labelled pictures whatever the input: the weights are not "
                "trained, the names are in another order, or the reading is wrong",
            )
        else:
            self.proved = True
        return replace(found, contract=own)

    def best_sibling(self, found: Hypothesis, trial: Trial, classes: Sequence[str]) -> Hypothesis:
        """The reading of its kind that labels prefer."""
        others = self.siblings[found.kind]
        if len(others) < 2:
            return found
        count = trial.pictures(3 * len(others))
        figures = trial.ap([(each, each.contract) for each in others], classes, count)
        best = max(range(len(others)), key=lambda i: figures[i][0])
        base = figures[others.index(found)][0]
        if not better(figures[best][0], base):
            return found
        self.note(
            "labels",
            f"{others[best].says}, {others[best].heads[0].score}: AP {figures[best][0]:.3f} on "
            f"{count} pictures, against {base:.3f}",
        )
        return others[best]

    def choose_variant(
        self,
        found: Hypothesis,
        own: InputContract,
        facts: Facts,
        tried: Sequence[tuple[str, InputContract]],
        figures: Sequence[float],
    ) -> InputContract:
        """Take over what is better beyond chance and may be changed."""
        base = figures[0]
        for (what, each), one in sorted(
            zip(tried, figures[1:], strict=True), key=lambda pair: -pair[1]
        ):
            if not better(one, base):
                continue
            channels = what.startswith("channels")
            fields = ("channel_order",) if channels else ("resize", "placement")
            if channels or "resize" in found.doubtful or set(fields) & self.asked.keys():
                says = f"{what} gives AP {one:.3f}, {describe(own)} {base:.3f}"
                own = self.choose(own, each, fields, says, facts)
                base = one if own is each else base
            else:
                self.note(
                    "labels",
                    f"{what} would give AP {one:.3f} here, against {base:.3f}; what the "
                    "family states is kept",
                )
        return own

    def choose(
        self,
        own: InputContract,
        other: InputContract,
        fields: Sequence[str],
        says: str,
        facts: Facts,
    ) -> InputContract:
        """`other`, unless user or file state the fields: then a warning."""
        asked = [field for field in fields if field in self.asked]
        stated = [field for field in fields if field in facts.contract]
        if asked:
            self.warn("labels", f"{says}, but --contract fixes {', '.join(asked)}")
            return own
        if stated:
            self.warn("labels", f"{says}: the labels contradict what {facts.origin} states")
            return other
        self.note("labels", says)
        return other

    def sanity(self, found: Hypothesis, runner: Runner) -> None:
        """Warn of a network that sees nothing, or sees objects everywhere."""
        runs = runner(found.contract)
        decode = Decoder(draft(found))
        names = [name for head in found.heads for name in head.tensors]
        seen = [decode([run[name] for name in names], 0.0) for run in runs]
        scores = [each.score for each in seen]
        tops = [float(each.max()) if len(each) else 0.0 for each in scores]
        best = max(tops)
        if best < _CONFIDENT and self.data is not None and not self.proved:
            self.warn(
                "values",
                f"no box scores above {best:.2f} on {len(runs)} pictures: the weights are not "
                "trained, or the input's scale is another (--contract scale=1)",
            )
        if len(tops) > 3 and best > _CONFIDENT and best - min(tops) < 0.05:
            self.warn(
                "values",
                f"its best score is {best:.2f} on each of {len(runs)} pictures, whatever they "
                "show: the weights are not trained, or the scores are read wrongly",
            )
        total = sum(head.candidates for head in found.heads) * len(runs)
        passing = sum(int((each > _CONFIDENT).sum()) for each in scores)
        if total > 2000 and passing > 0.2 * total:
            self.warn(
                "values",
                f"{passing / total:.0%} of its candidates score above {_CONFIDENT}: the weights "
                "are not trained, or the scores are read wrongly",
            )
        self.compare_confidence(found, runner, best)

    def compare_confidence(self, found: Hypothesis, runner: Runner, best: float) -> None:
        """Without labels: is the user's own contract believable beside the family's?"""
        if not self.asked or self.proved:
            return
        usual = replace(found, contract=replace(found.contract, **self.usual[found.kind]))
        own, other = (_confidence(each, runner(each.contract)) for each in (found, usual))
        if other > 1.3 * own + 0.05:
            self.warn(
                "values",
                f"with --contract its best boxes score {own:.2f} on average, with the family's own "
                f"input ({describe(usual.contract)}) {other:.2f}",
            )

    def before_decoding(self, found: Hypothesis, graph: CleanGraph, runner: Runner) -> Hypothesis:
        """Read the raw maps in front of a decoding tail, where the graph has them."""
        cut = maps_before_decoding(graph.model, found)
        if cut is None:
            return found
        feed = Preprocessor(found.contract)(runner.frames[0])[0]
        wrong = differs(graph, found, cut, feed)
        if wrong:
            self.note("graph", f"its decoding is kept: {wrong}")
            return found
        self.note(
            "graph",
            "its decoding is cut off: the raw maps in front of it are read, which keep a scale of "
            "their own in INT8 and are decoded only where something is seen; boxes and scores on a "
            "picture are equal",
        )
        return cut

    # ---------------------------------------------------------- file

    def write(
        self,
        graph: CleanGraph,
        found: Hypothesis,
        classes: tuple[str, ...],
        folder: Path,
        sure: bool,
        others: tuple[str, ...],
    ) -> ImportResult:
        """Write the file of edge with its manifest."""
        onnx = require("onnx")
        make_folder(folder)
        names = [name for head in found.heads for name in head.tensors]
        model = keep_outputs(graph.model, names)
        dropped = [out.name for out in graph.outputs if out.name not in names]
        if dropped:
            self.note(
                "graph", f"outputs that detection does not read are left out: {_list(dropped)}"
            )
        model, heads, notes = finish_outputs(model, found.heads, len(classes))
        for note in notes:
            self.note("graph", note)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.file.stem).strip(".-") or "detector"
        name = re.sub(r"\.(fp32|int8|fp16)$", "", name)[:80]
        spec = ModelSpec(name, found.kind, classes, found.contract, heads)
        precision: Any = "int8" if graph.quantized else "fp32"
        if graph.quantized:
            self.note("graph", "its Q/DQ nodes are another tool's; it is taken as INT8")
        self.note(
            "names and shapes", f"boxes of one class that overlap by {found.iou:g} count as one"
        )
        outputs = tuple(
            TensorSpec(value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
            for value in model.graph.output
        )
        manifest = Manifest(
            spec=spec,
            precision=precision,
            inputs=(TensorSpec(IMAGES, (1, 3, *graph.hw)),),
            outputs=outputs,
            parent_sha256=sha256_of(self.file),
            made_by=(("edge", edge.__version__), ("onnx", onnx.__version__)),
            arguments=(
                ("model", json.dumps(self.file.name)),
                ("head", json.dumps(found.kind)),
                ("iou", json.dumps(found.iou)),
                ("sure", json.dumps(sure)),
                ("quantized_elsewhere", json.dumps(graph.quantized)),
                ("evidence", json.dumps([f"{each.of}: {each.says}" for each in self.evidence])),
            ),
        )
        wrong = manifest.misfit()
        if wrong:
            raise ArtifactError(
                f"{self.file}: its graph does not give what its head reads: {wrong}"
            )
        onnx.helper.set_model_props(model, {})
        attach_manifest(model, manifest)
        target = folder / f"{name}.{precision}.onnx"
        write_file(target, model.SerializeToString())
        return ImportResult(
            name, target, found.kind, found.contract, classes, sure, tuple(self.evidence), others
        )


def _confidence(found: Hypothesis, runs: Sequence[Any]) -> float:
    """Mean of the ten best scores of each picture."""
    decode = Decoder(draft(found))
    names = [name for head in found.heads for name in head.tensors]
    best = []
    for run in runs:
        scores = np.sort(decode([run[name] for name in names], 0.001).score)[::-1][:10]
        best.append(float(scores.sum()) / 10)
    return float(np.mean(best)) if best else 0.0


def _refuse_no_detector(graph: CleanGraph, source: str) -> None:
    """A classifier, a segmenter or an embedding is named as what it is."""
    outs = graph.outputs
    if all(len(out.dims) == 1 or (len(out.dims) == 2 and 1 in out.dims) for out in outs) and (
        len(outs) == 1
    ):
        raise ArtifactError(
            f"{source}: its only output {outs[0]} is one number for each class: a classifier (or "
            "an embedding), which finds no boxes"
        )
    for out in outs:
        if len(out.dims) == 3 and not out.integer:
            _, height, width = out.dims
            near = [graph.hw[0] / max(height, 1), graph.hw[1] / max(width, 1)]
            alone = len(outs) == 1 and max(near) <= 2 and min(height, width) > 8
            beside = len(outs) <= 2 and out.dims[0] == 32 and near == [4, 4]
            if alone or (beside and any(len(other.dims) == 2 for other in outs)):
                raise ArtifactError(
                    f"{source}: its output {out} is a map of the picture: a segmenter; edge "
                    "imports detectors"
                )


def describe(contract: InputContract) -> str:
    """An input contract in words."""
    where = ""
    if contract.resize == "letterbox":
        where = f" ({contract.placement}, padding {contract.pad_value})"
    return f"{contract.resize}{where}, {contract.channel_order}, {_scale(contract)}"


def _scale(contract: InputContract) -> str:
    mean = " ".join(f"{value:g}" for value in dict.fromkeys(contract.mean))
    scale = " ".join(f"{1 / value:g}" for value in dict.fromkeys(contract.scale) if value)
    return f"(p - {mean}) / {scale}"


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-3))
    return bool(one == other)


def _list(values: Sequence[Any]) -> str:
    shown = [str(value) for value in values[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(values) > _SHOWN else [])])


def _or(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts)) + (" class" if counts == [1] else " classes")
