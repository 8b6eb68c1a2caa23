import pytest
import torch
from problems import CLOSED_FORMS
from test_density import build as build_path

from fpsde.diffusion import ConstantDiffusion, KnownDiffusion, StateDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, excess_velocity, influence, residual, tempered
from fpsde.growth import Growth
from fpsde.hollow import HollowNet

T = torch.tensor([0.05, 0.4, 1.3], dtype=torch.float64)


@pytest.mark.parametrize("problem", CLOSED_FORMS, ids=lambda p: p.name)
def test_residual_vanishes_for_closed_forms(problem):
    x = torch.stack([problem.sample(20) for _ in T])
    density = problem.density_terms(T, x)
    r = residual(density, problem.drift_terms(T, x), problem.variance_terms(T, x))
    assert r.abs().max() < 1e-8
    f, slope = problem.drift_terms(T, x)
    assert residual(density, (-f, -slope), problem.variance_terms(T, x)).abs().mean() > 0.1
    a = problem.variance_terms(T, x)
    assert residual(density, (f, slope), tuple(2 * v for v in a)).abs().mean() > 0.05


def nets(dim, kind, time=True, dtype=torch.float64):
    drift = HollowNet(dim, hidden=(7,), time=time)
    level = torch.rand(dim) + 0.5
    diffusion = {"known": lambda: KnownDiffusion(level), "constant": lambda: ConstantDiffusion(level),
                 "state": lambda: StateDiffusion(HollowNet(dim, hidden=(6,), time=time), level)}[kind]()
    if kind == "state":
        with torch.no_grad():
            diffusion.net.readout.normal_()
    return drift.to(dtype), diffusion.to(dtype)


@pytest.mark.parametrize("kind", ["known", "constant", "state"])
@pytest.mark.parametrize("time", [True, False])
def test_residual_of_nets_against_dense_fokker_planck(kind, time, close):
    """r = dp/dt / p - (Fokker-Planck operator of p) / p with everything by nested autograd on p itself."""
    dim = 2
    path, (drift, diffusion) = build_path(dim), nets(dim, kind, time)
    t, x = T[:2] / 2, torch.randn(2, 3, dim, dtype=torch.float64)
    f = drift.derivatives(t[:, None], x, 1)
    result = residual(path.terms(t, x), (f[0], f[1]), diffusion.variance(t[:, None], x))

    def p(t, x):
        return path.log_prob(t[None], x[None, None])[0, 0].exp()

    for m in range(2):
        for n in range(3):
            def flux(x, i, t=t[m]):
                return drift(t, x[None])[0, i] * p(t, x)

            def spread(x, i, t=t[m]):
                return diffusion(t, x[None])[0, i] ** 2 * p(t, x)

            operator = sum(-torch.func.grad(flux)(x[m, n], i)[i]
                           + 0.5 * torch.func.hessian(spread)(x[m, n], i)[i, i] for i in range(dim))
            expected = (torch.func.grad(p)(t[m], x[m, n]) - operator) / p(t[m], x[m, n])
            close(result[m, n], expected, 1e-8)


@pytest.mark.parametrize("kind", ["constant", "state"])
def test_residual_is_the_weighted_divergence_of_the_excess_velocity(kind):
    path, (drift, diffusion) = build_path(2, constant_weights=True), nets(2, kind)
    t, x = T[1:2] / 2, torch.randn(1, 4, 2, dtype=torch.float64)

    def q(y):
        return excess_velocity(path.terms(t, y[None, None]), drift(t[:, None], y[None, None]),
                               diffusion.variance(t[:, None], y[None, None]))[0, 0]

    terms = path.terms(t, x)
    f = drift.derivatives(t[:, None], x, 1)
    r = residual(terms, (f[0], f[1]), diffusion.variance(t[:, None], x))[0].detach()
    for n in range(4):
        expected = torch.func.jacrev(q)(x[0, n]).trace() + q(x[0, n]) @ terms.score[0, n]
        assert abs(float(r[n] - expected.detach())) < 1e-8 * max(1.0, float(r.abs().max()))


@pytest.mark.parametrize("kind", ["constant", "state"])
def test_columns_of_the_diffusion_are_derivatives_by_its_readout(kind, close):
    _, diffusion = nets(2, kind)
    t, x = torch.rand(5, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    operator = [torch.randn(5, 2, dtype=torch.float64) for _ in range(3)]

    def applied():
        return sum(c * a for c, a in zip(operator, diffusion.variance(t, x), strict=True))

    (columns, short), start, h = diffusion.columns(t, x, [operator, operator[:1]]), diffusion.get_readout(), 1e-6
    close(short, diffusion.columns(t, x, [operator[:1]])[0], 1e-12)
    for p in range(start.shape[1]):
        for i in range(2):
            moved = []
            for sign in (1, -1):
                values = start.clone()
                values[i, p] += sign * h
                diffusion.set_readout(values)
                moved.append(applied())
            diffusion.set_readout(start)
            close(columns[i, :, p], ((moved[0] - moved[1]) / (2 * h))[:, i].detach(), 1e-6)
    close(diffusion.columns(t, x, [[o[:, 1:] for o in operator]], torch.tensor([1]))[0], columns[1:], 1e-12)


@pytest.mark.parametrize("guides", [True, False])
def test_loss_guides_the_density_only_when_asked(guides):
    path, (drift, diffusion) = build_path(2), nets(2, "state")
    loss = FokkerPlanckLoss(path, drift, diffusion, guides_density=guides)
    x = torch.randn(2, 8, 2, dtype=torch.float64)
    full = loss(T[:2], x, T[:2] / 2, x, LossWeights(1.0))
    gradient, = torch.autograd.grad(full.loss + full.likelihood, path.means)
    assert (gradient.abs().max() > 0) == guides


def test_influence_bounds_outliers_and_drops_the_least_dense(device):
    r = torch.randn(3, 400, device=device)
    r[:, 0] = 1e6
    log_prob = torch.arange(400.0, device=device).expand(3, 400)
    weights = influence(log_prob, r)
    assert (weights[:, :19] == 0).all()
    assert (weights[:, 21:] > 0).all()
    weights = influence(log_prob.flip(1), r)
    assert (weights[:, 0] * r[:, 0] ** 2).max() < 100


def test_influence_is_that_of_a_cauchy_likelihood():
    """Three medians wide, and no narrower than a tenth of a unit of time; no gradient."""
    r = torch.tensor([[1.0, -2.0, 4.0], [0.0, 0.01, 0.02]], requires_grad=True)
    weights = influence(torch.zeros(2, 3), r)
    width = torch.tensor([[6.0], [0.1]])
    assert torch.allclose(weights, 1 / (1 + (r / width) ** 2))
    assert not weights.requires_grad
    # Of 41 points those above the 5 % quantile, which is the third least.
    kept = influence(torch.arange(41.0)[None], torch.zeros(1, 41))[0]
    assert kept.tolist() == [0, 0, *[1] * 39]


def test_a_large_residual_counts_by_its_logarithm():
    """As it is up to .3 nats, from there on as steep as there and ever less: halving it is worth the same, however large."""
    assert tempered(torch.tensor([0.0, 0.1, 0.3])).tolist() == pytest.approx([0.0, 0.1, 0.3])
    large = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    assert tempered(2 * large) - tempered(large) == pytest.approx([0.20794415416798356] * 3)
    at = torch.tensor([0.0, 0.1, 0.2999999, 0.3000001, 30.0], dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(tempered(at).sum(), at)
    assert slope.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.01], rel=1e-6)
    assert tempered(10 * at, 3.0).tolist() == pytest.approx((10 * tempered(at)).tolist())


@pytest.mark.parametrize("guides", [True, False])
def test_only_a_residual_that_guides_the_density_is_tempered(guides):
    path, (drift, diffusion) = build_path(2), nets(2, "state")
    drift.set_readout(100 * torch.ones_like(drift.get_readout()))
    loss = FokkerPlanckLoss(path, drift, diffusion, guides_density=guides, most_nats=7.0)
    x = torch.randn(2, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        found = loss(T[:2], x, T[:2] / 2, x, LossWeights(0.5))
    assert found.residual > 100
    cost = 0.5 * found.residual
    assert float(found.loss + found.likelihood) == pytest.approx(float(tempered(cost, 7.0) if guides else cost))
    squared = loss.mean_squared_residual(T[:2] / 2, x)
    assert loss.cost(T[:2] / 2, x, 0.5) == pytest.approx(float(tempered(torch.tensor(0.5 * squared), 7.0)))


class Known(HollowNet):
    """A net of which half counts as known."""

    def known(self, t, x):
        return 0.5 * self(t, x)


def test_usually_the_residual_alone_has_weight():
    assert LossWeights() == (1.0, 0.0, 0.0)


WEIGHTS = [LossWeights(), LossWeights(0.0), *(LossWeights(0.0)._replace(**{name: 0.7}) for name in LossWeights._fields),
           LossWeights(0.3, 0.5, 0.7), LossWeights(0.0, 0.5, 0.7)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_loss_is_the_sum_of_its_parts(weights, close):
    path, diffusion = build_path(2, constant_weights=True), nets(2, "state")[1]
    drift = Known(2, hidden=(7,)).double()
    loss = FokkerPlanckLoss(path, drift, diffusion)
    x, inside = torch.randn(3, 8, 2, dtype=torch.float64), torch.randn(2, 30, 2, dtype=torch.float64)
    t, t_inside = T / 2, T[:2] / 2
    terms, when = path.terms(t_inside, inside), t_inside[:, None]
    f, slope = drift.derivatives(when, inside, 1)
    variance = diffusion.variance(when, inside)
    r = residual(terms, (f, slope), variance)
    likelihood, squared = path.log_prob(t, x).mean(), (influence(terms.log_prob, r) * r**2).mean()
    parts = {"residual": squared, "velocity": (excess_velocity(terms, f, variance) ** 2).sum(-1).mean(),
             "drift_energy": ((0.5 * f) ** 2).sum(-1).mean()}
    found = loss(t, x, t_inside, inside, weights)
    costs = {name: getattr(weights, name) * part for name, part in parts.items()}
    expected = -likelihood + sum((costs | {"residual": tempered(costs["residual"])}).values())
    close(found.loss, expected, 1e-12)
    close(found.likelihood, likelihood, 1e-12)
    close(found.residual, squared if any(weights[:3]) else torch.zeros_like(squared), 1e-12)


def test_growth_is_taken_from_the_residual_and_learned(close):
    path, (drift, diffusion), growth = build_path(2), nets(2, "state"), Growth(2).double()
    with torch.no_grad():
        growth.readout.normal_()
    r, x = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    with_growth, without = (FokkerPlanckLoss(path, drift, diffusion, growth=g) for g in (growth, None))
    close(with_growth.less_growth(r, x), r - (growth(x) - growth(x).mean(1, keepdim=True)), 1e-12)
    assert without.less_growth(r, x) is r
    assert with_growth.nets() == [drift, diffusion, growth]
    assert without.nets() == [drift, diffusion]
    assert with_growth.guides_density
