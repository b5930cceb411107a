"""What a delta adds, as one dense matrix, found by every way that a delta has to add itself."""

import numpy as np
import torch

DICE = np.random.default_rng(11)


def added_by(delta, base, start=0):
    """The rows that a delta adds to 0, checked against its single entries and against torch.

    Args:
        delta: what is added.
        base: float64 rows of the base from `start` on; 0 where the base has no such row.
        start: the number of the first row.
    """
    total = np.zeros(base.shape)
    delta.add_rows_to(total, start, base)

    rows, columns = (each.reshape(-1) for each in np.indices(base.shape))
    order = DICE.permutation(len(rows))[: max(1, 2 * len(rows) // 3)]
    entries = np.full(len(order), 7.0)
    here = base[rows[order], columns[order]]
    delta.add_entries_to(entries, here, rows[order] + start, columns[order])
    np.testing.assert_allclose(entries - 7, total[rows[order], columns[order]], atol=1e-12)

    if delta.by_element:  # to the last bit, as the merge relies on
        alone = np.zeros(len(order))
        delta.add_entries_to(alone, here, rows[order] + start, columns[order])
        np.testing.assert_array_equal(alone, total[rows[order], columns[order]])

    by_torch = torch.zeros(base.shape, dtype=torch.float64)
    delta.to("cpu").add_rows_to(by_torch, start, torch.tensor(base))
    np.testing.assert_allclose(by_torch.numpy(), total, atol=1e-12)

    summed = np.full(base.shape, np.nan)
    delta.write_sum_to(summed, base, start)
    np.testing.assert_allclose(summed, base + total, atol=1e-12)
    summed_by_torch = torch.full(base.shape, torch.nan, dtype=torch.float64)
    delta.to("cpu").write_sum_to(summed_by_torch, torch.tensor(base), start)
    np.testing.assert_allclose(summed_by_torch.numpy(), base + total, atol=1e-12)
    return total


def some(*shape):
    return DICE.standard_normal(shape)


def with_new_rows(base, count):
    """The base with so many rows of 0 behind its last."""
    return np.concatenate([base, np.zeros((count, base.shape[1]))])
