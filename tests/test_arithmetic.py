"""Rounded once, correctly, everywhere; against exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit import arithmetic
from labkit.arithmetic import SIGNIFICAND_BITS, SMALLEST_EXPONENT, BlockMerger, round_once
from labkit.delta import LowRank

SHORT = [torch.bfloat16, torch.float16, torch.float32]


def exactly_rounded(value, dtype):
    """The nearest number of a dtype, ties to even, by exact rational arithmetic."""
    if value == 0 or not math.isfinite(value):
        return value
    _, exponent = math.frexp(value)
    exponent = max(exponent - 1, SMALLEST_EXPONENT[dtype])
    last_place = Fraction(2) ** (exponent - SIGNIFICAND_BITS[dtype] + 1)
    rounded = round(Fraction(value) / last_place) * last_place
    if abs(rounded) > Fraction(torch.finfo(dtype).max):
        return math.copysign(math.inf, value)
    return float(rounded)


@pytest.mark.parametrize("dtype", SHORT)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=50))
def test_round_once_is_exact(dtype, values):
    rounded = round_once(torch.tensor(values, dtype=torch.float64), dtype).tolist()
    assert rounded == [exactly_rounded(value, dtype) for value in values]


@pytest.mark.parametrize("dtype", SHORT)
def test_ties_and_their_neighbours(dtype):
    base = (torch.randn(5000).double() * torch.exp2(torch.randint(-30, 10, (5000,)))).to(dtype)
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    following = (base.view(bits) + 1).view(dtype)
    halfway = (base.double() + following.double()) / 2
    up = torch.nextafter(halfway, torch.tensor(math.inf, dtype=torch.float64))
    values = torch.cat([halfway, up, torch.nextafter(halfway, -up.abs() - 1)])
    expected = [exactly_rounded(value, dtype) for value in values.tolist()]
    assert round_once(values, dtype).tolist() == expected


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("spread", [0, 14])
def test_every_merged_element_is_the_correctly_rounded_sum(dtype, spread):
    # A spread of magnitudes reaches float16's subnormal numbers.
    magnitude = torch.exp2(torch.randint(-spread, 1, (256, 512)).float())
    base = (torch.randn(256, 512) * 0.02 * magnitude).to(dtype)
    # Factors of few bits make exact sums, and ties, common.
    left = (torch.randn(256, 4) * 8).round().double() / 256
    right = (torch.randn(4, 512) * 8).round().double() / 4096
    left[:32] = 0
    update = LowRank(left, right)
    merger = BlockMerger(torch.device("cpu"))
    merged, squared, missing = merger.merge(base, update, 0, dtype)
    exact = base.double() + left @ right
    expected = [exactly_rounded(value, dtype) for value in exact.view(-1).tolist()]
    assert merged.view(-1).tolist() == expected
    change = merged.double() - base.double()
    assert squared == pytest.approx(change.square().sum().item())
    lost = change - left @ right
    assert missing == pytest.approx(lost.square().sum().item(), rel=1e-6)


def test_blocks_of_any_size_give_the_same_bytes():
    base = torch.randn(64, 48).to(torch.bfloat16)
    update = LowRank(torch.randn(64, 3).double(), torch.randn(3, 48).double())
    merger = BlockMerger(torch.device("cpu"))
    whole = merger.merge(base, update, 0, torch.bfloat16)[0].clone()
    for step in (1, 7, 64):
        parts = [
            merger.merge(base[start : start + step], update, start, torch.bfloat16)[0].clone()
            for start in range(0, 64, step)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_the_order_of_summation_does_not_reach_the_bytes():
    """Another library sums in another order; halfway cases must not follow it."""

    class Backwards(LowRank):
        def add_rows_to(self, total, start, base=None):
            rows = self.left[start : start + len(total)]
            for k in reversed(range(self.rank)):
                total += rows[:, k : k + 1] * self.right[k]

    base = torch.randn(512, 512).half()
    left, right = torch.randn(512, 16).double() / 50, torch.randn(16, 512).double() / 50
    merger = BlockMerger(torch.device("cpu"))
    for dtype in SHORT:
        one = merger.merge(base, LowRank(left, right), 0, dtype)[0].clone()
        other = merger.merge(base, Backwards(left, right), 0, dtype)[0]
        assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", SHORT)
def test_a_gpu_gives_the_same_bytes(dtype):
    base = torch.randn(512, 512).half()
    update = LowRank(torch.randn(512, 16).double() / 50, torch.randn(16, 512).double() / 50)
    here = BlockMerger(torch.device("cpu")).merge(base, update, 0, dtype)[0]
    cuda = torch.device("cuda")
    there = BlockMerger(cuda).merge(base.to(cuda), update.to(cuda), 0, dtype)[0]
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpus_search_for_halfway_numbers_finds_the_same(dtype, monkeypatch):
    # On a GPU torch looks for them and not numpy; here it does so on the CPU's own tensors.
    torch.manual_seed(5)
    base = (torch.randn(64, 96) * 1e-4).to(dtype)
    update = LowRank(torch.randn(64, 4).double() * 1e-3, torch.randn(4, 96).double() * 1e-3)
    update.left[:8] = 2.0**-9  # products that are halfway, or next to it
    update.right[:, :48] = 2.0**-18
    cpu = torch.device("cpu")
    expected, *sums = BlockMerger(cpu).merge(base, update, 0, dtype)
    monkeypatch.setattr(arithmetic, "_quickest", lambda values: values)
    found, *others = BlockMerger(cpu).merge(base, update, 0, dtype)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
    assert others == pytest.approx(sums, rel=1e-6)
