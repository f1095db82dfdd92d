"""Detectors by name, where their published weights are, and the function that loads any model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from edge.built_in import BUILT_IN
from edge.cache import cache_root
from edge.errors import ArtifactError
from edge.files import sha256_of, write_file
from edge.models.cfgs import cfg_text
from edge.models.checkpoint import load_safetensors
from edge.models.class_names import class_names
from edge.models.darknet import build_darknet
from edge.models.darknet_cfg import DarknetCfg, parse_cfg, read_cfg
from edge.models.download import Progress, download
from edge.models.initialise import initialise
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet, squeezedet_spec
from edge.models.squeezedet_npz import load_squeezedet_npz
from edge.names import read_names
from edge.spec import ModelSpec

__all__ = ["ZOO", "LoadedModel", "ZooEntry", "cached_path", "fetch", "load_cfg", "load_model"]

Resize = Literal["letterbox", "stretch"]
RANDOM = ("random weights",)


@dataclass(frozen=True)
class ZooEntry:
    """A detector whose weights are published.

    Attributes:
        file: name of the weights in the cache folder.
        urls: where to download them, the first choice first; without one the user puts them there.
        size: number of bytes; None where it is not known.
        sha256: None where it is not known; `fetch` then records that of the file beside it.
        resize: how frames were fitted in training.
    """

    file: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    resize: Resize = "letterbox"


def _pjreddie(name: str, size: int | None, sha256: str | None = None) -> ZooEntry:
    hosts = ("https://pjreddie.com/media/files", "https://data.pjreddie.com/files")
    urls = tuple(f"{host}/{name}.weights" for host in hosts)
    return ZooEntry(f"{name}.weights", urls, size, sha256)


ZOO: dict[str, ZooEntry] = {
    "yolov2-tiny-voc": _pjreddie("yolov2-tiny-voc", 63_471_556),
    "yolov2-tiny": _pjreddie("yolov2-tiny", 44_948_600),
    "yolov3-tiny": _pjreddie(
        "yolov3-tiny",
        35_434_956,
        "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    ),
    "yolov4-tiny": ZooEntry(
        "yolov4-tiny.weights",
        ("https://github.com/AlexeyAB/darknet/releases/download/yolov4/yolov4-tiny.weights",),
        24_251_276,
        "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87",
        "stretch",
    ),
    "yolov2": _pjreddie(
        "yolov2",
        203_934_260,
        "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f",
    ),
    # Published with either header, so its size is not certain; loading it checks its length.
    "yolov2-voc": _pjreddie("yolov2-voc", None),
    "yolov3": _pjreddie(
        "yolov3",
        248_007_048,
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
    ),
    "squeezedet-kitti": ZooEntry("squeezedet-kitti.npz", resize="stretch"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode and what is known about it.

    Attributes:
        source_sha256: sha256 of the weights' file; empty for random weights.
        labels: facts that every report must repeat.
    """

    module: nn.Module
    spec: ModelSpec
    source_sha256: str
    labels: tuple[str, ...] = ()


def cached_path(name: str, folder: Path | None = None) -> Path:
    """Return where a zoo entry's weights belong: in `folder`, $EDGE_CACHE or ~/.cache/edge.

    Raises:
        ArtifactError: no such name.
    """
    return (folder or cache_root()) / _entry(name).file


def fetch(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a zoo entry's weights unless they are there already, verify them, return the path.

    The sha256 of the file is written to `FILE.sha256` beside it; where the zoo knows none, a later
    call compares with that record.

    Raises:
        ArtifactError: there is no such name, no network (the text says which file to put where),
            or the file is not the right one.
    """
    entry, path = _entry(name), cached_path(name, folder)
    if path.is_file():
        _check_cached(path, entry)
        return path
    try:
        digest = download(entry.urls, path, size=entry.size, sha256=entry.sha256, progress=progress)
    except ArtifactError as error:
        size = f" of {entry.size} bytes" if entry.size else ""
        source = f"from {entry.urls[0]} " if entry.urls else ""
        raise ArtifactError(
            f"{name}: cannot be downloaded ({error}); put the file{size} {source}at {path}"
        ) from error
    write_file(_record(path), f"{digest}  {path.name}\n".encode())
    return path


def load_model(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: Resize | None = None,
    random_weights: bool = False,
    seed: int = 0,
    hw: tuple[int, int] | None = None,
) -> LoadedModel:
    """Load a zoo name, x.cfg (x.weights beside it), x.npz (SqueezeDet for KITTI) or x.safetensors.

    Args:
        weights: file of the weights of a zoo name or cfg, in place of the default one.
        names: a `.names` file, in place of the model's own class names.
        resize: how frames are fitted into the input, in place of the model's own way.
        random_weights: draw the weights from `seed`; zoo names and cfgs only.
        hw: input size in pixels, in place of the cfg's; zoo names and cfgs only.

    Raises:
        ArtifactError: there is no such model, or a file is missing, damaged or does not fit.
    """
    path = Path(model)
    if str(model) in ZOO and not path.is_file():
        loaded = _from_zoo(str(model), weights, random_weights, seed, hw)
    elif path.suffix == ".cfg":
        cfg = _resized(read_cfg(path), hw)
        source = None if random_weights else _beside(path, weights)
        loaded = _darknet(cfg, path.stem, source, seed)
    elif path.suffix in (".npz", ".safetensors"):
        if random_weights or weights is not None or hw is not None:
            raise ArtifactError(f"{path}: weights, random weights and hw go with a cfg only")
        load = load_squeezedet_npz if path.suffix == ".npz" else load_safetensors
        module, spec = load(path)
        loaded = LoadedModel(module, spec, sha256_of(path))
    elif str(model) in BUILT_IN:
        raise ArtifactError(f"{model}: built in as ONNX already: {BUILT_IN[str(model)]}")
    elif path.suffix in (".pt", ".pth"):
        raise ArtifactError(
            f"{model}: not one of the forms that are read; write the network of this PyTorch file "
            "as ONNX with the program that trained it (of ultralytics: yolo export "
            f"model={path.name} format=onnx) and give that file"
        )
    elif path.suffix == ".onnx" and path.is_file():
        raise ArtifactError(
            f"{model}: an ONNX graph; this takes the network of torch that it was made from, as "
            ".cfg, .npz or .safetensors"
        )
    else:
        known = ", ".join(sorted([*ZOO, *BUILT_IN]))
        raise ArtifactError(f"{model}: no .cfg, .npz or .safetensors, and not one of {known}")
    return replace(loaded, spec=_respecified(loaded.spec, names, resize))


def load_cfg(model: str | Path, hw: tuple[int, int] | None = None) -> DarknetCfg:
    """Return the cfg of a file or of a Darknet of the zoo, for an input of `hw` pixels.

    Raises:
        ArtifactError: the file is damaged, or `hw` does not suit the network.
    """
    path = Path(model)
    return _resized(read_cfg(path), hw) if path.suffix == ".cfg" else _zoo_cfg(str(model), hw)


def _entry(name: str) -> ZooEntry:
    if name not in ZOO:
        raise ArtifactError(f"{name}: not in the zoo; known: {', '.join(sorted(ZOO))}")
    return ZOO[name]


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_cached(path: Path, entry: ZooEntry) -> None:
    found = path.stat().st_size
    if entry.size is not None and found != entry.size:
        raise ArtifactError(
            f"{path}: {found} bytes and not {entry.size}; delete it and fetch again"
        )
    record = _record(path)
    recorded = record.read_text().split()[:1] if record.is_file() else []
    wanted = entry.sha256 or (recorded[0] if recorded else None)
    if wanted is not None and sha256_of(path) != wanted:
        raise ArtifactError(f"{path}: its sha256 is not {wanted}; delete it and fetch again")


def _beside(cfg: Path, weights: str | Path | None) -> Path:
    path = Path(weights or cfg.with_suffix(".weights"))
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; {cfg} needs weights, or random ones by request")
    return path


def _from_zoo(
    name: str,
    weights: str | Path | None,
    random_weights: bool,
    seed: int,
    hw: tuple[int, int] | None,
) -> LoadedModel:
    entry = ZOO[name]
    source = None if random_weights else Path(weights or fetch(name))
    if name == "squeezedet-kitti":
        loaded = _squeezedet(source, seed, hw)
    else:
        loaded = _darknet(_zoo_cfg(name, hw), name, source, seed)
    contract = replace(loaded.spec.contract, resize=entry.resize)
    return replace(loaded, spec=replace(loaded.spec, name=name, contract=contract))


def _zoo_cfg(name: str, hw: tuple[int, int] | None) -> DarknetCfg:
    try:
        return parse_cfg(cfg_text(name, hw or (416, 416)), f"{name}.cfg")
    except ValueError as error:
        raise ArtifactError(str(error)) from error


def _resized(cfg: DarknetCfg, hw: tuple[int, int] | None) -> DarknetCfg:
    if hw is None:
        return cfg
    lines = cfg.text.splitlines()
    # Of a repeated key the first counts, and the text is saved with the model.
    lines[cfg.net.line : cfg.net.line] = [f"height={hw[0]}", f"width={hw[1]}"]
    return parse_cfg("\n".join(lines) + "\n", cfg.source)


def _darknet(cfg: DarknetCfg, name: str, weights: Path | None, seed: int) -> LoadedModel:
    module = build_darknet(cfg, weights)
    spec = module.spec(name, class_names(module.classes))
    if weights is None:
        initialise(module, spec, seed)
        return LoadedModel(module.eval(), spec, "", RANDOM)
    return LoadedModel(module.eval(), spec, sha256_of(weights))


def _squeezedet(weights: Path | None, seed: int, hw: tuple[int, int] | None) -> LoadedModel:
    config = replace(KITTI_CONFIG, hw=hw) if hw is not None else KITTI_CONFIG
    if weights is not None:
        return LoadedModel(*load_squeezedet_npz(weights, config), sha256_of(weights))
    module, spec = SqueezeDet(config), squeezedet_spec(config, "squeezedet-kitti")
    initialise(module, spec, seed)
    return LoadedModel(module.eval(), spec, "", RANDOM)


def _respecified(spec: ModelSpec, names: str | Path | None, resize: Resize | None) -> ModelSpec:
    if names is not None:
        classes = read_names(Path(names))
        if len(classes) != len(spec.classes):
            raise ArtifactError(
                f"{names}: {len(classes)} names for the {len(spec.classes)} classes of {spec.name}"
            )
        spec = replace(spec, classes=classes)
    if resize is not None:
        spec = replace(spec, contract=replace(spec.contract, resize=resize))
    return spec
