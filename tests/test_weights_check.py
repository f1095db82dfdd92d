"""Weights that no layer can compute with are refused in every file format, and bombs unopened."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edge.errors import ArtifactError
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.models.darknet import build_darknet
from edge.models.darknet_cfg import parse_cfg, read_cfg
from edge.models.darknet_weights import save_weights
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet, read_config
from edge.models.squeezedet_npz import _named_parameters, load_squeezedet_npz
from edge.models.squeezenet_net import SQUEEZENET_1_0, read_squeezenet_net
from edge.train.checkpoints import CheckpointFacts, resume, save_checkpoint
from edge.train.fit import Schedule, begin
from tests.test_train_session import CFG, darknet, squeezedet

BAD = (float("nan"), float("inf"), float("-inf"))


def spoilt_darknet_weights(folder: Path, value: float) -> Path:
    model, _ = darknet()
    model.layers["2"].conv.weight.data[1, 2, 0, 0] = value
    save_weights(model, folder / "a.weights")
    return folder / "a.weights"


def load_darknet_weights(path: Path) -> None:
    build_darknet(parse_cfg(CFG, "a.cfg"), path)


def spoilt_safetensors(folder: Path, value: float) -> Path:
    model, spec = squeezedet()
    model.body.fire2.squeeze.conv.bias.data[0] = value
    save_safetensors(model, folder / "a.safetensors", spec)
    return folder / "a.safetensors"


def spoilt_npz(folder: Path, value: float) -> Path:
    arrays = {k: np.zeros(tuple(p.shape), np.float32) for k, p in kitti_shapes().items()}
    arrays["conv1.bias"][3] = value
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def kitti_shapes() -> dict[str, Any]:
    with torch.device("meta"):
        return dict(_named_parameters(SqueezeDet(KITTI_CONFIG)))


def spoilt_net(folder: Path, value: float) -> Path:
    layers = list(SQUEEZENET_1_0.values())
    parts = [np.zeros(len(layers), "<u4").tobytes()]
    for number, shape in enumerate(layers):
        codebook = np.zeros(256, "<f4")
        codebook[7] = value if number == 4 else 0
        parts += [codebook.tobytes(), np.zeros(shape[0], "<f4").tobytes()]
    (folder / "a.net").write_bytes(b"".join(parts))
    return folder / "a.net"


def spoilt_checkpoint(folder: Path, value: float) -> Path:
    run = begin(darknet()[0], Schedule(10))
    run.average.layers["0"].norm.weight.data[1] = value
    save_checkpoint(run, folder / "c.safetensors", CheckpointFacts())
    return folder / "c.safetensors"


def load_checkpoint(path: Path) -> None:
    resume(begin(darknet()[0], Schedule(10)), path)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("write", "load", "where"),
    [
        (spoilt_darknet_weights, load_darknet_weights, "layer 2"),
        (spoilt_safetensors, load_safetensors, "body.fire2.squeeze.conv.bias"),
        (spoilt_npz, load_squeezedet_npz, "conv1.bias"),
        (spoilt_net, read_squeezenet_net, "fire3/conv1x1_1's codebook"),
        (spoilt_checkpoint, load_checkpoint, "average.layers.0.norm.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_in_every_format(
    tmp_path: Path, write: Any, load: Any, where: str, value: float
) -> None:
    path = write(tmp_path, value)
    with pytest.raises(ArtifactError, match=f"{where} holds NaN or infinite") as error:
        load(path)
    assert str(path) in str(error.value)


def test_numbers_too_large_for_float32_are_refused(tmp_path: Path) -> None:
    arrays = {k: np.zeros(tuple(p.shape)) for k, p in kitti_shapes().items()}
    arrays["conv1.bias"][3] = 1e300
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtifactError, match=r"conv1\.bias holds NaN or infinite"):
        load_squeezedet_npz(tmp_path / "a.npz")


def test_a_negative_variance_is_refused_in_safetensors_as_in_weights(tmp_path: Path) -> None:
    model, spec = darknet()
    model.layers["2"].norm.running_var[3] = -0.5
    save_safetensors(model, tmp_path / "a.safetensors", spec)
    with pytest.raises(ArtifactError, match=r"layers\.2\.norm\.running_var .*variance of -0\.5"):
        load_safetensors(tmp_path / "a.safetensors")


def test_shapes_of_an_archive_are_compared_before_its_arrays_are_made(tmp_path: Path) -> None:
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (64, 3, 3, 2_000_000)}
    np.lib.format.write_array_header_1_0(header, facts)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, parameter in kitti_shapes().items():
            with archive.open(f"{name}.npy", "w") as file:
                if name == "conv1.weight":
                    file.write(header.getvalue() + bytes(4_000_000))
                else:
                    np.lib.format.write_array(file, np.zeros(tuple(parameter.shape), np.float32))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"conv1\.weight is float32 \(64, 3, 3, 2000000\)"):
        load_squeezedet_npz(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_an_array_that_stands_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning):
        for _ in range(2):
            with archive.open("conv1.bias.npy", "w") as file:
                np.lib.format.write_array(file, np.zeros(64, np.float32))
    with pytest.raises(ArtifactError, match="stands twice"):
        load_squeezedet_npz(tmp_path / "a.npz")


def test_the_length_of_weights_is_compared_before_the_network_is_made(
    tmp_path: Path, edge_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.weights").write_bytes(bytes(100))
    made = []
    plain = torch.nn.Parameter.__new__

    def noted(kind: Any, data: Any = None, *rest: Any, **more: Any) -> Any:
        if data is not None and data.device.type != "meta":
            made.append(tuple(data.shape))
        return plain(kind, data, *rest, **more)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", noted)
    cfg = parse_cfg(CFG.replace("filters=12", "filters=60000"), "a.cfg")
    with pytest.raises(ArtifactError, match=r"a\.cfg takes .* floats and the file holds 21"):
        build_darknet(cfg, tmp_path / "a.weights")
    assert not made
    with pytest.raises(ArtifactError, match=r"more than the 2\^29"):
        build_darknet(read_cfg(edge_data / "hostile" / "bombs" / "bomb.cfg"), None)
    assert not made


def test_tensors_are_compared_with_the_metadata_before_the_network_is_made(tmp_path: Path) -> None:
    model, spec = darknet()
    save_safetensors(model, tmp_path / "a.safetensors", spec)
    with safe_open(str(tmp_path / "a.safetensors"), framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["cfg"] = CFG.replace("filters=12", "filters=60000")
    save_file(state, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(
        ArtifactError, match=r"layers\.2\.conv\.weight is \(12, 8, 3, 3\) and should"
    ):
        load_safetensors(tmp_path / "b.safetensors")


def test_an_unknown_field_of_a_squeezedet_is_refused_with_the_known_ones() -> None:
    config = {"hw": [64, 96], "classes": ["a"], "anchors": [[8, 8]], "fire": [[4, 8, 8]]}
    with pytest.raises(ArtifactError, match=r"it has no 'fire'; known: anchors, .*fires"):
        read_config(json.dumps(config), "s.json")


def test_a_contract_that_cannot_be_computed_is_refused_with_the_file() -> None:
    config = {"hw": [64, 96], "classes": ["a"], "anchors": [[8, 8]], "scale": [1, 0, 1]}
    with pytest.raises(ArtifactError, match=r"s\.json: not the JSON of a SqueezeDet: .*scale"):
        read_config(json.dumps(config), "s.json")


@pytest.mark.parametrize("value", ["0", "-2", "1e9"])
def test_a_stretch_that_moves_centres_nowhere_is_refused(value: str) -> None:
    cfg = parse_cfg(CFG + f"scale_x_y={value}\n", "a.cfg")
    with pytest.raises(ArtifactError, match=r"a\.cfg:\d+: layer 4 \[yolo\]: scale_x_y"):
        build_darknet(cfg, None).spec("a", ("x", "y", "z"))


@pytest.mark.parametrize(
    "text", ["size=1_0", "size=9223372036854775808", "size=1000", "stride=99999999999"]
)
def test_numbers_that_darknet_would_not_read_are_refused(text: str) -> None:
    key = text.partition("=")[0]
    cfg = parse_cfg(CFG.replace(f"{key}={3 if key == 'size' else 2}", text, 1), "a.cfg")
    with pytest.raises(ArtifactError, match=r"a\.cfg:4: layer 0 \[convolutional\]: " + key):
        build_darknet(cfg, None)


def test_a_checkpoint_with_other_random_state_or_optimizer_shapes_is_refused(
    tmp_path: Path,
) -> None:
    path = spoilt_checkpoint(tmp_path, 1.0)
    with safe_open(str(path), framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state["rng.torch"] = torch.zeros(5)
    save_file(state, path, metadata=metadata)
    with pytest.raises(ArtifactError, match=r"rng\.torch"):
        load_checkpoint(path)
    for facts in ('{"history": [{"epoch": "1"}]}', "[]", '{"shape": 3}'):
        save_file(state, path, metadata=metadata | {"facts": facts})
        with pytest.raises(ArtifactError, match="not a checkpoint of edge train"):
            load_checkpoint(path)
