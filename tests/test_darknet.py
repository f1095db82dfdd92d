"""Darknet models: OpenCV's DNN computes the same heads, and weights files survive unchanged."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge.errors import ArtifactError
from edge.models.class_names import COCO, VOC, class_names
from edge.models.darknet import Darknet, load_darknet
from edge.models.darknet_cfg import parse_cfg, read_cfg
from edge.models.darknet_weights import Header, count_floats, load_weights, save_weights
from edge.models.initialise import initialise
from edge.models.tracing import trace
from edge.names import read_names
from edge.runtime.ops_cpu import Decoder

TRAINED = [
    "mbv2-yolo-fastest-voc-v1",
    "mbv2-yolov3-nano-coco",
    "yolo-fastest-1.1",
    "yololite-voc-trial3",
    "yololite-voc-trial3-noBatch",
    "yololite-voc-trial7",
    "yolov3-tiny-aix2022",
    "yolov4-tiny-aix2023",
]
PUBLISHED = [
    "tiny-yolo",
    "tiny-yolo-voc",
    "yolov2",
    "yolov2-tiny",
    "yolov2-tiny-voc",
    "yolov2-voc",
    "yolov3",
    "yolov3-tiny",
    "yolov3-tiny-prn",
    "yolov3-tiny_3l",
    "yolov4-tiny",
]

NET = "[net]\nwidth=64\nheight=96\nchannels=3\n"
CONV = "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n"
YOLO = (
    "[convolutional]\nfilters=14\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    "[yolo]\nmask=1,2\nanchors=1,2, 3,4, 5,6\nclasses=2\nnum=3\n"
)


NEW = YOLO.replace("linear", "logistic") + "scale_x_y=2.0\nnew_coords=1\n"


def small(body: str, net: str = NET) -> Darknet:
    return load_parsed(net + CONV + body + YOLO)


def load_parsed(text: str) -> Darknet:
    return Darknet(parse_cfg(text, "some.cfg"))


def opencv_heads(cfg: Path, weights: Path, heads: list[str], images: np.ndarray) -> list:
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    net.enableFusion(False)
    net.setInput(images)
    return net.forward([f"conv_{head.split('.')[1]}" for head in heads])


def assert_heads_equal_opencv(cfg: Path, weights: Path, images: np.ndarray | None = None) -> None:
    model, spec = load_darknet(cfg, weights)
    if images is None:
        rng = np.random.default_rng(0)
        images = rng.random((1, 3, *spec.contract.hw), np.float32)
    with torch.no_grad():
        ours = model(torch.from_numpy(images))
    theirs = opencv_heads(cfg, weights, [head.tensor for head in spec.heads], images)
    assert len(ours) == len(theirs) == len(spec.heads)
    for mine, reference, head in zip(ours, theirs, spec.heads, strict=True):
        shape = (1, head.channels(len(spec.classes)), *head.grid_hw)
        assert tuple(mine.shape) == reference.shape == shape
        assert np.abs(reference).max() > 0.01
        np.testing.assert_allclose(mine.numpy(), reference, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_heads_equal_opencv(edge_data: Path, name: str) -> None:
    folder = edge_data / "weights"
    picture = cv2.imread(str(edge_data / "photos" / "dog.jpg"))
    hw = load_darknet(folder / f"{name}.cfg")[1].contract.hw
    blob = cv2.dnn.blobFromImage(picture, 1 / 255, hw[::-1], swapRB=True)
    assert_heads_equal_opencv(folder / f"{name}.cfg", folder / f"{name}.weights", blob)


def test_every_pair_of_the_data_is_tested(edge_data: Path) -> None:
    pairs = {path.stem for path in (edge_data / "weights").glob("*.weights")}
    assert pairs == set(TRAINED)


LAYERS = {
    "odd sizes": "[maxpool]\nsize=2\nstride=2\n[maxpool]\nsize=3\nstride=2\n",
    "maxpool of stride 1": "[maxpool]\nsize=2\nstride=1\n[maxpool]\nsize=5\nstride=1\n",
    "reorg": CONV.replace("filters=8", "filters=16") + "[reorg]\nstride=2\n",
    "route of groups": "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n",
    "route of several": CONV.replace("stride=2", "stride=1") + "[route]\nlayers=-1,0\n",
    "upsample by three": "[upsample]\nstride=3\n",
    "shortcut with mish": CONV.replace("stride=2", "stride=1")
    + "[shortcut]\nfrom=0\nactivation=mish\n",
    "groups": CONV.replace("pad=1", "pad=1\ngroups=4"),
    "upsample": CONV + "[upsample]\nstride=2\n[route]\nlayers=-1,0\n",
    "shortcut": CONV.replace("stride=2", "stride=1") + "[shortcut]\nfrom=-2\nactivation=leaky\n",
    "shortcut to a wider layer": CONV.replace("stride=2", "stride=1").replace("=8", "=4")
    + "[shortcut]\nfrom=-2\nactivation=linear\n",
    "depthwise": CONV.replace("pad=1", "pad=1\ngroups=8"),
    "padding": CONV.replace("pad=1", "padding=2"),
    "squeeze and excitation": "[avgpool]\n"
    + CONV.replace("size=3\nstride=2", "size=1\nstride=1").replace("leaky", "logistic")
    + "[scale_channels]\nfrom=0\nactivation=linear\n",
    "spatial attention": CONV.replace("stride=2", "stride=1").replace("leaky", "logistic")
    + "[sam]\nfrom=-2\nactivation=linear\n",
    "dropout": "[dropout]\nprobability=.5\n",
    **{name: CONV.replace("leaky", name) for name in ("relu", "logistic", "mish", "swish", "tanh")},
}


@pytest.mark.parametrize("case", LAYERS)
def test_layer_equals_opencv(tmp_path: Path, case: str) -> None:
    net = NET.replace("64", "66").replace("96", "98") if case == "odd sizes" else NET
    cfg, weights = tmp_path / "a.cfg", tmp_path / "a.weights"
    cfg.write_text(net + CONV + LAYERS[case] + YOLO)
    save_weights(load_darknet(cfg, seed=3)[0], weights)
    assert_heads_equal_opencv(cfg, weights)


def test_new_coords_equal_opencv_in_heads_and_boxes(tmp_path: Path) -> None:
    cfg, weights = tmp_path / "a.cfg", tmp_path / "a.weights"
    cfg.write_text(NET + CONV + NEW + "thresh=0\n")
    model, spec = load_darknet(cfg, seed=3, names=write_names(tmp_path))
    head = spec.heads[0]
    with torch.no_grad():  # Boxes of every size, objects everywhere.
        model.layers["1"].conv.weight *= 2
        model.layers["1"].conv.bias.view(2, 7)[:, 4] = 0
    save_weights(model, weights)
    images = np.random.default_rng(0).random((1, 3, 96, 64), np.float32)
    with torch.no_grad():
        (raw,) = model(torch.from_numpy(images))
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    net.setInput(images)
    theirs, rows = net.forward(["logistic_2", "yolo_2"])
    assert head.tensor == "layers.1.sizes" and head.scale_xy == 2.0
    ours = raw.reshape(2, 7, *head.grid_hw)
    sigmoid = ours.sigmoid()
    sigmoid[:, 2:4] = ours[:, 2:4].exp().sqrt() / 2
    np.testing.assert_allclose(sigmoid.reshape(theirs.shape), theirs, rtol=0, atol=1e-3)
    assert theirs.reshape(2, 7, -1)[:, 2:4].std(axis=2).min() > 0.05
    # OpenCV's rows go cell by cell, anchor by anchor; ours anchor by anchor.
    cells = rows.reshape(-1, 2, 7).swapaxes(0, 1).reshape(-1, 7)
    found = Decoder(spec)([raw.numpy()], 1e-6)
    assert len(found) == len(cells) == 2 * 48 * 32
    centre, size = cells[:, :2] * (64, 96), cells[:, 2:4] * (64, 96)
    wanted = np.hstack([centre - size / 2, centre + size / 2])
    np.testing.assert_allclose(found.xyxy, wanted, rtol=1e-3, atol=1e-2)
    best = theirs.reshape(2, 7, -1).swapaxes(1, 2).reshape(-1, 7)
    np.testing.assert_allclose(found.score, best[:, 4] * best[:, 5:].max(axis=1), atol=1e-3)
    np.testing.assert_allclose(cells[:, 4], best[:, 4], atol=1e-6)


def write_names(folder: Path) -> Path:
    (folder / "a.names").write_text("x\ny\n")
    return folder / "a.names"


@pytest.mark.parametrize(("dilation", "size", "stride"), [(2, 3, 1), (3, 3, 2), (2, 5, 1)])
def test_a_dilated_kernel_is_a_wide_one_with_zeros_between(
    tmp_path: Path, dilation: int, size: int, stride: int
) -> None:
    """OpenCV passes `dilation` over without a word, so it gets the wide kernel."""
    given = CONV.replace("size=3", f"size={size}").replace("stride=2", f"stride={stride}")
    narrow = load_parsed(NET + given.replace("pad=1", f"pad=1\ndilation={dilation}") + YOLO)
    initialise(narrow, narrow.spec("a", ["x", "y"]), seed=5)
    reach = dilation * (size - 1) + 1
    cfg, weights = tmp_path / "a.cfg", tmp_path / "a.weights"
    cfg.write_text(NET + given.replace(f"size={size}", f"size={reach}") + YOLO)
    wide = Darknet(read_cfg(cfg))
    state = dict(narrow.state_dict())
    kernel = torch.zeros(8, 3, reach, reach)
    kernel[:, :, ::dilation, ::dilation] = state["layers.0.conv.weight"]
    wide.load_state_dict(state | {"layers.0.conv.weight": kernel})
    save_weights(wide, weights)
    images = np.random.default_rng(0).random((1, 3, 96, 64), np.float32)
    (theirs,) = opencv_heads(cfg, weights, ["layers.1.conv"], images)
    with torch.no_grad():
        (ours,) = narrow.eval()(torch.from_numpy(images))
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-3)


def test_route_takes_its_group_of_each_layer() -> None:
    wide = CONV.replace("stride=2", "stride=1").replace("=8", "=16")
    model = small(wide + "[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n")
    first, second = torch.rand(1, 16, 3, 3), torch.rand(1, 8, 3, 3)
    joined = torch.cat([first[:, 8:], second[:, 4:]], dim=1)
    assert torch.equal(model.layers["2"](first, second), joined)
    assert model.layers["3"].conv.in_channels == 12


def test_relu6_clips_at_six() -> None:
    model = small(CONV.replace("leaky", "relu6")).eval()
    values = torch.tensor([-1.0, 3.0, 7.0])
    assert model.get_submodule("layers.1.act")(values).tolist() == [0, 3, 6]


@pytest.mark.parametrize("name", ["yolov3-tiny-prn", "yolov4-tiny"])
def test_published_cfg_with_random_weights_equals_opencv(
    edge_data: Path, tmp_path: Path, name: str
) -> None:
    text = (edge_data / "cfg" / f"{name}.cfg").read_text()
    cfg, weights = tmp_path / "a.cfg", tmp_path / "a.weights"
    cfg.write_text(text.replace("width=416", "width=96").replace("height=416", "height=128"))
    save_weights(load_darknet(cfg)[0], weights)
    assert_heads_equal_opencv(cfg, weights)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cfg_builds(edge_data: Path, name: str) -> None:
    model = Darknet(read_cfg(edge_data / "cfg" / f"{name}.cfg")).eval()
    spec = model.spec(name, [str(i) for i in range(model.classes)])
    nodes = trace(model).graph.nodes
    paths = {node.target for node in nodes if node.op == "call_module"}
    assert {head.tensor for head in spec.heads} <= paths
    assert {node.op for node in nodes} == {"placeholder", "call_module", "output"}


def test_classifier_is_refused(edge_data: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tiny.cfg:167: layer 21 \[softmax\]: unknown section"):
        load_darknet(edge_data / "cfg" / "tiny.cfg")


@pytest.mark.parametrize("name", TRAINED)
def test_weights_round_trip_is_byte_exact(edge_data: Path, tmp_path: Path, name: str) -> None:
    source = edge_data / "weights" / f"{name}.weights"
    model = Darknet(read_cfg(source.with_suffix(".cfg")))
    save_weights(model, tmp_path / "copy", load_weights(model, source))
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (Header(0, 1, 0, 2**32 - 1), 16),
        (Header(0, 2, 5, 2**40), 20),
        (Header(1, 0, 0, 7), 20),
        (Header(1001, 0, 0, 7), 16),
    ],
)
def test_both_headers_keep_the_pictures_seen(tmp_path: Path, header: Header, size: int) -> None:
    model = small("")
    save_weights(model, tmp_path / "w", header)
    assert (tmp_path / "w").stat().st_size == size + 4 * count_floats(model)
    assert load_weights(model, tmp_path / "w") == header


def test_traced_paths_are_layer_numbers() -> None:
    model = small("[maxpool]\nsize=2\nstride=2\n[route]\nlayers=-1\ngroups=2\ngroup_id=0\n")
    targets = [n.target for n in trace(model).graph.nodes if n.op == "call_module"]
    expected = ["0.conv", "0.norm", "0.act", "1.pool", "2.group.0", "3.conv"]
    assert targets == [f"layers.{name}" for name in expected]


def test_region_anchors_become_pixels_and_classes_softmax(edge_data: Path) -> None:
    _, spec = load_darknet(edge_data / "cfg" / "yolov2-tiny-voc.cfg")
    (head,) = spec.heads
    assert (head.kind, head.grid_hw, head.class_activation) == ("region", (13, 13), "softmax")
    assert head.anchors[0] == pytest.approx((1.08 * 32, 1.19 * 32))
    assert spec.classes[14] == "person" and spec.contract.resize == "letterbox"


def test_yolo_head_takes_its_masked_anchors(edge_data: Path) -> None:
    _, spec = load_darknet(edge_data / "cfg" / "yolov4-tiny.cfg", resize="stretch")
    assert [head.grid_hw for head in spec.heads] == [(13, 13), (26, 26)]
    assert spec.heads[0].anchors == ((81, 82), (135, 169), (344, 319))
    assert {head.scale_xy for head in spec.heads} == {1.05}
    assert spec.classes[0] == "person" and spec.contract.resize == "stretch"


def test_contract_is_height_then_width() -> None:
    spec = small("").spec("a", ["x", "y"])
    assert spec.contract.hw == (96, 64) and spec.heads[0].grid_hw == (48, 32)


@pytest.mark.parametrize(
    ("cfg", "weights", "expected", "found"),
    [
        ("cfg/yolov4-tiny", "broken/yolov4-tiny.TRUNCATED", "6062814", "90828 and 2 bytes"),
        ("weights/broken/yololite-voc-trial8", "broken/yololite-voc-trial8", "", "572317"),
        ("weights/broken/yololite-voc-trial11", "broken/yololite-voc-trial11", "", "572317"),
    ],
)
def test_wrong_length_says_floats_expected_and_found(
    edge_data: Path, cfg: str, weights: str, expected: str, found: str
) -> None:
    model = Darknet(read_cfg(edge_data / f"{cfg}.cfg"))
    with pytest.raises(ArtifactError) as error:
        load_weights(model, edge_data / "weights" / f"{weights}.weights")
    takes = expected or str(count_floats(model))
    assert f"takes {takes} floats and the file holds {found}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes hold no header"),
        (b"1234567", "7 bytes hold no header"),
        (struct.pack("<iii", 0, 2, 5) + b"1234", "ends inside its header"),
        (np.random.default_rng(0).bytes(5000), "the file holds 124"),
    ],
)
def test_foreign_weights_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        load_weights(small(""), tmp_path / "w")
    with pytest.raises(ArtifactError, match="No such file"):
        load_weights(small(""), tmp_path / "absent")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_layer(tmp_path: Path, value: float) -> None:
    model = small(CONV)
    model.layers["1"].conv.weight.data[3, 2, 1, 0] = value
    save_weights(model, tmp_path / "w")
    with pytest.raises(ArtifactError, match="layer 1 holds NaN or infinite"):
        load_weights(small(CONV), tmp_path / "w")


def test_tiny_negative_variance_passes_and_a_large_one_does_not(tmp_path: Path) -> None:
    model = small(CONV)
    for variance, fits in ((-7e-44, True), (-1e-3, False)):
        model.layers["1"].norm.running_var[0] = variance
        save_weights(model, tmp_path / "w")
        if fits:
            load_weights(model, tmp_path / "w")
            continue
        with pytest.raises(ArtifactError, match=r"layer 1 .*variance of -0.001"):
            load_weights(model, tmp_path / "w")


BAD = [
    ("", "holds 0 sections"),
    (NET, "holds 1 sections"),
    ("width=3\n", ":1: neither"),
    (NET + "[convolutional]\nfilters\n", ":6: neither"),
    (CONV + YOLO, r":1: \[convolutional\]: the first section must be \[net\]"),
    (NET + CONV, "not a detector"),
    (NET + CONV + "[crnn]\n" + YOLO, r":12: layer 1 \[crnn\]: unknown section"),
    (NET + CONV.replace("filters=8\n", "") + YOLO, r":5: layer 0 .*the key filters is missing"),
    (NET + CONV.replace("=8", "=x") + YOLO, "filters=x is not a number"),
    (NET + CONV.replace("=8", "=0") + YOLO, "filters=0 must be 1 or more"),
    (NET + CONV.replace("leaky", "gelu") + YOLO, "unknown activation gelu; known: leaky, linear"),
    (NET + CONV.replace("leaky", "hard_mish") + YOLO, r":5: .*unknown activation hard_mish"),
    (NET + CONV.replace("pad=1", "padding=-1") + YOLO, "padding=-1 is negative"),
    (NET + CONV.replace("=8", "=80000000") + YOLO, "its kernel would have 80000000x3x3x3 numbers"),
    (NET.replace("=64", "=6400000") + CONV + YOLO, "its output would have 8x48x3200000 numbers"),
    (NET.replace("=64", "=" + "9" * 5000) + CONV + YOLO, "width=9{60} is not a number"),
    (NET + CONV + "[upsample]\nstride=90000\n" + YOLO, r":12: layer 1 \[upsample\]: its output"),
    (NET + CONV + "[maxpool]\nsize=2\nstride_x=1\nstride_y=2\n" + YOLO, "stride_x=1 differ"),
    (NET + CONV + "[shortcut]\nfrom=-1,-2\n" + YOLO, "takes one layer, not several"),
    (NET + CONV + CONV + "[sam]\nfrom=-2\n" + YOLO, r"\[sam\]: cannot scale"),
    (NET + CONV.replace("pad=1", "dilation=2") + YOLO, "dilation=2 takes an odd size and pad=1"),
    (NET + CONV + "[local_avgpool]\nsize=2\n" + YOLO, r"\[local_avgpool\]: unknown section"),
    (NET + CONV + "[maxpool]\nmaxpool_depth=1\n" + YOLO, "maxpool_depth=1 is not supported"),
    (NET + CONV + YOLO.replace("5,6", "-5,6"), "anchors=1,2,3,4,-5,6: a size must be above 0"),
    (NET + CONV + YOLO.replace("5,6", "nan,6"), "anchors=1,2,3,4,nan,6 is not a number"),
    (NET + CONV + YOLO + "scale_x_y=inf\n", "scale_x_y=inf is not a number"),
    (NET + CONV.replace("pad=1", "pad=1\ngroups=2") + YOLO, "groups=2 divides not"),
    (NET + CONV.replace("pad=1", "pad=1\nxnor=1") + YOLO, "xnor=1 is not supported"),
    (NET.replace("width=64\n", "") + CONV + YOLO, r"\[net\]: the key width is missing"),
    (NET.replace("channels=3", "channels=1") + CONV + YOLO, "channels=1"),
    (NET + CONV + "[route]\nlayers=5\n" + YOLO, "refers to layer 5"),
    (NET + CONV + "[route]\nlayers=-3\n" + YOLO, "refers to layer -3"),
    (NET + CONV + CONV + "[route]\nlayers=-1,-2\n" + YOLO, "different size"),
    (NET + CONV + "[route]\nlayers=0\ngroups=3\n" + YOLO, "groups=3"),
    (NET + CONV + CONV + "[shortcut]\nfrom=-2\n" + YOLO, "cannot add"),
    (NET + CONV + CONV + "[scale_channels]\nfrom=-2\n" + YOLO, "cannot scale"),
    (NET + CONV + "[reorg]\nstride=5\n" + YOLO, "does not divide"),
    (NET + CONV + YOLO.replace("filters=14", "filters=15"), "take 14 channels .* gives 15"),
    (NET + CONV + YOLO.replace("num=3", "num=4"), "num=4 takes 8 anchor numbers"),
    (NET + CONV + YOLO.replace("mask=1,2", "mask=1,3"), "mask=1,3 does not fit"),
    (NET + CONV + YOLO + "new_coords=1\n", "new_coords=1 takes a logistic convolution"),
    (NET + CONV + YOLO + "new_coords=2\n", "new_coords=2 is neither 0 nor 1"),
    (NET + CONV + NEW.replace("filters=14", "filters=15"), "classes=2 do not fit 15 channels"),
    (NET + CONV + NEW + "[route]\nlayers=-2\n" + YOLO, "another layer reads its convolution too"),
    (NET + "[yolo]" + YOLO.partition("[yolo]")[2], "needs a layer before"),
    (NET + (CONV.replace("pad=1", "pad=0")) * 7 + YOLO, "too small"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_cfg_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        load_parsed(text).spec("a", ["x", "y"])
    assert str(error.value).startswith("some.cfg") and "\n" not in str(error.value)


def test_cfg_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_bytes(b"\xff\xfe\x00[net]")
    with pytest.raises(ArtifactError, match="not a text file"):
        read_cfg(tmp_path / "a.cfg")
    with pytest.raises(ArtifactError, match="No such file"):
        read_cfg(tmp_path / "absent.cfg")


def test_comments_blanks_and_doubled_keys_read_as_darknet_does() -> None:
    text = "# x\r\n[net]\r\n width = 32 # y\r\n;z\r\nwidth=64\r\nheight=9;z\r\n[avgpool] # z\r\n"
    cfg = parse_cfg(text, "a")
    assert cfg.net.options == {"width": "32", "height": "9"} and cfg.net.line == 2
    assert [(s.type, s.index, s.line) for s in cfg.layers] == [("avgpool", 0, 7)]


def test_short_section_names_mean_the_long_ones() -> None:
    text = NET + CONV + "[maxpool]\nsize=2\n[avgpool]\n" + YOLO
    short = text
    for long, brief in (("net", "network"), ("convolutional", "conv"), ("maxpool", "max")):
        short = short.replace(f"[{long}]", f"[{brief}]")
    short = short.replace("[avgpool]", "[avg]")
    assert short != text
    assert parse_cfg(short, "a").layers == parse_cfg(text, "a").layers


def test_a_convolution_that_leaves_keys_out_has_darknets_defaults() -> None:
    # parse_convolutional in Darknet's parser.c: size 1, stride 1, logistic.
    layer = small("[convolutional]\nfilters=4\n").get_submodule("layers.1")
    assert layer.conv.kernel_size == layer.conv.stride == (1, 1)
    assert isinstance(layer.act, torch.nn.Sigmoid)


def test_names_must_be_as_many_as_classes(edge_data: Path) -> None:
    folder = edge_data / "weights"
    cfg = folder / "yolov3-tiny-aix2022.cfg"
    assert load_darknet(cfg, names=folder / "aix.names")[1].classes[-1] == "twix"
    with pytest.raises(ArtifactError, match="60 classes and 20 names"):
        load_darknet(cfg, names=folder / "voc.names")


def test_default_names_are_those_of_coco_and_voc(edge_data: Path) -> None:
    assert class_names(80) == COCO == read_names(edge_data / "weights" / "coco.names")
    assert class_names(20) == VOC == read_names(edge_data / "weights" / "voc.names")


def test_random_weights_follow_the_seed_alone() -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = small(CONV)
        initialise(model, model.spec("a", ["x", "y"]), seed)
        return torch.cat([value.flatten().float() for value in model.state_dict().values()])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    model = small(CONV)
    state = torch.random.get_rng_state()
    initialise(model, model.spec("a", ["x", "y"]), 1)
    assert torch.equal(torch.random.get_rng_state(), state)
