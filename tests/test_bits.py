"""Bits spread over layers, beside every other spread; their costs beside layers cut by hand."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.cli import main
from edge.compress.distil import head_loss
from edge.compress.weights.bits import costs_of_bits, measurements, spread_bits
from edge.models.checkpoint import save_safetensors
from edge.models.folding import fold_norms
from tests.support.small_models import picture, small

SCENES = "scenes://?seed=300&count=6"


@pytest.mark.parametrize("seed", range(5))
def test_no_other_spread_of_as_many_bits_costs_less(seed: int) -> None:
    """Where every further bit saves less than the one before, the best is found."""
    rng = np.random.default_rng(seed)
    costs = {
        name: dict(zip(range(1, 5), np.cumsum(np.sort(rng.random(4)))[::-1], strict=True))
        for name in "abcd"
    }
    found = spread_bits(costs, dict.fromkeys("abcd", 10), 2.5)
    others = (
        sum(costs[name][bits] for name, bits in zip("abcd", spread, strict=True))
        for spread in itertools.product(range(1, 5), repeat=4)
        if sum(spread) <= 10
    )
    assert sum(costs[name][bits] for name, bits in found.items()) == pytest.approx(min(others))


def test_a_small_layer_that_costs_much_is_made_fine_and_a_large_one_pays() -> None:
    costs = {"small": {1: 9.0, 2: 8.9, 3: 0.1}, "large": {1: 2.0, 2: 0.5, 3: 0.1}}
    assert spread_bits(costs, {"small": 10, "large": 100}, 1.2) == {"small": 3, "large": 1}


@pytest.mark.parametrize("mean", [1.0, 1.7, 2.3, 4.0])
def test_the_mean_is_not_exceeded(mean: float) -> None:
    costs = {name: {bits: 2.0**-bits for bits in range(1, 7)} for name in "abc"}
    sizes = {"a": 7, "b": 50, "c": 300}
    found = spread_bits(costs, sizes, mean)
    assert sum(found[name] * size for name, size in sizes.items()) <= mean * 357


def test_a_cost_is_that_of_one_layer_made_coarse_alone() -> None:
    module, spec = small()
    module, image = fold_norms(module), torch.from_numpy(picture((48, 64)))
    ticks: list[int] = []
    costs = costs_of_bits(module, spec, [image], lambda: ticks.append(1))
    assert len(ticks) == measurements(module) == 6 * len(costs)
    for path in list(costs)[::3]:
        coarse = copy.deepcopy(module)
        weight = coarse.get_submodule(path).weight
        # one bit: the best of all cuts of the ordered weights in two
        ordered = weight.detach().flatten().sort().values.double()
        errors = [
            float(sum(len(part) * part.var(unbiased=False) for part in (low, high)))
            for low, high in ((ordered[:cut], ordered[cut:]) for cut in range(1, len(ordered)))
        ]
        cut = 1 + int(np.argmin(errors))
        low, high = ordered[:cut].mean().float(), ordered[cut:].mean().float()
        with torch.no_grad():
            weight.copy_(torch.where(weight > (low + high) / 2, high, low))
            pairs = zip(module(image), coarse(image), spec.heads, strict=True)
            lost = sum(float(head_loss(b, a, head, len(spec.classes))) for a, b, head in pairs)
        assert costs[path][1] == pytest.approx(lost, rel=1e-3)
        assert costs[path][6] < costs[path][1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    module, spec = small()
    save_safetensors(
        module, tmp_path / "small.safetensors", replace(spec, classes=("car", "pedestrian"))
    )
    return tmp_path / "small.safetensors"


def test_a_fraction_of_bits_gives_layers_different_ones(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "s.json"
    command = f"compress {model} --prune 0 --bits 2.5 --train {SCENES} -o {tmp_path / 's.edgez'}"
    assert main([*command.split(), "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    bits = [(layer["levels"] - 1).bit_length() for layer in result["layers"]]
    sizes = [layer["weights"] for layer in result["layers"]]
    assert len(set(bits)) > 1 and result["recipe"]["bits"] == 2.5
    assert np.average(bits, weights=sizes) <= 2.5
    assert "bits: " in capsys.readouterr().err


def test_a_fraction_of_bits_without_pictures_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"compress {model} --bits 2.5 -o {tmp_path / 's.edgez'}"
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip()
    assert "--train" in error and "\n" not in error
    assert not (tmp_path / "s.edgez").exists()
