"""`edge robustness`: paired, seeded, shared out over processes, and continued where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO  # noqa: F401 - the oracle behind mAP must be there

from apps.cli import main
from edge.built_in import BUILT_IN
from edge.data.datasets import open_dataset
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.evaluate import evaluate
from edge.measure.robustness import RobustnessOptions, robustness, severities
from edge.measure.views import VIEWS, read_views, with_views

TINY = BUILT_IN["tiny-yolo-scenes"]
DATA = "scenes://?seed=5300000&count=6"
FEW = RobustnessOptions(corruptions="fog,low_light", severities=(1, 5), workers=1)


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with noise in its weights: it breaks earlier."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(TINY))
    rng = np.random.default_rng(3)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noisy = values + rng.normal(scale=0.12 * values.std(), size=values.shape)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    path = tmp_path_factory.mktemp("worse") / "noisy.onnx"
    onnx.save(model, str(path))
    return path


def test_clean_map_is_that_of_evaluate_and_fog_costs_by_severity() -> None:
    result = robustness([TINY], DATA, FEW)
    only = result.artifacts[0]
    assert only.clean.map50 == pytest.approx(evaluate(TINY, DATA).map50, abs=1e-4)
    fog = {one.severity: one.map50 for one in only.conditions if one.corruption == "fog"}
    assert only.clean.map50 > fog[1] > fog[5]
    mean = np.mean([one.map50 for one in only.conditions])
    assert only.mean_under_corruption == pytest.approx(mean, abs=1e-6)
    assert result.verdicts == () and result.sentences == ()


def test_two_processes_give_the_same_to_the_last_digit(worse: Path) -> None:
    one = robustness([TINY, worse], DATA, FEW)
    two = robustness([TINY, worse], DATA, replace(FEW, workers=2))
    assert one.to_json() == two.to_json()


def test_an_artifact_against_itself_loses_nothing_and_a_noisy_one_is_named(worse: Path) -> None:
    result = robustness([TINY, TINY, worse], DATA, FEW)
    same = [verdict for verdict in result.verdicts if verdict.artifact == str(TINY)]
    assert {verdict.loss for verdict in same} == {0.0}
    assert not any(verdict.breaks_earlier for verdict in same)
    assert "loses no more than" in result.sentences[0]
    noisy = [verdict for verdict in result.verdicts if verdict.artifact == str(worse)]
    assert {verdict.corruption for verdict in noisy} == {"mean", "fog", "low_light"}
    assert all(verdict.low <= verdict.loss <= verdict.high for verdict in noisy)


def test_a_stopped_run_goes_on_and_other_options_begin_anew(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    first = robustness([TINY], DATA, replace(FEW, corruptions="fog"), journal=journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    # As a kill leaves it.
    journal.write_text("\n".join([*lines, lines[0][:40]]))
    again = robustness([TINY], DATA, replace(FEW, corruptions="fog"), journal=journal)
    assert again.to_json() == first.to_json()
    assert len(journal.read_text().splitlines()) == 4
    robustness([TINY], DATA, replace(FEW, corruptions="fog", seed=1), journal=tmp_path / "k.jsonl")
    (tmp_path / "broken").write_text("{}\n{}\n")
    with pytest.raises(DataError, match="broken:1"):
        robustness([TINY], DATA, FEW, journal=tmp_path / "broken")


def test_the_command_writes_json_and_a_page(tmp_path: Path, worse: Path) -> None:
    flags = f"--data {DATA} --corruptions fog --severities 2 --images 4 --workers 1"
    words = [*flags.split(), "--json", str(tmp_path / "r.json"), "--report", str(tmp_path)]
    assert main(["robustness", str(TINY), *words]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    first = result["artifacts"][0]
    assert list(first["corruptions"]) == ["fog"] and list(first["corruptions"]["fog"]) == ["2"]
    assert {"clean", "mean_under_corruption", "relative"} <= set(first)
    page = (tmp_path / "robustness.html").read_text()
    assert "<svg" in page and "http" not in page


@pytest.mark.parametrize("text", ["0", "6", "1-6", "x", "", "1-"])
def test_severities_go_from_one_to_five(text: str) -> None:
    with pytest.raises(ValueError):
        severities(text)
    assert severities("1-3,5") == (1, 2, 3, 5)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "plain"])
def test_a_view_brings_boxes_back_to_where_they_are(name: str) -> None:
    """The detector is a threshold; what it finds in a view must lie where the picture has it."""

    def look(frame: np.ndarray) -> Detections:
        rows, columns = np.nonzero(frame[..., 0] > 127)
        if not len(rows):
            return Detections.empty()
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(
            np.array([box], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
        )

    frame = np.zeros((200, 300, 3), np.uint8)
    frame[60:100, 120:200] = 255
    found = with_views(look, (name,))(frame)
    assert found.xyxy[0] == pytest.approx([120, 60, 200, 100], abs=1.3)


def test_views_are_read_and_joined_scores_are_means() -> None:
    assert read_views("flip,small") == ("plain", "flip", "small") and read_views("") == ("plain",)
    with pytest.raises(DataError, match="no such view"):
        read_views("flop")
    frame = np.zeros((50, 60, 3), np.uint8)
    scores = iter((0.9, 0.5))

    def look(_: np.ndarray) -> Detections:
        box = np.array([[20, 10, 40, 30]], np.float32)
        return Detections(box, np.array([next(scores)], np.float32), np.zeros(1, np.int32))

    found = with_views(look, ("plain", "flip"))(frame)
    assert found.score.tolist() == pytest.approx([0.7]) and len(found) == 1
    assert open_dataset(DATA).classes
