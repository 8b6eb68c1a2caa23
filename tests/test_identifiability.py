import math

import numpy as np
import pytest
import torch
from problems import ROTATION, rotating_snapshots

from fpsde import FokkerPlanckSDE
from fpsde.identifiability import Identifiability, _interval, _widened
from fpsde.plotting import plot_identifiability


def fitted(x, t, **settings):
    return FokkerPlanckSDE(2, max_steps=80, random_state=0, device="cpu", **settings).fit(x, t)


@pytest.fixture(scope="module")
def turning():
    """A population that turns and spreads: six snapshots of 300 points."""
    return rotating_snapshots(300, np.linspace(0, 3, 6))


@pytest.fixture(scope="module")
def resting():
    """A round population that stays as it is: any noise with its drift, and any turn, leaves it so."""
    return np.random.default_rng(0).standard_normal((1800, 2)), np.repeat(np.linspace(0, 3, 6), 300)


def test_what_the_snapshots_tell_is_said_to_be_known(turning):
    model = fitted(*turning, drift="autonomous", diffusion="constant")
    found = model.identifiability()
    assert found.noise_known
    assert found.turning_known
    low, high = found.noise_interval
    true = np.array([0.5, 0.7]) / model.diffusion(turning[0][:1], 0.0)[0]
    # Two levels, one scale: their geometric mean is what the interval is for.
    assert low - 0.02 < np.sqrt(true.prod()) < high + 0.02
    assert high - low < 0.3
    rate = model.drift(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 0.0)
    rate = ((rate[0, 1] - rate[1, 1]) - (rate[2, 0] - rate[3, 0])) / 4
    assert abs(rate + 1.5) < 5 * found.turning < 0.5
    assert 0.6 < found.gradient_share < 0.95
    assert "is known to between" in str(found)
    # Standard errors place by place: 4.6 and 4.4 %, where the errors are 4.0 and 5.4 %.
    for error, fit, truth in ((found.drift_error, model.drift(turning[0], 0.0), turning[0] @ ROTATION.T),
                              (found.noise_error, model.diffusion(turning[0], 0.0), np.array([0.5, 0.7]))):
        truth = np.broadcast_to(truth, fit.shape)
        assert 0.3 < error / np.sqrt(((fit - truth) ** 2).sum() / (truth**2).sum()) < 3
    assert "tells how fast the population turns" in str(found)


def test_what_the_snapshots_cannot_tell_is_said_not_to_be_known(resting):
    found = fitted(*resting, drift="autonomous", diffusion="constant").identifiability()
    assert not found.noise_known
    assert not found.turning_known
    assert "hardly tell the noise level" in str(found)
    assert "whether the population turns" in str(found)
    assert "the drift not at all, the noise not at all" in str(found)


def test_a_known_noise_leaves_only_the_turn_open(resting):
    found = fitted(*resting, drift="autonomous", diffusion=0.5).identifiability()
    assert found.noise_given
    assert not found.turning_known
    assert str(found).startswith("The noise was given.")
    assert found.noise_error == 0
    assert found.drift_error > 0.3


def test_a_drift_free_in_time_follows_its_path_under_any_noise(turning):
    found = fitted(*turning, drift="time").identifiability()
    assert found.worse[:3].max() < 0.05
    assert found.noise_interval == (0.25, 4.0)
    assert math.isinf(found.turning)
    assert "do not tell the noise level" in str(found)


def test_a_loaded_model_needs_its_points(turning, tmp_path):
    x, t = turning
    model = fitted(x, t, drift="autonomous", diffusion="constant")
    model.save(tmp_path / "model.fpsde")
    again = FokkerPlanckSDE.load(tmp_path / "model.fpsde", device="cpu")
    with pytest.raises(ValueError, match="holds no points"):
        again.identifiability()
    with pytest.raises(ValueError, match="go together"):
        model.identifiability(x)
    with pytest.raises(ValueError, match="fitted to snapshots at"):
        again.identifiability(x, t + 0.1)
    torch.testing.assert_close(again.identifiability(x, t).worse, model.identifiability().worse, rtol=1e-6, atol=1e-6)
    plot_identifiability(again.identifiability(x, t)).savefig(tmp_path / "figure.png")


def test_interval_of_a_parabola():
    """A loss of half ((log c) / s)^2 crosses 1.92 at log c = 1.96 s."""
    scales = np.geomspace(0.25, 4, 17)
    assert _interval(0.5 * (np.log(scales) / 0.1) ** 2) == pytest.approx((np.exp(-0.196), np.exp(0.196)), rel=1e-3)
    assert _interval(np.zeros(17)) == pytest.approx((0.25, 4.0))


def test_the_figure_has_no_empty_panel(tmp_path):
    for autonomous, panels in ((True, 3), (False, 2)):
        scales = np.geomspace(0.25, 4, 17 if autonomous else 5)
        found = Identifiability(autonomous, scales, np.log(scales) ** 2, (0.25, 4.0), False, 0.7, np.inf, 1.0, 0.1, 0.2)
        figure = plot_identifiability(found)
        figure.savefig(tmp_path / "figure.png")
        assert len(figure.axes) == panels
        assert all(axis.get_visible() and axis.has_data() for axis in figure.axes)


def test_the_interval_is_at_least_that_of_the_standard_error():
    narrow = (0.95, 1.04)
    assert _widened(narrow, 0.01) == narrow
    assert _widened(narrow, 0.1) == pytest.approx((math.exp(-0.196), math.exp(0.196)))
    assert _widened(narrow, math.inf) == pytest.approx((0.25, 4.0))
    assert _widened((0.3, 1.04), 0.1)[0] == 0.3
