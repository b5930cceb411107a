"""A quadratic model of an objective, made from the values and slopes that were seen of it.

A quasi-Newton method with bounds: curvature by the formula of Broyden, Fletcher, Goldfarb and
Shanno, and a region in which the model is trusted (Nocedal and Wright, Numerical Optimization,
2006, formula 6.19 and algorithm 4.1), a box here, as the bounds are. Every evaluation that was ever
made serves the model, also those for another weight of the KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Vector = Float64[np.ndarray, " n"]
Matrix = Float64[np.ndarray, "n n"]

SWEEPS = 200
CHANGE = 1e-7
FIRST_RADIUS = 0.3
LEAST_BEND = 0.1
"""A step takes at most nine tenths off what the model bends along it."""
UNEVEN = 10
"""So many times as much as all together, or as little, a weight bends at most."""
MOVED = 1e-3
"""The square of a way, in weights, from which on a weight's own bend is believed."""
NEARNESS = 4
"""The power of the inverse distance by which an evaluated point counts for another one."""


@dataclass(frozen=True)
class Quadratic:
    """`slope·(w - center) + ½(w - center)ᵀ·curvature·(w - center)`.

    Attributes:
        center: a point that was evaluated.
        value: the objective there.
        slope: its derivatives there.
        curvature: the model's second derivatives.
    """

    center: Vector
    value: float
    slope: Vector
    curvature: Matrix

    def change(self, point: Vector) -> float:
        """How much the objective is expected to change from the center to a point."""
        step = point - self.center
        return float(self.slope @ step + step @ self.curvature @ step / 2)

    def minimum(
        self,
        basis: Float64[np.ndarray, "parameters n"],
        bounds: tuple[float, float],
        radius: float,
    ) -> Vector:
        """The best of the points `parameters @ basis`, each parameter within bounds.

        Where the center is such a point itself, no parameter moves farther than the radius.
        """
        low, high = (np.full(len(basis), float(end)) for end in bounds)
        here = np.linalg.lstsq(basis.T, self.center, rcond=None)[0]
        if np.allclose(here @ basis, self.center, atol=1e-6):
            low, high = np.maximum(low, here - radius), np.minimum(high, here + radius)
        slope = basis @ (self.slope - self.curvature @ self.center)
        curvature = basis @ self.curvature @ basis.T
        found: Vector = box_minimum(curvature, slope, low, high, np.clip(here, low, high)) @ basis
        return found


def box_minimum(curvature: Matrix, slope: Vector, low: Vector, high: Vector, at: Vector) -> Vector:
    """The minimum of `slope·x + ½xᵀ·curvature·x` in a box, one coordinate after the other.

    Args:
        curvature: positive definite.
        slope: the linear part.
        low: the lower ends.
        high: the upper ends.
        at: where to begin.
    """
    point = at.copy()
    for _ in range(SWEEPS):
        before = point.copy()
        for index in range(len(point)):
            down = slope[index] + curvature[index] @ point
            moved = point[index] - down / curvature[index, index]
            point[index] = min(max(moved, low[index]), high[index])
        if np.abs(point - before).max() < CHANGE:
            break
    return point


def quadratic_model(
    points: Sequence[Vector],
    values: Sequence[float],
    slopes: Sequence[Vector],
    known: Matrix,
    center: int,
    radius: float,
) -> Quadratic:
    """The model around one of the points.

    Args:
        points: where the objective was evaluated, in order; at least one.
        values: what it was, less the part whose curvature is known.
        slopes: its derivatives, likewise.
        known: the known curvature `K` of the part `½wᵀKw` that comes on top of values and slopes.
        center: the number of the point.
        radius: how far the first step may go, where nothing is known of the curvature.
    """
    whole = [
        value + float(point @ known @ point) / 2
        for point, value in zip(points, values, strict=True)
    ]
    slope = slopes[center] + known @ points[center]
    # Each evaluation is compared with the best one before it, from which it was a step.
    pairs = []
    for number in range(1, len(points)):
        old = int(np.argmin(whole[:number]))
        step = points[number] - points[old]
        if step.any():
            pairs.append((step, slopes[number] - slopes[old]))
    bends = [step @ turn / (step @ step) for step, turn in pairs if step @ turn > 0]
    scale = float(np.median(bends)) if bends else float(np.abs(slope).max()) / radius
    curvature = np.diag(_bends(pairs, max(scale, 1e-9), len(slope)))
    for step, turn in pairs:
        bent = curvature @ step
        held, seen = float(step @ bent), float(step @ turn)
        if seen < LEAST_BEND * held:
            # Where it bends down, the model bends less than before, but up (Powell's damping).
            turn = turn + (LEAST_BEND * held - seen) / (held - seen) * (bent - turn)
        curvature += np.outer(turn, turn) / (step @ turn) - np.outer(bent, bent) / held
    return Quadratic(points[center], whole[center], slope, (curvature + curvature.T) / 2 + known)


def _bends(pairs: Sequence[tuple[Vector, Vector]], scale: float, size: int) -> Vector:
    """How much each weight's own slope turns as it moves: what the formula begins with.

    Layers differ by more than ten times in this. With one number for all, those that hardly bend
    are held back by those that do.

    Args:
        pairs: steps, and what the slopes turned by.
        scale: how much they bend as a whole; the farther a weight has moved, the less it counts.
        size: the number of weights.
    """
    moved, turned = np.full(size, MOVED), np.full(size, MOVED * scale)
    for step, turn in pairs:
        moved += step**2
        turned += step * turn
    bends: Vector = np.clip(turned / moved, scale / UNEVEN, scale * UNEVEN)
    return bends


def expected_at(
    point: Vector,
    points: Sequence[Vector],
    values: Sequence[float],
    slopes: Sequence[Vector],
) -> float:
    """What an objective should be at a point, by all evaluations of it, the nearest above all.

    Each evaluated point says `value + slope·step + ½·stepᵀ·curvature·step`, and they are weighted
    by the inverse of their distance (Shepard, "A two-dimensional interpolation function for
    irregularly-spaced data", 1968, with local models as in Franke and Nielson, 1980). So at an
    evaluated point the prediction is what was measured, with the slopes that were measured; one
    model around the best point is far off at all others. The curvature is that of one model.

    Args:
        point: where.
        points: where it was evaluated; at least one.
        values: what it was.
        slopes: its derivatives.
    """
    size = len(point)
    lowest = int(np.argmin(values))
    nothing = np.zeros((size, size))
    curvature = quadratic_model(points, values, slopes, nothing, lowest, FIRST_RADIUS).curvature
    steps = point - np.stack(points)
    far = np.linalg.norm(steps, axis=1)
    nearest = int(far.argmin())
    if far[nearest] == 0:
        return float(values[nearest])
    said = values + (steps * slopes).sum(1) + ((steps @ curvature) * steps).sum(1) / 2
    weights = (far[nearest] / far) ** NEARNESS
    return float(weights @ said / weights.sum())
