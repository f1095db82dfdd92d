"""`evaluate` measures what a detector finds, by its contract, and says what it left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.commands.evaluate import print_evaluation
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.metrics import ClassAccuracy
from edge.data.overlap import HASHES_KEY, IMAGES_KEY
from edge.errors import CalibrationError, DataError
from edge.files import to_plain, write_json
from edge.measure import evaluate as evaluation
from edge.measure.confusion import ClassPoint
from edge.measure.evaluate import EvaluateOptions, VocAccuracy, evaluate
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec

RED, BLUE = (0, 0, 255), (255, 0, 0)


class Painted:
    """A network that sees a cat in each of 2x2 cells that is red and a dog in each blue one."""

    on_device = False
    name = "fake"

    def __init__(
        self,
        resize: str = "stretch",
        labels: tuple[str, ...] = (),
        arguments: tuple[tuple[str, str], ...] = (),
    ) -> None:
        contract = InputContract((64, 64), resize)  # type: ignore[arg-type]
        head = HeadSpec.of_grid("head", "yolo", (2, 2), ((20.0, 20.0),))
        spec = ModelSpec("painted", "darknet", ("cat", "dog"), contract, (head,))
        sides = (TensorSpec("image", (1, 3, 64, 64)),), (TensorSpec("head", (1, 7, 2, 2)),)
        self.manifest = Manifest(spec, "fp32", *sides, labels=labels, arguments=arguments)

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        seen = tensor[0, :, 16::32, 16::32]
        head = np.zeros((1, 7, 2, 2), np.float32)
        head[0, 5], head[0, 6] = seen[0] * 20 - 10, seen[2] * 20 - 10
        head[0, 4] = np.abs(seen[0] - seen[2]) * 20 - 10
        return [head]

    def close(self) -> None: ...

    def __enter__(self) -> Painted:
        return self

    def __exit__(self, *_: object) -> None: ...


Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Make every artifact open as a `Painted`."""

    def replace(*args: object, **options: object) -> None:
        monkeypatch.setattr(evaluation, "open_backend", lambda *_, **__: Painted(*args, **options))

    replace()
    return replace


def painted(folder: Path, name: str, cells: dict[tuple[int, int], tuple[int, int, int]]) -> None:
    """An image of 128x96 with a patch in the middle of some of its 2x2 cells, and its labels."""
    image = np.zeros((96, 128, 3), np.uint8)
    lines = []
    for (row, column), bgr in cells.items():
        y, x = row * 48 + 9, column * 64 + 12
        image[y : y + 30, x : x + 40] = bgr
        lines.append(f"{int(bgr == BLUE)} {column / 2 + 0.25} {row / 2 + 0.25} 0.3125 0.3125")
    for part in ("labels", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "labels" / f"{name}.txt").write_text("\n".join(lines))
    cv2.imwrite(str(folder / "images" / f"{name}.png"), image)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    painted(folder, "a", {(0, 0): RED, (1, 1): BLUE})
    painted(folder, "b", {(0, 1): BLUE})
    painted(folder, "c", {})
    (folder / "x.names").write_text("Cat\nDog\n")
    return folder


def test_perfect_detector_scores_one(use: Use, data: Path, tmp_path: Path) -> None:
    result = evaluate("m.onnx", data)
    assert (result.map50, result.map50_95, result.images) == (1, 1, 3)
    assert result.by_class["dog"] == ClassAccuracy(ap50=1, ap50_95=1, boxes=2)
    assert result.voc == VocAccuracy(map50_area=1, map50_11_point=1)
    assert (result.artifact, result.backend) == ("m.onnx", "fake")
    write_json(result, tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert written == to_plain(result)
    assert written["by_class"]["dog"] == {"ap50": 1, "ap50_95": 1, "boxes": 2}
    assert not {"against", "contracts"} & set(written)


def test_missed_class_halves_the_mean(use: Use, data: Path) -> None:
    painted(data, "a", {(0, 0): BLUE, (1, 1): RED})
    labels = (data / "labels" / "a.txt").read_text()
    painted(data, "a", {(0, 0): RED, (1, 1): BLUE})
    (data / "labels" / "a.txt").write_text(labels)
    result = evaluate("m.onnx", data)
    assert result.by_class["cat"].ap50 == 0
    assert 0 < result.by_class["dog"].ap50 < 1


@pytest.mark.parametrize("own", ["letterbox", "stretch"])
def test_contract_that_fits_is_named(use: Use, data: Path, own: str) -> None:
    use(own)
    result = evaluate("m.onnx", data, EvaluateOptions(try_contracts=True))
    found = result.contracts
    assert found is not None and found.fits == "stretch"
    assert list(found.to_json()) == [own, *{"letterbox", "stretch"} - {own}, "fits"]
    assert found.by_resize["stretch"].map50_95 == 1
    assert found.by_resize["letterbox"].map50_95 < 0.7
    assert result.map50_95 == found.by_resize[own].map50_95


def test_contract_that_does_not_fit_is_noticed_unasked(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        painted(data, f"more{number}", {(0, 0): RED, (1, 1): BLUE})
    # Letterboxed, a picture four times as wide as high leaves the cells' middles in the padding.
    for path in (data / "images").iterdir():
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (384, 96)))
    assert evaluate("m.onnx", data).suspicious_contract is None
    use("letterbox")
    result = evaluate("m.onnx", data)
    found = result.suspicious_contract
    assert found is not None
    assert (found.resize, found.images, found.map50.other) == ("stretch", 15, 1)
    assert found.map50.own == result.map50 < 0.5
    print_evaluation(result)
    said = " ".join(capsys.readouterr().err.split())
    assert "suspicious input contract: with stretch in place of letterbox" in said
    tried = evaluate("m.onnx", data, EvaluateOptions(try_contracts=True))
    assert tried.suspicious_contract is None


def test_damaged_image_is_named_and_left_out(use: Use, data: Path) -> None:
    (data / "images" / "b.png").write_bytes(b"no image")
    result = evaluate("m.onnx", data)
    assert (result.images, len(result.skipped), result.map50) == (2, 1, 1)
    assert "b.png" in result.skipped[0]


def test_nothing_to_measure_is_one_line(use: Use, data: Path, tmp_path: Path) -> None:
    for path in (data / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image can be used.*a\.png"):
        evaluate("m.onnx", data)
    with pytest.raises(DataError, match="without labels"):
        evaluate("m.onnx", data / "images")
    (data / "x.names").write_text("ape\nbee\n")
    with pytest.raises(DataError, match="share no class"):
        evaluate("m.onnx", data)


def test_labels_beside_the_folder_given_are_pointed_at(tmp_path: Path, use: Use) -> None:
    use()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=f"so give {tmp_path}$"):
        evaluate("painted", tmp_path / "images")


def test_tables_say_what_was_measured(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use("letterbox", ("random weights",))
    (data / "images" / "c.png").write_bytes(b"no image")
    print_evaluation(evaluate("m.onnx", data, EvaluateOptions(try_contracts=True)))
    printed = capsys.readouterr()
    for words in ("m.onnx, random weights on 2 images", "100.00", "cat", "medium", "stretch"):
        assert words in printed.out
    for words in ("export with --resize stretch", "skipped:", "c.png"):
        assert words in printed.err.replace("\n", "")


def test_stored_accuracy_of_a_real_net_is_reproduced(edge_data: Path, tmp_path: Path) -> None:
    darknet, writer = (
        pytest.importorskip(module) for module in ("edge.models.darknet", "export.graph.writer")
    )
    weights, name = edge_data / "weights", "yolov3-tiny-aix2022"
    stored = json.loads((weights / f"{name}.reference.json").read_text())["mAP50_auc_115_images"]
    files = (weights / f"{name}.{kind}" for kind in ("cfg", "weights"))
    model, spec = darknet.load_darknet(*files, weights / "aix.names", resize="stretch")
    writer.write_onnx(model, spec, tmp_path / "m.onnx")
    # OpenCV zeroes [yolo] scores under 0.2, whatever threshold is asked for afterwards.
    result = evaluate(tmp_path / "m.onnx", edge_data / "aix", EvaluateOptions(score=0.2))
    assert result.voc.map50_area == pytest.approx(stored, abs=1e-4)
    assert result.map50 == pytest.approx(stored, abs=0.002)


def test_images_that_scales_were_made_from_are_refused_and_look_alikes_told(
    use: Use, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    for name in ["b", "c", *(f"d{i}" for i in range(9))]:
        painted(data, name, {})
        noise = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (128, 96))
        cv2.imwrite(str(data / "images" / f"{name}.png"), noise)
    seen = Seen()
    assert len(list(pictures(open_dataset(data / "images"), seen))) == 12
    exact = (IMAGES_KEY, json.dumps(seen.digests[:1])), (HASHES_KEY, json.dumps(seen.hashes[:1]))
    use(arguments=exact)
    with pytest.raises(CalibrationError, match=r"1 of its images .* --allow-overlap"):
        evaluate("m.onnx", data)
    assert evaluate("m.onnx", data, EvaluateOptions(allow_overlap=True)).calibrated_on == 1
    capsys.readouterr()
    use(arguments=exact[1:])
    assert evaluate("m.onnx", data).calibrated_on == 1
    assert "1 of 12 images" in capsys.readouterr().err
    use(arguments=((HASHES_KEY, json.dumps(seen.hashes)),))
    with pytest.raises(CalibrationError, match="12 of its images"):
        evaluate("m.onnx", data)


def test_missing_and_renamed_label_files_are_counted_and_told(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("m.onnx", data).warnings == ()
    (data / "labels" / "b.txt").rename(data / "labels" / "bb.txt")
    result = evaluate("m.onnx", data)
    assert result.dropped == {"image without a label file": 1, "label file without an image": 1}
    assert len(result.warnings) == 2
    assert any("1 of 3: image without a label file, such as" in one for one in result.warnings)
    assert to_plain(result)["warnings"] == list(result.warnings)
    print_evaluation(result)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 of 3: image without a label file" in said
    assert "they count as showing nothing" in said


def test_few_images_without_labels_are_counted_without_a_warning(use: Use, data: Path) -> None:
    for number in range(20):
        painted(data, f"more{number}", {(0, 0): RED})
    (data / "labels" / "c.txt").unlink()
    result = evaluate("m.onnx", data)
    assert result.dropped == {"image without a label file": 1} and result.warnings == ()


def test_precision_recall_and_what_is_taken_for_what(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of two cats one is a dog to the network, one dog is not there, one object is not labelled.
    painted(data, "a", {(0, 0): RED, (1, 1): BLUE})
    labels = (data / "labels" / "a.txt").read_text().splitlines()
    lines = [labels[0], labels[1].replace("1 ", "0 ", 1), "1 0.25 0.75 0.3 0.3"]
    (data / "labels" / "a.txt").write_text("\n".join(lines))
    (data / "labels" / "b.txt").write_text("")
    point = evaluate("m.onnx", data).operating_point
    assert point is not None and point.threshold == 0.25
    found = {(one.truth, one.found): one.count for one in point.confusion}
    assert found == {("cat", "cat"): 1, ("cat", "dog"): 1, ("dog", None): 1, (None, "dog"): 1}
    assert (point.precision, point.recall) == (pytest.approx(1 / 3, abs=1e-5),) * 2
    assert point.by_class["cat"] == ClassPoint(precision=1.0, recall=0.5, f1=0.66667)
    assert point.by_class["dog"] == ClassPoint(precision=0.0, recall=0.0, f1=0.0)
    print_evaluation(evaluate("m.onnx", data))
    printed = capsys.readouterr()
    assert "precision" in printed.out and "33.33" in printed.out
    assert "confused: cat as dog (1)" in " ".join(printed.err.split())


def test_names_in_another_order_are_pointed_at(use: Use, data: Path) -> None:
    for number in range(12):
        painted(data, f"more{number}", {(0, 0): RED, (1, 1): BLUE})
    assert evaluate("m.onnx", data).warnings == ()
    (data / "x.names").write_text("Dog\nCat\n")
    result = evaluate("m.onnx", data)
    assert result.map50 == 0
    (warning,) = result.warnings
    assert "27 of 27 boxes are right in place and wrong in class" in warning
    assert "--names" in warning


def test_the_whole_table_of_classes_is_shown_where_it_is_asked_for(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = {f"class-{i}": ClassAccuracy(i / 12, i / 20, 3) for i in range(12)}
    result = replace(evaluate("m.onnx", data), by_class=many)
    print_evaluation(result)
    short = capsys.readouterr().out
    assert "best and worst 5 of 12 classes" in short and "class-6 " not in short
    print_evaluation(result, len(many))
    whole = capsys.readouterr().out
    assert all(f"{name} " in whole for name in many)


def test_a_class_with_one_object_has_an_interval_and_is_too_few_to_tell(
    use: Use, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluate("m.onnx", data, EvaluateOptions(against="other.onnx"))
    assert result.against is not None
    cat = result.against.slices["class cat"]
    assert (cat.objects, cat.before, cat.now, cat.difference) == (1, 1, 1, 0)
    # From all found, AP can fall to nothing and cannot rise.
    assert cat.interval == (-1.0, 0.0)
    print_evaluation(result)
    assert "too few to tell: 1" in capsys.readouterr().out
