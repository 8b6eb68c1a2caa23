import itertools
import sys

import numpy as np
import pytest
from scipy import stats

from fpsde.metrics import (
    energy_distance,
    halves,
    mmd,
    optimal_pairs,
    permutation_test,
    transport_midpoint,
    transport_plan,
    wasserstein,
)


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_against_all_permutations(order, rng):
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    costs = np.linalg.norm(x[:, None] - y, axis=-1) ** order
    best = min(np.mean([costs[i, p[i]] for i in range(5)]) for p in itertools.permutations(range(5)))
    assert wasserstein(x, y, order) == pytest.approx(best ** (1 / order), rel=1e-12)


def test_wasserstein_in_one_dimension_and_of_a_shift(rng):
    x, y = rng.normal(size=(200, 1)), rng.gamma(2, size=(200, 1))
    assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-10)
    x = rng.normal(size=(60, 3))
    assert wasserstein(x, x + [3.0, 0, 4.0], 2) == pytest.approx(5.0, rel=1e-10)
    assert wasserstein(x, x) == 0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [30, 47])
def test_wasserstein_on_a_line_against_linear_programming(order, m, cheapest, rng):
    x, y, mass = rng.normal(size=30), rng.gamma(2, size=m), rng.uniform(0.5, 2, 30)
    for given in (None, mass):
        mass_x = np.full(30, 1 / 30) if given is None else mass / mass.sum()
        best = cheapest(np.abs(x[:, None] - y) ** order, mass_x, np.full(m, 1 / m))
        assert wasserstein(x[:, None], y[:, None], order, given) == pytest.approx(best ** (1 / order), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [12, 17])
def test_exact_transport_against_linear_programming(order, m, cheapest, rng):
    """Between equal counts of unequal mass too, and between unequal counts, whose plan splits points."""
    x, y, mass = rng.normal(size=(12, 2)), rng.normal(size=(m, 2)) + 1, rng.uniform(0.1, 2, 12)
    cost, even_x, even_y = np.linalg.norm(x[:, None] - y, axis=-1) ** order, np.full(12, 1 / 12), np.full(m, 1 / m)
    for given, mass_x in ((None, even_x), (mass, mass / mass.sum())):
        assert wasserstein(x, y, order, given) == pytest.approx(cheapest(cost, mass_x, even_y) ** (1 / order), rel=1e-9)
    rows, columns, moved = transport_plan(x, y, order)
    assert np.bincount(rows, moved, 12) == pytest.approx(even_x)
    assert np.bincount(columns, moved, m) == pytest.approx(even_y)
    assert moved @ cost[rows, columns] == pytest.approx(cheapest(cost, even_x, even_y), rel=1e-9)
    middle, share = transport_midpoint(x, y, 0.3)
    assert share @ middle == pytest.approx(0.7 * x.mean(0) + 0.3 * y.mean(0))


def test_a_single_point_has_no_unbiased_distance():
    for distance in (energy_distance, mmd):
        assert np.isnan(distance(np.zeros((1, 2)), np.ones((1, 2))))


def test_unequal_counts_name_the_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"fpsde\[transport\]"):
        wasserstein(rng.normal(size=(4, 2)), rng.normal(size=(5, 2)))


def test_energy_distance_and_mmd_of_gaussians(rng):
    """Both unbiased: near zero for equal laws, and near their closed forms for a shift."""
    x, y = rng.normal(size=(2500, 1)), rng.normal(size=(2500, 1))
    shift = 1.0
    spread = stats.foldnorm(shift / np.sqrt(2), scale=np.sqrt(2)).mean()
    assert energy_distance(x, y) == pytest.approx(0, abs=0.01)
    assert energy_distance(x, y + shift) == pytest.approx(2 * spread - 2 * np.sqrt(4 / np.pi), abs=0.06)
    h2 = 1.0
    expected = 2 * np.sqrt(h2 / (h2 + 2)) * (1 - np.exp(-0.5 * shift**2 / (h2 + 2)))
    assert mmd(x, y, 1.0) == pytest.approx(0, abs=0.003)
    assert mmd(x, y + shift, 1.0) == pytest.approx(expected, abs=0.02)


def test_midpoint_and_pairs(rng):
    x = rng.normal(size=(40, 2))
    y = x[::-1] + [10.0, 0.0]
    assert np.allclose(transport_midpoint(x, y)[0], x + [5.0, 0.0])
    assert np.array_equal(optimal_pairs(x, y), np.arange(40)[::-1])


def test_halves_are_disjoint(rng):
    a, b = halves(np.arange(20.0)[:, None], 8, rng)
    assert not set(a[:, 0]) & set(b[:, 0])
    with pytest.raises(ValueError, match="need 42 points"):
        halves(np.zeros((40, 1)), 21, rng)


def test_bad_samples(rng):
    with pytest.raises(ValueError, match="same d"):
        wasserstein(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="equal size"):
        optimal_pairs(np.zeros((3, 2)), np.zeros((4, 2)))


def test_p_values_are_uniform_under_one_law_and_small_under_two(rng):
    """300 pairs of samples from one law, heavy-tailed: Kolmogorov-Smirnov at a level of one in a million."""
    same = [permutation_test(rng.standard_t(3, (15, 2)), rng.standard_t(3, (25, 2)), rng, 99) for _ in range(300)]
    spread = rng.uniform(0, 0.01, 300)
    assert stats.kstest(np.array(same) - spread, "uniform").pvalue > 1e-6
    shifted = [permutation_test(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 1, rng, 99) for _ in range(10)]
    assert max(shifted) == pytest.approx(0.01)
