"""Heads of `[yolo]` with `new_coords`, whose sizes the network itself turns into exponents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.graph import Graph
from edge.models.blocks import SquaredSizes
from edge.train.quantized_network import float_network
from export.engine.build import build_engine
from export.engine.options import BuildOptions
from export.int8.kept_layers import kept_by_hand
from export.int8.quantize import write_half, write_int8
from tests.support.small_models import CFG, decibel, picture, run, small, write_small
from tests.support.steps import scales
from tests.support.tolerances import ONNX_ATOL
from tests.test_channels import assert_same, draw_plan
from tests.test_qat import heads

NEW = CFG.replace(
    "activation=linear\n[yolo]\n", "activation=logistic\n[yolo]\nnew_coords=1\nscale_x_y=2.0\n"
)
HW = (48, 64)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("new") / "a.fp32.onnx"
    write_small(target, NEW)
    return target


def test_sizes_are_the_logarithm_of_the_square() -> None:
    raw = torch.linspace(-9, 9, 2 * 7 * 12).reshape(1, 14, 3, 4).double()
    found = SquaredSizes(2, 7)(raw).reshape(2, 7, 3, 4)
    wanted = raw.reshape(2, 7, 3, 4).clone()
    wanted[:, 2:4] = (2 * wanted[:, 2:4].sigmoid()).square().log()
    torch.testing.assert_close(found, wanted)


def test_the_file_gives_the_numbers_of_the_module(fp32: Path) -> None:
    module, spec = small(NEW)
    assert [head.tensor.rpartition(".")[2] for head in spec.heads] == ["sizes", "sizes"]
    image = picture(HW, seed=1)
    with torch.no_grad():
        wanted = module(torch.from_numpy(image))
    learnt = heads(float_network(onnx.load(str(fp32))), image)
    for one, other, reference in zip(run(fp32, image), learnt, wanted, strict=True):
        np.testing.assert_allclose(one, reference.numpy(), rtol=0, atol=ONNX_ATOL)
        np.testing.assert_allclose(other, reference.numpy(), rtol=0, atol=ONNX_ATOL)


def test_int8_and_half_quantize_its_convolutions_and_leave_the_sizes(
    fp32: Path, tmp_path: Path
) -> None:
    image = picture(HW, seed=1)
    wanted = run(fp32, image)
    table = scales(fp32, "scenes://?seed=500000&count=3", images=3, threads=1).table
    write_int8(fp32, table, tmp_path / "int8.onnx")
    write_half(fp32, tmp_path / "half.onnx")
    for name, least in (("int8", 15), ("half", 50)):
        found = run(tmp_path / f"{name}.onnx", image)
        assert all(decibel(*pair) > least for pair in zip(wanted, found, strict=True))


def test_to_keep_the_heads_keeps_the_convolutions_behind_them(fp32: Path) -> None:
    linear = fp32.with_name("linear.fp32.onnx")
    write_small(linear)
    kept = [sorted(kept_by_hand(Graph(path), ["heads"])) for path in (fp32, linear)]
    assert kept[0] == kept[1] and len(kept[0]) == 2


def test_pruned_it_is_the_full_network_with_zeros() -> None:
    model, spec = small(NEW)
    assert_same(model, draw_plan(model), spec.contract.hw)


@pytest.mark.parametrize("precision", ["fp32", "half", "int8"])
def test_tensorrt_rtx_builds_it(fp32: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = fp32
    if precision == "half":
        write_half(fp32, graph := tmp_path / "a.onnx")
    elif precision == "int8":
        table = scales(fp32, "scenes://?seed=500000&count=3", images=3, threads=1).table
        write_int8(fp32, table, graph := tmp_path / "a.onnx")
    report = build_engine(graph, tmp_path / "a.engine", BuildOptions("rtx"))
    kinds = {conv.dtype for conv in report.summary.convolutions}
    assert kinds == {{"fp32": "float", "half": "half", "int8": "int8"}[precision]}
