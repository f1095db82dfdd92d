"""Importance, budgets, refitting and fine-tuning, and the command around them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.cli import main
from edge.compress.channels.budget import plan_channels, total_cost
from edge.compress.channels.cost import filters, megabytes, read_shapes
from edge.compress.channels.importance import gamma, l1, of_family, taylor
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.refit import refit
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import Wiring, read_wiring
from edge.compress.distil import distilled, head_loss
from edge.compress.finetune import fine_tune, measure_norms
from edge.compress.options import ChannelOptions, FineTuneOptions
from edge.errors import CompressionError, DataError
from edge.models.checkpoint import load_safetensors
from edge.models.darknet import Darknet
from edge.models.folding import has_norms
from edge.models.zoo import load_model
from edge.spec import HeadSpec, ModelSpec
from edge.train.augment import Labelled
from edge.train.losses.ciou import loss_for
from edge.train.start import write_model
from export.compress.source import images_or_error
from export.compress.stages import StageTimes
from export.graph.writer import write_onnx
from tests.support.painted import write_pictures
from tests.support.small_models import CFG, picture, small

torch.set_num_threads(1)
WIDE = CFG.replace("filters=16", "filters=64").replace("filters=8", "filters=32")
WIDE = WIDE.replace("groups=8", "groups=32")


def wide() -> tuple[Darknet, ModelSpec, Wiring]:
    model, spec = small(WIDE)
    return model, spec, read_wiring(model)


def test_l1_is_that_of_the_exported_kernels(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, spec, wiring = wide()
    write_onnx(model, spec, tmp_path / "a.onnx")
    graph = onnx.load(str(tmp_path / "a.onnx")).graph
    kernels = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = l1(wiring)
    assert set(found) == set(wiring.ends)
    for path, size in found.items():
        np.testing.assert_allclose(
            size, np.abs(kernels[f"{path}.weight"]).sum(axis=(1, 2, 3)), 1e-4
        )


def test_taylor_is_the_change_of_the_loss_when_a_gate_closes_a_little() -> None:
    """Finite differences of a gate behind the batch norm, in double precision."""
    model, spec = small()
    model = model.double()
    images = torch.from_numpy(picture(spec.contract.hw)).double()
    targets = torch.empty(0, 6)
    aims = [torch.randn_like(out) for out in model(images)]

    def loss(outputs: object, _targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        pairs = zip(outputs, aims, strict=True)  # type: ignore[call-overload]
        total = sum(((a - b) ** 2).sum() for a, b in pairs)
        return total, {}

    found = taylor(model, read_wiring(model), [(images, targets)], loss)
    for path, channel in (("layers.0.conv", 3), ("layers.6.conv", 0), ("layers.15.conv", 20)):
        step, values = 1e-5, []
        for gain in (1 - step, 1 + step):
            gated = copy.deepcopy(model)
            end = read_wiring(model).norms.get(path, path)

            def gate(_m: object, _i: object, out: torch.Tensor, g: float = gain) -> torch.Tensor:
                out = out.clone()
                out[:, channel] *= g  # noqa: B023 - used before the loop goes on
                return out

            gated.get_submodule(end).register_forward_hook(gate)
            with torch.no_grad():
                values.append(float(loss(gated(images), targets)[0]))
        slope = (values[1] - values[0]) / (2 * step)
        np.testing.assert_allclose(found[path][channel], slope**2, rtol=1e-4)


def test_gamma_is_the_norms_scale_and_needs_one() -> None:
    _, _, wiring = wide()
    scale = dict(wiring.graph.named_modules())["layers.0.norm"].weight.detach().abs().numpy()
    np.testing.assert_allclose(gamma(wiring)["layers.0.conv"], scale)
    bare = CFG.replace("batch_normalize=1\n", "")
    with pytest.raises(CompressionError, match=r"layers\.0\.conv has no batch norm"):
        gamma(read_wiring(small(bare)[0]))


def test_importance_of_bound_channels_is_their_sum() -> None:
    model, _ = small()
    wiring = read_wiring(model)
    family = next(f for f in wiring.families if "layers.6.conv" in f.members)
    gains = zip(family.members, (1, 10, 100), strict=True)
    importance = {path: np.arange(16.0) * gain for path, gain in gains}
    # Channels n and n + 8 of the residual layers, and n of the depthwise one.
    wanted = [(n + n + 8) * 11 + 100 * n for n in range(8)]
    np.testing.assert_allclose(of_family(importance, wiring, family), wanted)


@pytest.mark.parametrize("spread", ["global", "layer"])
@pytest.mark.parametrize("align", [8, 16])
def test_a_plan_meets_its_budget_in_aligned_widths(spread: str, align: int) -> None:
    model, spec, wiring = wide()
    cost = megabytes(read_shapes(wiring, spec.contract.hw))
    budget = 0.5 * total_cost(wiring, cost)
    plan = plan_channels(
        wiring,
        l1(wiring),
        cost,
        budget,
        ChannelOptions("l1", spread, align=align),  # type: ignore[arg-type]
    )
    pruned = prune_channels(model, plan)
    reached = total_cost(read_wiring(pruned), cost_of(pruned, spec))
    assert 0.3 * budget < reached <= budget
    assert all(len(kept) % align == 0 for kept in plan.kept.values())


def cost_of(model: torch.nn.Module, spec: ModelSpec) -> object:
    return megabytes(read_shapes(read_wiring(model), spec.contract.hw))


def test_megabytes_are_those_of_the_exported_file(tmp_path: Path) -> None:
    model, spec, wiring = wide()
    write_onnx(model, spec, tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size / 1e6
    cost = total_cost(wiring, megabytes(read_shapes(wiring, spec.contract.hw)))
    assert 0 < size - cost < 0.02  # names, shapes and the manifest


def test_the_least_important_channels_go_first() -> None:
    _, _, wiring = wide()
    importance = {path: np.ones(len(wiring.leaves[path])) for path in wiring.ends}
    importance["layers.12.conv"][::2] = 0.01
    total = total_cost(wiring, filters)
    plan = plan_channels(wiring, importance, filters, total - 16, ChannelOptions("l1"))
    assert plan.kept == {"layers.12.conv": tuple(range(1, 32, 2))}


def test_times_that_fall_in_stairs_do_not_hide_what_a_longer_jump_saves() -> None:
    _, _, wiring = wide()
    importance = {path: np.ones(len(wiring.leaves[path])) for path in wiring.ends}
    importance["layers.12.conv"][:] = 1e-3

    def stairs(path: str, channels: int, count: int) -> float:
        """Of 32 filters, 24 take even longer and 16 half as long."""
        slow = 1.2 if path == "layers.12.conv" and 16 < count < 32 else 1.0
        return slow * (16.0 if count <= 16 else 32.0)

    budget = total_cost(wiring, stairs) - 16
    plan = plan_channels(wiring, importance, stairs, budget, ChannelOptions())
    assert {path: len(kept) for path, kept in plan.kept.items()} == {"layers.12.conv": 16}


def test_no_layer_is_emptied_for_channels_that_matter_little_one_by_one() -> None:
    _, _, wiring = wide()
    importance = {path: np.ones(len(wiring.leaves[path])) for path in wiring.ends}
    first = next(iter(wiring.ends))
    importance[first] *= 0.9
    plan = plan_channels(
        wiring,
        importance,
        filters,
        0.6 * total_cost(wiring, filters),
        ChannelOptions(least=0.01),
    )
    assert 8 < len(plan.kept[first]) < len(wiring.leaves[first])


def test_some_convolutions_can_stay_untouched_and_impossible_budgets_are_refused() -> None:
    _, _, wiring = wide()
    total = total_cost(wiring, filters)
    plan = plan_channels(
        wiring, l1(wiring), filters, 0.7 * total, ChannelOptions("l1", untouched=1)
    )
    assert plan.kept and "layers.0.conv" not in plan.kept
    with pytest.raises(CompressionError, match="cannot be met"):
        plan_channels(wiring, l1(wiring), filters, 10.0, ChannelOptions("l1"))


def test_refitted_weights_bring_the_outputs_back() -> None:
    model, spec, wiring = wide()
    plan = plan_channels(
        wiring,
        l1(wiring),
        filters,
        0.75 * total_cost(wiring, filters),
        ChannelOptions("l1", "layer"),
    )
    pruned = prune_channels(model, plan)
    learnt = [torch.from_numpy(picture(spec.contract.hw, seed, 4)) for seed in range(6)]
    fresh = torch.from_numpy(picture(spec.contract.hw, 99, 4))
    with torch.no_grad():
        wanted, before = model(fresh), pruned(fresh)
        refit(pruned, model, plan, learnt)
        after = pruned(fresh)
    for want, old, new in zip(wanted, before, after, strict=True):
        noise, left = ((want - out).square().mean() for out in (old, new))
        assert left < 0.5 * noise


def test_a_linear_layer_is_refitted_exactly() -> None:
    """Twins: when one of two equal channels goes, the other can speak for both."""
    model, spec, _ = wide()
    layer = model.get_submodule("layers.0")
    with torch.no_grad():
        for tensor in (layer.conv.weight, *layer.norm.state_dict().values()):
            if tensor.ndim:
                tensor[16:] = tensor[:16]
    plan = PrunePlan("twins", {"layers.0.conv": tuple(range(16))}, {"layers.0.conv": 32})
    pruned = prune_channels(model, plan)
    images = [torch.from_numpy(picture(spec.contract.hw, seed, 4)) for seed in range(8)]
    with torch.no_grad():
        wanted, before = model(images[0]), pruned(images[0])
        refit(pruned, model, plan, images)
        for want, old, new in zip(wanted, before, pruned(images[0]), strict=True):
            assert (want - new).square().mean() < 0.02 * (want - old).square().mean()


def test_norms_measured_anew_are_the_pictures_own() -> None:
    model, spec, _ = wide()
    images = torch.from_numpy(picture(spec.contract.hw, 3, 4))
    with torch.no_grad():
        wanted = model.get_submodule("layers.0.conv")(images).mean(dim=(0, 2, 3))
    measure_norms(model, [images])
    assert not model.training
    norm = model.get_submodule("layers.0.norm")
    np.testing.assert_allclose(norm.running_mean.numpy(), wanted.numpy(), atol=1e-5)
    assert norm.momentum == 0.1


HEADS = (
    HeadSpec.of_grid("a", "yolo", (3, 4), ((9.0, 9.0), (5.0, 5.0))),
    HeadSpec.of_grid("a", "region", (3, 4), ((9.0, 9.0), (5.0, 5.0)), class_activation="softmax"),
    HeadSpec.of_grid("a", "convdet", (3, 4), ((9.0, 9.0), (5.0, 5.0)), class_activation="softmax"),
)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_a_student_that_says_the_same_loses_nothing_and_any_other_something(
    head: HeadSpec,
) -> None:
    generator = torch.Generator().manual_seed(0)
    told = torch.randn(2, head.channels(3), 3, 4, generator=generator)
    assert float(head_loss(told, told, head, 3)) == pytest.approx(0, abs=1e-5)
    for channel in range(head.channels(3)):
        other = told.clone()
        other[:, channel] += 0.5
        assert float(head_loss(other, told, head, 3)) > 1e-3


def test_distillation_adds_the_teachers_part_on_the_same_images() -> None:
    model, spec, _ = wide()
    images = torch.from_numpy(picture(spec.contract.hw))
    batches, loss = distilled(lambda: (images, torch.empty(0, 6)), None, model, spec, 2.0)
    with torch.no_grad():
        outputs = model(batches()[0])
    total, parts = loss(outputs, torch.empty(0, 6))
    assert float(total) == pytest.approx(0, abs=1e-4) and set(parts) == {"teacher"}
    with pytest.raises(ValueError, match="nothing to learn"):
        FineTuneOptions(1, teacher=0, labels=False)


def test_fine_tuning_brings_a_pruned_network_nearer_to_its_teacher() -> None:
    model, spec, wiring = wide()
    plan = plan_channels(
        wiring,
        l1(wiring),
        filters,
        0.75 * total_cost(wiring, filters),
        ChannelOptions("l1", "layer"),
    )
    pruned = prune_channels(model, plan)
    rng = np.random.default_rng(0)
    pictures = [
        Labelled(rng.integers(0, 255, (*spec.contract.hw, 3), np.uint8), np.empty((0, 5), "f4"))
        for _ in range(4)
    ]
    how = FineTuneOptions(12, batch=4, peak=3e-3, labels=False)
    log: list[str] = []
    fine_tune(pruned, spec, pictures, how, model, log.append)
    first, last = (float(line.split("teacher ")[1].split()[0]) for line in (log[0], log[-1]))
    assert last < 0.8 * first
    loss_for(spec)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    module, spec = small(WIDE)
    return write_model(module, replace(spec, classes=("cat", "dog")), tmp_path, "pets")[0]


def run(argv: str, out: Path) -> dict:
    assert main([*argv.split(), "-o", str(out), "--json", f"{out}.json"]) == 0
    return json.loads(Path(f"{out}.json").read_text())


@pytest.mark.parametrize("importance", ["taylor", "l1", "gamma", "dissection"])
def test_prune_removes_a_share_of_the_channels(
    model_file: Path, tmp_path: Path, importance: str
) -> None:
    data = write_pictures(tmp_path / "data", 6)
    options = f"--ratio 0.4 --importance {importance} --profile-images 4 --spread layer"
    result = run(f"prune {model_file} --data {data} {options}", tmp_path / "out")
    assert [stage["name"] for stage in result["stages"]] == ["before", "pruned"]
    again = load_model(result["files"]["cfg"], names=result["files"]["names"])
    assert again.spec.classes == ("cat", "dog")
    widths = {path: after for path, _, after in result["plan"]}
    for path, width in widths.items():
        assert again.module.get_submodule(path).out_channels == int(width)
    kept = sum(int(w) for w in widths.values())
    assert kept <= 0.65 * sum(int(before) for _, before, _ in result["plan"])


def test_a_built_in_detector_is_pruned_and_judged_on_its_scenes(tmp_path: Path) -> None:
    few = "--data scenes://?count=4 --train scenes://?seed=800000&count=8 --profile-images 8"
    result = run(f"prune tiny-yolo-scenes {few} --ratio 0.3 --no-refit", tmp_path / "out")
    before, pruned = result["stages"]
    assert before["map50"] > 0.8
    assert pruned["megabytes"] < 0.8 * before["megabytes"]
    assert (
        load_model(result["files"]["cfg"], names=result["files"]["names"]).spec.classes[0] == "car"
    )


def test_only_built_in_detectors_have_images_of_their_own() -> None:
    judged, learnt = images_or_error("squeezedet-scenes", None, None)
    assert judged == "scenes" and str(learnt).startswith("scenes://?seed=800000")
    assert images_or_error("yolo.cfg", "photos", None) == ("photos", "photos")
    with pytest.raises(DataError, match=r"yolo\.cfg.*--data"):
        images_or_error("yolo.cfg", None, "photos")


def test_prune_to_milliseconds_megabytes_and_points_and_replay(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edge.compress.channels.latency_table.time_convolution", pretended)
    monkeypatch.setattr("export.compress.prune.time_stages", lambda paths, *_: by_bytes(paths))
    data = write_pictures(tmp_path / "data", 6)
    base = f"prune {model_file} --data {data} --importance l1 --no-refit"
    half = run(f"{base} --target-ms 60%", tmp_path / "half")
    full, narrow = (stage["ms"] for stage in half["stages"])
    assert 0.3 * full < narrow <= 0.6 * full
    rate = run(f"{base} --target-fps {1000 / (0.6 * full)}", tmp_path / "rate")
    assert rate["stages"][1]["ms"] <= 0.6 * full
    small_file = run(f"{base} --target-mb {0.7 * full}", tmp_path / "mb")
    assert small_file["stages"][1]["megabytes"] <= 0.7 * full
    points = run(f"{base} --max-map-drop 100", tmp_path / "points")
    assert points["stages"][1]["ms"] < 0.6 * full
    replayed = run(f"{base} --plan {half['files']['plan']}", tmp_path / "again")
    assert replayed["plan"] == half["plan"]
    [table] = (tmp_path / "cache" / "latency").glob("*.json")
    given = run(f"{base} --target-ms 60% --table {table}", tmp_path / "given")
    assert given["plan"]


def test_a_pruned_network_is_trained_further_from_its_plan_and_weights(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "data", 6)
    base = f"prune {model_file} --data {data}"
    first = run(f"{base} --ratio 0.4 --no-refit --fine-tune 2 --batch 2", tmp_path / "first")
    plan, weights = first["files"]["plan"], first["files"]["safetensors"]
    again = run(f"{base} --plan {plan} --begin {weights}", tmp_path / "again")
    assert again["stages"][1]["map50"] == first["stages"][2]["map50"]
    old, new = (load_safetensors(f["files"]["safetensors"])[0].state_dict() for f in (first, again))
    assert all(torch.equal(old[name], new[name]) for name in old)
    package, unpacked = tmp_path / "small.edgez", tmp_path / "unpacked"
    packed = f"share {weights} --bits 12 --full --data {data} --name small -o {package}"
    assert main(packed.split()) == 0
    assert main(["unpack", str(package), "-o", str(unpacked)]) == 0
    folded = unpacked / "small.safetensors"
    third = run(f"{base} --plan {plan} --begin {folded}", tmp_path / "third")
    was, spec = load_safetensors(folded)
    now = load_safetensors(third["files"]["safetensors"])[0]
    assert list(now.state_dict()) == list(old) and not has_norms(was)
    image = torch.rand(2, 3, *spec.contract.hw)
    with torch.no_grad():
        for mine, its in zip(now(image), was(image), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)
    for options, words in (
        (f"--plan {plan} --begin {model_file.with_suffix('.safetensors')}", "not the network of"),
        (f"--ratio 0.4 --begin {weights}", "give --plan"),
    ):
        assert main([*f"{base} {options}".split(), "-o", str(tmp_path / "bad")]) == 2
        assert words in capsys.readouterr().err


def pretended(shape: object, _threads: int) -> float:
    """A millisecond for each kernel number."""
    return float(shape.filters * shape.channels // shape.groups * shape.size_hw[0] ** 2)  # type: ignore[attr-defined]


def by_bytes(paths: list[Path]) -> StageTimes:
    times = tuple(path.stat().st_size / 1e6 for path in paths)
    return StageTimes(times, (0.0,) * len(times))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--target-mb 0.0001", "cannot be met"),
        ("--plan {missing}", "cannot be read"),
        ("--ratio 0.5 --importance gamma --table {missing}", ""),
        ("--target-ms 50% --table {missing}", "none.json: cannot be read"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    words: str,
) -> None:
    data = write_pictures(tmp_path / "data", 2)
    text = options.format(missing=tmp_path / "none.json")
    code = main(f"prune {model_file} --data {data} {text} -o {tmp_path / 'out'}".split())
    error = capsys.readouterr().err.strip().splitlines()
    assert code == (2 if words else 0)
    assert words in error[-1] and "Traceback" not in "".join(error)
    assert not list((tmp_path / "out").glob(".stages-*"))
