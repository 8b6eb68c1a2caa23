import numpy as np
import pytest

from fpsde import Snapshots
from fpsde.snapshots import SnapshotError, mean_and_variance


def test_split_keeps_every_time(rng):
    data = Snapshots.of(rng.normal(size=(130, 2)), np.repeat([0, 1], [100, 30]))
    kept, held = data.split(0.1, rng)
    assert [len(x) for x in held.groups()] == [10, 3]
    assert len(kept.t) + len(held.t) == 130
    few = Snapshots.of(rng.normal(size=(6, 2)), np.repeat([0, 1], 3))
    assert few.split(0.5, rng)[1] is None


@pytest.mark.parametrize(("scale", "times", "message"), [
    (1e200, [0, 1], "coordinate 'x1' has .*e.20. in row 0, beyond 1e.30; drop"),
    (1.0, [0, 1e300], "times from 0 to 1e.300 are out of range"),
    (1.0, [0, 1e-9, 1], "times 0 and 1e-09 are closer than 1e-06 of the time from first to last; merge"),
])
def test_numbers_that_floating_point_would_lose(scale, times, message, rng):
    x = scale * (1 + rng.random(size=(5 * len(times), 2)))
    with pytest.raises(SnapshotError, match=message):
        Snapshots.of(x, np.repeat(times, 5))


def test_values_that_are_not_finite_are_located(rng):
    x = rng.normal(size=(10, 2))
    x[7, 1] = np.nan
    with pytest.raises(SnapshotError, match="1 points .* in rows 7, the first in coordinate 'x2'"):
        Snapshots.of(x, np.repeat([0, 1], 5))


def test_weights_count_within_a_time_only(rng):
    x, t, w = rng.normal(size=(10, 2)), np.repeat([0, 1], 5), rng.uniform(1, 2, 10)
    data = Snapshots.of(x, t, weights=w)
    assert [float(v.mean()) for v in data.group_weights()] == pytest.approx([1, 1])
    assert np.allclose(data.weights / w, np.repeat([data.weights[0] / w[0], data.weights[5] / w[5]], 5))
    assert np.array_equal(Snapshots.of(x, t, weights=w * np.where(t == 0, 8, 0.25)).weights, data.weights)
    assert np.allclose(Snapshots.of(x, t, weights=w * np.where(t == 0, 3, 0.7)).weights, data.weights, rtol=1e-14)
    assert Snapshots.of(x, t, weights=np.where(t == 0, 3.0, 0.7)).weights is None


def test_points_of_no_weight_are_left_out(rng):
    x, t, w = rng.normal(size=(10, 2)), np.repeat([0, 1], 5), np.array([1.0, 0, 2, 3, 1, 1, 2, 0, 0, 1])
    data, rest = Snapshots.of(x, t, weights=w), Snapshots.of(x[w > 0], t[w > 0], weights=w[w > 0])
    assert np.array_equal(data.x, rest.x)
    assert np.array_equal(data.t, rest.t)
    assert np.array_equal(data.weights, rest.weights)


@pytest.mark.parametrize(("weights", "message"), [
    (np.ones(9), r"weights must have shape \(10,\), one for each point, got \(9,\)"),
    (1.0, r"weights must have shape"),
    ([1, -2] + [1] * 8, r"1 weights are negative, missing or infinite, the first in row 1 \(-2\)"),
    ([1] * 8 + [np.nan, np.inf], "2 weights are negative, missing or infinite, the first in row 8"),
    (np.zeros(10), "all weights are zero"),
    ([1] * 5 + [0] * 5, "1 of 2 times have fewer than 3 points of positive weight, the first is 1 with 0"),
    ([0, 0, 0, 1, 1] + [1] * 5, "fewer than 3 points of positive weight, the first is 0 with 2"),
])
def test_bad_weights_are_named(weights, message, rng):
    with pytest.raises(SnapshotError, match=message):
        Snapshots.of(rng.normal(size=(10, 2)), np.repeat([0, 1], 5), weights=weights)


def test_split_takes_the_weights_along(rng):
    x, w = rng.normal(size=(130, 1)), rng.uniform(1, 2, 130)
    data = Snapshots.of(x, np.repeat([0, 1], [100, 30]), weights=w)
    for part in data.split(0.1, rng):
        assert [float(v.mean()) for v in part.group_weights()] == pytest.approx([1, 1])
        for time in (0, 1):
            rows = [int(np.flatnonzero(x[:, 0] == v)[0]) for v in part.at(time)[:, 0]]
            assert np.ptp(part.weights[part.t == time] / w[rows]) < 1e-12


def test_mean_and_variance_are_those_of_repeated_points(rng):
    x, w = rng.normal(size=(20, 3)), rng.integers(1, 5, 20)
    for weighted, repeated in zip(mean_and_variance(x, w.astype(float)), mean_and_variance(x.repeat(w, 0)), strict=True):
        assert np.allclose(weighted, repeated, rtol=1e-12)


def test_a_thinned_sample_has_the_weighted_law(rng):
    """Uniform points of weight x have mean 2/3; no point comes twice, and without weights all stay."""
    x = rng.uniform(size=(8000, 1))
    t = np.repeat([0, 1], 4000)
    data = Snapshots.of(x, t, weights=x[:, 0] * np.where(t == 0, 5, 1))
    for points in data.thinned(rng).groups():
        assert len(np.unique(points)) == len(points)
        assert points.mean() == pytest.approx(2 / 3, abs=5 * np.sqrt(1 / 18 / 2000))
    plain = Snapshots.of(x, t)
    assert plain.thinned(rng) is plain
    with pytest.raises(SnapshotError, match="weights at time 0 are too uneven"):
        Snapshots.of(x, t, weights=np.where(np.arange(8000) == 7, 1, 1e-12)).thinned(rng)
