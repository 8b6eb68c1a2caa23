import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from fpsde.covariance import FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.mixture import averaged, initial_path, matched_chains
from fpsde.spline import CubicSplineBasis

KINDS = ["full", "low rank"]


def build(dim, components=3, kind="full", constant_weights=False, device="cpu", dtype=torch.float64):
    basis = CubicSplineBasis(np.array([0.0, 0.2, 0.55, 1.0]))
    generator = torch.Generator().manual_seed(dim)

    def draw(*shape):
        return torch.randn(basis.size, components, *shape, generator=generator, dtype=torch.float64)

    floor = 0.1 * torch.eye(dim, dtype=torch.float64).expand(basis.size, dim, dim)
    units = 0.5 + torch.rand(basis.size, dim, generator=generator, dtype=torch.float64)
    if kind == "full":
        covariance = FullCovariance(0.5 * draw(dim, dim), floor, units)
    else:
        covariance = LowRankCovariance(0.5 * draw(dim, min(dim, 3)), 0.3 * draw(dim) - 1,
                                       floor.diagonal(dim1=-2, dim2=-1), units)
    path = GaussianMixturePath(basis, draw(), 1.5 * draw(dim), covariance, constant_weights)
    return path.to(device, dtype)


def dense_log_prob(path, t, x):
    """log p at one time and point from torch's own Gaussians."""
    basis = path.basis(t[None])[0]
    log_weights = path._weights(basis, torch.zeros_like(basis))[0][0]
    means = torch.einsum("b,bkd->kd", basis[0], path.means * path.covariance.units[:, None])
    root = path.covariance.root(basis)[0]
    parts = [torch.distributions.MultivariateNormal(m, r @ r.mT, validate_args=False).log_prob(x)
             for m, r in zip(means, root, strict=True)]
    return (log_weights + torch.stack(parts)).logsumexp(0)


@pytest.mark.parametrize("constant_weights", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_terms_against_autograd(dim, kind, constant_weights, device, close):
    path = build(dim, kind=kind, constant_weights=constant_weights, device=device)
    t = torch.tensor([0.03, 0.4, 0.9], dtype=torch.float64, device=device)
    x = torch.randn(3, 4, dim, dtype=torch.float64, device=device)
    terms = path.terms(t, x)
    for m in range(3):
        for n in range(4):
            def log_prob(t, x):
                return path.log_prob(t[None], x[None, None])[0, 0]

            close(terms.log_prob[m, n], dense_log_prob(path, t[m], x[m, n]), 1e-9)
            close(terms.time_derivative[m, n], torch.func.grad(log_prob, 0)(t[m], x[m, n]), 1e-8)
            close(terms.score[m, n], torch.func.grad(log_prob, 1)(t[m], x[m, n]), 1e-8)
            close(terms.curvature[m, n], torch.func.hessian(log_prob, 1)(t[m], x[m, n]).diagonal(), 1e-8)
    assert torch.equal(path.grad_log_prob(t, x), terms.score)


def test_terms_in_float32(device, close):
    exact, path = build(3, device=device), build(3, device=device, dtype=torch.float32)
    t, x = torch.tensor([0.3, 0.8], device=device), torch.randn(2, 50, 3, device=device)
    for result, expected in zip(path.terms(t, x), exact.terms(t.double(), x.double()), strict=True):
        close(result.double(), expected, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 3])
def test_velocity_solves_the_continuity_equation(dim, kind):
    """d log p / dt + div v + v . grad log p = 0 while weights stay as they are, with the divergence by dense autograd."""
    path = build(dim, kind=kind, constant_weights=True)
    for time in (0.1, 0.7):
        t, x = torch.tensor([time], dtype=torch.float64), torch.randn(1, 5, dim, dtype=torch.float64)
        terms = path.terms(t, x)
        divergence = torch.stack([torch.func.jacrev(lambda y, t=t: path.terms(t, y[None, None]).velocity[0, 0])(x[0, n])
                                  .diagonal().sum() for n in range(5)])
        balance = terms.time_derivative[0] + divergence + (terms.velocity * terms.score).sum(-1)[0]
        assert balance.abs().max() < 1e-8 * max(1.0, float(terms.time_derivative.detach().abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [0.0, 0.37, 1.0])
def test_normalised_in_one_dimension(kind, time):
    path = build(1, kind=kind)
    x = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    p = path.log_prob(torch.tensor([time], dtype=torch.float64), x[None, :, None])[0].exp().detach()
    assert abs(float(torch.trapezoid(p, x)) - 1) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_in_two_dimensions(kind):
    path = build(2, kind=kind)
    s = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(s, s)[None]
    p = path.log_prob(torch.tensor([0.6], dtype=torch.float64), grid)[0].exp().detach().reshape(601, 601)
    assert abs(float(torch.trapezoid(torch.trapezoid(p, s), s)) - 1) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_density(kind):
    """Kolmogorov-Smirnov at level 1e-6, along each axis and a slanted direction, against the mixture's own law."""
    path = build(3, kind=kind)
    t = torch.tensor([0.3], dtype=torch.float64)
    x = path.sample(t, 20_000, torch.Generator().manual_seed(1))[0].numpy()
    basis, rate = path.basis(t)
    weights = path._weights(basis, rate)[0][0].exp().detach().numpy()
    means = torch.einsum("b,bkd->kd", basis[0], path.means * path.covariance.units[:, None]).detach().numpy()
    root = path.covariance.root(basis)[0].detach().numpy()
    for direction in (*np.eye(3), np.array([1.0, -2.0, 0.5])):
        width = np.sqrt(np.einsum("kdr,d->kr", root, direction).__pow__(2).sum(-1))

        def law(s, direction=direction, width=width):
            return (weights * stats.norm.cdf(s[:, None], means @ direction, width)).sum(-1)

        assert stats.kstest(x @ direction, law).pvalue > 1e-6


def test_constant_outside_the_time_range():
    path = build(2)
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    end, beyond = (path.terms(torch.tensor([t], dtype=torch.float64), x) for t in (1.0, 1.7))
    assert torch.allclose(end.log_prob, beyond.log_prob)
    assert beyond.time_derivative.abs().max() < 1e-12


def test_spline_basis_is_positive_sums_to_one_and_has_its_derivative(close):
    basis = CubicSplineBasis(np.array([0.0, 0.1, 0.5, 1.0]))
    t = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)
    value, slope = basis(t)
    assert value.min() >= 0
    close(value.sum(-1), torch.ones(41, dtype=torch.float64), 1e-12)
    close(value @ torch.as_tensor(basis.nodes), t, 1e-12)
    h = 1e-6
    close(slope, (basis(t + h)[0] - basis(t - h)[0]) / (2 * h), 1e-6)


def test_chains_pair_every_point_once(rng):
    snapshots = [rng.normal(m, 1, (50, 2)) for m in range(3)]
    chains = matched_chains(snapshots, 50, rng)
    for j, x in enumerate(snapshots):
        assert np.allclose(np.sort(chains[:, j, 0]), np.sort(x[:, 0]))
    assert np.linalg.norm(chains[:, 1] - chains[:, 0] - 1, axis=1).mean() < 1.0


@pytest.mark.parametrize("dim", [1, 2, 25])
def test_start_resembles_the_snapshots(dim, rng):
    snapshots = [rng.normal(3 * m, 1 + m, (200, dim)) for m in range(3)]
    path = initial_path(snapshots, np.array([0.0, 0.5, 1.0]), 4, rng)
    assert isinstance(path.covariance, LowRankCovariance if dim > 20 else FullCovariance)
    drawn = path.sample(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 4000, torch.Generator().manual_seed(0))
    assert np.abs(drawn[0].mean(0).numpy()).max() < 0.5
    assert np.abs(drawn[2].mean(0).numpy() - 6).max() < 1.0


def test_start_resembles_the_weighted_snapshots(rng):
    """A normal law tilted by exp(x) is the same law one further on; where a few points have all weight, it is theirs."""
    snapshots = [rng.normal(3 * m, 1, (4000, 1)) for m in range(2)]
    path = initial_path(snapshots, np.array([0.0, 1.0]), 4, rng, weights=[np.exp(x[:, 0]) for x in snapshots])
    drawn = path.sample(torch.tensor([0.0, 1.0], dtype=torch.float64), 4000, torch.Generator().manual_seed(0))
    assert drawn.mean((1, 2)).numpy() == pytest.approx([1, 4], abs=0.15)
    assert drawn.std(1)[:, 0].numpy() == pytest.approx([1, 1], abs=0.15)
    few = [np.where(np.arange(4000) < 3, 1.0, 1e-9) for _ in snapshots]
    path = initial_path(snapshots, np.array([0.0, 1.0]), 4, rng, weights=few)
    assert path.n_components == 1
    mean = path.sample(torch.tensor([0.0], dtype=torch.float64), 4000, torch.Generator().manual_seed(0)).mean()
    assert float(mean) == pytest.approx(snapshots[0][:3].mean(), abs=0.5)


def test_components_cannot_shrink_onto_points(rng):
    """Duplicates invite collapse: likelihood alone, with no rein, must stay bounded by the floor."""
    x = rng.normal(size=(80, 2))
    x[:20] = x[0]
    path = initial_path([x, x + 1], np.array([0.0, 1.0]), 6, rng)
    optimiser = torch.optim.Adam(path.parameters(), lr=0.05)
    data = torch.as_tensor(np.stack([x, x + 1]))
    for _ in range(400):
        loss = -path.log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64), data).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # A quarter of the width that each of six components has if they share out the snapshot's own.
    own, least = np.cov(x.T), 0.25**2 / 6
    roots = path.covariance.root(path.basis(torch.linspace(0, 1, 9, dtype=torch.float64))[0]).detach()
    for covariance in (roots @ roots.mT).flatten(0, 1).numpy():
        assert linalg.eigvalsh(covariance, own).min() >= 0.999 * least
    peak = float(path.log_prob(torch.zeros(1, dtype=torch.float64), data[:1, :1]).detach())
    assert peak <= -math.log(2 * math.pi * least) - 0.5 * np.linalg.slogdet(own)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_law_of_the_density(kind):
    path = build(2, 3, kind)
    t = torch.tensor([0.3], dtype=torch.float64)
    noise = torch.randn(1, 20_000, path.noise_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, weights = path.draws(t, noise)
    assert weights.sum().item() == pytest.approx(1)
    other = path.sample(t, 60_000, torch.Generator().manual_seed(2))[0]
    mean = weights[0] @ x[0]
    centred = x[0] - mean
    deviation = other.std(0)
    assert ((mean - other.mean(0)).abs() < 6 * deviation / math.sqrt(20_000)).all()
    assert torch.allclose((centred.mT * weights[0]) @ centred, other.T.cov(), atol=0.1 * float(deviation.max()) ** 2)
    assert torch.autograd.grad(mean.sum(), path.means)[0].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_kinetic_energy_is_that_of_the_components(kind):
    """By sampling: every component's own points at its own velocity."""
    path, t = build(2, 3, kind, constant_weights=True), torch.tensor([0.3, 0.8], dtype=torch.float64)
    basis, rate = path.basis(t)
    roots, n = path.covariance.root(basis), 200_000
    noise = torch.randn(2, 3, n, roots.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drag = path.covariance(basis, rate, noise @ roots.mT).drag
    velocity = torch.einsum("mb,bkd->mkd", rate, path.means * path.covariance.units[:, None])[:, :, None] + 0.5 * drag
    expected = (path.logits.softmax(-1) * velocity.square().sum(-1).mean(-1)).sum(-1)
    assert torch.allclose(path.kinetic_energy(t), expected, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_throw_and_drag_as_their_roots_do(kind, close):
    covariance, t = build(5, 3, kind).covariance, torch.linspace(0, 1, 4, dtype=torch.float64)
    basis, rate = build(5, 3, kind).basis(t)
    roots, rows = covariance.root(basis), torch.arange(4)[:, None]
    noise, chosen = torch.randn(4, 6, roots.shape[-1], dtype=torch.float64), torch.randint(3, (4, 6))
    every = noise[:, None] @ roots.mT
    close(covariance.offsets(basis, noise), every, 1e-12)
    close(covariance.offsets(basis, noise, chosen), every[rows, chosen, torch.arange(6)], 1e-12)
    close(covariance.agitation(basis, rate), covariance(basis, rate, roots.mT).drag.square().sum((-2, -1)), 1e-11)


def test_kinetic_energy_is_no_less_than_that_of_the_common_velocity():
    path, t = build(3, 4, constant_weights=True), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x = path.sample(t, 20_000, torch.Generator().manual_seed(0))
    common = path.terms(t, x).velocity.square().sum(-1).mean(-1)
    assert (path.kinetic_energy(t) >= common).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_of_paths_has_the_mean_density(kind, close):
    first, second = (build(2, k, kind, constant_weights=True) for k in (2, 3))
    t, x = torch.tensor([0.1, 0.7], dtype=torch.float64), torch.randn(2, 20, 2, dtype=torch.float64)
    expected = torch.stack([first.log_prob(t, x), second.log_prob(t, x)]).logsumexp(0) - math.log(2)
    close(averaged([first, second]).log_prob(t, x), expected, 1e-10)
