"""Rounded once, correctly, everywhere; against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from labkit.deltas.low_rank import LowRank
from labkit.deltas.replacements import WholeReplacement
from labkit.files.floats import (
    ARRAYS,
    LARGEST,
    SIGNIFICAND_BITS,
    SMALLEST_EXPONENT,
    round_once,
    wide,
)
from labkit.files.tensor_file import FLOATS, open_tensor_file
from labkit.merging import rounding_on_device
from labkit.merging.rounding import BlockMerger
from labkit.merging.rounding_on_device import DeviceMerger

DTYPES = ["BF16", "F16", "F32"]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MERGERS = [
    BlockMerger,
    lambda: DeviceMerger("cpu"),
    pytest.param(lambda: DeviceMerger("cuda"), marks=NO_GPU),
]
"""On the processor by numpy, and the arithmetic of a GPU by torch: there, and on the processor."""


@pytest.fixture
def dice():
    return np.random.default_rng(5)


def exactly_rounded(value, dtype):
    """The nearest number of a dtype, ties to even, by exact rational arithmetic."""
    if value == 0 or not math.isfinite(value):
        return value
    _, exponent = math.frexp(value)
    exponent = max(exponent - 1, SMALLEST_EXPONENT[dtype])
    last_place = Fraction(2) ** (exponent - SIGNIFICAND_BITS[dtype] + 1)
    rounded = round(Fraction(value) / last_place) * last_place
    if abs(rounded) > Fraction(LARGEST[dtype]):
        return math.copysign(math.inf, value)
    return float(rounded)


def bits(stored):
    return stored.view(f"u{stored.itemsize}")


def as_torch(stored, dtype):
    of_torch = getattr(torch, FLOATS[dtype])
    return torch.from_numpy(stored.view(f"i{stored.itemsize}").copy()).view(of_torch)


def some(dice, rows, columns, rank=4, scale=0.05):
    return LowRank(
        dice.standard_normal((rows, rank)) * scale, dice.standard_normal((rank, columns)) * scale
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=50))
def test_round_once_is_exact(dtype, values):
    rounded = wide(round_once(np.array(values), dtype), dtype).tolist()
    assert rounded == [exactly_rounded(value, dtype) for value in values]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_and_their_neighbours(dtype, dice):
    base = round_once(dice.standard_normal(5000) * 2.0 ** dice.integers(-30, 10, 5000), dtype)
    following = (bits(base) + 1).view(base.dtype)
    halfway = (wide(base, dtype) + wide(following, dtype)) / 2
    up = np.nextafter(halfway, np.inf)
    values = np.concatenate([halfway, up, np.nextafter(halfway, -np.abs(up) - 1)])
    expected = [exactly_rounded(value, dtype) for value in values.tolist()]
    assert wide(round_once(values, dtype), dtype).tolist() == expected


@pytest.mark.parametrize("dtype", [*DTYPES, "F64"])
def test_the_numbers_of_files_are_those_that_torch_reads(dtype, dice):
    stored = np.frombuffer(dice.bytes(4096 * np.dtype(ARRAYS[dtype]).itemsize), ARRAYS[dtype])
    np.testing.assert_array_equal(wide(stored, dtype), as_torch(stored, dtype).double().numpy())
    assert LARGEST[dtype] == torch.finfo(getattr(torch, FLOATS[dtype])).max


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", [*DTYPES, "F64"])
@pytest.mark.parametrize("spread", [0, 14])
def test_every_merged_element_is_the_correctly_rounded_sum(base_dtype, dtype, spread, dice):
    # A spread of magnitudes reaches float16's subnormal numbers.
    magnitude = 2.0 ** dice.integers(-spread, 1, (256, 512))
    base = round_once(dice.standard_normal((256, 512)) * 0.02 * magnitude, base_dtype)
    # Factors of few bits make exact sums, and ties, common.
    left = np.round(dice.standard_normal((256, 4)) * 8) / 256
    right = np.round(dice.standard_normal((4, 512)) * 8) / 4096
    left[:32] = 0
    update = LowRank(left, right)
    merged, squared, missing, _ = BlockMerger().merge(base, base_dtype, update, 0, dtype)
    original = wide(base, base_dtype)
    exact = original + left @ right
    expected = [exactly_rounded(value, dtype) for value in exact.reshape(-1).tolist()]
    assert wide(merged, dtype).reshape(-1).tolist() == expected
    change = wide(merged, dtype) - original
    assert squared == pytest.approx(np.square(change).sum())
    lost = change - left @ right
    assert missing == pytest.approx(np.square(lost).sum(), rel=1e-6)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_bits_of_every_number_come_through(dtype):
    """Every number of 16 bits, merged with nothing, stays as it is."""
    base = np.arange(1 << 16, dtype=np.uint16).view(ARRAYS[dtype]).reshape(64, -1)
    update = LowRank(np.zeros((64, 1)), np.zeros((1, base.shape[1])))
    merged = BlockMerger().merge(base, dtype, update, 0, dtype)[0]
    before = wide(base, dtype)
    np.testing.assert_array_equal(wide(merged, dtype), before)  # a NaN is a NaN, and -0 is 0
    kept = np.isfinite(before) & (before != 0)
    assert np.array_equal(bits(merged)[kept], bits(base)[kept])


@pytest.mark.parametrize("base_dtype", [*DTYPES, "F64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_of_dtype_alone_rounds_once(base_dtype, dtype, dice):
    numbers = dice.standard_normal((64, 80)) * 2.0 ** dice.integers(-20, 1, (64, 80))
    base = round_once(numbers, base_dtype)
    merged = BlockMerger().merge(base, base_dtype, None, 0, dtype)[0]
    expected = round_once(wide(base, base_dtype), dtype)
    assert np.array_equal(bits(merged), bits(expected))


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("weight", [0.5, 0.3, 1.0, -1.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_with_a_saved_tensor_is_rounded_once(make, dtype, weight, dice, tmp_path):
    """Half of the means of two numbers lie halfway between two that can be stored."""
    magnitude = 2.0 ** dice.integers(-16, 12, (64, 80))
    numbers = dice.standard_normal((2, 64, 80)) * magnitude
    numbers[1, :32] = numbers[0, :32] * 1.01
    stored = {
        name: as_torch(round_once(values, dtype), dtype)
        for name, values in zip(("base", "saved"), numbers, strict=True)
    }
    save_file(stored, tmp_path / "x.safetensors")
    base, saved = open_tensor_file(tmp_path / "x.safetensors").tensors
    update = WholeReplacement(saved, base, weight)
    there = round_once(numbers[0], dtype)
    out = np.empty(there.shape, ARRAYS[dtype])
    merged, squared, missing, _ = make().merge(there, dtype, update, 0, dtype, out)
    before, after = base.read(), saved.read()
    total = before - before * weight + after * weight
    expected = [exactly_rounded(value, dtype) for value in total.reshape(-1).tolist()]
    assert wide(merged, dtype).reshape(-1).tolist() == expected
    change = wide(merged, dtype) - before
    assert squared == pytest.approx(np.square(change).sum(), rel=1e-5)
    assert missing == pytest.approx(np.square(change - (total - before)).sum(), rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_rounds_means_itself(dtype, dice, tmp_path, monkeypatch):
    """Every second one lies halfway, and no last bit of a product decides where it goes."""
    monkeypatch.setattr(rounding_on_device, "merge_exactly", None)
    values = round_once(dice.standard_normal((2, 64, 80)), dtype)
    stored = {name: as_torch(one, dtype) for name, one in zip(("a", "b"), values, strict=True)}
    save_file(stored, tmp_path / "x.safetensors")
    base, saved = open_tensor_file(tmp_path / "x.safetensors").tensors
    update, out = WholeReplacement(saved, base, 0.5), np.empty(values[0].shape, ARRAYS[dtype])
    DeviceMerger("cpu").merge(values[0], dtype, update, 0, dtype, out)
    total = (base.read() + saved.read()) / 2
    assert np.array_equal(bits(out), bits(round_once(total, dtype)))


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_is_infinite_or_too_large(make, dtype, dice):
    base = round_once(dice.standard_normal((8, 64)), dtype)
    base[1, 2] = round_once(np.array([np.inf]), dtype)[0]
    base[2, 3] = round_once(np.array([-np.inf]), dtype)[0]
    base[3, 4] = round_once(np.array([np.nan]), dtype)[0]
    update = some(dice, 8, 64, scale=0.1)
    update.left[5] = 0
    update.left[5, 0], update.right[0, 7:9] = 1, [LARGEST[dtype] * 1.01, -LARGEST[dtype] * 1e3]
    out = np.empty_like(base)
    _, squared, _, _ = make().merge(base, dtype, update, 0, dtype, out)
    merged = wide(out, dtype)
    assert (merged[1, 2], merged[2, 3]) == (math.inf, -math.inf)
    assert np.isnan(merged[3, 4])
    assert (merged[5, 7], merged[5, 8]) == (math.inf, -math.inf)
    assert not math.isfinite(squared)
    exact = wide(base, dtype) + update.dense()
    rest = np.isfinite(exact) & (abs(exact) < LARGEST[dtype] / 2)
    assert np.array_equal(bits(out)[rest], bits(round_once(exact, dtype))[rest])


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so_whatever_is_added(make, base_dtype, dtype):
    numbers = np.array([[math.inf, -math.inf, math.nan, 1.0]])
    base = round_once(numbers, base_dtype)
    out = np.empty((1, 4), ARRAYS[dtype])
    update = LowRank(np.array([[1000.0]]), np.array([[-1.0, 1.0, -1.0, 0.0]]))
    _, squared, _, _ = make().merge(base, base_dtype, update, 0, dtype, out)
    np.testing.assert_array_equal(wide(out, dtype), numbers)
    assert not math.isfinite(squared)


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_sums_of_squares_that_a_float32_cannot_hold(make, scale, dice):
    base = np.zeros((4, 100), np.uint16)
    update = some(dice, 4, 100, 4, 1.0).times(scale)
    out = np.empty_like(base)
    _, squared, missing, _ = make().merge(base, "BF16", update, 0, "BF16", out)
    change = wide(out, "BF16")
    assert squared == pytest.approx(np.square(change).sum(), abs=0)
    assert missing == pytest.approx(np.square(change - update.dense()).sum(), rel=1e-4, abs=0)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_summation_does_not_reach_the_bytes(dtype, dice):
    base = round_once(dice.standard_normal((512, 512)), "F16")
    update = some(dice, 512, 512, 16, 0.15)
    merger = BlockMerger()
    one = merger.merge(base, "F16", update, 0, dtype)[0].copy()
    other = merger.merge(base, "F16", Backwards(update.left, update.right), 0, dtype)[0]
    assert np.array_equal(bits(one), bits(other))


class Elsewhere(LowRank):
    """A product whose rows another library has summed with another last bit."""

    steps = 0
    """How many units in the last place of a float64 it is off."""

    def write_sum_to(self, total, base, start):
        super().write_sum_to(total, base, start)
        total *= 1 + self.steps * 2.0**-52

    def to(self, device):
        there = super().to(device)
        moved = Elsewhere(there.left, there.right)
        moved.steps = self.steps
        return moved


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("steps", [-1000, -1, 0, 1, 1000])
@pytest.mark.parametrize("first", [1.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_that_is_halfway_is_rounded_by_its_single_element(make, steps, first, dtype):
    """From 1 on, and among the smallest, every sum lies halfway between two numbers of the dtype.

    Ties go to the even one, also where the rows were summed a little less or more than halfway.
    """
    apart = 2.0 ** (1 - SIGNIFICAND_BITS[dtype] + (0 if first else SMALLEST_EXPONENT[dtype]))
    numbers = first + np.arange(128) * apart
    base = round_once(np.tile(numbers, (4, 1)), dtype)
    update = Elsewhere(np.full((4, 1), apart), np.full((1, 128), 0.5))
    update.steps = steps
    out = np.empty_like(base)
    make().merge(base, dtype, update, 0, dtype, out)
    expected = [exactly_rounded(number + apart / 2, dtype) for number in numbers.tolist()]
    assert expected[:3] == [first, first + 2 * apart, first + 2 * apart]
    assert wide(out, dtype).tolist() == [expected] * 4


@pytest.mark.parametrize("make", MERGERS)
@pytest.mark.parametrize("base_dtype", [*DTYPES, "F64"])
@pytest.mark.parametrize("nudge", [-(2.0**-36), 0, 2.0**-36])
def test_below_float16s_normal_numbers_the_last_place_stays(make, base_dtype, nudge):
    """Numbers between 0 and 2⁻¹³, next to halfway: nearer than a float32 tells them apart."""
    left = (np.arange(2048)[:, None] + 0.5 + nudge) * np.where(np.arange(2048) % 3, 1, -1)[:, None]
    update = LowRank(left, np.full((1, 2), 2.0**-24))
    base = np.zeros((2048, 2), ARRAYS[base_dtype])
    out = np.empty((2048, 2), np.float16)
    make().merge(base, base_dtype, update, 0, "F16", out)
    expected = [exactly_rounded(number * 2.0**-24, "F16") for number in left[:, 0].tolist()]
    assert out.astype(np.float64).T.tolist() == [expected] * 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("dtype", [*DTYPES, "F64"])
@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 1e-4])
def test_torch_gives_the_same_bytes(device, base_dtype, dtype, scale, dice):
    """What is done on a GPU, on the processor where there is none."""
    base = round_once(dice.standard_normal((96, 200)) * scale, base_dtype)
    update = some(dice, 96, 200, 16, 0.15 * scale)
    update.left[:8] = 2.0**-9  # products that are halfway, or next to it
    update.right[:, :48] = 2.0**-18
    here, *sums = BlockMerger().merge(base, base_dtype, update, 0, dtype)
    there = np.empty_like(here)
    _, *others = DeviceMerger(device).merge(base, base_dtype, update, 0, dtype, there)
    if dtype == "F64":
        np.testing.assert_allclose(here, there, rtol=1e-12)
    else:
        assert np.array_equal(bits(here), bits(there))
    assert others == pytest.approx(sums, rel=1e-5, abs=1e-30)
