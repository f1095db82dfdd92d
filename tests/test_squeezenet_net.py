"""The original Deep Compression file of SqueezeNet 1.0, read against its published decoding."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.errors import ArtifactError
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet
from edge.models.squeezenet_net import SQUEEZENET_1_0, load_body, read_squeezenet_net
from tools.train.photo_detector import photo_config


@pytest.fixture(scope="module")
def original(edge_data: Path) -> Path:
    return edge_data / "weights" / "squeezenet_v10_deepcompression" / "compressed_SqueezeNet.net"


def _net(stored: int = 0, tail: bytes = b"") -> bytes:
    """A file whose first layer stores `stored` weights and whose other layers store none."""
    parts = [np.array([stored] + [0] * 25, "<u4").tobytes()]
    for number, shape in enumerate(SQUEEZENET_1_0.values()):
        parts.append(np.arange(256, dtype="<f4").tobytes())
        parts.append(np.full(shape[0], number, "<f4").tobytes())
        if number == 0:
            parts.append(tail)
    return b"".join(parts)


def test_the_decoded_file_equals_the_published_arrays(original: Path) -> None:
    arrays = read_squeezenet_net(original)
    with np.load(original.with_name("squeezenet_v10_decoded.npz")) as wanted:
        assert set(arrays) == set(wanted.files) and len(arrays) == 52
        for name in wanted.files:
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], wanted[name], err_msg=name)


def test_indices_count_the_zeros_before_a_weight_low_half_first(tmp_path: Path) -> None:
    path = tmp_path / "made.net"
    # Three weights with codes 7, 8, 9, after 2, 0 and 15 zeros.
    path.write_bytes(_net(3, bytes([7, 8, 9, 0x02, 0x0F])))
    weight = read_squeezenet_net(path)["conv1.weight"].reshape(-1)
    assert weight.nonzero()[0].tolist() == [2, 3, 19]
    assert weight[[2, 3, 19]].tolist() == [7, 8, 9]


@pytest.mark.parametrize("kept", [0, 50, 104, 1128, 5000, 300_000, 675_762])
def test_a_cut_off_file_is_refused_by_name(original: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.net"
    path.write_bytes(original.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"cut\.net.*cut off"):
        read_squeezenet_net(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_net() + b"x", "after the last layer"),
        (_net(0xFFFFFFFF), "stores 4294967295 of its"),
        (_net(1500, bytes(1500) + b"\xff" * 750), "places weight"),
        (_net().replace(np.float32(255).tobytes(), b"\x00\x00\xc0\x7f"), "NaN"),
        (bytes(4_000_000), "over"),
    ],
)
def test_a_file_of_another_make_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "other.net"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_squeezenet_net(path)
    assert "other.net" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_squeezenet_net(tmp_path / "absent.net")


def test_mutated_files_are_refused_or_read_within_bounded_memory(
    original: Path, tmp_path: Path
) -> None:
    data, rng, path = original.read_bytes(), np.random.default_rng(1), tmp_path / "mutated.net"
    refused = 0
    tracemalloc.start()
    for _ in range(60):
        mutated = bytearray(data)
        # Half of the changes go to the table of layers, where they do most harm.
        for at in rng.integers(104 if rng.random() < 0.5 else len(data), size=3).tolist():
            mutated[at] = int(rng.integers(256))
        path.write_bytes(mutated)
        try:
            read_squeezenet_net(path)
        except ArtifactError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 10
    assert peak < 40e6  # 5 MB of weights, their indices as int64, two copies of the file


def test_the_photo_detectors_body_takes_every_convolution_but_the_classifier(
    original: Path,
) -> None:
    arrays = read_squeezenet_net(original)
    config = photo_config((64, 96), ("person",), np.array([[8.0, 16.0]] * 9))
    model = SqueezeDet(config)
    filled = load_body(model, arrays)
    assert filled == ("conv1", *(f"fire{n}" for n in range(2, 10)))
    fire9 = model.body.get_submodule("fire9.expand3.conv").weight
    np.testing.assert_array_equal(fire9.detach().numpy(), arrays["fire9/conv3x3_2.weight"])
    copied = sum(p.numel() for p in model.body.parameters())
    assert copied == sum(a.size for name, a in arrays.items() if not name.startswith("conv_final"))


def test_another_body_is_refused_with_the_layer_that_does_not_fit(original: Path) -> None:
    with pytest.raises(ArtifactError, match=r"conv1 is \(96, 3, 7, 7\)"), torch.no_grad():
        load_body(SqueezeDet(KITTI_CONFIG), read_squeezenet_net(original))
