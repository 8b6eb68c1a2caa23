import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
import torchsde
from problems import rotating_snapshots
from scipy import stats
from test_density import build

from fpsde import FokkerPlanckSDE, Snapshots
from fpsde.coordinates import Coordinates
from fpsde.diffusion import ConstantDiffusion, KnownDiffusion, StateDiffusion
from fpsde.ensemble import MeanDensity, MeanDiffusion, Member, bootstraps, mean_growth
from fpsde.files import FileError
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.model_file import load_file, save_file
from fpsde.potential import GradientDrift
from fpsde.sde import FittedSDE

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
QUICK = {"n_components": 2, "max_steps": 8, "hidden": (8,), "random_state": 0, "device": "cpu"}


def handmade(kind):
    """Three members of random nets, as if they had been fitted."""
    units, members = Coordinates(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1.0])), []
    for k in range(3):
        drift = GradientDrift(2, 6) if kind == "gradient" else HollowNet(2, hidden=(4,), time=kind == "time")
        growth = Growth(2, 5) if kind == "growth" else None
        for part in (drift, growth):
            if part is not None:
                part.set_readout(0.3 * torch.randn_like(part.get_readout()))
        level = torch.tensor([0.3, 0.2])
        diffusion = KnownDiffusion(level) if kind == "gradient" else ConstantDiffusion(level * (1 + 0.2 * torch.rand(2)))
        sde = FittedSDE(drift, diffusion, deepcopy(units), growth)
        sde.time_step.fill_(0.1 + 0.01 * k)
        members.append(Member(sde, build(2, 3 + k)))
    model = FokkerPlanckSDE(n_members=3, drift="gradient" if kind == "gradient" else "autonomous", device="cpu")
    model.names_, model.times_, model.counts_ = ("x1", "x2"), np.unique(T), np.full(3, 40)
    model.history_, model.n_features_in_ = [], 2
    model.summary_ = {"members": 3.0, "skipped_steps": 0.0, "residual": 0.1, "held_out_likelihood": -1.0}
    model._set_parts(members)
    return model


@pytest.fixture(params=["time", "gradient", "growth"])
def model(request):
    return handmade(request.param)


def each(model, evaluate):
    return np.array([evaluate(member.sde, torch.tensor(T), torch.tensor(X)).numpy() for member in model.members_])


def test_equation_is_the_mean_of_members_that_differ(model):
    f, g = each(model, lambda sde, t, x: sde.f(t, x)), each(model, lambda sde, t, x: sde.g(t, x))
    assert np.abs(f[0] - f[1]).max() > 1e-3
    assert np.allclose(model.drift(X, T), f.mean(0), rtol=1e-5, atol=1e-5)
    assert np.allclose(model.diffusion(X, T), np.sqrt((g**2).mean(0)), rtol=1e-5)
    for evaluate, values in ((model.drift, f), (model.diffusion, g)):
        value, deviation = evaluate(X, T, return_std=True)
        assert np.array_equal(value, evaluate(X, T))
        assert np.allclose(deviation, values.std(0, ddof=1), rtol=1e-6, atol=1e-12)
    if model.sde_.growth is not None:
        rates = each(model, lambda sde, t, x: sde.rate(t, x))
        assert np.allclose(model.growth(X), rates.mean(0), rtol=1e-5, atol=1e-6)
    p = [np.exp(m.density.log_prob(torch.zeros(1).double(), torch.zeros(1, 1, 2).double()).item()) for m in model.members_]
    assert np.exp(model.density_.log_prob(torch.zeros(1).double(), torch.zeros(1, 1, 2).double()).item()) == pytest.approx(
        np.mean(p))
    assert float(model.sde_.time_step) == min(float(m.sde.time_step) for m in model.members_)


def test_an_ensemble_answers_what_a_model_answers(model):
    assert model.sample(7, 0.3).shape == (7, 2)
    assert model.simulate(X[:5], [0, 0.1, 1]).shape == (3, 5, 2)
    assert model.push(X[:5], 0, 1).shape == (5, 2)
    paths = torchsde.sdeint(model.sde_, torch.tensor(X[:4]), torch.tensor([0.0, 0.2]), dt=0.1, method="euler")
    assert paths.shape == (2, 4, 2)
    if model.get_params()["drift"] == "gradient":
        assert np.allclose(model.potential(X), each(model, lambda sde, t, x: sde.potential(x)).mean(0))


def test_save_and_load(model, tmp_path):
    path = tmp_path / "m.fpsde"
    model.save(path)
    loaded = FokkerPlanckSDE.load(path, device="cpu")
    assert np.array_equal(loaded.drift(X, T), model.drift(X, T))
    assert np.array_equal(loaded.diffusion(X, T, return_std=True), model.diffusion(X, T, return_std=True))
    assert np.array_equal(loaded.score_samples(X, T), model.score_samples(X, T))
    assert np.array_equal(loaded.forecast(X[:9], [0, 1], random_state=1).low, model.forecast(X[:9], [0, 1], random_state=1).low)
    assert loaded.get_params() == model.get_params()
    for spoil in (lambda t, parts: parts.append(parts[0]), lambda t, parts: parts.clear(),
                  lambda t, parts: t.pop("1.density.means"), lambda t, parts: t["1.sde.coordinates.scale"].mul_(2)):
        model.save(path)
        tensors, header = load_file(path)
        spoil(tensors, header["parts"]["members"])
        save_file(path, tensors, header)
        with pytest.raises(FileError, match="damaged, its parts do not fit"):
            FokkerPlanckSDE.load(path)


def test_forecast_is_the_same_from_the_same_seed_and_warns_once(model):
    with pytest.warns(UserWarning, match="outside the data's times") as caught:
        band = model.forecast(X[:20], [0.5, 1, 1.5], 0.5, 3)
    assert len(caught) == 1
    assert band.mean.shape == band.low.shape == band.high.shape == (3, 2)
    assert (band.low < band.mean).all()
    assert (band.mean < band.high).all()
    again = model.forecast(X[:20], [0.5, 1], 0.5, 3)
    assert np.array_equal(again.mean[0], band.mean[0])
    assert model.forecast(X[:20], [0, 1], statistic=lambda x: np.cov(x.T)).mean.shape == (2, 2, 2)


def test_fit_of_an_ensemble():
    model = FokkerPlanckSDE(**QUICK, n_members=2, drift="autonomous", diffusion="constant").fit(X, T)
    assert model.summary_["members"] == 2
    first, second = model.members_
    assert torch.equal(first.sde.coordinates.scale, second.sde.coordinates.scale)
    assert (model.drift(X, T, return_std=True)[1].mean(0) > 1e-3).all()
    assert "noise" in str(model.identifiability())
    with pytest.raises(ValueError, match="3 or more members, got 2"):
        model.forecast(X, [0, 1])


def test_one_member_is_a_fit_to_the_data_as_they_are(tmp_path):
    data = Snapshots.of(X, T)
    assert bootstraps(data, 5, 1) == [(data, 5)]
    model = FokkerPlanckSDE(**QUICK).fit(X, T)
    assert model.sde_ is model.members_[0].sde
    assert model.density_ is model.members_[0].density
    assert "members" not in model.summary_
    with pytest.raises(ValueError, match="no standard deviation"):
        model.drift(X, T, return_std=True)
    with pytest.raises(ValueError, match="n_members=3 or more"):
        model.forecast(X, [0, 1])
    with pytest.raises(ValueError, match="n_members must"):
        FokkerPlanckSDE(**QUICK, n_members=0).fit(X, T)
    model.save(tmp_path / "m.fpsde")
    tensors, header = load_file(tmp_path / "m.fpsde")
    # A file from before there were members.
    del header["fitted"]["parameters"]["n_members"]
    save_file(tmp_path / "m.fpsde", tensors, header)
    assert FokkerPlanckSDE.load(tmp_path / "m.fpsde").get_params()["n_members"] == 1


def test_bootstraps_spread_a_mean_as_samples_do(rng):
    x, given = rng.normal(size=(400, 1)), rng.uniform(0.5, 2, 400)
    data = Snapshots.of(x, np.repeat([0.0, 1.0], 200), weights=given)
    drawn = bootstraps(data, 0, 500)
    assert len({seed for _, seed in drawn}) == 500
    for part, _ in drawn[:3]:
        assert all(w.mean() == pytest.approx(1) for w in part.group_weights())
    means = [np.average(part.at(0.0)[:, 0], weights=part.group_weights()[0]) for part, _ in drawn]
    w = data.group_weights()[0]
    centre = np.average(x[:200, 0], weights=w)
    assert np.mean(means) == pytest.approx(centre, abs=5 * np.std(means) / np.sqrt(500))
    error = np.sqrt((w**2 * (x[:200, 0] - centre) ** 2).sum()) / w.sum()
    assert np.std(means) == pytest.approx(error, rel=0.15)


def test_mean_growth_is_the_mean(rng):
    rates = [Growth(2, n) for n in (3, 5)]
    for rate in rates:
        rate.set_readout(torch.randn_like(rate.get_readout()))
    x = torch.randn(9, 2)
    assert torch.allclose(mean_growth(rates)(x), (rates[0](x) + rates[1](x)) / 2, atol=1e-6)


def test_mean_diffusion_against_its_members(close):
    nets = [StateDiffusion(HollowNet(2, hidden=(4,)), torch.ones(2)).double() for _ in range(2)]
    for members in (nets, [ConstantDiffusion(torch.tensor(v).double()) for v in ([0.1, 0.5], [0.3, 0.2])]):
        mean, t, x = MeanDiffusion(members), torch.rand(6).double(), torch.randn(6, 2).double()
        mean.set_readout(torch.randn_like(mean.get_readout()))
        a, slope, bend = mean.variance(t, x)
        close(a, mean(t, x).square(), 1e-12)
        close(bend, sum(m.variance(t, x)[2] for m in members) / 2, 1e-12)
        start, step = mean.get_readout(), 1e-6 * torch.randn_like(mean.get_readout())
        moved = (mean.columns(t, x, [[torch.ones_like(x)]])[0] * step[:, None]).sum(-1).T
        mean.set_readout(start + step)
        close(mean.variance(t, x)[0] - a, moved, 1e-3)
        assert mean.groups().shape == start.shape
        assert mean.penalty(1.0, 0.1).shape == start.shape[1:]
        assert sum(p.numel() for p in mean.readout_parameters()) == start.numel()


def test_mean_density_against_autograd(close):
    density = MeanDensity([build(2), build(2, 4, constant_weights=True)])
    assert density.n_components == 7
    t, x = torch.tensor([0.1, 0.8]).double(), torch.randn(2, 3, 2).double()

    def log_prob(t, x):
        return density.log_prob(t[None], x[None, None])[0, 0]

    terms = density.terms(t, x)
    close(terms.log_prob, density.log_prob(t, x), 1e-12)
    for m in range(2):
        for n in range(3):
            close(terms.time_derivative[m, n], torch.func.grad(log_prob, 0)(t[m], x[m, n]), 1e-8)
            close(terms.score[m, n], torch.func.grad(log_prob, 1)(t[m], x[m, n]), 1e-8)
            close(terms.curvature[m, n], torch.func.hessian(log_prob, 1)(t[m], x[m, n]).diagonal(), 1e-8)
    parts = torch.stack([member.kinetic_energy(t) for member in density.members])
    close(density.kinetic_energy(t), parts.mean(0), 1e-12)
    for n in (1, 4001):
        assert density.sample(t, n).shape == density.spread(t, n, 0).shape == (2, n, 2)
    expected = torch.stack([member.spread(t, 4096, 0).mean(1) for member in density.members]).mean(0)
    assert torch.allclose(density.sample(t, 40_000, torch.Generator().manual_seed(0)).mean(1), expected, atol=0.06)
    assert torch.allclose(density.spread(t, 4096, 0).mean(1), expected, atol=0.02)


@pytest.mark.slow
def test_band_holds_the_truth_of_an_ornstein_uhlenbeck_process():
    """dx = -x dt + 0.7 dW from x = 2 exactly known in law: mean 2 e^-t."""
    times, held = np.linspace(0, 2, 5), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        variance = 0.16 * np.exp(-2 * times) + 0.245 * (1 - np.exp(-2 * times))
        x = 2 * np.exp(-times)[:, None] + np.sqrt(variance)[:, None] * rng.standard_normal((5, 200))
        points, t = x[:4].reshape(-1, 1), np.repeat(times[:4], 200)
        model = FokkerPlanckSDE(**{**QUICK, "max_steps": 40}, n_members=4, drift="autonomous", diffusion="constant").fit(points, t)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            band = model.forecast(x[3][:, None], [times[3], times[4]], 0.9, seed)
        held.append(band.low[1, 0] < 2 * np.exp(-2) < band.high[1, 0])
    assert stats.binomtest(int(sum(held)), 10, 0.9, alternative="less").pvalue > 0.01
