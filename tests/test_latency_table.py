"""Latency tables: what is timed, what is interpolated, what a file holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from edge.compress.channels.budget import total_cost
from edge.compress.channels.cost import ConvShape, read_shapes
from edge.compress.channels.latency_table import (
    LatencyTable,
    latency_cost,
    read_table,
    table_shapes,
    time_convolution,
    write_table,
)
from edge.compress.channels.wiring import FIXED, read_wiring
from edge.errors import CompressionError
from tests.support.small_models import picture, small

torch.set_num_threads(1)
SHAPE = ConvShape(64, 128, (3, 3), (1, 1), (1, 1, 1, 1), 1, (8, 8), "LeakyReLU")


def pretended(shape: ConvShape) -> float:
    return 1.0 + shape.filters * shape.channels / 1000 + shape.filters / 100


def table_of(shape: ConvShape) -> LatencyTable:
    table = LatencyTable({"cpu": "none"})
    fill(table, table_shapes({"a": shape}, {"a": (False, False)}))
    return table


def fill(table: LatencyTable, shapes: set[ConvShape]) -> None:
    table.rows.update({shape: pretended(shape) for shape in shapes - set(table.rows)})


def test_between_measured_widths_time_is_interpolated_as_scipy_does_it() -> None:
    table = table_of(SHAPE)
    cost = latency_cost(table, {"a": SHAPE}, {"a": (False, False)})
    channels, widths = [8, 16, 32, 48, 64], [16, 32, 64, 96, 128]
    assert {(s.channels, s.filters) for s in table.rows} == {
        (c, f) for c in channels for f in widths
    }
    grid = np.array([[pretended(SHAPE.resized(c, f)) for f in widths] for c in channels])
    scipys = RegularGridInterpolator((channels, widths), grid)
    for c, f in ((8, 16), (64, 128), (40, 72), (56, 120), (9, 17)):
        assert cost("a", c, f) == pytest.approx(float(scipys((c, f))))
    assert cost("a", 4, 8) == cost("a", 8, 16)


def test_depthwise_convolutions_have_one_width() -> None:
    site = ConvShape(64, 64, (3, 3), (2, 2), (1, 1, 1, 1), 64, (8, 8), "")
    table = table_of(site)
    assert {(s.channels, s.filters, s.groups) for s in table.rows} == {
        (n, n, n) for n in (8, 16, 32, 48, 64)
    }
    cost = latency_cost(table, {"a": site}, {"a": (False, False)})
    low, high = (pretended(site.resized(n, n)) for n in (16, 32))
    assert cost("a", 24, 24) == pytest.approx((low + high) / 2)


def test_sites_are_the_convolutions_that_onnxruntime_would_run() -> None:
    model, spec = small()
    sites = read_shapes(read_wiring(model), spec.contract.hw)
    seen: dict[str, torch.Size] = {}
    for path in sites:
        model.get_submodule(path).register_forward_hook(
            lambda _m, inputs, _o, path=path: seen.__setitem__(path, inputs[0].shape)
        )
    with torch.no_grad():
        model(torch.from_numpy(picture(spec.contract.hw)))
    for path, site in sites.items():
        assert (site.channels, *site.input_hw) == tuple(seen[path][1:])
    assert sites["layers.0.conv"].activation == "LeakyReLU"
    assert sites["layers.9.conv"].activation == ""
    assert sites["layers.6.conv"].groups == 8


@pytest.mark.parametrize("act", ["", "LeakyReLU", "ReLU", "ReLU6", "Sigmoid", "SiLU", "Mish"])
def test_a_convolution_with_any_activation_can_be_timed(act: str) -> None:
    shape = ConvShape(8, 8, (3, 3), (2, 2), (0, 1, 1, 0), 8, (5, 6), act)
    assert 0 < time_convolution(shape, threads=1) < 1000


def test_a_table_survives_its_file_and_lacks_other_networks(tmp_path: Path) -> None:
    table = table_of(SHAPE)
    write_table(table, tmp_path / "t.json")
    assert read_table(tmp_path / "t.json") == table
    model, spec = small()
    wiring = read_wiring(model)
    sites = read_shapes(wiring, spec.contract.hw)
    fixed = {
        path: (path == "layers.0.conv", bool((wiring.leaves[path] == FIXED).all()))
        for path in wiring.ends
    }
    with pytest.raises(CompressionError, match="lacks"):
        latency_cost(table, sites, fixed)
    fill(table, table_shapes(sites, fixed))
    assert total_cost(wiring, latency_cost(table, sites, fixed)) == pytest.approx(
        sum(pretended(site) for site in sites.values())
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 9, "host": {}, "rows": []}',
        '{"schema": 1, "host": {}, "rows": [{"ms": 1}]}',
        '{"schema": 1, "host": {}, "rows": [{"ms": NaN}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_table_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CompressionError, match=r"t\.json: not a latency table"):
        read_table(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ms": 0}, r"rows\[1\]: ms takes a number above 0"),
        ({"ms": -1.5}, r"rows\[1\]: ms takes"),
        ({"ms": "fast"}, r"rows\[1\]\.ms: takes a number"),
        ({"ms": 10**400}, r"rows\[1\]\.ms: .*out of a number's range"),
        ({"channels": 8.5}, r"rows\[1\]\.channels: takes a whole number"),
        ({"channels": True}, r"rows\[1\]\.channels: takes a whole number"),
        ({"channels": 0}, r"rows\[1\]: channels, filters and groups take"),
        ({"filters": 10**12}, r"rows\[1\]: channels, filters and groups take"),
        ({"groups": 3}, r"rows\[1\]: .*do not come in 3 groups"),
        ({"size_hw": [3]}, r"rows\[1\]\.size_hw: takes 2 values"),
        ({"pads": [0, 0, 0, -1]}, r"rows\[1\]: pads take"),
        ({"activation": "Magic"}, r"rows\[1\]: activation is none of"),
        ({"activation": None}, r"rows\[1\]\.activation: takes text"),
        ({}, r"rows name a shape twice"),
    ],
)
def test_a_wrong_row_is_refused_by_file_and_field(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    row = {**asdict(SHAPE), "ms": 1.5}
    rows = [row, {**row, **changes}]
    document = {"schema": 1, "host": {"cpu": "x"}, "rows": rows}
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(CompressionError, match=r"t\.json: not a latency table of edge: " + words):
        read_table(tmp_path / "t.json")


def test_the_hostile_tables_are_refused_in_one_line(edge_data: Path) -> None:
    files = sorted((edge_data / "hostile" / "latency-table").iterdir())
    assert files
    for file in files:
        with pytest.raises(CompressionError, match="not a latency table") as caught:
            read_table(file)
        assert "\n" not in str(caught.value)
