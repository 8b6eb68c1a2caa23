"""Fits with known drift terms, known diffusion functions and drifts that are gradients, from the data to the file."""

import numpy as np
import pytest
import torch
from problems import (
    ROTATION,
    ROTATION_NOISE,
    double_well_force,
    double_well_potential,
    double_well_snapshots,
    rotating_snapshots,
)
from sklearn.base import clone

from fpsde import FokkerPlanckSDE, networks
from fpsde.description import describe
from fpsde.files import FileError
from fpsde.identification import IdentificationConfig, identify
from fpsde.moments import MomentEquations
from fpsde.snapshots import Snapshots

X, T = rotating_snapshots(60, np.array([0.0, 0.5, 1.0, 1.5]))
QUICK = {"n_components": 2, "max_steps": 12, "hidden": (8,), "random_state": 0, "device": "cpu"}
FULL = torch.as_tensor(ROTATION)


def turn(x, t):
    return (x @ (FULL - FULL.diagonal().diag()).T)


def uneven(x, t):
    return 0.3 + 0.1 * torch.tanh(x) + 0.05 * t[:, None]


SETTINGS = {
    "prior": {"drift": "autonomous", "diffusion": "constant", "drift_prior": turn},
    "prior, free in time": {"drift": "time", "diffusion": "state", "drift_prior": turn},
    "known noise": {"drift": "autonomous", "diffusion": uneven},
    "gradient": {"drift": "gradient", "diffusion": "state"},
    "all": {"drift": "gradient", "diffusion": uneven, "drift_prior": turn}}


def relative(result, true):
    return np.sqrt(((result - true) ** 2).sum() / (true**2).sum())


@pytest.mark.parametrize("drift", ["autonomous", "gradient"])
def test_a_known_turn_leaves_the_rest_to_be_learned(drift):
    x, t = rotating_snapshots(300, np.linspace(0, 3, 5))
    model = FokkerPlanckSDE(3, drift=drift, diffusion="constant", drift_prior=turn, max_steps=60, random_state=0,
                            device="cpu").fit(x, t)
    assert relative(model.drift(x, t), x @ ROTATION.T) < 0.2
    assert np.abs(model.diffusion(x[:1], 0.0) - ROTATION_NOISE).max() < 0.2
    found = model.identifiability()
    assert found.noise_known
    assert found.turning_known
    assert found.gradient == (drift == "gradient")
    assert ("is a gradient by assumption" in str(found)) == (drift == "gradient")


def test_where_all_is_known_little_is_learned():
    x, t = rotating_snapshots(300, np.linspace(0, 3, 5))
    model = FokkerPlanckSDE(3, drift="autonomous", diffusion="constant", drift_prior=lambda x, t: x @ FULL.T, max_steps=60,
                            random_state=0, device="cpu").fit(x, t)
    assert relative(model.drift(x, t), x @ ROTATION.T) < 0.15


def test_what_is_known_is_kept_by_a_drift_free_in_time():
    """Least energy leaves the turn out, unless it is known."""
    x, t = rotating_snapshots(300, np.linspace(0, 2, 5))
    errors = []
    for prior in (None, lambda x, t: x @ FULL.T):
        model = FokkerPlanckSDE(4, diffusion=ROTATION_NOISE, drift_prior=prior, max_steps=150, random_state=0,
                                device="cpu").fit(x, t)
        errors.append(relative(model.drift(x, t), x @ ROTATION.T))
    assert errors[1] < 0.7 * errors[0]


def test_a_potential_is_found_and_helps(monkeypatch):
    """More than a network alone; a library beside it finds the well's cube as well without the assumption."""
    x, t = double_well_snapshots(400, np.linspace(0, 3, 6))
    errors = {}
    for drift, library in (("gradient", True), ("autonomous", True), ("autonomous", False)):
        if not library:
            monkeypatch.setattr(networks, "LIBRARY_COORDINATES", 0)
        model = FokkerPlanckSDE(4, drift=drift, diffusion=0.6, max_steps=80, random_state=0, device="cpu").fit(x, t)
        errors[drift, library] = relative(model.drift(x, t), double_well_force(x))
        if drift == "gradient":
            found, true = model.potential(x), double_well_potential(x)
            assert relative(found - found.mean(), true - true.mean()) < 0.3
            step = 1e-2 * np.eye(2)
            slope = [(model.potential(x + s) - model.potential(x - s)) / 0.02 for s in step]
            assert relative(-np.stack(slope, 1), model.drift(x, t)) < 0.02
            assert model.identifiability().gradient_share == 1
        else:
            with pytest.raises(ValueError, match="has no potential: fit with drift='gradient'"):
                model.potential(x)
        if (drift, library) == ("autonomous", True):
            assert describe(model).endswith("in the drift: what is linear in the coordinate itself, what is linear in others, its cube")
    assert errors["gradient", True] < 0.2
    assert errors["autonomous", True] < 0.25
    assert errors["gradient", True] < errors["autonomous", False]


def test_known_noise_in_proportion_to_the_state():
    """Geometric Brownian motion, f = m x and g = 0.3 x."""
    rng, growth, times = np.random.default_rng(0), np.array([0.5, -0.3]), np.linspace(0, 2, 5)
    t = np.repeat(times, 400)
    x = np.exp(rng.normal(1.0, 0.2, (len(t), 2)) + (growth - 0.045) * t[:, None]
               + 0.3 * np.sqrt(t)[:, None] * rng.standard_normal((len(t), 2)))
    model = FokkerPlanckSDE(3, drift="autonomous", diffusion=lambda x, t: 0.3 * x, max_steps=60, random_state=0,
                            device="cpu").fit(x, t)
    assert relative(model.drift(x, t), growth * x) < 0.2
    assert np.allclose(model.diffusion(x, t), 0.3 * x, rtol=1e-4, atol=1e-5)
    assert str(model.identifiability()).startswith("The noise was given.")


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    return FokkerPlanckSDE(**QUICK, **SETTINGS[request.param]).fit(X, T)


def test_it_does_what_any_model_does(model):
    assert np.isfinite(model.drift(X, T)).all()
    assert (model.diffusion(X, T) > 0).all()
    assert np.isfinite(model.simulate(X[:5], [0, 0.1, 1.5])).all()
    assert np.isfinite(model.simulate(X[:5], [0, 0.1, 1.5], method="milstein")).all()
    assert clone(model).get_params() == model.get_params()
    assert str(model.identifiability())


def test_save_and_load(model, tmp_path):
    path, given = tmp_path / "m.fpsde", model.get_params()
    model.save(path)
    functions = {name: given[name] for name in ("drift_prior", "diffusion") if callable(given[name])}
    loaded = FokkerPlanckSDE.load(path, "cpu", **functions)
    assert np.array_equal(loaded.drift(X, T), model.drift(X, T))
    assert np.array_equal(loaded.diffusion(X, T), model.diffusion(X, T))
    assert np.array_equal(loaded.simulate(X[:3], [0, 1], random_state=1), model.simulate(X[:3], [0, 1], random_state=1))
    assert loaded.get_params() == given
    for name in ("drift_prior", "diffusion"):
        if name in functions:
            with pytest.raises(FileError, match=f"a function as {name}, which no file holds; give it again, which only Python can"):
                FokkerPlanckSDE.load(path, "cpu", **{**functions, name: None})
            with pytest.raises(FileError, match=f"{name} must be the function"):
                FokkerPlanckSDE.load(path, "cpu", **{**functions, name: 0.3})
        else:
            with pytest.raises(FileError, match=f"without a function as {name}; leave {name} out"):
                FokkerPlanckSDE.load(path, "cpu", **{**functions, name: turn})
    if given["drift"] == "gradient":
        assert np.array_equal(loaded.potential(X), model.potential(X))


@pytest.mark.parametrize("name", SETTINGS)
def test_change_of_units_changes_results_only_by_units(name):
    """Powers of two, the same for both coordinates, whose gradient presupposes that."""
    space, clock, shift, start = 4.0, 8.0, np.array([64.0, -16.0]), 32.0

    def converted(function, rate):
        return lambda x, t: rate * function((x - torch.as_tensor(shift)) / space, (t - start) / clock)

    settings, rates = dict(SETTINGS[name]), {"drift_prior": space / clock, "diffusion": space / np.sqrt(clock)}
    plain = FokkerPlanckSDE(**QUICK, **settings).fit(X, T)
    settings.update({key: converted(settings[key], rate) for key, rate in rates.items() if callable(settings.get(key))})
    moved, later = X * space + shift, T * clock + start
    other = FokkerPlanckSDE(**QUICK, **settings).fit(moved, later)
    assert np.allclose(other.drift(moved, later), plain.drift(X, T) * space / clock, rtol=1e-3, atol=1e-3)
    assert np.allclose(other.diffusion(moved, later), plain.diffusion(X, T) * space / np.sqrt(clock), rtol=1e-3, atol=1e-3)
    if settings["drift"] == "gradient":
        unit = space**2 / clock
        assert np.allclose(other.potential(moved), plain.potential(X) * unit, rtol=1e-3, atol=1e-3 * unit)


@pytest.mark.parametrize("drift", ["gradient", "autonomous"])
def test_what_does_not_fit_in_memory_is_descended(drift, monkeypatch):
    monkeypatch.setattr(MomentEquations, "fits", staticmethod(lambda model, n: False))
    config = IdentificationConfig(n_components=2, drift=drift, drift_prior=turn, diffusion="constant", steps=200, solve=True)
    sde = identify(Snapshots.of(X, T), config, seed=0, device=torch.device("cpu")).sde
    with torch.no_grad():
        f = sde.f(torch.tensor(0.0), torch.as_tensor(X, dtype=torch.float32)).numpy()
    # What is known alone is off by 0.37.
    assert relative(f, X @ ROTATION.T) < 0.25


def test_after_the_data_known_terms_are_taken_at_their_own_time():
    """An autonomous rest goes on as it is, what is known may depend on the time."""
    model = FokkerPlanckSDE(**QUICK, drift="autonomous", diffusion="constant",
                            drift_prior=lambda x, t: t[:, None].expand_as(x)).fit(X, T)
    assert np.allclose(model.drift(X, 11.5) - model.drift(X, 1.5), 10, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"drift_prior": 1.0}, "drift_prior must be a function of"), ({"drift_prior": lambda x, t: x[0]}, "drift_prior.*shape of X"),
    ({"diffusion": lambda x, t: x}, "diffusion.*positive"), ({"diffusion": lambda x: x}, "diffusion.*raised TypeError"),
    ({"drift": "autonomous", "drift_prior": lambda x, t: (x - x.new_tensor(X.min(0)) + 1e-9).log()},
     "drift_prior.*wherever the density or a path leads")])
def test_functions_that_cannot_be_used_are_found_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        FokkerPlanckSDE(**{**QUICK, **settings}).fit(X, T)
