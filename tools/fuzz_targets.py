"""What `fuzz_readers.py` feeds: every reader of files from outside, with valid files to begin from.

Nothing here is downloaded: networks are small and drawn from a seed, pictures are noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

__all__ = ["TARGETS", "Names", "Stock", "Target", "tiny_package"]

ROOT = Path(__file__).resolve().parent.parent
CFG = """[net]
width=32
height=32
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=21
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=4,4, 8,8, 16,16
classes=2
num=3
"""
SUITE = """schema = 1
data = "val/annotations.json"
images = 300
baseline = "yolov3.fp32.onnx"
seconds = 4
rounds = 20
threads = 2
alarms = 0.02
results = "r.jsonl"
[margins]
map50 = 0.01
slowdown = 0.05
classes = { person = 0.02 }
[[artifact]]
name = "tiny int8"
path = "tiny.int8.onnx"
reference = "tiny.fp32.onnx"
[artifact.margins]
speedup = 4.0
"""
VOC = """<annotation><filename>a.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>
"""
KITTI = "Car 0.00 0 -0.20 12.40 14.00 40.5 37.9 1.89 0.48 1.20 1.84 1.47 8.41 0.01\n"
YOLO = "0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.1 0.1\n"
NAMES = "cat\ndog\n"


def tiny_package(coding: str = "ans") -> bytes:
    """A package of two small shared layers and their biases."""
    from edge.edgez.codebook import Codebook
    from edge.edgez.package import write_package
    from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec

    rng = np.random.default_rng(0)
    head = HeadSpec.of_grid("b", "yolo", (2, 2), ((8.0, 8.0),))
    spec = ModelSpec("tiny", "darknet", ("a",), InputContract((32, 32)), (head,))
    tensors: dict[str, Any] = {}
    for name, shape in (("a", (8, 3, 3, 3)), ("b", (6, 8, 1, 1))):
        index = rng.integers(1, 6, shape) * (rng.random(shape) < 0.4)
        scale = rng.random(shape[0]).astype("f4") if name == "b" else None
        centroids = np.sort(rng.normal(size=5)).astype("f4")
        tensors[f"{name}.weight"] = Codebook(centroids, index, scale)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0]).astype("f4")
    with TemporaryDirectory() as folder:
        path = Path(folder, "tiny.edgez")
        model = {"family": "darknet", "cfg": "[net]"}
        write_package(
            path, Manifest(spec, "fp32", (), ()), model, tensors, graph=b"graph", coding=coding
        )
        return path.read_bytes()


class Names(tuple[str, ...]):
    """Names of classes, in which no control character may be left."""


class Stock:
    """Valid files, each made once when it is needed."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="edge-fuzz-stock-")
        self.folder = Path(self._folder.name)

    @cached_property
    def model(self) -> tuple[Any, Any]:
        from edge.models.darknet import Darknet
        from edge.models.darknet_cfg import parse_cfg
        from edge.models.initialise import initialise

        module = Darknet(parse_cfg(CFG, "small.cfg"))
        spec = module.spec("small", ["cat", "dog"])
        initialise(module, spec, 0)
        return module.eval(), spec

    def _made(self, name: str, write: Callable[[Path], Any]) -> bytes:
        path = self.folder / name
        if not path.exists():
            write(path)
        return path.read_bytes()

    @property
    def onnx(self) -> bytes:
        from export.graph.writer import write_onnx

        arguments = {"score": 0.25, "keep": ["a"], "layers": {"layers.0.conv": "fp16"}}
        return self._made(
            "small.fp32.onnx", lambda path: write_onnx(*self.model, path, arguments=arguments)
        )

    @property
    def table(self) -> bytes:
        from calibration.pipeline import calibrate
        from calibration.table import write_table

        _ = self.onnx
        source = self.folder / "small.fp32.onnx"
        return self._made(
            "small.calib.json",
            lambda path: write_table(calibrate(source, "scenes://?seed=1&count=1").table, path),
        )

    @property
    def weights(self) -> bytes:
        from edge.models.darknet_weights import save_weights

        return self._made("small.weights", lambda path: save_weights(self.model[0], path))

    @property
    def safetensors(self) -> bytes:
        from edge.models.checkpoint import save_safetensors

        return self._made("small.safetensors", lambda path: save_safetensors(self.model[0], path))

    @property
    def checkpoint(self) -> bytes:
        from edge.train.checkpoints import CheckpointFacts, save_checkpoint

        return self._made(
            "a.ckpt", lambda path: save_checkpoint(self.run(), path, CheckpointFacts())
        )

    def run(self) -> Any:
        """A training before its first step."""
        import copy

        from edge.train.fit import begin
        from edge.train.schedule import Schedule

        return begin(copy.deepcopy(self.model[0]), Schedule(10))

    def image(self, suffix: str) -> bytes:
        import cv2

        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        return bytes(cv2.imencode(suffix, pixels)[1])

    @property
    def engine_manifest(self) -> bytes:
        from edge.onnx_metadata import read_manifest

        _ = self.onnx
        manifest = read_manifest(self.folder / "small.fp32.onnx")
        sha256 = hashlib.sha256(b"a plan").hexdigest()
        return replace(manifest, sha256=sha256).to_json().encode()


Files = Callable[[Stock], Mapping[str, bytes]]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        file: name of the file that is mutated, below the folder.
        mutation: of `fuzz_mutations.MUTATIONS`.
        seeds: valid files to begin from.
        read: takes the path of the file, and returns what must be sane, if anything.
        beside: other files of the folder.
        seconds: limit of one input; what runs a network over pictures takes longer than a parser.
        suffixes: of files from elsewhere that this reader would be given.
    """

    file: str
    mutation: str
    seeds: Callable[[Stock], list[bytes]]
    read: Callable[[Path, Stock], Any]
    beside: Files = field(default=lambda stock: {})
    seconds: float = 2.0
    suffixes: tuple[str, ...] = ()


def _show(path: Path, _: Stock) -> Any:
    from apps.commands.show import print_artifact, show_artifact
    from edge.files import to_plain

    found = show_artifact(path)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        print_artifact(found)
    return [to_plain(found), shown.getvalue().replace("\n", " ")]


def _engine(path: Path, stock: Stock) -> Any:
    engine = path.with_suffix("")
    engine.write_bytes(b"a plan")
    # The mutated file is about another plan where only that was changed.
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        fields = json.loads(path.read_bytes())
        if len(fields.get("sha256")) == 64:
            fields["sha256"] = hashlib.sha256(b"a plan").hexdigest()
            path.write_text(json.dumps(fields))
    return _show(engine, stock)


def _package(path: Path, _: Stock) -> Any:
    from edge.edgez.package import read_package

    package = read_package(path)
    package.graph()
    return [package.manifest, package.stages, *(array for _, array in package.tensors())]


def _detect(path: Path, _: Stock) -> Any:
    from edge.runtime.detector import Detector

    with Detector.open(path, threads=1) as detector:
        detector(np.zeros((48, 64, 3), np.uint8))


def _export(path: Path, _: Stock) -> Any:
    from edge.reporting import listen
    from export.engine.options import BuildOptions
    from export.options import ExportOptions
    from export.pipeline import export_engine

    before = listen(None)
    try:
        options = ExportOptions(
            precision="int8",
            calib="scenes://?seed=1&count=1",
            verdict=False,
            build=BuildOptions("none"),
            output=str(path.parent / "out"),
        )
        export_engine(path, options)
    finally:
        listen(before)


def _bench(path: Path, _: Stock) -> Any:
    from edge.measure.bench import read_bench

    return read_bench(path)


def _bench_json() -> bytes:
    rounds = {"pipeline": [2.0, 2.1, 2.2, 2.0]}
    more = {"backend": "x", "bytes": 3, "speedup": 1.0, "latency_ms": {"p50": 2.0}}
    rows = [{"label": name, "rounds_ms": rounds, **more} for name in "ab"]
    host = {"cpu": "x", "cores": 2}
    whole = {"rows": rows, "host": host, "threads": 2, "warnings": [], "source": "s"}
    return json.dumps(whole).encode()


def _dataset(path: Path, folder: Path) -> Any:
    from edge.data.datasets import open_dataset

    del path
    dataset = open_dataset(folder, ("cat", "dog"))
    return [Names(dataset.classes), list(dataset.items)]


def _config(path: Path, _: Stock) -> Any:
    from edge.train.start import start_from

    return list(start_from(path).module.state_dict().values())


def _loaded(path: Path, _: Stock) -> Any:
    from edge.models.zoo import load_model

    return list(load_model(path).module.state_dict().values())


def _plan(path: Path, _: Stock) -> Any:
    from edge.compress.channels.plan import read_plan

    return read_plan(path)


def _latency(path: Path, _: Stock) -> Any:
    from edge.compress.channels.latency_table import read_table

    return read_table(path)


def _latency_json(stock: Stock) -> bytes:
    from edge.compress.channels.cost import ConvShape
    from edge.compress.channels.latency_table import LatencyTable, write_table

    path = stock.folder / "latency.json"
    shape = ConvShape(8, 16, (3, 3), (1, 1), (1, 1, 1, 1), 1, (20, 20), "")
    write_table(LatencyTable({"cpu": "x", "threads": 1}, {shape: 0.5}), path)
    return path.read_bytes()


def _calib(path: Path, _: Stock) -> Any:
    from calibration.table import read_table

    return read_table(path)


def _map(path: Path, stock: Stock) -> Any:
    from export.int8.precision_map import read_map

    return read_map(path, path.parent / "small.fp32.onnx")


def _map_json(stock: Stock) -> bytes:
    from export.int8.precision_map import write_map

    _ = stock.onnx
    path = stock.folder / "map.json"
    write_map(path, stock.folder / "small.fp32.onnx", {"layers.0.conv": "fp16"}, budget=0.01)
    return path.read_bytes()


def _records(path: Path, _: Stock) -> Any:
    from apps.regress.measurement import read_measurements

    return read_measurements(path)


def _suite(path: Path, _: Stock) -> Any:
    from apps.regress.suite import read_suite

    return read_suite(path)


def _resume(path: Path, stock: Stock) -> Any:
    from edge.train.checkpoints import resume

    run = stock.run()
    resume(run, path)
    return [run.step, *run.model.state_dict().values()]


def _names(path: Path, _: Stock) -> Any:
    from edge.names import read_names

    return Names(read_names(path))


def _image(path: Path, _: Stock) -> Any:
    from edge.data.image_files import read_image

    read_image(path)


def _coco_json() -> bytes:
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30.5, 20], "area": 610.0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [9, 9, 9, 9], "area": 81, "iscrowd": 1},
    ]
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return json.dumps({"images": images, "annotations": boxes, "categories": kinds}).encode()


def _squeezedet_json() -> bytes:
    config = {
        "hw": [64, 64],
        "classes": ["cat", "dog"],
        "anchors": [[8, 8], [16, 24]],
        "conv1": [8, 3],
        "fires": [[2, 4, 4], [2, 4, 4]],
        "pools": [3],
        "head_size": 1,
    }
    return json.dumps(config).encode()


def _npz(stock: Stock) -> bytes:
    from edge.models.initialise import initialise
    from edge.models.squeezedet import SqueezeDet, read_config, squeezedet_spec
    from edge.models.squeezedet_npz import load_squeezedet_npz

    del load_squeezedet_npz
    config = read_config(_squeezedet_json(), "x")
    module = SqueezeDet(config)
    initialise(module, squeezedet_spec(config, "x"), 0)
    out = io.BytesIO()
    np.savez(out, **{name: value.numpy() for name, value in module.state_dict().items()})
    return out.getvalue()


def _read_npz(path: Path, _: Stock) -> Any:
    from edge.models.squeezedet import read_config
    from edge.models.squeezedet_npz import load_squeezedet_npz

    config = read_config(_squeezedet_json(), "x")
    return list(load_squeezedet_npz(path, config)[0].state_dict().values())


def _picture(stock: Stock) -> dict[str, bytes]:
    return {"a.jpg": stock.image(".jpg")}


TARGETS: dict[str, Target] = {
    "baseline-jsonl": Target(
        "r.jsonl",
        "jsonl",
        lambda stock: [(ROOT / "tests" / "suite" / "builtin.jsonl").read_bytes()],
        _records,
    ),
    "bench-json": Target("b.json", "json", lambda stock: [_bench_json()], _bench),
    "calib-json": Target("small.calib.json", "json", lambda stock: [stock.table], _calib),
    "cfg": Target(
        "small.cfg",
        "text",
        lambda stock: [CFG.encode()],
        _loaded,
        lambda stock: {"small.weights": stock.weights},
        suffixes=(".cfg",),
    ),
    "checkpoint": Target("a.ckpt", "safetensors", lambda stock: [stock.checkpoint], _resume),
    "classes-txt": Target(
        "labels/classes.txt",
        "text",
        lambda stock: [NAMES.encode()],
        lambda path, stock: _dataset(path, path.parent.parent),
        lambda stock: {"images/a.jpg": stock.image(".jpg"), "labels/a.txt": YOLO.encode()},
    ),
    "coco-json": Target(
        "annotations.json",
        "json",
        lambda stock: [_coco_json()],
        lambda path, stock: _dataset(path, path),
        _picture,
    ),
    "data-yaml": Target(
        "data.yaml",
        "text",
        lambda stock: [b"path: .\ntrain: images\nval: images\nnames:\n  0: cat\n  1: dog\n"],
        lambda path, stock: _dataset(path, path),
        lambda stock: {"images/a.jpg": stock.image(".jpg"), "labels/a.txt": YOLO.encode()},
    ),
    "edgez": Target(
        "p.edgez",
        "package",
        lambda stock: [tiny_package(coding) for coding in ("packed", "huffman", "ans")],
        _package,
        suffixes=(".edgez",),
    ),
    "engine-json": Target("a.engine.json", "json", lambda stock: [stock.engine_manifest], _engine),
    "engine-layers": Target(
        "a.engine.layers.json",
        "json",
        lambda stock: [
            json.dumps(
                {
                    "summary": {
                        "convolutions": [{"name": "a", "dtype": "int8", "layer": "l"}],
                        "reformats": 1,
                        "layers": 2,
                    },
                    "layers": [],
                }
            ).encode()
        ],
        lambda path, stock: _show(path.parent / "a.engine", stock),
        lambda stock: {"a.engine": b"a plan", "a.engine.json": stock.engine_manifest},
    ),
    "image": Target(
        "a.img",
        "image",
        lambda stock: [stock.image(suffix) for suffix in (".jpg", ".png", ".bmp", ".ppm")],
        _image,
        suffixes=(".bmp", ".jpg", ".ppm"),
    ),
    "kitti-txt": Target(
        "label_2/a.txt",
        "text",
        lambda stock: [KITTI.encode()],
        lambda path, stock: _dataset(path, path.parent.parent),
        lambda stock: {"image_2/a.jpg": stock.image(".jpg")},
    ),
    "latency-table": Target("l.json", "json", lambda stock: [_latency_json(stock)], _latency),
    "names": Target("a.names", "text", lambda stock: [NAMES.encode()], _names),
    "npz": Target("a.npz", "zip", lambda stock: [_npz(stock)], _read_npz),
    "onnx-detector": Target(
        "a.onnx", "onnx", lambda stock: [stock.onnx], _detect, suffixes=(".onnx",)
    ),
    "onnx-export": Target(
        "a.fp32.onnx", "onnx", lambda stock: [stock.onnx], _export, seconds=10, suffixes=(".onnx",)
    ),
    "onnx-manifest": Target(
        "a.onnx",
        "onnx",
        lambda stock: [stock.onnx],
        lambda path, stock: __import__("edge.artifact").artifact.read_manifest(path),
    ),
    "onnx-show": Target("a.onnx", "onnx", lambda stock: [stock.onnx], _show, suffixes=(".onnx",)),
    "precision-map": Target(
        "m.json",
        "json",
        lambda stock: [_map_json(stock)],
        _map,
        lambda stock: {"small.fp32.onnx": stock.onnx},
    ),
    "prune-plan": Target(
        "p.json",
        "json",
        lambda stock: [
            json.dumps(
                {"schema": 1, "model": "m", "kept": {"a": [0, 2]}, "widths": {"a": 4}}
            ).encode()
        ],
        _plan,
    ),
    "safetensors": Target(
        "a.safetensors", "safetensors", lambda stock: [stock.safetensors], _loaded
    ),
    "squeezedet-json": Target("a.json", "json", lambda stock: [_squeezedet_json()], _config),
    "suite-toml": Target("s.toml", "text", lambda stock: [SUITE.encode()], _suite),
    "voc-xml": Target(
        "Annotations/a.xml",
        "text",
        lambda stock: [VOC.encode()],
        lambda path, stock: _dataset(path, path.parent.parent),
        lambda stock: {"JPEGImages/a.jpg": stock.image(".jpg")},
        suffixes=(".xml",),
    ),
    "weights": Target(
        "small.weights",
        "bytes",
        lambda stock: [stock.weights],
        lambda path, stock: _loaded(path.with_suffix(".cfg"), stock),
        lambda stock: {"small.cfg": CFG.encode()},
    ),
    "yolo-txt": Target(
        "labels/a.txt",
        "text",
        lambda stock: [YOLO.encode()],
        lambda path, stock: _dataset(path, path.parent.parent),
        lambda stock: {"images/a.jpg": stock.image(".jpg")},
        suffixes=(".txt",),
    ),
}
