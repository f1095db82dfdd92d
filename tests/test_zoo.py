"""The zoo: its cfgs are the official ones, downloads resume and are verified, models load."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.built_in import BUILT_IN
from edge.errors import ArtifactError, DataError
from edge.models import zoo
from edge.models.cfgs import CFGS, cfg_text
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg, read_cfg
from edge.models.darknet_weights import count_floats, save_weights
from edge.models.download import download
from edge.models.tracing import trace
from edge.models.zoo import ZOO, ZooEntry, cached_path, fetch, load_model

# Bytes of the published files, with their headers of 16 (32-bit `seen`) or 20 bytes.
OFFICIAL = {
    "yolov2": (203_934_260, 16),
    "yolov2-tiny": (44_948_600, 20),
    "yolov2-tiny-voc": (63_471_556, 16),
    "yolov2-voc": (202_704_264, 20),
    "yolov3": (248_007_048, 20),
    "yolov3-tiny": (35_434_956, 20),
    "yolov4-tiny": (24_251_276, 20),
}
SMALL_CFG = (
    "[net]\nwidth=64\nheight=64\n"
    "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=relu\n"
    "[convolutional]\nfilters=21\nsize=1\nactivation=linear\n"
    "[yolo]\nmask=0,1,2\nanchors=1,2, 3,4, 5,6\nclasses=2\nnum=3\n"
)
PAYLOAD = np.random.default_rng(0).bytes(700_000)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.mark.parametrize("name", CFGS)
def test_cfg_takes_as_many_floats_as_the_official_file_holds(name: str) -> None:
    size, header = OFFICIAL[name]
    assert count_floats(Darknet(parse_cfg(cfg_text(name), name))) * 4 + header == size
    assert ZOO[name].size in (size, None)


@pytest.mark.parametrize("name", CFGS)
def test_cfg_is_the_published_one(edge_data: Path, name: str) -> None:
    ours = Darknet(parse_cfg(cfg_text(name), name))
    theirs = Darknet(read_cfg(edge_data / "cfg" / f"{name}.cfg"))
    assert str(ours) == str(theirs) and ours._sources == theirs._sources
    classes = [str(index) for index in range(theirs.classes)]
    assert ours.spec(name, classes) == theirs.spec(name, classes)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("yolov2", "yolov3")])
def test_every_name_loads_with_random_weights_and_says_so(name: str) -> None:
    loaded = load_model(name, random_weights=True, hw=(96, 128))
    assert loaded.labels == ("random weights",) and loaded.source_sha256 == ""
    assert loaded.spec.name == name and loaded.spec.contract.hw == (96, 128)
    assert {n.op for n in trace(loaded.module).graph.nodes} == {
        "placeholder",
        "call_module",
        "output",
    }


@pytest.mark.parametrize("name", ZOO)
def test_random_weights_keep_activations_sane_and_boxes_few(name: str) -> None:
    loaded = load_model(name, random_weights=True, hw=(96, 128))
    contract, classes = loaded.spec.contract, len(loaded.spec.classes)
    levels = 255 * torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    mean, scale = (torch.tensor(v).view(3, 1, 1) for v in (contract.mean, contract.scale))
    with torch.no_grad():
        heads = loaded.module((levels - mean) * scale)
    for raw, head in zip(heads, loaded.spec.heads, strict=True):
        assert tuple(raw.shape) == (1, head.channels(classes), *head.grid_hw)
        assert 0.1 < raw.std() < 10
        anchors = len(head.anchors)
        objectness = raw.view(anchors, -1, *head.grid_hw)[:, 4]
        if head.kind == "convdet":
            objectness = raw[0, anchors * classes : anchors * (classes + 1)]
        assert (objectness.sigmoid() > 0.25).float().mean() < 0.02


def test_cfg_text_for_other_classes_and_sizes() -> None:
    model = Darknet(parse_cfg(cfg_text("yolov3-tiny", (320, 320), classes=5), "a"))
    spec = model.spec("a", list("abcde"))
    assert spec.contract.hw == (320, 320) and model.classes == 5
    with pytest.raises(ValueError, match="multiples of 32"):
        cfg_text("yolov3-tiny", (100, 320))
    with pytest.raises(ArtifactError, match="multiples of 32"):
        load_model("yolov3-tiny", random_weights=True, hw=(100, 320))


class Server(ThreadingHTTPServer):
    """Serves PAYLOAD with Range; breaks off after `limit` bytes of body while that is set."""

    limit: int | None = None
    starts: list[int]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/file":
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if start >= len(PAYLOAD):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(PAYLOAD) - start))
        self.end_headers()
        limit = self.server.limit
        self.wfile.write(PAYLOAD[start : len(PAYLOAD) if limit is None else start + limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.starts = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def location(server: Server, path: str = "/file") -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_download_brings_the_file_and_tells_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    urls = [location(server, "/absent"), location(server)]
    digest = download(
        urls, tmp_path / "deep" / "f", size=len(PAYLOAD), progress=lambda *x: seen.append(x)
    )
    assert digest == DIGEST and (tmp_path / "deep" / "f").read_bytes() == PAYLOAD
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD)) and len(seen) > 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["f"]


def test_broken_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.limit = 300_000
    with pytest.raises(ArtifactError, match="broke off after 300000 of 700000 bytes"):
        download([location(server)], tmp_path / "f", size=len(PAYLOAD))
    assert not (tmp_path / "f").exists()
    server.limit = None
    download([location(server)], tmp_path / "f", size=len(PAYLOAD), sha256=DIGEST)
    assert server.starts == [0, 300_000] and (tmp_path / "f").read_bytes() == PAYLOAD


def test_surplus_part_of_unknown_size_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(bytes(800_000))
    download([location(server)], tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == PAYLOAD


def test_wrong_file_is_not_put_in_place(server: Server, tmp_path: Path) -> None:
    for wrong in ({"size": 5}, {"size": 800_000}, {"sha256": "0" * 64}):
        with pytest.raises(ArtifactError):
            download([location(server)], tmp_path / "f", **wrong)
        assert not (tmp_path / "f").exists()
        (tmp_path / "f.part").unlink(missing_ok=True)


def test_fetch_records_the_checksum_and_notices_damage(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ZOO, "thing", ZooEntry("thing.weights", (location(server),)))
    path = fetch("thing", tmp_path)
    assert path == tmp_path / "thing.weights" == cached_path("thing", tmp_path)
    assert (tmp_path / "thing.weights.sha256").read_text() == f"{DIGEST}  thing.weights\n"
    assert fetch("thing", tmp_path) == path and server.starts == [0]
    path.write_bytes(PAYLOAD[:-1] + b"x")
    with pytest.raises(ArtifactError, match="its sha256 is not"):
        fetch("thing", tmp_path)
    monkeypatch.setitem(ZOO, "thing", ZooEntry("thing.weights", size=9))
    with pytest.raises(ArtifactError, match="700000 bytes and not 9"):
        fetch("thing", tmp_path)


def test_without_network_fetch_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ZooEntry("thing.weights", ("http://127.0.0.1:9/thing.weights",), 1234)
    monkeypatch.setitem(ZOO, "thing", entry)
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ArtifactError) as error:
        fetch("thing")
    target = tmp_path / "cache" / "thing.weights"
    wanted = f"put the file of 1234 bytes from http://127.0.0.1:9/thing.weights at {target}"
    assert wanted in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match=r"put the file at .*squeezedet-kitti.npz"):
        load_model("squeezedet-kitti")
    with pytest.raises(ArtifactError, match=r"known: .*yolov3-tiny"):
        fetch("nothing")


def test_cfg_takes_the_weights_beside_it(tmp_path: Path) -> None:
    cfg = tmp_path / "net.cfg"
    cfg.write_text(SMALL_CFG)
    with pytest.raises(ArtifactError, match=r"net.weights: no such file; .* needs weights"):
        load_model(cfg)
    made = load_model(cfg, random_weights=True, seed=4)
    save_weights(made.module, tmp_path / "net.weights")
    loaded = load_model(cfg, resize="stretch")
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(made.module(image)[0], loaded.module(image)[0])
    data = (tmp_path / "net.weights").read_bytes()
    assert loaded.source_sha256 == hashlib.sha256(data).hexdigest() and loaded.labels == ()
    assert loaded.spec.name == "net" and loaded.spec.contract.resize == "stretch"
    (tmp_path / "other.weights").write_bytes(data)
    assert load_model(cfg, weights=tmp_path / "other.weights").source_sha256


def test_names_replace_the_classes(tmp_path: Path) -> None:
    cfg, names = tmp_path / "net.cfg", tmp_path / "a.names"
    cfg.write_text(SMALL_CFG)
    names.write_text("cat\nbig dog\n\n")
    loaded = load_model(cfg, names=names, random_weights=True)
    assert loaded.spec.classes == ("cat", "big dog")
    names.write_text("cat\n")
    with pytest.raises(ArtifactError, match="1 names for the 2 classes"):
        load_model(cfg, names=names, random_weights=True)
    names.write_text("\n")
    with pytest.raises(DataError, match="no class names"):
        load_model(cfg, names=names, random_weights=True)


def test_safetensors_keep_module_and_spec(tmp_path: Path) -> None:
    cfg, path = tmp_path / "net.cfg", tmp_path / "net.safetensors"
    cfg.write_text(SMALL_CFG)
    names = tmp_path / "a.names"
    names.write_text("cat\ndog\n")
    made = load_model(cfg, names=names, resize="stretch", random_weights=True, hw=(32, 96))
    save_safetensors(made.module, path, made.spec)
    loaded = load_model(path)
    image = torch.rand(1, 3, 32, 96)
    assert torch.equal(made.module(image)[0], loaded.module(image)[0])
    assert loaded.spec == made.spec and len(loaded.source_sha256) == 64


def test_squeezedet_safetensors_keep_module_and_spec(edge_data: Path, tmp_path: Path) -> None:
    made = load_model(edge_data / "weights" / "squeezedet_kitti_forge.npz")
    path = tmp_path / "squeezedet_kitti_forge.safetensors"
    save_safetensors(made.module, path)
    module, spec = load_safetensors(path)
    assert spec == made.spec and not module.training
    for (name, ours), theirs in zip(
        module.state_dict().items(), made.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_damaged_safetensors_are_refused_in_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module = Darknet(parse_cfg(SMALL_CFG, "a"))
    path = tmp_path / "a.safetensors"
    save_safetensors(module, path)
    whole, state = path.read_bytes(), module.state_dict()
    meta = {"family": "darknet", "cfg": SMALL_CFG, "classes": '["a", "b"]', "resize": "stretch"}
    broken = {key: value.clone() for key, value in state.items()}
    broken["layers.1.conv.bias"][3] = torch.nan
    cases = [
        (whole[:-4], "not a readable"),
        (b"", "not a readable"),
        (PAYLOAD[:999], "not a readable"),
        ((state, {}), "family"),
        ((state, meta | {"cfg": "[net]"}), "holds 1 sections"),
        ((state, meta | {"classes": '["a"]'}), "2 classes and 1 names"),
        ((state, meta | {"resize": "crop"}), "resize is 'crop'"),
        ((state, {"family": "squeezedet", "config": "{}"}), "not a detector"),
        (({"x": torch.zeros(1)}, meta), "do not fit"),
        ((broken, meta), "layers.1.conv.bias holds NaN"),
    ]
    for content, message in cases:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(*content[:1], path, metadata=content[1])
        with pytest.raises(ArtifactError, match=message) as error:
            load_model(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("yolov9", "a.onnx", tmp_path / "absent.pt"):
        with pytest.raises(ArtifactError, match="not one of"):
            load_model(name)
    for name in BUILT_IN:
        with pytest.raises(ArtifactError, match="built in as ONNX"):
            load_model(name)
    for suffix in ("npz", "safetensors", "cfg"):
        with pytest.raises(ArtifactError, match="absent"):
            load_model(tmp_path / f"absent.{suffix}")
    with pytest.raises(ArtifactError, match="go with a cfg only"):
        load_model(tmp_path / "a.npz", random_weights=True)


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    assert zoo.cached_path("yolov3") == tmp_path / "yolov3.weights"
    monkeypatch.delenv("EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert zoo.cached_path("yolov3") == tmp_path / "home" / ".cache" / "edge" / "yolov3.weights"
