import numpy as np
import pytest
from scipy import stats

from fpsde.forecast import prediction_band, values_at


def test_band_of_three_members_by_hand():
    times, values = np.array([0.0, 1.0]), np.array([[[1.0], [2.0]], [[2.0], [2.0]], [[3.0], [5.0]]])
    band = prediction_band(times, values, 0.9)
    # The quantile of Student's t with two degrees of freedom at 0.95 is 2.91999.
    half = 2.919986 * np.sqrt(4 / 3) * np.array([[1.0], [np.sqrt(3)]])
    assert np.allclose(band.mean, [[2.0], [3.0]])
    assert np.allclose(band.high - band.mean, half, rtol=1e-5)
    assert np.allclose(band.mean - band.low, half, rtol=1e-5)
    assert band.times is times


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("members", [3, 8])
def test_band_holds_a_truth_that_errs_as_a_member_does(level, members, rng):
    drawn = rng.standard_normal((members + 1, 1, 20_000))
    band = prediction_band(np.zeros(1), drawn[1:], level)
    held = int(((band.low <= drawn[0]) & (drawn[0] <= band.high)).sum())
    assert stats.binomtest(held, 20_000, level).pvalue > 1e-4


def test_bad_bands_are_named():
    for values, level, message in ((np.ones((2, 1, 1)), 0.9, "3 or more members, got 2"),
                                   (np.ones((3, 1, 1)), 1.0, "level must be between"),
                                   (np.ones((3, 1, 1)), np.nan, "level must be between")):
        with pytest.raises(ValueError, match=message):
            prediction_band(np.zeros(1), values, level)


def test_values_of_a_statistic(rng):
    populations = [rng.normal(size=(5, 2)) for _ in range(3)]
    assert np.array_equal(values_at(populations, None), np.mean(populations, 1))
    assert values_at(populations, lambda x: float(x.max())).shape == (3,)
    for bad in (lambda x: x[x[:, 0] > 0], lambda x: np.nan):
        with pytest.raises(ValueError, match="statistic must return finite numbers"):
            values_at(populations, bad)
