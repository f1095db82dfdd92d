"""A detector of some of its classes, without the channels that only others need: `edge dissect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edge.compress.channels.dissect import of_classes, only_classes
from edge.compress.channels.importance import Importances
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.slicing import slice_classes
from edge.compress.options import DissectOptions
from edge.files import check_name, make_folder, write_file
from edge.measure.accuracy import labelled
from edge.spec import ModelSpec
from export.compress.prune import ChannelPruning, PruneResult, results_of, write_files
from export.compress.source import images_or_error, load_prunable
from export.compress.stages import (
    NETWORK_FILES,
    StageFacts,
    check_outputs,
    evaluate_stage,
    training_pictures,
)

__all__ = ["DissectResult", "dissect"]

# Takes title, scores of each layer's feature maps and the plan; returns a page of HTML.
Draw = Callable[[str, Importances, PrunePlan], str]


@dataclass(frozen=True)
class DissectResult(PruneResult):
    """What a dissection gave.

    Attributes:
        classes: those that were kept.
        profiled_images: number of images that hold only these classes and were looked at.
        warning: what the sliced head does to scores.
    """

    classes: tuple[str, ...]
    profiled_images: int
    warning: str | None


def dissect(
    model: str | Path,
    classes: Sequence[str],
    data: str | Path | None,
    options: DissectOptions,
    draw: Draw | None = None,
) -> DissectResult:
    """Keep some classes of a trained detector and the channels that answer to them.

    The head is sliced. Feature maps are profiled on training images that hold only these classes,
    and in every layer the channels with the highest m²/v + log v stay.

    Args:
        model: as `export.compress.source.load_prunable` takes it.
        classes: names of classes; VOC's and COCO's spellings are equal.
        data: labelled images to judge by, of which those with a box of these classes count; None
            takes fresh scenes, for a built-in model only.
        draw: makes a page of plots, which is written too.

    Raises:
        CompressionError: the model does not have a class.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    data, train = images_or_error(model, data, options.train)
    loaded = load_prunable(model, options)
    module, spec = slice_classes(loaded.module, loaded.spec, classes)
    name = check_name(options.name or f"{loaded.spec.name}-dissected", "the name of the files")
    folder = make_folder(options.output)
    check_outputs(folder, name, *NETWORK_FILES)
    share = len(spec.classes) / len(loaded.spec.classes)
    channels = replace(options.channels, least=max(options.channels.least, share))
    # Labels that have only numbers count in the full network's classes.
    judged = of_classes(labelled(data, loaded.spec.classes, options.images), spec.classes)
    learnt = labelled(train, loaded.spec.classes)
    pure = training_pictures(only_classes(learnt, spec.classes), spec)
    pictures = training_pictures(learnt, spec)
    with TemporaryDirectory(prefix="edge-") as scratch:
        sliced = replace(loaded, module=module, spec=spec)
        work = ChannelPruning(sliced, judged, pictures, channels, Path(scratch), profiled=pure)
        full = evaluate_stage(
            "before", loaded.module, loaded.spec, judged, Path(scratch), channels.threads
        )
        stages = [full, work.evaluate("sliced", module)]
        plan = work.pruner.for_ratio(1 - options.keep)
        more, log = work.stages_after(plan, options.tuning)
        stages += more
        times = work.time(stages)
        files = write_files(stages[-1], plan, folder, name)
        if draw is not None:
            plots = folder / f"{name}.html"
            write_file(plots, draw(name, work.pruner.importance, plan).encode())
            files["plots"] = str(plots)
    return DissectResult(
        name=name,
        stages=results_of(stages, times),
        plan=plan.rows(),
        images=len(judged),
        files=files,
        host=work.host,
        model=str(model),
        data=str(data),
        train=str(train),
        choice=channels,
        tuning=options.tuning,
        log=log,
        warnings=work.warnings(times),
        classes=spec.classes,
        profiled_images=min(len(pure), channels.profile_images),
        warning=_softmax_warning(loaded.spec, stages[0].facts, stages[1].facts),
    )


def _softmax_warning(spec: ModelSpec, before: StageFacts, sliced: StageFacts) -> str | None:
    """Return what a softmax over fewer classes does to scores, and what was measured of it."""
    if all(head.class_activation != "softmax" for head in spec.heads):
        return None
    return (
        "a softmax head divides each score among the classes that are left, so that an object of "
        f"another class may now look like one of them: {before.false_positives:.3f} wrong boxes "
        f"an image before, {sliced.false_positives:.3f} with the head sliced; fine-tune, or raise "
        "the score threshold"
    )
