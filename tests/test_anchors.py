"""Anchors: clusters of box sizes, against scipy, and `edge anchors`."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from apps.cli import main
from edge.data.datasets import open_dataset
from edge.errors import DataError
from edge.spec import InputContract
from edge.train.anchors import box_sizes, find_anchors, kmeans_anchors, mean_iou, shape_iou
from edge.train.options import AnchorOptions


def some_sizes(seed, count=300):
    rng = np.random.default_rng(seed)
    centres = np.array([(10, 20), (60, 30), (100, 120), (30, 90)])
    return centres[rng.integers(4, size=count)] * rng.uniform(0.7, 1.3, (count, 2))


@pytest.mark.parametrize("seed", range(4))
def test_euclidean_clusters_equal_scipys_from_the_same_start(seed):
    sizes = some_sizes(seed)
    start = sizes[np.random.default_rng(seed).choice(len(sizes), 5, replace=False)]
    wanted, _ = kmeans2(sizes, start, iter=200, minit="matrix", missing="raise")
    found = kmeans_anchors(sizes, 5, distance="euclidean", start=start, rounds=200)
    assert np.allclose(found, wanted[wanted.prod(axis=1).argsort()])


def test_iou_keeps_small_sizes_apart_where_length_joins_them():
    sides = np.array([4, 8, 100, 104, 130], float).repeat(9)
    sizes = np.stack([sides, sides], axis=1)
    by_iou = max(mean_iou(sizes, kmeans_anchors(sizes, 3, seed)) for seed in range(9))
    by_length = [kmeans_anchors(sizes, 3, seed, distance="euclidean") for seed in range(9)]
    spread = [np.square(sizes[:, None] - c[None]).sum(axis=2).min(axis=1).sum() for c in by_length]
    assert np.allclose(by_length[int(np.argmin(spread))][0], 6)
    assert by_iou > mean_iou(sizes, by_length[int(np.argmin(spread))])


def test_an_empty_cluster_takes_the_size_that_fits_worst():
    sizes = np.array([(10, 10), (12, 12), (11, 11), (100, 90), (50, 60)], float)
    start = np.array([(11, 11), (1000, 1000), (2000, 2000)], float)
    found = kmeans_anchors(sizes, 3, start=start, distance="euclidean")
    assert len(np.unique(found, axis=0)) == 3
    assert (np.bincount(shape_iou(sizes, found).argmax(axis=1), minlength=3) > 0).all()


def test_one_seed_gives_one_result():
    sizes = some_sizes(1)
    first, again, other = (kmeans_anchors(sizes, 4, seed=s, rounds=1) for s in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_an_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="iou, euclidean"):
        kmeans_anchors(some_sizes(0), 2, distance="taxi")  # type: ignore[arg-type]


def coco(folder, boxes, hw=(100, 200)):
    """A COCO file with one picture, which nobody reads, and `boxes` (class, x, y, w, h, crowd)."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": hw[0], "width": hw[1]}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "jar"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": c,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": crowd,
            }
            for i, (c, x, y, w, h, crowd) in enumerate(boxes, 1)
        ],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    (folder / "a.jpg").write_bytes(b"")
    return path


BOXES = [
    (1, 0, 0, 40, 20, 0),
    (2, 10, 10, 20, 30, 0),
    (1, 0, 0, 200, 100, 1),
    (1, 190, 90, 30, 30, 0),
]


def test_sizes_are_pixels_of_the_networks_input_without_crowds(tmp_path):
    dataset = open_dataset(coco(tmp_path, BOXES))
    stretched = box_sizes(dataset, InputContract((50, 50), "stretch"))
    assert np.allclose(stretched, [(10, 10), (5, 15), (2.5, 5)])
    boxed = box_sizes(dataset, InputContract((50, 50), "letterbox"), classes=[1])
    assert np.allclose(boxed, [(5, 7.5)])


def test_the_command_reports_each_anchor_and_plots_the_curve(tmp_path, capsys):
    data, curve, result = (
        coco(tmp_path, BOXES),
        tmp_path / "curve.svg",
        tmp_path / "anchors.json",
    )
    command = ["anchors", "--data", str(data), "--k", "2", "--size", "50x50", "--resize", "stretch"]
    assert main([*command, "--curve", str(curve), "--json", str(result)]) == 0
    told = json.loads(result.read_text())
    assert sum(one["boxes"] for one in told["anchors"]) == told["boxes"] == 3
    assert [k for k, _ in told["curve"]] == [1, 2, 3]
    assert told["curve"][-1][1] == pytest.approx(1.0) and told["dropped"]
    root = ElementTree.parse(curve).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}circle")) == 3
    printed = capsys.readouterr()
    assert "anchors = " in printed.out and "clipped" in printed.err


def test_the_curve_of_a_real_data_set_rises(edge_data):
    few, more = (
        find_anchors(edge_data / "bccd", AnchorOptions(k=k, hw=(320, 416), images=60))
        for k in (3, 9)
    )
    assert 0.6 < few.mean_iou < more.mean_iou < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [({"k": 9}, "different sizes"), ({"k": 2, "classes": ("mug",)}, "cup, jar")],
)
def test_what_cannot_be_clustered_is_refused_with_the_reason(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        find_anchors(coco(tmp_path, BOXES), AnchorOptions(**change))
