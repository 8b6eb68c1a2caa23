"""Forward selection by the evidence, against the dense evidence and where the truth is known."""

import math

import numpy as np
import pytest
import torch
from problems import ROTATION, double_well_force, double_well_snapshots, rotating_snapshots
from torch.distributions import MultivariateNormal

from fpsde import FokkerPlanckSDE, readouts
from fpsde.description import describe
from fpsde.evidence import Component
from fpsde.field import PRODUCT
from fpsde.library import LibraryDrift
from fpsde.screening import TRIED, gains, promising

N, MOST = 150, 1e4


def columns(n, generator, rows=N):
    return torch.randn(rows, n, generator=generator, dtype=torch.float64)


def log_evidence(observed, covariance):
    return float(MultivariateNormal(torch.zeros_like(observed), covariance).log_prob(observed))


@pytest.mark.parametrize("width", [1, 3, 40, 200])
def test_gains_are_those_of_the_dense_evidence(width, close):
    generator = torch.Generator().manual_seed(width)
    there, some, other = columns(20, generator), columns(width, generator), columns(width, generator)
    observed = (columns(1, generator) + some[:, :1])[:, 0]
    before = 1.7 * torch.eye(N).double() + there @ there.T
    found = gains(observed, 1.7, there, {4: (some, MOST), 9: (other, MOST / 10)})
    dense = [max(log_evidence(observed, before + v * a @ a.T) for v in most * TRIED) - log_evidence(observed, before)
             for a, most in ((some, MOST), (other, MOST / 10))]
    close(torch.tensor([found[4], found[9]]), torch.tensor(dense), 1e-6)


def test_nothing_is_there_yet(close):
    generator = torch.Generator().manual_seed(0)
    some, observed = columns(2, generator), columns(1, generator)[:, 0]
    found = gains(observed, 1.0, observed.new_zeros(N, 0), {0: (some, MOST)})
    dense = max(log_evidence(observed, torch.eye(N).double() + v * MOST * some @ some.T) for v in TRIED)
    close(torch.tensor(found[0]), torch.tensor(dense - log_evidence(observed, torch.eye(N).double())), 1e-6)


def planted(seed, strength):
    """Of 300 groups, some of one column and some of four, each like its neighbour, every thirtieth is there."""
    generator = torch.Generator().manual_seed(seed)
    factors = [columns(4 if k % 3 else 1, generator, 500) for k in range(300)]
    for one, next_ in zip(factors[::2], factors[1::2], strict=True):
        next_[:, :1] += one[:, :1]
    true = list(range(0, 300, 30))
    observed = columns(1, generator, 500)[:, 0] + strength * sum(factors[k].sum(1) for k in true)
    return observed, [Component(None, 0.1, 100.0), *(Component(a, 1.0, MOST) for a in factors)], {1 + k for k in true}


@pytest.mark.parametrize("batch", [1, 5])
def test_what_is_there_is_let_in_and_little_else(batch):
    asked = dict.fromkeys(range(1, 301), 3.0 + math.log(300))
    for seed in range(5):
        observed, components, true = planted(seed, 1.0)
        there = set(promising(observed, components, [0], asked, batch))
        assert true < there
        assert len(there - true - {0}) <= batch


def test_where_there_is_nothing_nothing_is_let_in():
    """Noise alone: of 300 groups one would be let in by chance in one of some hundred sets of data."""
    asked = dict.fromkeys(range(1, 301), 3.0 + math.log(300))
    assert [promising(*planted(seed, 0.0)[:2], [0], asked, 5) for seed in range(10)] == 10 * [[0]]


def test_no_more_than_are_asked_about_and_all_that_were_there():
    observed, components, true = planted(0, 1.0)
    some = {k: 8.0 for k in sorted(true)[::2]}
    kept = [0, *sorted(true)[1::2], 77]
    assert promising(observed, components, kept, some, 3) == sorted({0, 77} | true)


FOUND = {"turning": "found in the drift: what is linear in the coordinate itself, what is linear in others\n",
         "double well": "what is linear in others, bends and cubes of single coordinates (x1 in x1)\n"}


@pytest.mark.parametrize("system", FOUND)
def test_a_fit_may_begin_with_what_is_simple(system, monkeypatch):
    monkeypatch.setattr(readouts, "MOST_GROUPS", 0)
    times = np.linspace(0, 3, 6)
    x, t = rotating_snapshots(500, times) if system == "turning" else double_well_snapshots(500, times)
    true = x @ ROTATION.T if system == "turning" else double_well_force(x)
    model = FokkerPlanckSDE(3, drift="autonomous", max_steps=60, random_state=0, device="cpu").fit(x, t)
    assert FOUND[system] in describe(model)
    assert np.sqrt(np.mean((model.drift(x, 0.0) - true) ** 2) / np.mean(true**2)) < 0.3
    assert model.identifiability().noise_known


def test_of_many_groups_those_that_were_found_are_gone_on_with(monkeypatch):
    drift = LibraryDrift(2, dim=2, hidden=(4,), conditioner="masked", activation="tanh", time=False, random_readout=False)
    readout = torch.zeros_like(drift.get_readout())
    readout[1, 1] = 0.5
    groups = readouts.priors(torch.ones(3, readout.numel()), drift)
    assert readouts.found_groups(groups, readout.flatten()) == groups
    monkeypatch.setattr(readouts, "MOST_GROUPS", len(groups) - 1)
    found = readouts.found_groups(groups, readout.flatten())
    assert [(group.kind, group.places.tolist()) for group in found if group.kind in readouts.SPARSE] == [
        (PRODUCT, [readout.shape[1] + 1])]
    assert [group for group in groups if group.kind not in readouts.SPARSE] == [
        group for group in found if group.kind not in readouts.SPARSE]
