"""Training in epochs: resume, several processes, early stopping, frozen layers, hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edge.errors import ArtifactError, DataError
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig, squeezedet_spec
from edge.train.augment import Augmentation, Labelled
from edge.train.batches import BatchMaker, make_batch
from edge.train.checkpoints import CheckpointFacts, resume, save_checkpoint
from edge.train.distributed import Team
from edge.train.epochs import Hooks, run_epochs, stale
from edge.train.fit import Schedule, advance, begin, fit
from edge.train.freeze import freeze, freeze_norms, layers, learn
from edge.train.losses.ciou import loss_for
from edge.train.options import TrainOptions, read_augmentation
from edge.train.schedule import learning_rate, read_drops
from edge.train.session import open_session

HW = (32, 48)
CFG = """[net]
width=48
height=32
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=12
size=3
stride=2
pad=1
activation=relu
[convolutional]
filters=16
size=1
activation=linear
[yolo]
mask=0,1
anchors=8,8, 20,16
num=2
classes=3
"""


def darknet(seed=0, cfg=CFG):
    model = Darknet(parse_cfg(cfg, "small.cfg"))
    spec = model.spec("small", ("x", "y", "z"))
    initialise(model, spec, seed)
    return model, spec


def squeezedet(seed=0):
    config = SqueezeDetConfig(
        HW, ("x", "y", "z"), ((8.0, 8.0), (20.0, 16.0)), (8, 3), ((4, 8, 8), (4, 8, 8)), (2,)
    )
    model, spec = SqueezeDet(config), squeezedet_spec(config, "small")
    initialise(model, spec, seed)
    return model, spec


def some_pictures(count=6, seed=3):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        corner, size = rng.uniform(0, 16, (2, 2)), rng.uniform(6, 16, (2, 2))
        boxes = np.column_stack((rng.integers(3, size=2), corner, corner + size))
        image = rng.integers(0, 256, (*HW, 3), dtype=np.uint8)
        found.append(Labelled(image, boxes.astype(np.float32)))
    return found


OPTIONS = TrainOptions(steps=10, batch=4, seed=5, warmup=3, epoch_steps=5, peak=5e-3)


def session(options=OPTIONS, model=darknet, checkpoint=None, team=None):
    module, spec = model()
    return open_session(
        module,
        spec,
        some_pictures(),
        options,
        team or Team(),
        counts=[3, 2, 1],
        checkpoint=checkpoint,
    )


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("model", [darknet, squeezedet])
def test_five_steps_and_five_after_a_resume_are_bit_for_bit_ten(tmp_path, model, optimizer):
    options = replace(OPTIONS, optimizer=optimizer)
    whole = session(options, model)
    run_epochs(whole, Hooks())
    first = session(options, model)
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_epochs(first, Hooks(checkpoint=checkpoint, epoch_done=interrupt))
    second = session(options, model, checkpoint)
    assert second.run.step == 5 and [record.step for record in second.history] == [5]
    assert not same(second.run.model, whole.run.model)
    run_epochs(second, Hooks())
    assert same(second.run.model, whole.run.model)
    assert same(second.run.average, whole.run.average)
    assert second.history[1].loss == whole.history[1].loss
    states = [run.optimizer.state_dict()["state"] for run in (second.run, whole.run)]
    for ours, theirs in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(theirs[k])) for k in ours)


def interrupt(entry):
    raise KeyboardInterrupt


def test_a_checkpoint_brings_torchs_random_state_back(tmp_path):
    run = session().run
    torch.manual_seed(11)
    save_checkpoint(run, tmp_path / "c.safetensors", CheckpointFacts((), {"word": "kept"}))
    wanted = torch.rand(3)
    torch.manual_seed(12)
    assert resume(run, tmp_path / "c.safetensors").shape["word"] == "kept"
    assert torch.equal(torch.rand(3), wanted)


def test_a_checkpoint_of_another_architecture_is_refused_with_the_tensor_that_differs(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(session().run, path, CheckpointFacts())
    wider = darknet(cfg=CFG.replace("filters=12", "filters=16"))[0]
    with pytest.raises(ArtifactError, match=r"another architecture: layers\.2\.conv\.weight is"):
        resume(begin(wider, Schedule(10)), path)
    with pytest.raises(ArtifactError, match="absent"):
        resume(begin(squeezedet()[0], Schedule(10)), path)


def test_a_resume_tells_what_is_not_as_it_was(tmp_path):
    path, first = tmp_path / "c.safetensors", session()
    run_epochs(first, Hooks(checkpoint=path))
    assert session(checkpoint=path).changed == []
    changed = session(replace(OPTIONS, batch=2, drops=((1, 0.5),)), checkpoint=path).changed
    assert "batch was 4 and is 2" in changed and "drops was [] and is [[1, 0.5]]" in changed


def test_a_checkpoint_in_which_other_layers_learnt_is_refused(tmp_path):
    path, first = tmp_path / "c.safetensors", session()
    run_epochs(first, Hooks(checkpoint=path))
    with pytest.raises(ArtifactError, match="freeze the same layers"):
        session(replace(OPTIONS, freeze=1), checkpoint=path)


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"garbage" * 40])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    path.write_bytes(damage)
    with pytest.raises(ArtifactError, match="checkpoint") as caught:
        resume(session().run, path)
    assert "\n" not in str(caught.value)


def test_a_batch_depends_on_its_step_alone_and_an_epoch_sees_every_picture_once():
    pictures = [
        Labelled(np.full((*HW, 3), 10 * i, np.uint8), np.zeros((0, 5), np.float32))
        for i in range(6)
    ]
    maker = BatchMaker(pictures, darknet()[1], 4, seed=9)
    batches = [make_batch(maker, step)[0] for step in range(6)]
    assert torch.equal(make_batch(maker, 4)[0], batches[4])
    seen = (torch.cat(batches)[:, 0, 0, 0] * 255 / 10).round().int().tolist()
    orders = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_processes_share_the_very_batch_that_one_would_have():
    pictures, (_, spec) = some_pictures(), darknet()
    whole = BatchMaker(pictures, spec, 4, seed=1, options=Augmentation())
    images, targets = make_batch(whole, 3)
    for rank in (0, 1):
        part, own = make_batch(replace(whole, rank=rank, ranks=2), 3)
        assert torch.equal(part, images[2 * rank : 2 * rank + 2])
        mine = targets[(targets[:, 0] >= 2 * rank) & (targets[:, 0] < 2 * rank + 2)]
        assert torch.equal(own + torch.tensor([2.0 * rank, 0, 0, 0, 0, 0]), mine)


def test_multi_scale_changes_whole_cells_and_boxes_follow():
    pictures, (_, spec) = some_pictures(), darknet()
    plain = BatchMaker(pictures, spec, 4, seed=2)
    sizes = set()
    for step in range(0, 200, 10):
        images, targets = make_batch(replace(plain, scales=True), step)
        _, own = make_batch(plain, step)
        height, width = images.shape[-2:]
        assert height % 8 == width % 8 == 0
        factor = torch.tensor([1, 1, width / 48, height / 32, width / 48, height / 32])
        assert torch.allclose(targets, own * factor)
        sizes.add((height, width))
    assert len(sizes) == 3


def test_batch_norm_that_learns_is_refused_on_several_cpus():
    with pytest.raises(DataError, match="--freeze-norm"):
        session(team=Team(0, 2))
    with pytest.raises(DataError, match="cannot be shared by 3"):
        session(replace(OPTIONS, freeze_norm=True), team=Team(0, 3))


def test_frozen_layers_and_their_statistics_stay_and_the_rest_learns():
    one = session(replace(OPTIONS, freeze=2))
    before = {name: value.clone() for name, value in one.run.model.state_dict().items()}
    assert one.frozen == ["layers.0"]
    run_epochs(one, Hooks())
    for name, value in one.run.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("layers.0."), name


def test_frozen_batch_norm_goes_by_its_statistics():
    one = session(replace(OPTIONS, freeze_norm=True))
    norms = {n: v.clone() for n, v in one.run.model.state_dict().items() if ".norm." in n}
    run_epochs(one, Hooks())
    assert norms and all(torch.equal(one.run.model.state_dict()[n], v) for n, v in norms.items())
    model = darknet()[0]
    learn(model)
    assert model.layers["0"].norm.training
    assert freeze_norms(model) == 2
    learn(model)
    assert model.training and not model.layers["0"].norm.training


def test_layers_count_as_the_cfg_does_and_freezing_all_is_refused():
    assert list(layers(darknet()[0])) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    names = ["body.conv1", "body.pool1", "body.fire2", "body.pool2", "body.fire3", "convdet"]
    assert list(layers(squeezedet()[0])) == names
    with pytest.raises(ValueError, match="leaves none to learn"):
        freeze(darknet()[0], 9)
    with pytest.raises(DataError, match="leaves none to learn"):
        session(replace(OPTIONS, freeze=9))


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best():
    scores = iter([0.1, 0.4, 0.3, 0.2, 0.9])
    kept, one = [], session(replace(OPTIONS, steps=25))
    hooks = Hooks(
        validate=lambda module: (next(scores), 0.0),
        keep=lambda module: kept.append(one.run.step),
        patience=2,
    )
    assert "no better mAP@.5 in 2 epochs" in run_epochs(one, hooks)
    assert one.run.step == 20 and kept == [5, 10]


def test_staleness_is_the_age_of_the_best():
    assert not stale([], 1) and not stale([0.5], 1)
    assert stale([0.5, 0.4], 1) and not stale([0.5, 0.4], 2) and stale([0.5, 0.4, 0.5], 2)


def test_a_hook_keeps_pruned_weights_at_zero_in_model_and_average():
    model, spec = darknet()
    mask = torch.rand_like(model.layers["2"].conv.weight) > 0.5

    def prune(module):
        module.layers["2"].conv.weight.data.mul_(mask)

    prune(model)
    maker = BatchMaker(some_pictures(), spec, 4, seed=1)
    average = fit(
        model,
        loss_for(spec),
        lambda: make_batch(maker, 0),
        Schedule(4, warmup=1),
        print,
        after_step=prune,
    )
    for module in (model, average):
        weight = module.layers["2"].conv.weight
        assert (weight[~mask] == 0).all() and (weight[mask] != 0).any()


def test_the_learning_rate_holds_through_an_epoch_or_drops_at_one():
    held = Schedule(100, peak=1.0, warmup=0, epoch=10)
    rates = [learning_rate(step, held) for step in range(100)]
    assert len(set(rates)) == 10 and len(set(rates[30:40])) == 1
    drops = Schedule(100, peak=1.0, warmup=5, epoch=10, drops=read_drops("3:0.1,6:0.01"))
    assert [learning_rate(step, drops) for step in (4, 29, 30, 59, 60, 99)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    with pytest.raises(ValueError, match="EPOCH:SHARE"):
        read_drops("3-0.1")


def test_changes_of_augmentation_are_read_by_name():
    options = read_augmentation("mosaic=0, degrees=10, scale=0.8:1.2")
    assert (options.mosaic, options.degrees, options.scale) == (0, 10, (0.8, 1.2))
    for text in ("blur=1", "scale=2", "flip=x"):
        with pytest.raises(ValueError, match=r"blur|scale|x"):
            read_augmentation(text)


def test_the_warm_up_of_the_region_loss_ends_with_the_pictures_seen():
    cfg = CFG.replace("[yolo]\nmask=0,1", "[region]").replace("8,8, 20,16", "1,1, 2.5,2")
    assert "[region]" in cfg
    one = session(replace(OPTIONS, loss="published"), lambda: darknet(cfg=cfg))
    images, targets = make_batch(one.maker, 0)
    outputs = one.run.model(images)
    _, warm = one.loss(outputs, targets)
    one.run.step = 12_800 // 4
    _, cold = one.loss(outputs, targets)
    assert warm["box"] > cold["box"] and warm["class"] == cold["class"]


def test_a_loss_that_is_no_number_ends_with_the_step_and_advice():
    one = session()
    broken = Labelled(np.zeros((*HW, 3), np.uint8), np.zeros((0, 5), np.float32))
    with torch.no_grad():
        one.run.model.layers["3"].conv.bias.fill_(float("nan"))
    one.maker = replace(one.maker, pictures=[broken] * 4)
    with pytest.raises(DataError, match="step 1: the loss is nan"):
        run_epochs(one, Hooks())


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path, run = tmp_path / "c.safetensors", session().run
    save_checkpoint(run, path, CheckpointFacts())
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_checkpoint(run, path, CheckpointFacts(shape={"batch": 1}))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata()["step"] == "0"


def refuse(*args):
    raise OSError(28, "No space left on device")


def test_advance_trains_only_what_it_is_told_to():
    model, spec = squeezedet()
    run = begin(model, Schedule(6, warmup=1))
    maker = BatchMaker(some_pictures(), spec, 4, seed=1)
    told = []
    advance(run, loss_for(spec), lambda: make_batch(maker, run.step), Schedule(6), 4, told.append)
    assert run.step == len(told) == 4 and set(told[0]) == {"box", "objectness", "class"}
