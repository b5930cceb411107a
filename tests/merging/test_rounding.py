"""Rounded once, correctly, everywhere; against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.deltas.low_rank import LowRank
from labkit.files.floats import (
    ARRAYS,
    LARGEST,
    SIGNIFICAND_BITS,
    SMALLEST_EXPONENT,
    round_once,
    wide,
)
from labkit.files.tensor_file import FLOATS
from labkit.merging.rounding import BlockMerger
from labkit.merging.rounding_on_device import DeviceMerger

CODES = ["BF16", "F16", "F32"]


@pytest.fixture
def dice():
    return np.random.default_rng(5)


def exactly_rounded(value, code):
    """The nearest number of a dtype, ties to even, by exact rational arithmetic."""
    if value == 0 or not math.isfinite(value):
        return value
    _, exponent = math.frexp(value)
    exponent = max(exponent - 1, SMALLEST_EXPONENT[code])
    last_place = Fraction(2) ** (exponent - SIGNIFICAND_BITS[code] + 1)
    rounded = round(Fraction(value) / last_place) * last_place
    if abs(rounded) > Fraction(LARGEST[code]):
        return math.copysign(math.inf, value)
    return float(rounded)


def bits(stored):
    return stored.view(f"u{stored.itemsize}")


def as_torch(stored, code):
    of_torch = getattr(torch, FLOATS[code])
    return torch.from_numpy(stored.view(f"i{stored.itemsize}").copy()).view(of_torch)


def some(dice, rows, columns, rank=4, scale=0.05):
    return LowRank(
        dice.standard_normal((rows, rank)) * scale, dice.standard_normal((rank, columns)) * scale
    )


@pytest.mark.parametrize("code", CODES)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=50))
def test_round_once_is_exact(code, values):
    rounded = wide(round_once(np.array(values), code), code).tolist()
    assert rounded == [exactly_rounded(value, code) for value in values]


@pytest.mark.parametrize("code", CODES)
def test_ties_and_their_neighbours(code, dice):
    base = round_once(dice.standard_normal(5000) * 2.0 ** dice.integers(-30, 10, 5000), code)
    following = (bits(base) + 1).view(base.dtype)
    halfway = (wide(base, code) + wide(following, code)) / 2
    up = np.nextafter(halfway, np.inf)
    values = np.concatenate([halfway, up, np.nextafter(halfway, -np.abs(up) - 1)])
    expected = [exactly_rounded(value, code) for value in values.tolist()]
    assert wide(round_once(values, code), code).tolist() == expected


@pytest.mark.parametrize("code", [*CODES, "F64"])
def test_the_numbers_of_files_are_those_that_torch_reads(code, dice):
    stored = np.frombuffer(dice.bytes(4096 * np.dtype(ARRAYS[code]).itemsize), ARRAYS[code])
    np.testing.assert_array_equal(wide(stored, code), as_torch(stored, code).double().numpy())
    assert LARGEST[code] == torch.finfo(getattr(torch, FLOATS[code])).max


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("stored", [*CODES, "F64"])
@pytest.mark.parametrize("spread", [0, 14])
def test_every_merged_element_is_the_correctly_rounded_sum(stored, code, spread, dice):
    # A spread of magnitudes reaches float16's subnormal numbers.
    magnitude = 2.0 ** dice.integers(-spread, 1, (256, 512))
    base = round_once(dice.standard_normal((256, 512)) * 0.02 * magnitude, stored)
    # Factors of few bits make exact sums, and ties, common.
    left = np.round(dice.standard_normal((256, 4)) * 8) / 256
    right = np.round(dice.standard_normal((4, 512)) * 8) / 4096
    left[:32] = 0
    update = LowRank(left, right)
    merged, squared, missing = BlockMerger().merge(base, stored, update, 0, code)
    original = wide(base, stored)
    exact = original + left @ right
    expected = [exactly_rounded(value, code) for value in exact.reshape(-1).tolist()]
    assert wide(merged, code).reshape(-1).tolist() == expected
    change = wide(merged, code) - original
    assert squared == pytest.approx(np.square(change).sum())
    lost = change - left @ right
    assert missing == pytest.approx(np.square(lost).sum(), rel=1e-6)


@pytest.mark.parametrize("code", ["BF16", "F16"])
def test_bits_of_every_number_come_through(code):
    """Every number of 16 bits, merged with nothing, stays as it is."""
    base = np.arange(1 << 16, dtype=np.uint16).view(ARRAYS[code]).reshape(64, -1)
    update = LowRank(np.zeros((64, 1)), np.zeros((1, base.shape[1])))
    merged = BlockMerger().merge(base, code, update, 0, code)[0]
    before = wide(base, code)
    np.testing.assert_array_equal(wide(merged, code), before)  # a NaN is a NaN, and -0 is 0
    kept = np.isfinite(before) & (before != 0)
    assert np.array_equal(bits(merged)[kept], bits(base)[kept])


@pytest.mark.parametrize("stored", [*CODES, "F64"])
@pytest.mark.parametrize("code", CODES)
def test_a_change_of_dtype_alone_rounds_once(stored, code, dice):
    numbers = dice.standard_normal((64, 80)) * 2.0 ** dice.integers(-20, 1, (64, 80))
    base = round_once(numbers, stored)
    merged = BlockMerger().merge(base, stored, None, 0, code)[0]
    expected = round_once(wide(base, stored), code)
    assert np.array_equal(bits(merged), bits(expected))


@pytest.mark.parametrize("make", [BlockMerger, lambda: DeviceMerger("cpu")])
@pytest.mark.parametrize("code", ["BF16", "F16"])
def test_what_is_infinite_or_too_large(make, code, dice):
    base = round_once(dice.standard_normal((8, 64)), code)
    base[1, 2] = round_once(np.array([np.inf]), code)[0]
    base[2, 3] = round_once(np.array([-np.inf]), code)[0]
    base[3, 4] = round_once(np.array([np.nan]), code)[0]
    update = some(dice, 8, 64, scale=0.1)
    update.left[5] = 0
    update.left[5, 0], update.right[0, 7:9] = 1, [LARGEST[code] * 1.01, -LARGEST[code] * 1e3]
    out = np.empty_like(base)
    _, squared, _ = make().merge(base, code, update, 0, code, out)
    merged = wide(out, code)
    assert (merged[1, 2], merged[2, 3]) == (math.inf, -math.inf)
    assert np.isnan(merged[3, 4])
    assert (merged[5, 7], merged[5, 8]) == (math.inf, -math.inf)
    assert not math.isfinite(squared)
    exact = wide(base, code) + update.dense()
    rest = np.isfinite(exact) & (abs(exact) < LARGEST[code] / 2)
    assert np.array_equal(bits(out)[rest], bits(round_once(exact, code))[rest])


def test_blocks_of_any_size_give_the_same_bytes(dice):
    base = round_once(dice.standard_normal((64, 48)), "BF16")
    update = some(dice, 64, 48, 3, 1)
    merger = BlockMerger()
    whole = merger.merge(base, "BF16", update, 0, "BF16")[0].copy()
    for step in (1, 7, 64):
        parts = [
            merger.merge(base[start : start + step], "BF16", update, start, "BF16")[0].copy()
            for start in range(0, 64, step)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


class Backwards(LowRank):
    """Another library sums in another order."""

    def write_sum_to(self, total, base, start):
        total[...] = base
        rows = self.left[start : start + len(total)]
        for k in reversed(range(self.rank)):
            total += rows[:, k : k + 1] * self.right[k]


@pytest.mark.parametrize("code", CODES)
def test_the_order_of_summation_does_not_reach_the_bytes(code, dice):
    base = round_once(dice.standard_normal((512, 512)), "F16")
    update = some(dice, 512, 512, 16, 0.15)
    merger = BlockMerger()
    one = merger.merge(base, "F16", update, 0, code)[0].copy()
    other = merger.merge(base, "F16", Backwards(update.left, update.right), 0, code)[0]
    assert np.array_equal(bits(one), bits(other))


def gpu(device):
    return pytest.param(
        device,
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    )


@pytest.mark.parametrize("device", ["cpu", gpu("cuda")])
@pytest.mark.parametrize("code", [*CODES, "F64"])
@pytest.mark.parametrize("stored", CODES)
@pytest.mark.parametrize("scale", [1, 1e-4])
def test_torch_gives_the_same_bytes(device, stored, code, scale, dice):
    """What is done on a GPU, on the processor where there is none."""
    base = round_once(dice.standard_normal((96, 200)) * scale, stored)
    update = some(dice, 96, 200, 16, 0.15 * scale)
    update.left[:8] = 2.0**-9  # products that are halfway, or next to it
    update.right[:, :48] = 2.0**-18
    here, *sums = BlockMerger().merge(base, stored, update, 0, code)
    there = np.empty_like(here)
    _, *others = DeviceMerger(device).merge(base, stored, update, 0, code, there)
    if code == "F64":
        np.testing.assert_allclose(here, there, rtol=1e-12)
    else:
        assert np.array_equal(bits(here), bits(there))
    assert others == pytest.approx(sums, rel=1e-5, abs=1e-30)
