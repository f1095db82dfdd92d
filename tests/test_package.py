"""A package gives back what was packed, says its true size, and refuses whatever is damaged."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edge.built_in import PACKAGED
from edge.edgez.codebook import Codebook
from edge.edgez.coding import CODINGS, Layer, decode, encode
from edge.edgez.graph import cached_package_onnx, split_graph, write_package_onnx
from edge.edgez.package import parse_package, read_package, write_package
from edge.errors import ArtifactError
from edge.onnx_metadata import read_manifest
from edge.spec import Manifest
from export.source import fp32_onnx
from tests.support.small_models import picture, run, write_small

ROOT = Path(__file__).resolve().parent.parent


def _tool(name: str) -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    found = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert found and found.loader
    module = sys.modules.setdefault(name, module_from_spec(found))
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    return _tool("fuzz_mutations")


def tiny_package(coding: str = "ans") -> bytes:
    return _tool("fuzz_targets").tiny_package(coding)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return write_small(tmp_path_factory.mktemp("package") / "small.onnx")


def drawn(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    levels: int,
    kept: float,
    scaled: bool = False,
) -> Codebook:
    centroids = np.sort(rng.normal(size=levels).astype(np.float32))
    index = rng.integers(1, levels + 1, shape) * (rng.random(shape) < kept)
    return Codebook(centroids, index, rng.normal(size=shape[0]).astype("f4") if scaled else None)


@pytest.mark.parametrize("coding", (*CODINGS, "auto"))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), levels=st.integers(1, 40), kept=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_round_trip_is_bit_exact(
    tmp_path_factory, manifest: Manifest, coding: str, seed: int, levels: int, kept: float
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("p") / "m.edgez"
    tensors = {
        "a.weight": drawn(rng, (6, 5, 3, 3), levels, kept),
        "a.bias": rng.normal(size=6).astype(np.float32),
        "b.weight": drawn(rng, (4, 6, 1, 1), levels, kept, scaled=True),
        "scalar": np.float32(rng.normal()).reshape(()),
    }
    sizes = write_package(path, manifest, {"family": "x"}, tensors, coding=coding, half=False)
    package = read_package(path)
    assert sizes.file == path.stat().st_size
    assert package.manifest == manifest and package.model == {"family": "x"}
    for name, found in package.tensors():
        tensor = tensors[name]
        wanted = tensor.dense() if isinstance(tensor, Codebook) else tensor
        assert found.tobytes() == wanted.tobytes() and found.shape == wanted.shape
    for name, scaled in (("a.weight", False), ("b.weight", True)):
        coded, given_to_it = package.coded()[name], tensors[name]
        assert isinstance(coded, Codebook) and isinstance(given_to_it, Codebook)
        assert np.array_equal(coded.index, given_to_it.index)
        assert (coded.scale is not None) == scaled


def test_halves_are_rounded_to_the_nearest_and_kept_whole_where_they_do_not_fit(
    tmp_path: Path, manifest: Manifest
) -> None:
    rng = np.random.default_rng(3)
    book = drawn(rng, (6, 5, 3, 3), 8, 0.5)
    tensors = {"w": book, "b": np.array([0.1, 1.0], np.float32), "big": np.array([1e5], "f4")}
    write_package(tmp_path / "m.edgez", manifest, {}, tensors)
    found = dict(read_package(tmp_path / "m.edgez").tensors())
    half = book.centroids.astype(np.float16).astype(np.float32)
    assert np.array_equal(found["w"], Codebook(half, book.index).dense())
    assert found["b"].tolist() == [float(np.float16(0.1)), 1.0] and found["big"][0] == 1e5
    assert (found["w"][book.index == 0] == 0).all()


def test_only_scales_make_a_package_that_older_releases_refuse(
    tmp_path: Path, manifest: Manifest
) -> None:
    rng, path = np.random.default_rng(5), tmp_path / "m.edgez"
    for scaled in (False, True):
        book = drawn(rng, (6, 5, 3, 3), 8, 0.5, scaled)
        write_package(path, manifest, {}, {"w": book})
        assert path.read_bytes()[5] == 1 + scaled
        half = [None if a is None else a.astype("f2") for a in (book.centroids, book.scale)]
        wanted = np.concatenate([[0], half[0].astype("f4")])[book.index]
        if scaled:
            wanted = wanted * half[1].astype("f4")[:, None, None, None]
        assert np.array_equal(dict(read_package(path).tensors())["w"], wanted.astype("f4"))


def test_the_packed_file_is_as_large_as_the_papers_formula(
    tmp_path: Path, manifest: Manifest
) -> None:
    """Deep Compression: k centroids of b bits and n indices of log2 k bits for n weights."""
    book = drawn(np.random.default_rng(0), (32, 16, 3, 3), 16, 1.0)
    for half, b in ((True, 16), (False, 32)):
        path = tmp_path / f"{b}.edgez"
        sizes = write_package(path, manifest, {}, {"w": book}, coding="packed", half=half)
        n, k = book.index.size, 16
        assert sizes.sections["weights"] * 8 == n * np.log2(k)
        assert sizes.sections["codebooks"] * 8 == pytest.approx(k * b, rel=0.05)


def test_the_onnx_file_of_a_package_computes_as_the_one_it_came_from(
    tmp_path: Path, manifest: Manifest
) -> None:
    write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tensors = {name: array for name, array in tensors.items() if name.endswith(("weight", "bias"))}
    graph = split_graph(model, tensors)
    write_package(tmp_path / "m.edgez", manifest, {}, tensors, graph=graph, half=False)
    target = write_package_onnx(tmp_path / "m.edgez", tmp_path)
    onnx.checker.check_model(str(target), full_check=True)
    found, image = read_manifest(target), picture(manifest.spec.contract.hw)
    assert found.spec == manifest.spec and len(found.parent_sha256) == 64
    for a, b in zip(run(tmp_path / "a.onnx", image), run(target, image), strict=True):
        assert np.array_equal(a, b)
    (tmp_path / "out").mkdir()
    exported = fp32_onnx(tmp_path / "m.edgez", tmp_path / "out")
    assert exported.path.read_bytes() == target.read_bytes()


def test_a_package_without_a_graph_says_what_to_do(tmp_path: Path, manifest: Manifest) -> None:
    write_package(tmp_path / "m.edgez", manifest, {}, {"b": np.zeros(2, np.float32)})
    with pytest.raises(ArtifactError, match="edge unpack"):
        write_package_onnx(tmp_path / "m.edgez", tmp_path)


def test_packages_are_read_where_torch_and_onnx_are_absent(
    tmp_path: Path, manifest: Manifest
) -> None:
    book = drawn(np.random.default_rng(1), (8, 8, 3, 3), 4, 0.2)
    write_package(tmp_path / "m.edgez", manifest, {}, {"w": book})
    script = (
        "import sys\nfor n in ('torch', 'onnx', 'safetensors', 'google'): sys.modules[n] = None\n"
        "from edge.edgez.package import read_package\n"
        "import edge.edgez.graph\n"
        f"print(sum(a.size for _, a in read_package({str(tmp_path / 'm.edgez')!r}).tensors()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(8 * 8 * 9), done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "not an .edgez"),
        (lambda d: b"PK" + d, "not an .edgez"),
        (lambda d: d[:5] + b"\x09" + d[6:], "version 9"),
        (lambda d: d[:20], "ends inside"),
        (lambda d: d[:-1], "copy it again"),
        (lambda d: d + b"x", "bytes and not"),
        (lambda d: d[:9] + bytes([d[9] ^ 1]) + d[10:], "header is damaged"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "WEIGHTS is damaged"),
    ],
)
def test_each_kind_of_damage_has_its_message(
    tmp_path: Path, manifest: Manifest, change, message: str
) -> None:
    path = tmp_path / "m.edgez"
    write_package(path, manifest, {}, {"w": drawn(np.random.default_rng(1), (4, 4), 4, 0.5)})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_package(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.edgez: cannot be read"):
        read_package(tmp_path / "none.edgez")


def test_what_unfolds_beyond_the_limit_is_refused_before_it_is_allocated(
    tmp_path: Path, manifest: Manifest
) -> None:
    path = tmp_path / "m.edgez"
    write_package(
        path, manifest, {}, {"w": Codebook(np.ones(1, "f4"), np.zeros((512, 64, 9), int))}
    )
    data = path.read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="over 1000000"):
            parse_package(data, "f", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_bomb_of_zeros_is_not_unfolded_beyond_what_it_declares(fuzz: ModuleType) -> None:
    data = fuzz.with_sections(tiny_package(), {1: zlib.compress(bytes(50_000_000), 9)[2:-4]})
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="META"):
            parse_package(data, "f")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_mutated_packages_are_refused_or_decoded_right(fuzz: ModuleType) -> None:
    """The sha256 of the weights cannot have been kept for others, whatever else was changed."""

    def decoded(data: bytes) -> bytes:
        package = parse_package(data, "f", 1 << 16)
        package.graph()
        return b"".join(array.tobytes() for _, array in package.tensors())

    whole = [tiny_package(coding) for coding in CODINGS]
    wanted, refused, rng = {decoded(data) for data in whole}, 0, np.random.default_rng(0)
    tracemalloc.start()
    try:
        for number in range(2000):
            data = fuzz.of_package(whole[number % len(whole)], rng)
            try:
                assert decoded(data) in wanted, data.hex()
            except ArtifactError:
                refused += 1
        assert 1000 < refused < 2000
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_small_package_that_unfolds_to_gigabytes_is_refused_by_its_header(
    tmp_path: Path, manifest: Manifest, fuzz: ModuleType, coding: str
) -> None:
    path, side = tmp_path / "m.edgez", 1 << 14
    book = Codebook(np.ones(1, np.float32), np.ones((64, 64), np.int64))
    write_package(path, manifest, {}, {"w": book}, coding=coding)
    parts = fuzz.sections(path.read_bytes())
    meta = zlib.decompress(parts[0][1], -15).replace(b"[64,64]", b"[%d,%d]" % (side, side))
    parts[0][0][3], parts[2][0][3] = len(meta), 4 * side * side
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts[0] = (parts[0][0], packer.compress(meta) + packer.flush())
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="unfolds to 1073741824 bytes, more than"):
            parse_package(fuzz.joined(parts), "f")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_steps_that_few_bytes_cannot_be_worth_are_not_taken() -> None:
    layers = [Layer((1, 1 << 15, 1), 2, False)]
    with pytest.raises(ArtifactError, match="too long to decode"):
        next(decode(bytes(64), layers, "ans", "f"))
    with pytest.raises(ValueError, match="take huffman"):
        encode(layers, [np.ones((1, 1 << 15, 1), np.int64)], "ans")


def test_weights_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, manifest: Manifest, fuzz: ModuleType
) -> None:
    path = tmp_path / "m.edgez"
    with pytest.raises(ValueError, match="bias holds NaN"):
        write_package(path, manifest, {}, {"bias": np.array([1, np.nan], np.float32)})
    write_package(path, manifest, {}, {"bias": np.array([1, 2], np.float32)}, half=False)
    parts = fuzz.sections(path.read_bytes())
    parts[3][0][1], parts[3] = 0, (parts[3][0], np.array([1, np.inf], "<f4").tobytes())
    with pytest.raises(ArtifactError, match="bias holds NaN or infinity"):
        dict(parse_package(fuzz.joined(parts), "f").tensors())


def test_a_damaged_file_of_the_cache_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    package = PACKAGED["tiny-yolo-scenes-deep"]
    made = cached_package_onnx(package)
    data, before = made.read_bytes(), made.stat().st_mtime_ns
    assert cached_package_onnx(package) == made and made.stat().st_mtime_ns == before
    for damaged in (data[:-1], bytes(len(data)), b""):
        made.write_bytes(damaged)
        assert cached_package_onnx(package).read_bytes() == data
