"""Laws of every drift are in test_drift.py; here is what is special about a library."""

import math

import numpy as np
import pytest
import torch
from problems import ROTATION

from fpsde import FokkerPlanckSDE, readouts
from fpsde.config import IdentificationConfig
from fpsde.coordinates import Coordinates
from fpsde.description import _made_of, describe
from fpsde.drift import PriorDrift
from fpsde.field import ADDITIVE, COUPLED, CUBE, FREE, LINEAR, OWN, OWN_LINEAR, PRODUCT
from fpsde.hollow import HollowNet
from fpsde.library import REACH, LibraryDrift
from fpsde.networks import networks
from fpsde.readouts import DRIFT, priors, trials
from fpsde.snapshots import Snapshots


def library(dim=2, bends=0):
    return LibraryDrift(bends, dim=dim, hidden=(4,), time=False, random_readout=False, own_share=0.5).double()


def test_within_reach_it_holds_polynomials(close):
    """The double well in the first coordinate, prey and predator in the second."""
    drift = library()
    values = torch.zeros_like(drift.get_readout())
    # Products 11, 12, 22, then cubes of both; linear parts and the offset come last.
    values[0, 3], values[0, -3] = -1.0, 1.0
    values[1, 1], values[1, -2], values[1, -1] = 0.4, -0.7, 0.2
    drift.set_readout(values)
    x = REACH * (2 * torch.rand(50, 2, dtype=torch.float64) - 1)
    a, b = x.T
    f, slope, bend = drift.derivatives(torch.tensor(0.0), x, 2)
    close(f, torch.stack([a - a**3, 0.4 * a * b - 0.7 * b + 0.2], -1), 1e-12)
    close(slope, torch.stack([1 - 3 * a**2, 0.4 * a - 0.7], -1), 1e-12)
    close(bend, torch.stack([-6 * a, torch.zeros_like(b)], -1), 1e-12)


def test_far_out_it_grows_linearly_and_without_a_step():
    drift = library(3, bends=2)
    drift.set_readout(torch.randn(drift.get_readout().shape, dtype=torch.float64))
    direction, t = torch.randn(20, 3, dtype=torch.float64), torch.tensor(0.0)
    near, far, further = (drift(t, 1e3 * k * direction) for k in (1, 2, 3))
    assert ((further - far) - (far - near)).abs().max() < 1e-3 * (far - near).abs().max()
    edge = torch.tensor([[REACH, -REACH, 0.3]], dtype=torch.float64)
    inner, outer = (drift.derivatives(t, edge * (1 + shift), 1) for shift in (-1e-9, 1e-9))
    for a, b in zip(inner, outer, strict=True):
        assert (a - b).abs().max() < 1e-6


def test_kinds():
    kinds = library(2, bends=1).groups().tolist()
    net = [OWN, OWN, COUPLED, COUPLED]
    assert kinds == [[PRODUCT] * 3 + [CUBE, ADDITIVE, ADDITIVE, ADDITIVE, *net, OWN_LINEAR, LINEAR, FREE],
                     [PRODUCT] * 3 + [ADDITIVE, CUBE, ADDITIVE, ADDITIVE, *net, LINEAR, OWN_LINEAR, FREE]]


def test_what_a_function_reacts_to():
    each = [-1, -1, -1, 0, 1, 0, 0, 1, 1, *[-1] * 7]
    assert library(2, bends=2).sources().tolist() == [each, each]


def test_terms_of_which_few_are_expected_are_believed_one_by_one():
    """Each product in the drift of each coordinate, and what is bent of each in that of each."""
    drift = library(3, bends=2)
    n = drift.get_readout().numel()
    groups = priors(torch.randn(4, n), drift)
    assert torch.cat([group.places for group in groups]).sort().values.tolist() == list(range(n))
    kinds, sources = drift.groups().flatten(), drift.sources().flatten()
    products, bent = ([group.places for group in groups if group.kind == kind] for kind in (PRODUCT, ADDITIVE))
    assert [len(places) for places in products] == [1] * 18
    # Two bends of each, and in the drift of another its cube too.
    assert [len(places) for places in bent] == [2, 3, 3, 3, 2, 3, 3, 3, 2]
    for places in bent:
        assert len((places // (n // 3)).unique()) == len(sources[places].unique()) == 1
        assert (kinds[places] == ADDITIVE).all()
    _, of_drift = trials(groups, 3)
    assert [len(part.places) for part in of_drift.order] == [1, 9, 1, 1, 1, 18, 1]
    assert [part.price for part in of_drift.order if part.price] == [math.log(3), math.log(6)]
    assert all(group.bends is DRIFT for group in groups)


def test_terms_are_named_by_whose_drift_they_are_in():
    drift = library(3, bends=2)
    values = torch.zeros_like(drift.get_readout())
    # Products 11, 12, 13, 22, 23, 33, then cubes, then two bends of each.
    values[0, 1], values[0, 5], values[2, 7], values[1, 10], values[2, 13] = 1.0, -1.0, 1.0, 0.5, 1e-9
    drift.set_readout(values)
    assert _made_of(drift, ["a", "b", "c"]) == (
        "squares and products of two (a b in a, c c in a), bends and cubes of single coordinates (a in b, b in c)")
    values[:, :6] = 1.0
    drift.set_readout(values)
    assert _made_of(PriorDrift(drift, torch.nn.Identity()), ["a", "b", "c"]).startswith(
        "squares and products of two (a a in a, a b in a, a c in a, b b in a, b c in a, c c in a, a a in b, ")
    assert "c c in b, ...), bends" in _made_of(drift, ["a", "b", "c"])


@pytest.mark.slow
@pytest.mark.parametrize("most", [1000, 0])
def test_of_a_ring_of_genes_just_the_ring_is_found(most, monkeypatch):
    """Each of five held down by the one before it: f_i = 4 / (1 + x_{i-1}^4) + 0.1 - x_i, g = 0.2.

    Whether the search begins with all groups or, as if there were too many, with those that are simple.
    """
    monkeypatch.setattr(readouts, "MOST_GROUPS", most)

    def force(x):
        return 4 / (1 + np.roll(x, 1, axis=1) ** 4) + 0.1 - x

    rng, times, step, snapshots = np.random.default_rng(0), np.linspace(0, 5, 11), 0.005, []
    for time in times:
        x = 1.2 + 0.8 * np.sin(2 * np.arange(5)) + 0.2 * rng.standard_normal((2000, 5))
        for _ in range(round(time / step)):
            x = x + force(x) * step + 0.2 * math.sqrt(step) * rng.standard_normal(x.shape)
        snapshots.append(x)
    x, t = np.concatenate(snapshots), np.repeat(times, 2000)
    model = FokkerPlanckSDE(8, drift="autonomous", max_steps=300, random_state=0).fit(x, t)
    assert "bends and cubes of single coordinates (x5 in x1, x1 in x2, x2 in x3, x3 in x4, x4 in x5)" in describe(model)
    f, g = model.drift(x, 0.0), model.diffusion(x, 0.0)
    assert np.sqrt(np.mean((f - force(x)) ** 2) / np.mean(force(x) ** 2)) < 0.08
    assert np.sqrt(np.mean((g - 0.2) ** 2)) < 0.08 * 0.2


@pytest.mark.parametrize(("dim", "snapshots", "points", "drift", "bends"), [
    (1, 2, 10, "autonomous", 0), (2, 2, 10, "autonomous", 16), (10, 2, 10, "autonomous", 16), (11, 8, 999, "autonomous", None),
    (11, 7, 1000, "autonomous", None), (11, 8, 1000, "autonomous", 16), (20, 8, 1000, "autonomous", 16),
    (21, 8, 1000, "autonomous", None), (2, 2, 10, "time", None)])
def test_which_drifts_have_one(dim, snapshots, points, drift, bends):
    rng = np.random.default_rng(0)
    times = np.repeat(np.arange(snapshots), points)
    data = Snapshots.of(rng.standard_normal((len(times), dim)), times.astype(float))
    found, noise = networks(IdentificationConfig(drift=drift), Coordinates.of(data, (False,) * dim), data, {})
    assert isinstance(noise.net, HollowNet)
    if bends is None:
        assert isinstance(found, HollowNet)
    else:
        assert isinstance(found, LibraryDrift)
        assert len(found.slopes) == bends


def test_a_fit_with_one_is_saved_and_loaded(tmp_path):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((90, 2)), np.repeat([0.0, 1.0, 2.0], 30)
    model = FokkerPlanckSDE(2, drift="autonomous", max_steps=20, random_state=0).fit(x, t)
    model.save(tmp_path / "model.fpsde")
    again = FokkerPlanckSDE.load(tmp_path / "model.fpsde")
    assert isinstance(again.sde_.drift, LibraryDrift)
    np.testing.assert_array_equal(again.drift(x, t), model.drift(x, t))
    np.testing.assert_array_equal(again.simulate(x[:5], [0.0, 1.0], random_state=1),
                                  model.simulate(x[:5], [0.0, 1.0], random_state=1))


@pytest.mark.parametrize(("noise", "found"), [
    (lambda x: 0.5 + 0 * x, "nothing"), (lambda x: 0.4 * x, "what is linear in the coordinate itself")])
def test_a_system_is_found_to_be_no_less_simple_than_it_is(noise, found):
    """A rotation about a point, with noise that is even or in proportion to its coordinate."""
    rng, steps, times, snapshots = np.random.default_rng(0), 100, np.linspace(0, 2, 6), []
    for time in times:
        x = 4 + np.array([1.5, 0.0]) + 0.3 * rng.standard_normal((1500, 2))
        for _ in range(steps):
            x = x + (x - 4) @ ROTATION.T * time / steps + noise(x) * np.sqrt(time / steps) * rng.standard_normal(x.shape)
        snapshots.append(x)
    model = FokkerPlanckSDE(4, drift="autonomous", max_steps=120, random_state=0, device="cpu").fit(
        np.concatenate(snapshots), np.repeat(times, 1500))
    lines = describe(model).split("\n")
    if found == "nothing":
        assert "found in the drift: what is linear in the coordinate itself, what is linear in others" in lines
    assert f"found in the noise, beside its level: {found}" in lines


@pytest.mark.parametrize("bends", [-1, 2.0, True, "2"])
def test_a_file_cannot_say_anything_of_a_library(bends):
    with pytest.raises(ValueError, match="bends must be a number from 0 on"):
        LibraryDrift(bends, dim=2)
