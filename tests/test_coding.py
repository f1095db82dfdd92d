"""Codes of layers come back bit for bit, near the entropy, from every coding."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.edgez.coding import CODINGS, Layer, decode, encode, entropy_bits, model_bits, smallest
from edge.edgez.huffman import code_lengths, decode_symbols, encode_symbols
from edge.edgez.rans import UNIT, Decoder, Encoder, Meter
from edge.errors import ArtifactError


def drawn(rng: np.random.Generator, shape: tuple[int, int, int], levels: int, kept: float):
    codes = rng.integers(1, levels + 1, shape) * (rng.random(shape) < kept)
    return Layer(shape, levels, bool((codes == 0).any())), codes


@st.composite
def networks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sides = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 9, 25]))
    pairs = [
        drawn(rng, shape, draw(st.integers(1, 70)), draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])))
        for shape in draw(st.lists(sides, max_size=3))
    ]
    return [layer for layer, _ in pairs], [codes for _, codes in pairs]


@pytest.mark.parametrize("coding", CODINGS)
@settings(max_examples=40, deadline=None)
@given(networks())
def test_what_was_encoded_is_decoded(coding: str, network) -> None:
    layers, codes = network
    found = list(decode(encode(layers, codes, coding), layers, coding, "f"))
    assert len(found) == len(codes)
    assert all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True))


@pytest.mark.parametrize("coding", CODINGS)
def test_a_damaged_stream_is_refused_or_decoded_to_codes_of_the_layer(coding: str) -> None:
    rng = np.random.default_rng(0)
    layer, codes = drawn(rng, (8, 6, 9), 5, 0.4)
    stream = encode([layer], [codes], coding)
    refused = 0
    for _ in range(300):
        bad = bytearray(stream)
        for at in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[at] ^= 1 << rng.integers(8)
        bad = bad[: rng.integers(len(bad) // 2, len(bad) + 1)] if rng.random() < 0.3 else bad
        try:
            (found,) = decode(bytes(bad), [layer], coding, "f")
            assert found.shape == layer.shape and 0 <= found.min() <= found.max() <= 5
        except ArtifactError as error:
            assert str(error).startswith("f: ")
            refused += 1
    assert refused > 80


def test_the_packed_coding_takes_whole_bits() -> None:
    rng = np.random.default_rng(1)
    for levels, kept, bits in ((16, 1.0, 4), (16, 0.5, 5), (15, 0.5, 4), (1, 1.0, 0), (1, 0.5, 1)):
        layer, codes = drawn(rng, (16, 8, 9), levels, kept)
        assert len(encode([layer], [codes], "packed")) == 16 * 8 * 9 * bits / 8


def huffman_bits(counts: np.ndarray) -> int:
    """Total length of an optimal code: the sum of all inner nodes of the tree."""
    heap, total = [int(c) for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_huffman_lengths_are_optimal_and_a_prefix_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.02, 40) * (rng.random(40) < 0.8)
    lengths = code_lengths(counts)
    assert (lengths * counts).sum() == huffman_bits(counts)
    assert (0.5 ** lengths[lengths > 0]).sum() == 1
    assert ((lengths > 0) == (counts > 0)).all()


def test_huffman_lengths_stay_within_fifteen() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == 15 and (0.5**lengths).sum() <= 1


@pytest.mark.parametrize("count", [0, 1, 5, 4095, 4096, 20_000])
def test_huffman_symbols_in_lanes_come_back(count: int) -> None:
    symbols = np.random.default_rng(count).integers(0, 7, count) ** 2 % 13
    stream = encode_symbols(symbols, 13)
    found, rest = decode_symbols(memoryview(stream + b"next"), 13, count, "f")
    assert np.array_equal(found, symbols) and bytes(rest) == b"next"


@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_rans_takes_what_the_probabilities_ask_for(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    coder, meter = Encoder(lanes), Meter()
    asked = []
    for size in rng.integers(1, 200, 400):
        one = rng.integers(1, UNIT, size)
        bits = (rng.integers(0, UNIT, size) < one).astype(np.int64)
        asked.append((one, bits))
        coder.code(one, bits)
        meter.code(one, bits)
    stream = coder.finish()
    assert 8 * len(stream) == pytest.approx(
        meter.bits + 24 * lanes, rel=2e-3
    )  # a state is 32 bits, half of 16 used
    decoder = Decoder(stream, lanes, "f")
    assert all(np.array_equal(decoder.code(one, None), bits) for one, bits in asked)
    decoder.finish()


def test_a_rans_stream_that_ends_early_or_late_is_refused() -> None:
    one, bits = np.full(500, 100), np.arange(500) % 2
    coder = Encoder(4)
    coder.code(one, bits)
    stream = coder.finish()
    early = Decoder(stream[:-2], 4, "f")
    with pytest.raises(ArtifactError, match="ends too early"):
        early.code(one, None)
    late = Decoder(stream + b"\0\0", 4, "f")
    late.code(one, None)
    with pytest.raises(ArtifactError, match="does not end"):
        late.finish()
    with pytest.raises(ArtifactError, match="no stream"):
        Decoder(stream[:10], 4, "f")


def test_ans_goes_below_the_entropy_of_single_codes(edge_data: Path) -> None:
    archive = np.load(edge_data / "weights" / "squeezedet_kitti_forge.npz")
    layers, codes = [], []
    for name in ("fire8_squeeze1x1", "fire5_expand3x3"):
        weight = archive[f"{name}.weight"]
        edge = np.quantile(abs(weight), 0.6)
        steps = np.linspace(weight.min(), weight.max(), 33)[1:-1]
        code = np.where(abs(weight) > edge, 1 + np.digitize(weight, steps), 0)
        codes.append(code.reshape(*weight.shape[:2], -1))
        layers.append(Layer(codes[-1].shape, 32, True))
    bound, model = entropy_bits(layers, codes), model_bits(layers, codes)
    coding, stream = smallest(layers, codes)
    assert coding == "ans"
    assert model < bound and 8 * len(stream) < bound
    assert 8 * len(stream) == pytest.approx(model, rel=2.5e-3)  # four lanes on 61 000 weights
    assert 8 * len(encode(layers, codes, "huffman")) < 1.04 * bound


def test_the_entropy_is_that_of_the_definition() -> None:
    codes = np.array([0, 0, 0, 0, 1, 1, 2, 3]).reshape(1, 8, 1)
    assert entropy_bits([Layer((1, 8, 1), 3, True)], [codes]) == pytest.approx(
        4 * 1 + 2 * 2 + 1 * 3 + 1 * 3
    )
