import re
from types import SimpleNamespace

import numpy as np
import pytest

from fpsde import FokkerPlanckSDE, Snapshots
from fpsde.evaluation import evaluate_steps, format_fit, format_following
from fpsde.files import FileError
from fpsde.forecast import Forecast
from fpsde.plotting import plot_density, plot_drift, plot_forecast, plot_learning, plot_marginals, plot_pairs, save_figures
from fpsde.snapshots import SnapshotError


@pytest.mark.parametrize("drift", ["time", "autonomous"])
@pytest.mark.parametrize("dim", [1, 4])
def test_figures_in_one_and_many_dimensions(dim, drift, tmp_path, rng):
    t = np.repeat([0.0, 1.0, 2.0], 40)
    x = rng.normal(size=(120, dim)) + t[:, None]
    model = FokkerPlanckSDE(2, drift=drift, max_steps=8, hidden=(8,), random_state=0, device="cpu").fit(x, t)
    written = save_figures(model, Snapshots.of(x, t), tmp_path / "new" / "folder")
    assert ("pairs.png" in [path.name for path in written]) == (dim > 2)
    assert all(path.stat().st_size > 5000 for path in written)


@pytest.fixture(scope="module")
def fitted():
    x, t = np.random.default_rng(0).normal(size=(120, 3)), np.repeat([0.0, 1.0, 2.0], 40)
    model = FokkerPlanckSDE(2, drift="autonomous", max_steps=4, hidden=(8,), random_state=0, device="cpu").fit(x, t)
    return model, Snapshots.of(x, t)


def test_pairs_of_directions_in_the_lower_triangle(fitted):
    figure = plot_pairs(*fitted)
    labels = [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    first, second, third = (f"principal direction {i}" for i in (1, 2, 3))
    assert labels == [("", second), (first, third), (second, "")]


def test_noise_is_drawn_relative_to_the_spread_of_each_coordinate():
    """Noise of one half of a standard deviation in either coordinate, whatever its units."""
    x, t = np.random.default_rng(0).normal(size=(120, 2)) * [1.0, 1000.0], np.repeat([0.0, 1.0, 2.0], 40)
    model = FokkerPlanckSDE(2, drift="autonomous", diffusion=0.5 * x.std(0), max_steps=4, hidden=(8,), random_state=0,
                            device="cpu").fit(x, t)
    dots = plot_drift(model, Snapshots.of(x, t)).axes[1].collections[0]
    assert np.allclose(dots.get_array(), 0.5)


def test_panels_hold_the_learned_density(rng):
    """A density wider than the snapshots it was drawn over: its contours close within the panel."""
    t = np.repeat([0.0, 1.0, 2.0], 60)
    narrow = Snapshots.of(np.concatenate([rng.uniform(-0.2, 0.2, (60, 2)), rng.normal(size=(120, 2))]), t)
    wide = SimpleNamespace(sample=lambda n, t, random_state: 3 * np.random.default_rng(random_state).normal(size=(n, 2)),
                           score_samples=lambda x, t: -(x**2).sum(1) / 18)
    for axis in plot_density(wide, narrow).axes:
        outer = np.concatenate([part.vertices for part in axis.collections[1].get_paths()])
        assert np.abs(outer).max() == pytest.approx(3 * np.sqrt(2 * np.log(100)), rel=0.02)
        low, high = np.array([axis.get_xlim(), axis.get_ylim()]).T
        assert ((outer > low) & (outer < high)).all()


def test_marginals_say_the_floor(rng):
    """Of a model that is right, distance and floor are alike; as many points are compared."""
    t = np.repeat([0.0, 1.0], 400)
    data = Snapshots.of(rng.normal(size=(800, 1)) + t[:, None], t)
    title = plot_marginals(Truth(), data).axes[0].get_title()
    distance, floor = map(float, re.fullmatch(r"t = 1, \$W_1\$ (\S+) \(floor (\S+)\)", title).groups())
    assert 0.02 < floor < 0.3
    assert 0.3 < distance / floor < 3
    title = plot_marginals(Truth(wander=1.0), data).axes[0].get_title()
    assert float(title.split()[4]) == pytest.approx(1, abs=0.3)


def test_points_of_little_weight_are_hardly_drawn(fitted, tmp_path, monkeypatch):
    """Half the points have a thousandth of the others' weight."""
    model, data = fitted
    drawn = []
    monkeypatch.setattr("fpsde.plotting.plot_density", lambda model, data, seed: drawn.append(data) or plot_learning(model))
    weights = np.tile([1.0, 0.001], len(data.t) // 2)
    save_figures(model, Snapshots.of(data.x, data.t, weights=weights), tmp_path)
    assert np.array_equal(drawn[0].x, data.x[::2])
    with pytest.raises(SnapshotError, match="too uneven"):
        save_figures(model, Snapshots.of(data.x, data.t, weights=np.where(np.arange(120) % 40 < 2, 1.0, 1e-9)), tmp_path)


@pytest.mark.parametrize("name", ["drift.png", "pairs.png"])
def test_figures_are_written_all_or_none(name, fitted, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(FileError, match=f"{name}: cannot be written"):
        save_figures(*fitted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_figure_that_fails_leaves_no_folder(fitted, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr("fpsde.plotting.plot_marginals", fail)
    with pytest.raises(ValueError, match="no"):
        save_figures(*fitted, tmp_path / "figures")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file is no folder"):
        save_figures(*fitted, tmp_path / "file" / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_figure_of_a_forecast(tmp_path, rng):
    t = np.repeat([0.0, 1.0, 2.0, 3.0], 30)
    data = Snapshots.of(rng.normal(size=(120, 2)) + t[:, None], t, weights=rng.uniform(1, 2, 120))

    def forecast(x, times, level, seed):
        mean, width = x.mean(0) + (times - 1)[:, None], 0.1 + 0.1 * times[:, None]
        return Forecast(times, mean, mean - width, mean + width)

    model = SimpleNamespace(forecast=forecast, times_=data.times[:3], names_=data.names, n_features_in_=2)
    figure = plot_forecast(model, data.at(1.0), np.linspace(1, 3, 21), data)
    figure.savefig(tmp_path / "forecast.png")
    # The band, the snapshots that were fitted and the one that was not.
    assert [len(axis.collections) for axis in figure.axes] == [3, 3]


class Truth:
    """Knows that every snapshot is the one before, moved by one."""

    def __init__(self, wander=0.0):
        self.wander = wander

    def push(self, X0, start, end, random_state):
        return X0 + 1 + self.wander

    def sample(self, n, t, random_state):
        return np.random.default_rng(random_state).normal(size=(n, 2)) + t


def test_scores_of_a_model_that_is_right_and_of_one_that_is_not(rng):
    t = np.repeat([0.0, 1.0, 2.0], 300)
    data = Snapshots.of(rng.normal(size=(900, 2)) + t[:, None], t)
    scores = evaluate_steps(Truth(), data)
    assert [s.points for s in scores] == [150, 150]
    for score in scores:
        w1 = score.distances["W1"]
        assert w1["model"] < 1.25 * w1["floor"]
        assert w1["carry-forward"] > 3 * w1["floor"]
        assert score.distances["MMD^2"]["model"] < 0.05 < score.distances["MMD^2"]["carry-forward"]
    assert np.isfinite(scores[0].distances["W1"]["midpoint"])
    assert np.isnan(scores[1].distances["W1"]["midpoint"])
    assert format_following(scores).startswith("At no step does the SDE miss its own density")
    assert "does not follow its own density" in format_following(evaluate_steps(Truth(wander=1.0), data))


def test_test_of_fit_rejects_only_the_wrong_model(rng):
    t = np.repeat([0.0, 1.0, 2.0], 300)
    data = Snapshots.of(rng.normal(size=(900, 2)) + t[:, None], t)
    right, wrong = evaluate_steps(Truth(), data), evaluate_steps(Truth(wander=1.0), data)
    assert "at no step" in format_fit(right)
    assert "at 2 of 2 steps" in format_fit(wrong)
