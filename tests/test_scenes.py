"""The built-in world: the same bytes for a seed, and boxes that fit the drawn pixels exactly."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.data.world.cast import make_world
from edge.data.world.draw import paint_body
from edge.data.world.picture import MIN_VISIBLE, compose
from edge.data.world.street import paint_backdrop
from edge.data.world.world import CLASSES, SceneStream, render, scene_set
from edge.detections import iou_matrix

HW = (288, 512)


def same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.xyxy, b.xyxy)
        and np.array_equal(a.class_id, b.class_id)
    )


def test_a_seed_always_gives_the_same_bytes_and_another_seed_others():
    first = render(5)
    render(6, (180, 320), night=1.0)
    assert same(first, render(5))
    assert not np.array_equal(first.image, render(6).image)


def test_a_scene_has_the_declared_types():
    scene = render(3, (180, 320))
    assert scene.image.shape == (180, 320, 3) and scene.image.dtype == np.uint8
    assert scene.xyxy.shape == (len(scene.class_id), 4) and scene.xyxy.dtype == np.float32
    assert scene.class_id.dtype == np.int32


def test_every_class_occurs_and_nothing_is_too_small_to_see():
    scenes = list(scene_set(40, 100))
    seen = np.bincount(np.concatenate([s.class_id for s in scenes]), minlength=len(CLASSES))
    assert (seen >= 10).all(), dict(zip(CLASSES, seen, strict=True))
    boxes = np.concatenate([s.xyxy for s in scenes])
    assert (boxes[:, 3] - boxes[:, 1]).min() >= 9
    assert np.median(boxes[:, 3] - boxes[:, 1]) > 25


def test_scene_set_counts_its_seeds_upwards():
    assert all(same(a, render(s)) for a, s in zip(scene_set(3, 40), (40, 41, 42), strict=True))


def test_night_is_dark():
    day = np.mean([render(s, night=0.0).image.mean() for s in range(8)])
    night = np.mean([render(s, night=1.0).image.mean() for s in range(8)])
    assert night < 0.6 * day


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_boxes_are_the_extent_of_the_drawn_pixels_and_hidden_objects_have_none(seed):
    world = make_world(np.random.default_rng(seed), HW, night=bool(seed % 2))
    canvas, xyxy, class_id = compose(world, paint_backdrop(world.street, world.light, world.camera))
    wanted = []
    identity = 0
    for actor in sorted(world.actors, key=lambda one: -one.z):
        alone = np.zeros((*HW, 4), np.uint8)
        found = paint_body(
            alone, actor.body(), actor.pose, actor.palette, world.light, world.camera, 9
        )
        rows, columns = np.nonzero(alone[..., 3] == 9)
        if not found:
            assert len(rows) == 0
            continue
        identity += 1
        seen = np.count_nonzero(canvas[..., 3] == identity)
        assert seen <= len(rows) <= found[1]  # an object may reach beyond the image
        if seen >= MIN_VISIBLE * found[1]:
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            wanted.append((*box, CLASSES.index(actor.kind)))
    assert np.array_equal(np.column_stack([xyxy, class_id]), np.array(wanted).reshape(-1, 5))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(96, 128), (288, 512), (300, 260)]))
def test_boxes_lie_inside_the_picture_and_have_an_area(seed, hw):
    scene = render(seed, hw)
    assert (scene.xyxy[:, :2] >= 0).all()
    assert (scene.xyxy[:, 2:] <= (hw[1], hw[0])).all()
    assert (scene.xyxy[:, 2:] > scene.xyxy[:, :2]).all()


def test_what_a_van_hides_has_no_box():
    world = make_world(np.random.default_rng(11), HW, night=False)
    world.furniture.clear()
    car = next(actor for actor in world.actors if actor.kind == "car")
    car.x, car.z, car.yaw = world.camera.eye_xy[0], 17.0, 0.0
    van = replace(car, kind="van", z=10.0)
    for actors, count in (([car], 1), ([car, van], 1), ([car, replace(van, x=van.x + 2.6)], 2)):
        world.actors = actors
        _, xyxy, _ = compose(world, paint_backdrop(world.street, world.light, world.camera))
        assert len(xyxy) == count


def test_frames_of_a_stream_repeat_with_its_arguments():
    streams = [SceneStream(4, (180, 320), night=1.0) for _ in range(2)]
    for _ in range(5):
        assert same(*(next(stream) for stream in streams))


def test_objects_of_a_stream_persist_and_move_smoothly_inside_the_picture():
    hw = (180, 320)
    stream = SceneStream(2, hw, night=0.0, fps=30)
    before, kept, total = next(stream), 0, 0
    for _ in range(150):
        now = next(stream)
        assert (now.xyxy[:, :2] >= 0).all() and (now.xyxy[:, 2:] <= (hw[1], hw[0])).all()
        for box, label in zip(before.xyxy, before.class_id, strict=True):
            overlap = iou_matrix(box[None], now.xyxy[now.class_id == label])
            kept += bool(overlap.size) and overlap.max() > 0.6
            total += 1
        before = now
    assert total > 600
    assert kept / total > 0.97


def test_a_stream_drives_on():
    stream = iter(SceneStream(1, (180, 320), night=0.0))
    frames = [next(stream).image for _ in range(31)]
    step = cv2.absdiff(frames[0], frames[1]).mean()
    assert 0.5 < step < cv2.absdiff(frames[0], frames[30]).mean()


def test_a_long_drive_never_runs_empty():
    stream = SceneStream(3, (96, 160), fps=5)
    counts = [len(next(stream).class_id) for _ in range(300)]
    assert min(counts[-100:]) >= 1 and np.mean(counts) > 3


@pytest.mark.parametrize(
    "wrong", [{"hw": (8, 8)}, {"night": 1.5}, {"night": -0.1}, {"hw": (31, 512)}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError):
        render(1, **wrong)
    with pytest.raises(ValueError):
        SceneStream(1, **wrong)


def test_a_stream_refuses_no_frames_per_second():
    with pytest.raises(ValueError, match="fps"):
        SceneStream(1, fps=0)
