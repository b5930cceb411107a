"""The model of an objective and its minimum in a box, against brute force."""

import numpy as np
import pytest

from labkit.probing.quadratic import Quadratic, box_minimum, expected_at, quadratic_model


def bowl(size, seed):
    dice = np.random.default_rng(seed)
    root = dice.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size), dice.uniform(-0.5, 1.5, size)


def test_the_minimum_in_a_box_is_where_nothing_nearby_is_lower():
    for seed in range(5):
        curvature, target = bowl(3, seed)
        slope = -curvature @ target
        low, high = np.zeros(3), np.ones(3)
        found = box_minimum(curvature, slope, low, high, np.full(3, 0.5))
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 3), -1).reshape(-1, 3)
        values = grid @ slope + np.einsum("ij,jk,ik->i", grid, curvature, grid) / 2
        mine = found @ slope + found @ curvature @ found / 2
        assert mine <= values.min() + 1e-9
        assert np.abs(found - grid[values.argmin()]).max() < 0.06


def test_of_a_quadratic_objective_the_model_agrees_along_the_steps_that_were_made():
    curvature, target = bowl(6, 1)
    points = list(np.random.default_rng(3).random((5, 6)))
    slopes = [curvature @ (point - target) for point in points]
    values = [(point - target) @ curvature @ (point - target) / 2 for point in points]
    center = int(np.argmin(values))
    model = quadratic_model(points, values, slopes, np.zeros((6, 6)), center, 0.3)
    last = points[-1]
    before = points[int(np.argmin(values[:-1]))]
    # The secant of the last step holds: curvature · step is the turn of the slopes.
    turn = curvature @ (last - before)
    np.testing.assert_allclose(model.curvature @ (last - before), turn)
    assert model.change(model.center) == 0
    assert np.linalg.eigvalsh(model.curvature).min() > 0


def test_known_curvature_is_taken_as_it_is():
    known = np.diag([3.0, 1.0])
    point = np.array([0.5, 0.2])
    model = quadratic_model([point], [2.0], [np.array([0.1, -0.3])], known, 0, 0.25)
    assert model.value == 2.0 + (3 * 0.25 + 0.04) / 2
    np.testing.assert_allclose(model.slope, [0.1 + 1.5, -0.3 + 0.2])
    # With nothing known of the rest, the steepest weight moves by the radius.
    np.testing.assert_allclose(model.curvature - known, np.eye(2) * 1.6 / 0.25)


def test_where_the_objective_bends_down_the_model_still_bends_up():
    points = [np.array([0.5, 0.5]), np.array([0.7, 0.5]), np.array([0.9, 0.5])]
    slopes = [np.array([-1.0, 0.0]), np.array([-1.5, 0.0]), np.array([-2.5, 0.0])]
    model = quadratic_model(points, [0.0, -0.3, -0.7], slopes, np.zeros((2, 2)), 2, 0.3)
    assert np.linalg.eigvalsh(model.curvature).min() > 0
    assert model.minimum(np.eye(2), (0.0, 1.0), 0.3)[0] == 1.0


def test_a_family_is_searched_among_its_lists_alone():
    model = Quadratic(np.array([0.5, 0.5, 0.5]), 0.0, np.array([-1.0, 0.0, 1.0]), np.eye(3))
    ramp = np.array([[1, 0.5, 0], [0, 0.5, 1]])
    np.testing.assert_allclose(model.minimum(ramp, (0.0, 1.0), 0.2), [0.7, 0.5, 0.3])
    np.testing.assert_allclose(model.minimum(ramp, (0.0, 0.6), 0.2), [0.6, 0.45, 0.3])


def test_a_search_with_it_reaches_the_minimum_of_thirty_weights():
    curvature, target = bowl(30, 5)
    points, values, slopes = [np.full(30, 0.5)], [], []
    for _ in range(15):
        far = points[-1] - target
        values.append(far @ curvature @ far / 2)
        slopes.append(curvature @ far)
        center = int(np.argmin(values))
        model = quadratic_model(points, values, slopes, np.zeros((30, 30)), center, 0.5)
        points.append(model.minimum(np.eye(30), (0.0, 1.0), 0.5))
    best = box_minimum(curvature, -curvature @ target, np.zeros(30), np.ones(30), points[0])
    lowest = (best - target) @ curvature @ (best - target) / 2
    assert min(values) - lowest < 0.05 * (values[0] - lowest)


def test_what_is_expected_at_a_point_that_was_seen_is_what_was_seen_there():
    dice = np.random.default_rng(2)
    points = list(dice.random((6, 4)))
    values, slopes = [*dice.normal(size=6)], [*dice.normal(size=(6, 4))]
    for point, value, slope in zip(points, values, slopes, strict=True):
        assert expected_at(point, points, values, slopes) == value
        for axis in np.eye(4) * 1e-4:
            change = expected_at(point + axis, points, values, slopes) - value
            assert change == pytest.approx(slope @ axis, abs=1e-6)


def test_of_a_parabola_all_that_is_expected_is_true():
    points = [np.array([place]) for place in (0.1, 0.5, 0.8)]
    values = [3 * (point[0] - 0.4) ** 2 for point in points]
    slopes = [6 * (point - 0.4) for point in points]
    for place in (0.0, 0.3, 0.65, 1.0):
        found = expected_at(np.array([place]), points, values, slopes)
        assert found == pytest.approx(3 * (place - 0.4) ** 2)


def test_a_point_that_is_there_twice_bends_nothing():
    points = [np.array([0.2, 0.4]), np.array([0.5, 0.3])]
    slopes = [np.array([1.0, 2.0]), np.array([1.5, 2.5])]
    once = quadratic_model(points, [1.0, 2.0], slopes, np.zeros((2, 2)), 0, 0.3)
    twice = quadratic_model(
        [points[0], *points], [1.0, 1.0, 2.0], [slopes[0], *slopes], np.zeros((2, 2)), 0, 0.3
    )
    np.testing.assert_array_equal(twice.curvature, once.curvature)


def test_weights_that_hardly_bend_are_not_held_back_by_those_that_do():
    dice = np.random.default_rng(0)
    curvature, target = np.diag(10 ** dice.uniform(-2.5, 0, 30)), dice.uniform(-0.2, 1.2, 30)
    points, values, slopes = [np.full(30, 0.5)], [], []
    for _ in range(8):
        far = points[-1] - target
        values.append(far @ curvature @ far / 2)
        slopes.append(curvature @ far)
        model = quadratic_model(
            points, values, slopes, np.zeros((30, 30)), int(np.argmin(values)), 0.3
        )
        points.append(model.minimum(np.eye(30), (0.0, 1.0), 0.3))
    best = box_minimum(curvature, -curvature @ target, np.zeros(30), np.ones(30), points[0])
    lowest = (best - target) @ curvature @ (best - target) / 2
    # With one number for all weights 0.015 of it is left.
    assert min(values) - lowest < 0.005 * (values[0] - lowest)
