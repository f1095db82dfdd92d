"""The losses as the papers have them, against plain loops over numbers and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edge.spec import HeadSpec, InputContract, ModelSpec
from edge.train.losses.ciou import loss_for
from edge.train.losses.region import region_loss
from edge.train.losses.squeezedet import squeezedet_loss
from edge.train.losses.yolov1 import yolov1_loss
from edge.train.losses.yolov3 import yolov3_loss

H, W = HW = (64, 96)
CLASSES = 3
# Both sides compute in float64; box_iou adds 1e-9 to the union.
RTOL = 1e-7


def spec_of(*heads):
    names = tuple("xyz"[:CLASSES])
    return ModelSpec("small", "darknet", names, InputContract(HW), heads)


def region_spec(activation="softmax"):
    anchors = ((10.0, 12.0), (30.0, 24.0))
    return spec_of(HeadSpec.of_grid("a", "region", (4, 6), anchors, class_activation=activation))


def yolo_spec():
    grids = ((8, 12), (4, 6), (2, 3))
    shapes = (((8.0, 9.0), (12.0, 20.0)), ((24.0, 20.0),), ((50.0, 40.0), (70.0, 60.0)))
    return spec_of(
        *(
            HeadSpec.of_grid(f"h{i}", "yolo", g, a)
            for i, (g, a) in enumerate(zip(grids, shapes, strict=True))
        )
    )


def convdet_spec():
    anchors = ((10.0, 12.0), (40.0, 24.0))
    return spec_of(HeadSpec.of_grid("c", "convdet", (3, 5), anchors, class_activation="softmax"))


def some_targets(seed, images=2, each=3):
    rng = np.random.default_rng(seed)
    rows = [
        (image, rng.integers(CLASSES), *rng.uniform((8, 8), (88, 56)), *rng.uniform(8, 40, 2))
        for image in range(images)
        for _ in range(each)
    ]
    # Two objects of one cell and shape, a region, and none at all in the last picture.
    twin = np.array(rows[0])
    twin[1] = (twin[1] + 1) % CLASSES
    region = (0, -1, 70.0, 20.0, 30.0, 25.0)
    return torch.tensor(np.array([*rows, twin, region]), dtype=torch.float64)


def some_outputs(spec, seed, images=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        0.7 * torch.randn(images, h.channels(CLASSES), *h.grid_hw, generator=generator).double()
        for h in spec.heads
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(logit, wanted):
    return -wanted * math.log(sigmoid(logit)) - (1 - wanted) * math.log(1 - sigmoid(logit))


def cross_entropy(logits, label):
    return math.log(sum(math.exp(v) for v in logits)) - logits[label]


def overlap(a, b):
    """Width and height of what two boxes by centre and size have in common, multiplied."""
    sides = [
        max(
            0.0,
            min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
            - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2),
        )
        for i in (0, 1)
    ]
    return sides[0] * sides[1]


def iou(a, b):
    inter = overlap(a, b)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def left_alone(box, rows, ignore):
    """Whether a prediction that is no match counts for nothing."""
    for label, *target in rows:
        if label >= 0 and iou(box, target) > ignore:
            return True
        if label < 0 and overlap(box, target) / (box[2] * box[3]) > 0.5:
            return True
    return False


def cells(spec, outputs):
    """(head number, image, anchor, row, column, raw numbers, box) of every prediction."""
    for number, (head, output) in enumerate(zip(spec.heads, outputs, strict=True)):
        rows, columns = head.grid_hw
        grid = output.detach().numpy().reshape(len(output), len(head.anchors), -1, rows, columns)
        for image, anchor, row, column in np.ndindex(len(output), len(head.anchors), rows, columns):
            raw = grid[image, anchor, :, row, column].tolist()
            box = (
                (column + sigmoid(raw[0])) * W / columns,
                (row + sigmoid(raw[1])) * H / rows,
                head.anchors[anchor][0] * math.exp(raw[2]),
                head.anchors[anchor][1] * math.exp(raw[3]),
            )
            yield number, image, anchor, row, column, raw, box


def owners(spec, targets):
    """The last object of each prediction: {(head, image, anchor, row, column): target}."""
    found = {}
    for image, label, *box in targets.tolist():
        if label < 0:
            continue
        fits = [
            (iou((0, 0, *anchor), (0, 0, *box[2:])), -number, -a)
            for number, head in enumerate(spec.heads)
            for a, anchor in enumerate(head.anchors)
        ]
        _, number, anchor = max(fits)
        rows, columns = spec.heads[-number].grid_hw
        at = (-number, int(image), -anchor, int(box[1] * rows / H), int(box[0] * columns / W))
        found[at] = (int(label), box)
    return found


def rows_of(targets, image):
    return [row[1:] for row in targets.tolist() if row[0] == image]


@pytest.mark.parametrize("seed", range(3))
def test_yolov3_is_the_sum_that_the_paper_describes(seed):
    spec, targets = yolo_spec(), some_targets(seed)
    outputs, own = some_outputs(spec, seed), owners(spec, targets)
    wanted = {"box": 0.0, "objectness": 0.0, "class": 0.0}
    seen = set()
    for number, image, anchor, row, column, raw, box in cells(spec, outputs):
        at = (number, image, anchor, row, column)
        if at in own:
            seen.add(number)
            label, (x, y, w, h) = own[at]
            rows, columns = spec.heads[number].grid_hw
            aw, ah = spec.heads[number].anchors[anchor]
            weight = 2 - w * h / (W * H)
            wanted["box"] += weight * bce(raw[0], x * columns / W - column)
            wanted["box"] += weight * bce(raw[1], y * rows / H - row)
            wanted["box"] += weight * (raw[2] - math.log(w / aw)) ** 2 / 2
            wanted["box"] += weight * (raw[3] - math.log(h / ah)) ** 2 / 2
            wanted["objectness"] += bce(raw[4], 1)
            wanted["class"] += sum(bce(raw[5 + c], c == label) for c in range(CLASSES))
        elif not left_alone(box, rows_of(targets, image), 0.5):
            wanted["objectness"] += bce(raw[4], 0)
    total, parts = yolov3_loss(outputs, targets, spec)
    assert len(seen) > 1, "objects of one scale alone show little"
    for name, value in wanted.items():
        assert parts[name] == pytest.approx(value / len(outputs[0]), rel=RTOL)
    assert total.item() == pytest.approx(sum(parts.values()))


@pytest.mark.parametrize("seen", [0, 12_800])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_yolov2_is_the_sum_that_darknets_region_layer_minimises(seen, activation):
    spec, targets = region_spec(activation), some_targets(5)
    outputs, own = some_outputs(spec, 6), owners(spec, targets)
    wanted = {"box": 0.0, "objectness": 0.0, "class": 0.0}
    alone = 0
    for number, image, anchor, row, column, raw, box in cells(spec, outputs):
        at, level = (number, image, anchor, row, column), sigmoid(raw[4])
        if at in own:
            label, (x, y, w, h) = own[at]
            rows, columns = spec.heads[0].grid_hw
            aw, ah = spec.heads[0].anchors[anchor]
            errors = (
                sigmoid(raw[0]) - (x * columns / W - column),
                sigmoid(raw[1]) - (y * rows / H - row),
                raw[2] - math.log(w / aw),
                raw[3] - math.log(h / ah),
            )
            wanted["box"] += (2 - w * h / (W * H)) * sum(e * e for e in errors) / 2
            wanted["objectness"] += 5 * (iou(box, (x, y, w, h)) - level) ** 2 / 2
            if activation == "softmax":
                wanted["class"] += cross_entropy(raw[5:], label)
            else:
                wanted["class"] += sum(bce(raw[5 + c], c == label) for c in range(CLASSES))
            continue
        if left_alone(box, rows_of(targets, image), 0.6):
            alone += 1
        else:
            wanted["objectness"] += level**2 / 2
        if seen < 12_800:
            errors = (sigmoid(raw[0]) - 0.5, sigmoid(raw[1]) - 0.5, raw[2], raw[3])
            wanted["box"] += 0.01 * sum(e * e for e in errors) / 2
    _, parts = region_loss(outputs, targets, spec, seen)
    assert alone and own
    for name, value in wanted.items():
        assert parts[name] == pytest.approx(value / len(outputs[0]), rel=RTOL)


def test_squeezedet_is_equation_4_of_the_paper():
    spec, targets = convdet_spec(), some_targets(2, each=4)
    (output,) = some_outputs(spec, 3)
    head, (rows, columns) = spec.heads[0], spec.heads[0].grid_hw
    count, images = len(head.anchors), len(output)
    number = output.numpy()
    places = list(np.ndindex(count, rows, columns))

    def anchor_of(place):
        k, i, j = place
        return ((j + 1) * W / (columns + 1), (i + 1) * H / (rows + 1), *head.anchors[k])

    own = {}
    for image, label, *box in targets.tolist():
        if label < 0:
            continue
        free = [place for place in places if (int(image), place) not in own]
        best = max(free, key=lambda place: iou(anchor_of(place), box))
        assert iou(anchor_of(best), box) > 0
        own[int(image), best] = (int(label), box)
    box_sum = right = wrong = label_sum = 0.0
    for image in range(images):
        for place in places:
            k, i, j = place
            anchor = anchor_of(place)
            delta = number[image, count * (CLASSES + 1) + 4 * k :][:4, i, j]
            level = sigmoid(number[image, count * CLASSES + k, i, j])
            box = (
                anchor[0] + delta[0] * anchor[2],
                anchor[1] + delta[1] * anchor[3],
                anchor[2] * math.exp(delta[2]),
                anchor[3] * math.exp(delta[3]),
            )
            if (image, place) in own:
                label, truth = own[image, place]
                aim = (
                    (truth[0] - anchor[0]) / anchor[2],
                    (truth[1] - anchor[1]) / anchor[3],
                    math.log(truth[2] / anchor[2]),
                    math.log(truth[3] / anchor[3]),
                )
                box_sum += sum((d - a) ** 2 for d, a in zip(delta, aim, strict=True))
                right += (iou(box, truth) - level) ** 2
                logits = number[image, CLASSES * k : CLASSES * (k + 1), i, j].tolist()
                label_sum += cross_entropy(logits, label)
            elif not left_alone(box, [r for r in rows_of(targets, image) if r[0] < 0], 1):
                wrong += level**2
    objects, others = len(own), images * len(places) - len(own)
    _, parts = squeezedet_loss(output, targets, spec)
    assert parts["box"] == pytest.approx(5 * box_sum / objects, rel=RTOL)
    assert parts["objectness"] == pytest.approx(
        75 * right / objects + 100 * wrong / others, rel=RTOL
    )
    assert parts["class"] == pytest.approx(label_sum / objects, rel=RTOL)


def yolov1_output(seed, images=3, boxes=2, grid=(4, 6)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, 5 * boxes + CLASSES, *grid, generator=generator).double()


def test_yolov1_is_equation_3_of_the_paper():
    targets, output = some_targets(4), yolov1_output(8)
    rows, columns = output.shape[2:]
    number = output.numpy()
    own = {}
    for image, label, x, y, w, h in targets.tolist():
        if label >= 0:
            cell = int(image), int(y * rows / H), int(x * columns / W)
            own.setdefault(cell, (int(label), (x, y, w, h)))
    box_sum = objectness = label_sum = 0.0
    for image, i, j in np.ndindex(len(output), rows, columns):
        cell = number[image, :, i, j]
        parts = [cell[5 * b : 5 * b + 5] for b in range(2)]
        if (image, i, j) not in own:
            objectness += 0.5 * sum(part[4] ** 2 for part in parts)
            continue
        label, truth = own[image, i, j]
        boxes = [
            ((j + p[0]) * W / columns, (i + p[1]) * H / rows, p[2] ** 2 * W, p[3] ** 2 * H)
            for p in parts
        ]
        fits = [iou(box, truth) for box in boxes]
        best = int(fits[1] > fits[0])
        mine, other = parts[best], parts[1 - best]
        aim = (
            truth[0] * columns / W - j,
            truth[1] * rows / H - i,
            math.sqrt(truth[2] / W),
            math.sqrt(truth[3] / H),
        )
        box_sum += 5 * sum((p - a) ** 2 for p, a in zip(mine, aim, strict=False))
        objectness += (mine[4] - fits[best]) ** 2 + 0.5 * other[4] ** 2
        label_sum += sum((cell[10 + c] - (c == label)) ** 2 for c in range(CLASSES))
    _, found = yolov1_loss(output, targets, HW, CLASSES)
    assert found["box"] == pytest.approx(box_sum / len(output), rel=RTOL)
    assert found["objectness"] == pytest.approx(objectness / len(output), rel=RTOL)
    assert found["class"] == pytest.approx(label_sum / len(output), rel=RTOL)


def differentiable():
    """Name, loss of one tensor, and a small tensor for it."""
    targets = some_targets(9, images=1, each=2)
    small = HeadSpec.of_grid("a", "region", (2, 3), ((20.0, 22.0),), class_activation="softmax")
    region = spec_of(small)
    yolo = spec_of(HeadSpec.of_grid("a", "yolo", (2, 3), ((20.0, 22.0),), scale_xy=1.5))
    squeeze = spec_of(
        HeadSpec.of_grid("a", "convdet", (2, 3), ((20.0, 22.0),), class_activation="softmax")
    )
    one = some_outputs(region, 1, images=1)[0]
    no_rescore = {"rescore": False, "seen": 0}
    yield "region", lambda x: region_loss([x], targets, region, **no_rescore)[0], one
    yield "yolov3", lambda x: yolov3_loss([x], targets, yolo)[0], one
    yield "published yolo", lambda x: loss_for(yolo, "published")([x], targets)[0], one
    # Confidence aims at an IoU that passes no gradient: with boxes held still it is a constant.
    yield "squeezedet", held(lambda x: squeezedet_loss(x, targets, squeeze)[0], slice(4, 8)), one
    yield "region, IoU", held(lambda x: region_loss([x], targets, region)[0], slice(0, 4)), one
    still = yolov1_output(3, images=1, grid=(2, 3))
    yield "yolov1", held(lambda x: yolov1_loss(x, targets, HW, CLASSES)[0], V1_BOXES), still


V1_BOXES = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])


def held(loss, channels):
    def with_boxes_still(x):
        y = x.clone()
        y[:, channels] = x[:, channels].detach()
        return loss(y)

    return with_boxes_still


@pytest.mark.parametrize("case", list(differentiable()), ids=lambda case: case[0])
def test_gradients_are_those_of_the_loss(case):
    name, loss, start = case
    x = start.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(loss(x), x)
    assert analytic.abs().max() > 0, name
    free = (analytic != 0).nonzero()
    # Channels held still have no analytic gradient by construction, so only the others are moved.
    for place in free[:: max(1, len(free) // 60)]:
        step = torch.zeros_like(start)
        step[tuple(place)] = 1e-6
        slope = (loss(start + step) - loss(start - step)).item() / 2e-6
        assert slope == pytest.approx(analytic[tuple(place)].item(), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("kind", ["yolo", "region", "yolov1 still", "squeezedet still"])
def test_torchs_own_gradient_check_agrees(kind):
    targets = some_targets(9, images=1, each=2)
    head = HeadSpec.of_grid("a", "yolo", (2, 2), ((20.0, 22.0),))
    if kind == "yolo":
        spec = spec_of(head)
        x = some_outputs(spec, 4, images=1)[0].requires_grad_()
        assert torch.autograd.gradcheck(lambda v: yolov3_loss([v], targets, spec)[0], x)
    elif kind == "region":
        spec = spec_of(HeadSpec.of_grid("a", "region", (2, 2), ((20.0, 22.0),), "softmax"))
        x = some_outputs(spec, 4, images=1)[0].requires_grad_()
        call = lambda v: region_loss([v], targets, spec, 0, rescore=False)[0]  # noqa: E731
        assert torch.autograd.gradcheck(call, x)
    elif kind == "squeezedet still":
        spec = spec_of(HeadSpec.of_grid("a", "convdet", (2, 2), ((20.0, 22.0),), "softmax"))
        whole = some_outputs(spec, 4, images=1)[0]
        x = whole[:, :4].clone().requires_grad_()
        call = lambda v: squeezedet_loss(torch.cat([v, whole[:, 4:]], 1), targets, spec)[0]  # noqa: E731
        assert torch.autograd.gradcheck(call, x)
    else:
        whole = yolov1_output(3, images=1, boxes=1, grid=(2, 2))
        x = whole[:, 4:].clone().requires_grad_()
        call = lambda v: yolov1_loss(torch.cat([whole[:, :4], v], 1), targets, HW, CLASSES)[0]  # noqa: E731
        assert torch.autograd.gradcheck(call, x)


def test_the_iou_that_confidence_aims_at_passes_no_gradient():
    targets, spec = some_targets(9, images=1, each=2), convdet_spec()
    x = some_outputs(spec, 1, images=1)[0].requires_grad_()
    total, _ = squeezedet_loss(x, targets, spec)
    total.backward()
    confidence = len(spec.heads[0].anchors) * CLASSES
    deltas = x.grad[:, confidence + len(spec.heads[0].anchors) :]
    # Deltas of anchors without an object touch nothing but that IoU.
    assert 0 < (deltas != 0).sum() <= 4 * 3


@pytest.mark.parametrize("kind", ["ciou", "published"])
@pytest.mark.parametrize(
    "spec", [yolo_spec(), region_spec(), convdet_spec()], ids=lambda s: s.heads[0].kind
)
def test_rare_classes_weigh_more_where_they_are_asked_to(spec, kind):
    targets, outputs = some_targets(1), some_outputs(spec, 2)
    _, plain = loss_for(spec, kind)(outputs, targets)
    _, double = loss_for(spec, kind, weights=torch.full((CLASSES,), 2.0))(outputs, targets)
    assert double["class"] == pytest.approx(2 * plain["class"])
    assert double["box"] == plain["box"] and double["objectness"] == plain["objectness"]


@pytest.mark.parametrize("kind", ["ciou", "published"])
@pytest.mark.parametrize(
    "spec", [yolo_spec(), region_spec(), convdet_spec()], ids=lambda s: s.heads[0].kind
)
def test_a_region_is_no_object_and_silences_what_lies_inside(spec, kind):
    outputs = some_outputs(spec, 2, images=1)
    whole = torch.tensor([[0, -1, W / 2, H / 2, 4.0 * W, 4.0 * H]], dtype=torch.float64)
    _, nothing = loss_for(spec, kind)(outputs, whole[:0])
    _, covered = loss_for(spec, kind)(outputs, whole)
    assert nothing["objectness"] > 0 and covered["objectness"] == 0
    assert covered["class"] == 0


def test_another_input_size_changes_the_grid_and_not_the_anchors():
    spec = yolo_spec()
    targets = some_targets(3)
    grown = [
        torch.zeros(3, h.channels(CLASSES), 2 * h.grid_hw[0], 2 * h.grid_hw[1]) for h in spec.heads
    ]
    _, parts = loss_for(spec, "published")(grown, targets * torch.tensor([1, 1, 2, 2, 1, 1]))
    doubled = ModelSpec(
        "double",
        "darknet",
        spec.classes,
        InputContract((2 * H, 2 * W)),
        tuple(
            HeadSpec.of_grid(h.tensor, h.kind, (2 * h.grid_hw[0], 2 * h.grid_hw[1]), h.anchors)
            for h in spec.heads
        ),
    )
    _, wanted = loss_for(doubled, "published")(grown, targets * torch.tensor([1, 1, 2, 2, 1, 1]))
    assert parts == wanted
    assert parts["box"] > 0


def test_what_cannot_be_trained_is_refused_by_name():
    with pytest.raises(ValueError, match="known: ciou, published"):
        loss_for(yolo_spec(), "focal")
    mixed = spec_of(yolo_spec().heads[0], region_spec().heads[0])
    with pytest.raises(ValueError, match="region"):
        loss_for(mixed)
