"""What is computed in float64 against 50-digit arithmetic, at arguments where digits get lost.

A bound is a multiple of the unit round-off times the condition of what is asked: no arithmetic in float64 can promise less.
"""

import exact
import numpy as np
import pytest
import torch
from mpmath import mp

from fpsde import HollowNet
from fpsde.covariance import FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import StateDiffusion
from fpsde.fokker_planck import residual
from fpsde.spline import CubicSplineBasis
from fpsde.taylor import ACTIVATIONS, to_derivatives

UNIT = torch.finfo(torch.float64).eps
EXTREMES = [0.0, 1e-300, 1e-9, 0.3, 2.0, 9.0, 18.5, 20.0, 37.5, 300.0, 709.5, 750.0, 1e6]


def apart(result, expected):
    """The largest difference between numbers of the package and of 50 digits."""
    return max(abs(mp.mpf(float(a.detach())) - b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_where_they_saturate(name):
    """In units of the largest value that each derivative takes anywhere, which is 1/10 at least."""
    for z in (sign * z for z in EXTREMES for sign in (1, -1)):
        result = to_derivatives(ACTIVATIONS[name][1]([torch.tensor(z, dtype=torch.float64), 1.0], 3))
        for n, value in enumerate(result):
            expected = exact.derivative(exact.ACTIVATIONS[name], mp.mpf(z), n)
            # z times the rounding of z / (1 + e^-z)'s parts is what remains of silu's derivatives.
            size = 1 + abs(expected) if n == 0 or name != "silu" else 1 + min(abs(z), 40)
            assert apart([value], [expected]) <= 8 * UNIT * size, (z, n)


@pytest.mark.parametrize("z", [-700.0, -300.0, -40.0, -18.0])
def test_the_small_side_of_the_positive_activations_has_all_digits(z):
    """Noise is a softplus: where it is all but zero it must not be zero, nor its derivatives."""
    for name in ("softplus", "sigmoid"):
        for n, value in enumerate(to_derivatives(ACTIVATIONS[name][1]([torch.tensor(z, dtype=torch.float64), 1.0], 3))):
            expected = exact.derivative(exact.ACTIVATIONS[name], mp.mpf(z), n)
            assert apart([value], [expected]) <= 8 * UNIT * expected * abs(z)


def net_of(hidden, activation, seed=0, time=True):
    torch.manual_seed(seed)
    net = HollowNet(2, hidden=hidden, width=3, activation=activation, time=time).double()
    with torch.no_grad():
        net.matrix.normal_()
        net.offset.normal_()
    return net


def scaled_net(kind, activation):
    """A net and the size of the points to see it at."""
    net = net_of((4,), activation)
    with torch.no_grad():
        if kind == "tiny weights":
            for weight in (net.own, net.others, net.readout):
                weight *= 1e-8
        if kind == "far, tiny slopes":
            net.own *= 1e-6
        if kind == "far, shifted there":
            net.shifts[0] -= 1e6 * net.own
    return net, {"near": 1.0, "tiny weights": 1.0, "far": 1e3}.get(kind, 1e6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["near", "far", "farther", "tiny weights", "far, tiny slopes", "far, shifted there"])
def test_derivatives_of_a_net(kind, activation):
    """D^n f_i is a sum of w own^n act^(n)(z): each is known to the round-off of the terms that z is summed from."""
    net, size = scaled_net(kind, activation)
    reference, t = exact.Net(net), 0.37
    point = [size, -0.7 * size]
    x = torch.tensor([point], dtype=torch.float64)
    taylor, reverse = (net.derivatives(torch.tensor(t, dtype=torch.float64), x, 3, mode) for mode in ("taylor", "reverse"))
    features = 3 * size if activation in ("softplus", "silu") else 3
    for i in range(2):
        own, readout = net.own[i, 0].abs(), net.readout[i].abs()
        summed = 10 + size * own.max() + net.shifts[0][i].abs().max() + net.others[i].abs().max() * features
        line = exact.along(lambda y, i=i: reference.coordinate(i, mp.mpf(t), y), exact.numbers(x[0]), i)
        for n in range(4):
            reach = (readout * own**n).sum() * (summed if n == 0 and activation in ("softplus", "silu") else 1)
            linear = {0: (net.matrix[i].abs() * x[0].abs()).sum() + net.offset[i].abs(), 1: net.matrix[i, i].abs()}.get(n, 0)
            expected = exact.derivative(line, mp.mpf(point[i]), n)
            for result in (taylor, reverse):
                assert apart([result[n][0, i]], [expected]) <= 4 * UNIT * float((summed * reach + linear).detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_a_deeper_net(activation):
    net, t = net_of((4, 3), activation), 0.81
    x = torch.tensor([[0.4, -1.1], [30.0, -20.0]], dtype=torch.float64)
    reference, result = exact.Net(net), net.derivatives(torch.tensor(t, dtype=torch.float64), x, 3)
    for m in range(2):
        for i in range(2):
            line = exact.along(lambda y, i=i: reference.coordinate(i, mp.mpf(t), y), exact.numbers(x[m]), i)
            for n in range(4):
                scale = float((net.readout[i].abs().sum() * (1 + net.own[i].abs().max()) ** n * x[m].abs().max()).detach())
                assert apart([result[n][m, i]], [exact.derivative(line, mp.mpf(float(x[m, i])), n)]) <= 50 * UNIT * scale


def mixture(components, kind="full", thin=None, seed=0):
    """A path in two dimensions; thin, its components are that many times longer than wide."""
    draw = torch.Generator().manual_seed(seed)
    basis = CubicSplineBasis(np.array([0.0, 0.3, 0.55, 1.0]))

    def normal(*shape):
        return torch.randn(basis.size, components, *shape, generator=draw, dtype=torch.float64)

    floor = (0.1 if thin is None else thin**-2) * torch.eye(2, dtype=torch.float64).expand(basis.size, 2, 2)
    units = torch.ones(basis.size, 2, dtype=torch.float64)
    if kind == "low rank":
        covariance = LowRankCovariance(0.5 * normal(2, 1), 0.3 * normal(2) - 1, floor.diagonal(dim1=-2, dim2=-1), units)
    else:
        factors = 0.5 * normal(2, 2) + torch.eye(2)
        if thin is not None:
            # All in one direction, at all times.
            factors[..., 1] = 0
            factors[..., 1, 0] = 0.7 * factors[..., 0, 0]
        covariance = FullCovariance(factors, floor, units)
    return GaussianMixturePath(basis, normal(), 1.5 * normal(2), covariance).double()


def places(path, t, distances):
    """Points that lie so many standard deviations from the mean of the first component, in two directions."""
    basis = path.basis(torch.tensor([t], dtype=torch.float64))[0]
    mean, root = path._means(basis)[0, 0], path.covariance.root(basis)[0, 0]
    if root.shape[1] > 2:
        root = torch.linalg.cholesky(root @ root.mT)
    directions = [torch.tensor(v, dtype=torch.float64) for v in ([0.8, 0.6], [-0.28, 0.96])]
    return torch.stack([mean + r * (root @ v) for r in distances for v in directions]).detach()


CASES = {"mixture": (3, "full", None), "one component": (1, "full", None), "low rank": (3, "low rank", None),
         "thin": (1, "full", 1e3), "thinner": (1, "full", 1e5), "thin mixture": (3, "full", 1e3)}


@pytest.mark.parametrize("case", CASES)
def test_terms_of_a_mixture_far_in_its_tails(case):
    """Up to ten thousand standard deviations out, and for clouds a hundred thousand times longer than wide."""
    path, t = mixture(*CASES[case]), 0.37
    condition = (CASES[case][2] or 10) ** 2
    x = places(path, t, [0.5, 50.0, 1e4])
    reference, time = exact.Mixture(path), torch.tensor([t], dtype=torch.float64)
    terms, log_prob = path.terms(time, x[None]), path.log_prob(time, x[None])
    for n, point in enumerate(exact.numbers(x)):
        def in_space(y):
            return reference.log_prob(mp.mpf(t), y)

        square = min(s for _, s in reference.parts(mp.mpf(t), point))
        # A mixture's shares depend on differences of the squares, one component's score and curvature do not.
        bound = 20 * UNIT * condition
        shared = bound * (1 + float(square)) if CASES[case][0] > 1 else bound
        expected = in_space(point)
        assert apart([terms.log_prob[0, n], log_prob[0, n]], [expected] * 2) <= bound * (1 + square)
        rate = exact.derivative(lambda s, point=point: reference.log_prob(s, point), mp.mpf(t))
        assert apart([terms.time_derivative[0, n]], [rate]) <= shared * (1 + abs(rate)) + bound * (1 + square)
        score = [exact.derivative(exact.along(in_space, point, i), point[i]) for i in range(2)]
        assert apart(terms.score[0, n], score) <= shared * max(map(abs, score))
        bend = [exact.derivative(exact.along(in_space, point, i), point[i], 2) for i in range(2)]
        assert apart(terms.curvature[0, n], bend) <= shared * max(map(abs, bend)), (n, square)


@pytest.mark.parametrize("distance", [0.5, 50.0, 1e4])
def test_residual_far_in_the_tails(distance):
    """All its parts in 50 digits; the bound is in units of the largest of them."""
    path, t = mixture(3), 0.37
    drift, net = net_of((4,), "tanh"), net_of((3,), "tanh", seed=1)
    diffusion = StateDiffusion(net, torch.tensor([0.5, 2.0], dtype=torch.float64))
    with torch.no_grad():
        net.readout.normal_()
    x, time = places(path, t, [distance]), torch.tensor([t], dtype=torch.float64)
    f, slope = drift.derivatives(time[:, None], x[None], 1)
    result = residual(path.terms(time, x[None]), (f, slope), diffusion.variance(time[:, None], x[None]))[0]
    reference, exact_drift, exact_net, s = exact.Mixture(path), exact.Net(drift), exact.Net(net), mp.mpf(t)
    for n, point in enumerate(exact.numbers(x)):
        parts = [exact.derivative(lambda v, point=point: reference.log_prob(v, point), s)]
        for i in range(2):
            def density(v, i=i, point=point):
                return exact.along(lambda y: reference.log_prob(s, y), point, i)(v)

            def force(v, i=i, point=point):
                return exact.along(lambda y: exact_drift.coordinate(i, s, y), point, i)(v)

            def variance(v, i=i, point=point):
                z = exact.along(lambda y: exact_net.coordinate(i, s, y), point, i)(v)
                return (mp.mpf(float(diffusion.level[i])) * (mp.mpf("0.05") + exact.ACTIVATIONS["softplus"](3 * z) / 3)) ** 2

            v = point[i]
            score, bend = exact.derivative(density, v), exact.derivative(density, v, 2)
            a = [exact.derivative(variance, v, k) for k in range(3)]
            parts += [exact.derivative(force, v), force(v) * score, -a[2] / 2, -a[1] * score, -a[0] * (bend + score**2) / 2]
        square = min(q for _, q in reference.parts(s, point))
        assert apart([result[n]], [sum(parts)]) <= 200 * UNIT * (1 + float(square)) ** 0.5 * sum(map(abs, parts))
