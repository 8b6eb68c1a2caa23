import numpy as np
import pytest
import torch

from fpsde import FokkerPlanckSDE
from fpsde.coordinates import Coordinates
from fpsde.snapshots import SnapshotError, Snapshots

RNG = np.random.default_rng(0)
T = np.repeat(np.linspace(0.0, 2.0, 6), 400)
DRIFT, NOISE = np.array([0.4, -0.3]), np.array([0.3, 0.2])
# Geometric Brownian motion: log x is Gaussian with mean (f - g^2 / 2) t.
X = np.array([1.0, 2.0]) * np.exp(0.1 * RNG.standard_normal((len(T), 2)) + (DRIFT - NOISE**2 / 2) * T[:, None]
                                  + NOISE * np.sqrt(T)[:, None] * RNG.standard_normal((len(T), 2)))
FIRST_ONLY = torch.tensor([True, False])


def units():
    return Coordinates.of(Snapshots.of(X, T), (True, False))


def test_in_and_out_are_inverse_and_standardise():
    inside = units().inside(torch.as_tensor(X))
    torch.testing.assert_close(units().outside(inside), torch.as_tensor(X))
    torch.testing.assert_close(inside.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(2).double())
    assert units().time(torch.tensor([0.0, 2.0])).tolist() == [0.0, 1.0]


def test_volume_is_the_determinant_of_the_jacobian():
    x = torch.as_tensor(X[:5])
    jacobian = torch.stack([torch.autograd.functional.jacobian(units().inside, point) for point in x])
    torch.testing.assert_close(units().log_volume(x), jacobian.det().log())


def test_itos_rule_for_a_logarithm():
    """Drift and noise of geometric Brownian motion are constant in log x and linear in x."""
    u = Coordinates(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 1.0]), FIRST_ONLY)
    x = torch.as_tensor(X[:5])
    f = torch.tensor([0.4 - 0.3**2 / 2, -1.0]).double().expand(5, 2)
    g = torch.tensor([0.3, 0.7]).double().expand(5, 2)
    f, g = u.drift(x, f, g), u.diffusion(x, g)
    torch.testing.assert_close(f, torch.stack([0.4 * x[:, 0], -torch.ones(5).double()], 1))
    torch.testing.assert_close(g, torch.stack([0.3 * x[:, 0], 0.7 * torch.ones(5).double()], 1))


@pytest.fixture(scope="module")
def geometric():
    return FokkerPlanckSDE(4, drift="autonomous", positive=True, max_steps=150, random_state=0, device="cpu").fit(X, T)


def test_geometric_brownian_motion_is_easy_in_its_own_coordinates(geometric):
    """In log x drift and noise are constant: errors of 4.6 and 3.3 % when this was written, 8 and 11 % without."""
    f, g = geometric.drift(X, 0.0), geometric.diffusion(X, 0.0)
    assert np.sqrt(((f - DRIFT * X) ** 2).sum() / ((DRIFT * X) ** 2).sum()) < 0.15
    assert np.sqrt(((g - NOISE * X) ** 2).sum() / ((NOISE * X) ** 2).sum()) < 0.15


def test_no_path_ever_falls_to_zero(geometric):
    start = np.full((500, 2), 0.01)
    paths = geometric.simulate(start, [0.0, 1.0, 2.0], time_step=0.25, random_state=0)
    assert np.array_equal(paths[0], start)
    assert (paths > 0).all()


def test_density_is_one_of_x_and_nought_below_zero(geometric):
    x = np.exp(np.linspace(-4, 4, 400))
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    p = np.exp(geometric.score_samples(grid, 1.0)).reshape(400, 400)
    assert np.trapezoid(np.trapezoid(p, x), x) == pytest.approx(1.0, abs=1e-3)
    assert geometric.score_samples([[1.0, -1.0], [0.0, 1.0]], 1.0).tolist() == [-np.inf, -np.inf]
    # Points of the density have the mean that its values say.
    drawn = geometric.sample(4000, 1.0, random_state=0)
    expected = np.array([np.trapezoid(np.trapezoid(p, x) * x, x), np.trapezoid(np.trapezoid(p, x, axis=0) * x, x)])
    assert np.allclose(drawn.mean(0), expected, atol=5 * drawn.std(0).max() / np.sqrt(4000))


def test_model_file_keeps_the_logarithms(geometric, tmp_path):
    geometric.save(tmp_path / "m.fpsde")
    again = FokkerPlanckSDE.load(tmp_path / "m.fpsde", device="cpu")
    assert np.array_equal(again.drift(X[:9], 0.0), geometric.drift(X[:9], 0.0))
    assert again.get_params()["positive"] is True


def test_far_from_zero_paths_move_as_they_do_near_it():
    """In float32 data units, steps of a few thousandths would be lost beside a million."""
    fits = [FokkerPlanckSDE(4, drift="autonomous", diffusion="constant", max_steps=20, random_state=0, device="cpu").fit(x, T)
            for x in (X, X + 2.0**20)]
    paths = [model.simulate(x[:50], [0.0, 1.0], random_state=0)[-1] for model, x in zip(fits, (X, X + 2.0**20), strict=True)]
    assert np.allclose(paths[1] - 2.0**20, paths[0], atol=1e-3)


@pytest.mark.parametrize(("positive", "message"), [
    (["x9"], "no 'x9' among x1, x2"), ([2], "no 2 among"), ("x1", "positive must be"), ([1], "'x2' is said to be positive, but")])
def test_what_cannot_be_positive_is_named(positive, message):
    x = X.copy()
    x[7, 1] = 0.0
    with pytest.raises(ValueError, match=message):
        FokkerPlanckSDE(2, positive=positive, max_steps=1, device="cpu").fit(x, T)


@pytest.mark.parametrize(("options", "message"), [
    ({"drift": "gradient"}, "with `positive` use 'autonomous'"),
    ({"diffusion": 0.3}, "known noise of positive coordinates must be a function, which only Python takes")])
def test_what_does_not_go_with_positive_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        FokkerPlanckSDE(2, positive=True, max_steps=1, device="cpu", **options).fit(np.exp(X / 10), T)


def test_units_for_each_coordinate():
    with pytest.raises(ValueError, match="one value for each coordinate, the clock two"):
        Coordinates(torch.zeros(2), torch.ones(3), torch.tensor([0.0, 1.0]))


def test_points_below_zero_have_no_drift(geometric):
    with pytest.raises(SnapshotError, match="row 1 has -1"):
        geometric.drift([[1.0, 1.0], [1.0, -1.0]], 0.0)
