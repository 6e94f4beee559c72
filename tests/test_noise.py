"""The random stream: published vectors, pinned values, slices, moments, independence, and no global state."""

from __future__ import annotations

import hashlib
import math
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import models
from tests.models import batch_for, loss, tiny, train
from tests.philox import KNOWN, words_of
from torch import Tensor

from zotune import noise as stream
from zotune.noise import LAWS, QUANTILES, Key, Law, Purpose

one_thread = models.one_thread
NAME = "model.layers.0.self_attn.q_proj.weight"
KEY = Key(20230517, 3, 1)

# The stream may never change under one version: element 0 to 15, and the digest of the first 10,000 as float32 bytes.
GOLDEN: dict[Law, tuple[list[int], str]] = {
    "rademacher": (
        [-1, -1, -1, -1, 1, 1, -1, -1, -1, -1, -1, 1, -1, -1, 1, -1],
        "ceb388b25c0d430c443d9214d7e44557216df6e10074b7086941e0b854c3bc86",
    ),
    "gaussian": (
        [122, -7188, -1071, -1576, -1767, 7755, 8761, 471, -2118, -1555, -2966, -4466, 3376, -137, -5531, 6780],
        "d7a5868e0f8354b96ef31e18c4bd88ffd27c8bbef63c3e81156dc1ccb8c8072b",
    ),
}
GOLDEN_BITS = (
    [26235, 5348, 46772, 15604, 51991, 6461, 35414, 47510, 60303, 53666, 25114, 55364, 33492, 7562, 21900, 14576],
    "6d70a87c13765cad76f2f09b8fe4e8df55529bcf6262bf7bb44a8c05a70fca54",
)

WHOLE = {law: stream.noise(law, KEY, NAME, 0, 5000) for law in LAWS}
BITS = stream.bits16(KEY, NAME, 0, 5000)

laws = pytest.mark.parametrize("law", LAWS)


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """The definition in the paper, with Python's integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def element_by_hand(law: Law, key: Key, name: str, index: int) -> float:
    """One element, from the text at the top of noise.py."""
    low, high = key.seed & 0xFFFFFFFF, key.seed >> 32
    at = [key.step & 0xFFFFFFFF, key.step >> 32, key.query, int(key.purpose)]
    pair = philox_by_hand(at, [low, high])[:2]
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    block = index // (128 if law == "rademacher" else 8)
    out = philox_by_hand([block & 0xFFFFFFFF, block >> 32, digest & 0xFFFFFFFF, digest >> 32], pair)
    if law == "rademacher":
        return float((out[index % 128 // 32] >> index % 32 & 1) * 2 - 1)
    return QUANTILES[out[index % 8 // 2] >> 16 * (index % 2) & 0xFFF] / 4096


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two samples of variance 1, in units of its standard error."""
    return float((a * b).double().mean()) * math.sqrt(a.numel())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    """Random123's known answers come out of the torch code and of the reference used below."""
    tensors = tuple(torch.tensor(word) for word in words_of(counter))
    first, second = (torch.tensor(word) for word in words_of(key))
    assert [int(word) for word in stream.philox(tensors, (first, second))] == words_of(expected)
    assert philox_by_hand(words_of(counter), words_of(key)) == words_of(expected)


@laws
def test_golden_values_of_a_law(law: Law) -> None:
    """The first sixteen values and the digest of ten thousand are what version 1 of the stream draws."""
    assert (stream.STREAM, stream.STREAM_VERSION) == ("philox4x32-10/zotune", 1)
    values, digest = GOLDEN[law]
    z = stream.noise(law, KEY, NAME, 0, 10000)
    unit = 4096 if law == "gaussian" else 1
    assert [float(value) * unit for value in z[:16]] == values
    assert hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest() == digest


def test_golden_values_of_the_dither() -> None:
    """The bits of stochastic rounding are pinned like the laws."""
    bits = stream.bits16(Key(20230517, 3, 0, Purpose.DITHER), NAME, 0, 10000)
    assert bits[:16].tolist() == GOLDEN_BITS[0]
    assert hashlib.sha256(bits.numpy().astype("<i4").tobytes()).hexdigest() == GOLDEN_BITS[1]


@laws
@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    query=st.integers(0, 2**32 - 1),
    purpose=st.sampled_from(list(Purpose)),
    name=st.text(max_size=20),
    index=st.integers(0, 2**41),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_element_is_what_the_specification_says(
    law: Law, seed: int, step: int, query: int, purpose: Purpose, name: str, index: int
) -> None:
    """Any element of any stream equals a computation with Python's integers, far indices and large seeds included."""
    key = Key(seed, step, query, purpose)
    assert stream.noise(law, key, name, index, index + 1).tolist() == [element_by_hand(law, key, name, index)]


def test_the_quantile_table_is_pinned() -> None:
    """4,096 integers: their CRC and digest, symmetry, order, variance 1 within 1e-6, and the stated kurtosis."""
    packed = struct.pack("<4096h", *QUANTILES)
    assert zlib.crc32(packed) == 1512342717
    assert hashlib.sha256(packed).hexdigest() == "5a221b3d358999f4b0090572f9c7172273069a3ece5be2b55199d74b0d46e313"
    assert list(QUANTILES) == sorted(-q for q in QUANTILES)
    variance = sum(q * q for q in QUANTILES) / 4096 / 4096**2
    assert abs(variance - 1) < 1e-6
    assert abs(sum(q**4 for q in QUANTILES) / 4096 / 4096**4 / variance**2 - 3 + 0.009) < 0.001
    assert round(max(QUANTILES) / 4096, 2) == 3.67


@laws
@given(start=st.integers(0, 4999), count=st.integers(0, 700))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_noise_of_a_slice_is_the_slice_of_the_noise(law: Law, start: int, count: int) -> None:
    """Wherever a slice begins and ends, and for the dither too."""
    stop = min(5000, start + count)
    assert torch.equal(stream.noise(law, KEY, NAME, start, stop), WHOLE[law][start:stop])
    assert torch.equal(stream.bits16(KEY, NAME, start, stop), BITS[start:stop])


@laws
@given(columns=st.integers(1, 300), picks=st.lists(st.integers(0, 10**6), max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_of_the_noise_are_rows_of_the_whole(law: Law, columns: int, picks: list[int]) -> None:
    """Any rows, in any order, twice too, of any width."""
    height = 5000 // columns
    rows = torch.tensor([pick % height for pick in picks], dtype=torch.int64)
    whole = WHOLE[law][: height * columns].view(height, columns)
    assert torch.equal(stream.noise_rows(law, KEY, NAME, rows, columns), whole[rows])


@laws
def test_many_parameters_in_one_draw_equal_single_draws(law: Law) -> None:
    """One call for several tensors, odd sizes and an empty one included, gives each its own noise."""
    sizes = [("a", 1), ("b", 129), ("c", 0), ("d", 128), ("e", 1000)]
    drawn = stream.noise_many(law, KEY, sizes)
    assert [len(part) for part in drawn] == [size for _, size in sizes]
    for (name, size), part in zip(sizes, drawn, strict=True):
        assert torch.equal(part, stream.noise(law, KEY, name, 0, size))
    assert stream.noise_many(law, KEY, []) == []
    for part, rounded in zip(drawn, stream.noise_many(law, KEY, sizes, dtype=torch.bfloat16), strict=True):
        assert torch.equal(part.to(torch.bfloat16), rounded)


def test_dither_of_many_parameters_in_one_draw() -> None:
    """As that of each alone."""
    sizes = [("a", 1), ("b", 129), ("c", 0), ("d", 8)]
    for (name, size), part in zip(sizes, stream.bits16_many(KEY, sizes), strict=True):
        assert torch.equal(part, stream.bits16(KEY, name, 0, size))
    assert stream.bits16_many(KEY, []) == []


@laws
def test_one_thread_and_two_give_the_same_bits(law: Law, restore_threads: None) -> None:
    """A draw large enough to be split among threads does not depend on their number."""
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        drawn.append(stream.noise(law, KEY, NAME, 0, 300_000))
    assert torch.equal(*drawn)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Put the thread count back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@laws
def test_moments_lie_within_their_standard_errors(law: Law) -> None:
    """Mean, variance, third and fourth moment of a million values, each within 4.5 standard errors of the law's own."""
    support = [q / 4096 for q in QUANTILES] if law == "gaussian" else [-1.0, 1.0]
    z = stream.noise(law, Key(11, 0), NAME, 0, 1_000_000).double()
    for power in (1, 2, 3, 4):
        mean = sum(v**power for v in support) / len(support)
        spread = math.sqrt(max(0.0, sum(v ** (2 * power) for v in support) / len(support) - mean**2))
        assert abs(float((z**power).mean()) - mean) <= 4.5 * spread / 1000 + 1e-12, power


def test_dither_is_uniform() -> None:
    """Each of the 16 bits of the dither is set in half of 400,000 draws, within 4.5 standard errors."""
    bits = stream.bits16(Key(11, 0, 0, Purpose.DITHER), NAME, 0, 400_000)
    assert int(bits.min()) >= 0 and int(bits.max()) <= 65535
    for bit in range(16):
        assert abs(float((bits >> bit & 1).double().mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(bits.numel()), bit


@laws
@pytest.mark.parametrize(
    ("key", "name"),
    [
        (Key(20230517, 3, 1), "model.layers.1.self_attn.q_proj.weight"),
        (Key(20230517, 4, 1), NAME),
        (Key(20230517, 3 + 2**32, 1), NAME),
        (Key(20230517, 3, 2), NAME),
        (Key(20230518, 3, 1), NAME),
        (Key(20230517 + 2**32, 3, 1), NAME),
        *[(Key(20230517, 3, 1, purpose), NAME) for purpose in Purpose if purpose is not Purpose.DIRECTION],
    ],
)
def test_other_names_steps_queries_seeds_and_purposes_are_uncorrelated(law: Law, key: Key, name: str) -> None:
    """Tensors of equal shape under keys that differ in one part only: correlation within 4.5 standard errors of 0."""
    one, other = stream.noise(law, KEY, NAME, 0, 100_000), stream.noise(law, key, name, 0, 100_000)
    assert abs(correlation(one, other)) < 4.5
    # Shifted by a block, a word and an element: streams that overlap somewhere would show.
    for shift in (1, 8, 32, 128):
        assert abs(correlation(one[shift:], other[:-shift])) < 4.5


@laws
def test_elements_of_one_stream_are_uncorrelated(law: Law) -> None:
    """Neighbours at distances of an element, a word and a block are uncorrelated within 4.5 standard errors."""
    z = stream.noise(law, KEY, NAME, 0, 200_000)
    for shift in (1, 2, 7, 8, 32, 128, 4096):
        assert abs(correlation(z[shift:], z[:-shift])) < 4.5, shift


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """Seeds have 64 bits; others are refused by name, not cut."""
    with pytest.raises(ValueError, match=f"got {seed}"):
        Key(seed, 0).words()


@pytest.mark.parametrize("method", models.METHOD_ROWS)
def test_the_global_generators_are_never_touched(method: str) -> None:
    """Steps of every method, in 16 bits (dither is drawn too), leave torch's, numpy's and Python's state alone."""
    model, batch = tiny("gpt2", torch.bfloat16), batch_for("gpt2")
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    optimizer = train(method, model, queries=2)
    for _ in range(4):
        optimizer.step(loss, batch)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(), before[1])
    assert random.getstate() == before[2]
