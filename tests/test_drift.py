"""Laws that every drift obeys, whatever it is made of."""

import pytest
import torch
from problems import ornstein_uhlenbeck

from fpsde.coordinates import Coordinates
from fpsde.drift import PriorDrift
from fpsde.ensemble import MeanDrift
from fpsde.field import FREE, is_linear
from fpsde.fokker_planck import residual
from fpsde.given import GivenField
from fpsde.hollow import HollowNet
from fpsde.library import LibraryDrift
from fpsde.potential import GradientDrift

DIM = 3
CENTRE, SCALE, CLOCK = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.0]), torch.tensor([3.0, 4.0])


def turning(x, t):
    """Bent, coupled and dependent on time, with a coordinate that is constant."""
    first = torch.sin(x[:, 1]) * x[:, 0] ** 2 + t
    return torch.stack([first, x[:, 0] * x[:, 1] ** 3, torch.ones_like(t)], -1)


def randomised(drift):
    drift = drift.double()
    drift.set_readout(torch.randn_like(drift.get_readout()))
    return drift


def build(kind):
    prior = GivenField(turning, Coordinates(CENTRE, SCALE, CLOCK), "drift_prior")
    metric = torch.tensor([0.3, 4.0, 1.0])
    return randomised({
        "hollow": lambda: HollowNet(DIM, hidden=(6,), time=True), "gradient": lambda: GradientDrift(DIM, 10, metric),
        "mean": lambda: MeanDrift([PriorDrift(HollowNet(DIM, hidden=(6,), time=True), prior) for _ in range(3)]),
        "library": lambda: LibraryDrift(3, dim=DIM, hidden=(6,), time=True),
        "prior": lambda: PriorDrift(HollowNet(DIM, hidden=(6,), time=True), prior),
        "gradient and prior": lambda: PriorDrift(GradientDrift(DIM, 10, metric), prior)}[kind]())


@pytest.fixture(params=["hollow", "gradient", "library", "prior", "gradient and prior", "mean"])
def drift(request):
    return build(request.param)


def points():
    return torch.rand(4, 5, 1, dtype=torch.float64)[..., 0], torch.randn(4, 5, DIM, dtype=torch.float64)


def test_derivatives_against_dense_autograd(drift, close):
    t, x = points()
    results = drift.derivatives(t, x, 2)
    for m in range(4):
        for n in range(5):
            def component(xi, i, m=m, n=n):
                y = torch.cat([x[m, n, :i], xi[None], x[m, n, i + 1:]])
                return drift(t[m, n], y[None])[0, i]

            for i in range(DIM):
                value = x[m, n, i].clone().requires_grad_()
                f = component(value, i)
                slope, = torch.autograd.grad(f, value, create_graph=True)
                bend, = torch.autograd.grad(slope, value, materialize_grads=True) if slope.requires_grad else (torch.zeros(()),)
                for result, expected in zip(results, (f, slope, bend), strict=True):
                    result, expected = float(result[m, n, i].detach()), float(expected.detach())
                    assert abs(result - expected) < 1e-9 * max(1.0, abs(expected))
    close(drift(t, x), results[0], 1e-12)


def test_columns_are_what_the_operator_makes_of_the_readout(drift, close):
    t, x = points()
    operator = [torch.randn(20, DIM, dtype=torch.float64) for _ in range(3)]
    columns, start = drift.columns(t, x, [operator])[0], drift.get_readout()

    def applied(readout):
        drift.set_readout(readout)
        return sum(c * f.reshape(20, DIM) for c, f in zip(operator, drift.derivatives(t, x, 2), strict=True))

    zero = applied(torch.zeros_like(start))
    change = torch.randn_like(start)
    close((columns * change[:, None]).sum(-1).T, applied(change) - zero, 1e-9)
    drift.set_readout(torch.zeros_like(start))
    close(drift(t, x), drift.known(t, x), 1e-12)
    for order in (1, 2):
        padded = [*operator[:order], *[torch.zeros_like(operator[0])] * (3 - order)]
        alone, = drift.columns(t, x, [operator[:order]])
        for short in drift.columns(t, x, [operator[:order], padded]):
            close(short, alone, 1e-12)
    rows = torch.tensor([DIM - 1, 0])
    close(drift.columns(t, x, [[o[:, rows] for o in operator]], rows)[0], columns[rows], 1e-12)


def test_readouts_penalties_and_kinds_go_together(drift):
    values = torch.randn_like(drift.get_readout())
    drift.set_readout(values)
    assert torch.equal(drift.get_readout(), values)
    assert drift.groups().shape == values.shape
    assert drift.penalty(1.0, 0.1).shape == values.shape[1:]
    for row in drift.groups():
        assert (drift.penalty(1.0, 0.1)[is_linear(row)] == 0.1).all()
        assert (drift.penalty(1.0, 0.1)[row == FREE] == 0).all()
    assert sum(p.numel() for p in drift.readout_parameters()) == values.numel()


def test_residual_vanishes_for_an_exact_pair_with_part_of_the_drift_known():
    problem = ornstein_uhlenbeck()
    turn = torch.tensor([[0.0, 1.3, 0.2], [-1.3, 0.0, -0.4], [0.1, 0.3, 0.0]], dtype=torch.float64)
    one = GivenField(lambda x, t: x @ turn.T, Coordinates(torch.zeros(3), torch.ones(3), torch.tensor([0.0, 1.0])), "drift_prior")
    net = HollowNet(3, hidden=(4,), time=False, random_readout=False).double()
    rates = torch.tensor([-0.7, -0.7, -1.1], dtype=torch.float64)
    rest = net.get_readout()
    rest[:, -4:-1], rest[:, -1] = torch.diag(rates), torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    net.set_readout(rest)
    t = torch.tensor([0.05, 0.4, 1.3], dtype=torch.float64)
    x = torch.stack([problem.sample(20) for _ in t])
    f = PriorDrift(net, one).derivatives(t[:, None], x, 1)
    r = residual(problem.density_terms(t, x), (f[0], f[1]), problem.variance_terms(t, x))
    assert r.abs().max() < 1e-8
    f = net.derivatives(t[:, None], x, 1)
    assert residual(problem.density_terms(t, x), (f[0], f[1]), problem.variance_terms(t, x)).abs().mean() > 0.1
