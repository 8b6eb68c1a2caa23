import numpy as np
import pytest
import torch
from problems import ROTATION, ROTATION_NOISE, rotating_law, rotating_snapshots
from test_density import build as build_path
from test_projection import exact_gaussian_path
from torch import nn
from torch.quasirandom import SobolEngine

from fpsde import FokkerPlanckSDE, moments, readouts
from fpsde.diffusion import ConstantDiffusion, KnownDiffusion, StateDiffusion
from fpsde.field import COUPLED, FREE, LINEAR, OWN, OWN_LINEAR
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.frame import NODES, MovingFrame, TestFunctions, lobatto
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.mixture import initial_path
from fpsde.moments import MomentEquations
from fpsde.readouts import SLIGHT_CORRECTION, _attenuation, prior_groups, solve_moments


@pytest.mark.parametrize("dim", [1, 2, 3, 22])
def test_functions_of_a_moving_frame_against_autograd(dim, close):
    """Above twenty dimensions the frame has its axes alone."""
    nodes, _ = lobatto(NODES)
    cloud = torch.randn(NODES, 200, dim, dtype=torch.float64) * torch.linspace(1, 2, NODES)[:, None, None]
    cloud = cloud + torch.as_tensor(nodes)[:, None, None] ** 2
    span = 0.7
    frame = MovingFrame(cloud, span)
    tests = TestFunctions(dim, torch.Generator().manual_seed(0))
    x = torch.randn(5 if dim < 9 else 1, dim, dtype=torch.float64)
    unit = frame.whiten @ (cloud - cloud.mean(1, keepdim=True)).mT
    assert (unit.square().mean(-1) - 1).abs().max() < 1e-5

    def interpolated(values, t):
        """The polynomial in time through the values at the nodes."""
        result = torch.zeros_like(values[0])
        for i, value in enumerate(values):
            others = [k for k in range(NODES) if k != i]
            result = result + value * torch.stack([(t / span - nodes[k]) / (nodes[i] - nodes[k]) for k in others]).prod()
        return result

    def dense(t, x):
        y = interpolated(frame.whiten, t) @ (x - interpolated(frame.centre, t))
        i, j = tests.pairs
        return torch.cat([y, y[i] * y[j], (tests.waves @ y + tests.phase).cos()])

    for node in (0, 3):
        result = tests(frame, [node], x[None])
        t = torch.tensor(nodes[node] * span, dtype=torch.float64)
        for n, point in enumerate(x):
            close(result.values[0, n], dense(t, point), 1e-10)
            close(result.along(torch.zeros_like(x)[None])[0, n], torch.func.jacrev(dense, 0)(t, point), 1e-8)
            close(result.gradient(result.each)[:, 0, n], torch.func.jacrev(dense, 1)(t, point), 1e-9)
            hessian = torch.func.hessian(dense, 1)(t, point)
            close(result.curvature(result.each)[:, 0, n], hessian.diagonal(dim1=-2, dim2=-1), 1e-9)


@pytest.mark.parametrize("dim", [1, 3, 22])
def test_what_is_summed_over_functions_or_points_is_what_it_says(dim, close):
    """Against the derivatives laid out."""
    cloud = torch.randn(NODES, 200, dim, dtype=torch.float64) * torch.linspace(1, 2, NODES)[:, None, None]
    tested = TestFunctions(dim, torch.Generator().manual_seed(0))(MovingFrame(cloud, 0.7), [1, 4], cloud[[1, 4], :5])
    gradients, seconds = tested.gradient(tested.each), tested.curvature(tested.each)
    velocity, u = torch.randn(2, 5, dim, dtype=torch.float64), torch.randn_like(tested.values)
    still = tested.along(torch.zeros_like(velocity))
    close(tested.along(velocity) - still, torch.einsum("qmnd,mnd->mnq", gradients, velocity), 1e-12)
    close(tested.spread(velocity), torch.einsum("qmnd,mnd->mnq", seconds, velocity), 1e-12)
    close(tested.gradient(u), torch.einsum("qmnd,mnq->mnd", gradients, u), 1e-12)
    close(tested.curvature(u), torch.einsum("qmnd,mnq->mnd", seconds, u), 1e-12)
    columns, weight = torch.randn(dim, 2, 5, 4, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    close(tested.gradients_with(columns, weight), torch.einsum("qmnd,dmnp,mn->qdp", gradients, columns, weight), 1e-12)
    close(tested.seconds_with(columns, weight), torch.einsum("qmnd,dmnp,mn->qdp", seconds, columns, weight), 1e-12)


@pytest.mark.parametrize("products", [60, 210])
@pytest.mark.parametrize("dim", [1, 2, 5, 11, 20, 70, 220])
def test_the_number_of_functions_is_known_beforehand(dim, products):
    tests = TestFunctions(dim, torch.Generator().manual_seed(0), products)
    assert tests.count == TestFunctions.how_many(dim, products)
    assert tests.pairs.shape[1] == min(dim * (dim + 1) // 2, max(dim, products))


def test_lobatto_integrates_polynomials_exactly():
    nodes, weights = lobatto(NODES)
    for power in range(2 * NODES - 2):
        assert (weights * nodes**power).sum() == pytest.approx(1 / (power + 1), rel=1e-12)


def exact_equations(noise, n=4000):
    """The moving Gaussian of unit covariance with f = c - (x - c t) g^2 / 2, and snapshots drawn from it."""
    path = exact_gaussian_path()
    drift = HollowNet(2, hidden=(8,), time=False, random_readout=False, bend=0.5, own_share=0.5).double()
    model = FokkerPlanckLoss(path, drift, KnownDiffusion(torch.full((2,), noise, dtype=torch.float64)))
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    snapshots = [path.sample(t[None], n, generator)[0] for t in times]
    return MomentEquations(model, times, snapshots, generator)


def test_equations_hold_for_an_exact_pair_to_within_their_own_noise():
    """With f = c and g = 0 the moving Gaussian only moves: what is left is sampling error, of the size that is claimed."""
    equations = exact_equations(0.0)
    drift = equations.model.drift
    values = drift.get_readout()
    values[:, -1] = torch.tensor([1.0, -2.0])
    drift.set_readout(values)
    _, left = equations.linearise()
    root = torch.linalg.cholesky(equations.noise())
    whitened = torch.linalg.solve_triangular(root, left[:, None], upper=False)
    # Below one, because directions in which the functions hardly differ are given more noise than they have.
    assert 0.3 < whitened.square().mean() < 1.5
    values[:, -1] = torch.tensor([3.0, -2.0])
    drift.set_readout(values)
    _, wrong = equations.linearise()
    whitened = torch.linalg.solve_triangular(root, wrong[:, None], upper=False)
    assert whitened.square().mean() > 5


class ExactRotation(nn.Module):
    """The law of the rotating process as a density path, as far as the equations ask; with a seed, always that one."""

    def __init__(self, seed=None):
        super().__init__()
        self.seed = seed

    def spread(self, t, n, seed):
        points, seed = [], seed if self.seed is None else self.seed
        for k, s in enumerate(t):
            mean, covariance = rotating_law(float(s))
            uniform = SobolEngine(2, scramble=True, seed=seed + k).draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
            points.append(torch.as_tensor(mean) + torch.special.ndtri(uniform) @ torch.as_tensor(
                np.linalg.cholesky(covariance)).T)
        return torch.stack(points)


def test_the_claimed_covariance_is_that_of_many_data_sets():
    """True drift and noise, exact path: what is left of each equation is sampling error, through both uses of the data."""
    times = torch.linspace(0, 4, 9, dtype=torch.float64)
    drift = HollowNet(2, hidden=(4,), time=False, random_readout=False).double()
    with torch.no_grad():
        drift.matrix.copy_(torch.as_tensor(ROTATION))
    model = FokkerPlanckLoss(ExactRotation(), drift, KnownDiffusion(torch.as_tensor(ROTATION_NOISE)))
    left = []
    for seed in range(40):
        x, t = rotating_snapshots(200, times.numpy(), seed)
        equations = MomentEquations(model, times, [torch.as_tensor(x[t == s]) for s in times.numpy()],
                                    torch.Generator().manual_seed(0))
        left.append(equations.linearise()[1])
    claimed, found = equations.noise().diagonal().detach(), torch.stack(left).detach().square().mean(0)
    ratio = found / claimed
    assert ratio.mean() == pytest.approx(1.0, abs=0.08)
    # A chi-square of 40 degrees of freedom over 40 is within these bounds but for one in a million.
    assert ratio.min() > 0.2
    assert ratio.max() < 2.5


def test_linearisation_is_the_derivative():
    path = build_path(2, components=2)
    net = HollowNet(2, hidden=(6,), time=False).double()
    diffusion = StateDiffusion(HollowNet(2, hidden=(6,), time=False).double(), torch.ones(2, dtype=torch.float64))
    model = FokkerPlanckLoss(path, net, diffusion)
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 1, 3, dtype=torch.float64)
    equations = MomentEquations(model, times, [path.sample(t[None], 300, generator)[0] for t in times], generator)
    with torch.no_grad():
        matrix, before = equations.linearise()
        steps = []
        for field in (net, diffusion):
            steps.append(1e-5 * torch.randn_like(field.get_readout()))
            field.set_readout(field.get_readout() + steps[-1])
        after = equations.linearise()[1]
    expected = -matrix @ torch.cat([step.flatten() for step in steps])
    assert (after - before - expected).abs().max() < 1e-3 * expected.abs().max()


def test_nothing_is_kept_for_gradients():
    equations = exact_equations(0.5, 50)
    assert any(parameter.requires_grad for parameter in equations.model.drift.parameters())
    assert not equations.transport.requires_grad


def test_some_points_at_a_time_are_as_good_as_all(monkeypatch):
    """In the equations, where points have weights, and in the covariance and the correction for chance, with growth."""
    times = torch.linspace(0, 2, 3, dtype=torch.float64)
    diffusion = StateDiffusion(HollowNet(2, hidden=(4,), time=False).double(), torch.ones(2, dtype=torch.float64))
    model = FokkerPlanckLoss(ExactRotation(seed=0), HollowNet(2, hidden=(4,), time=False).double(), diffusion,
                             growth=Growth(2).double())
    with torch.no_grad():
        model.growth.readout.normal_()
    x, t = rotating_snapshots(100, times.numpy())
    weights = [torch.rand(100).double() for _ in times]
    weights = [w / w.mean() for w in weights]

    def computed():
        equations = MomentEquations(model, times, [torch.as_tensor(x[t == s]) for s in times.numpy()],
                                    torch.Generator().manual_seed(0), weights)
        noise = equations.noise()
        return *equations.linearise(), noise, equations.chance(torch.linalg.inv(noise))

    whole = computed()
    # With a few columns of two coordinates each, not even the 100 points of a snapshot are taken at once.
    monkeypatch.setattr(moments, "AT_ONCE", 500)
    for some, every in zip(computed(), whole, strict=True):
        torch.testing.assert_close(some, every, rtol=1e-9, atol=1e-12)


def test_a_linear_drift_and_even_noise_are_found():
    """Ornstein-Uhlenbeck with a path fitted by a single Gaussian, whose moments it has exactly."""
    times = np.linspace(0, 4, 9)
    x, t = rotating_snapshots(1000, times)
    groups = [x[t == s] for s in times]
    path = initial_path(groups, times / 4, 1, np.random.default_rng(0))
    drift = HollowNet(2, time=False, random_readout=False, bend=0.5, own_share=0.5).double()
    diffusion = ConstantDiffusion(torch.ones(2, dtype=torch.float64))
    model = FokkerPlanckLoss(path, drift, diffusion)
    snapshots = [torch.as_tensor(z) for z in groups]
    equations = MomentEquations(model, torch.as_tensor(times / 4), snapshots, torch.Generator().manual_seed(0))
    explained = solve_moments(equations, 6)
    f = drift(torch.tensor(0.0), torch.as_tensor(x)).detach().numpy() / 4
    true = x @ ROTATION.T
    assert np.sqrt(((f - true) ** 2).sum() / (true**2).sum()) < 0.04
    assert np.abs(diffusion.log_level.exp().detach().numpy() / 2 - ROTATION_NOISE).max() < 0.07
    # Of the drift: linear in its own coordinate and in the other, features of the first, of the second and of both.
    own, other, *bends = explained.variances[2:7]
    assert min(own, other) > 0.1
    assert [float(variance) for variance in bends] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("dim", "own"), [(2, 2), (11, 1)])
def test_unknowns_are_grouped_by_what_is_believed_of_them(dim, own):
    """Each once; what a coordinate has of its own apart, as long as coordinates are few."""
    drift, diffusion = (HollowNet(dim, hidden=(8,), time=False, own_share=0.5) for _ in range(2))
    diffusion = StateDiffusion(diffusion, torch.ones(dim))
    n = drift.get_readout().numel()
    for field, bends, first in ((drift, readouts.DRIFT, 0), (diffusion, readouts.NOISE, n)):
        groups = readouts.priors(torch.randn(3, n), field, bends, first)
        kinds = [group.kind for group in groups]
        assert kinds == [FREE, OWN_LINEAR, LINEAR, *[OWN] * own, COUPLED]
        assert torch.cat([group.places for group in groups]).sort().values.tolist() == list(range(first, first + n))
        assert groups[1].prior.most == bends.most_own_linear
        assert len(groups[1].places) == dim
    assert {place // (n // dim) for place in (groups[3].places - n).tolist()} == set(range(1 if own > 1 else dim))


def test_a_correction_for_chance_is_cut_short_where_it_is_larger_than_its_bound(monkeypatch, close):
    """In squared sampling errors; its direction stays."""
    equations = exact_equations(0.5)
    noise, (matrix, _) = equations.noise(), equations.linearise()
    groups = prior_groups(equations, matrix)

    def correction():
        shift, slight = _attenuation(equations, matrix, noise, groups, torch.tensor([0.0, *[1.0] * len(groups)]).double())
        moved = matrix @ shift
        return shift, float(moved @ torch.linalg.solve(noise, moved)), slight

    whole, size, slight = correction()
    assert slight
    assert 0 < size < 2 * SLIGHT_CORRECTION
    monkeypatch.setattr(readouts, "SLIGHT_CORRECTION", size / 4)
    monkeypatch.setattr(readouts, "LARGEST_CORRECTION", size / 8)
    short, cut, slight = correction()
    assert not slight
    assert cut == pytest.approx(size / 4, rel=1e-6)
    close(short, whole / 2, 1e-8)


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_does_not_lean_to_zero_where_points_are_few(seed):
    """Four coupled coordinates, 60 points: with one correction for chance, at the end, the last one's noise came out halved."""
    rng = np.random.default_rng(seed)
    drift = np.array([[-0.6, 0.7, -0.9, 0.4], [-0.6, -0.8, 0.3, -0.8], [1.0, -0.4, -1.0, 0.6], [-0.5, 0.7, -0.5, -1.2]])
    noise, times = np.array([0.7, 0.3, 0.5, 0.9]), np.linspace(0, 4, 6)
    x = np.array([2.0, -1.0, 3.0, 0.0]) + rng.normal(size=(len(times), 60, 4)) * [0.2, 2.0, 0.5, 1.0]
    for j in range(1, len(times)):
        for _ in range(round(200 * times[j])):
            x[j] += 0.005 * x[j] @ drift.T + np.sqrt(0.005) * noise * rng.normal(size=x[j].shape)
    model = FokkerPlanckSDE(2, drift="autonomous", diffusion="constant", hidden=(16,), max_steps=40, random_state=0,
                            device="cpu").fit(x.reshape(-1, 4), np.repeat(times, 60))
    assert model.diffusion(x[0, :1], 0.0)[0] / noise == pytest.approx(1, abs=0.3)


def test_weights_stand_for_repeated_points():
    """All means are those of repeated points; the covariance is that of as many points as the weights are worth."""
    times = torch.linspace(0, 2, 3, dtype=torch.float64)
    drift = HollowNet(2, hidden=(4,), time=False).double()
    model = FokkerPlanckLoss(ExactRotation(seed=0), drift, StateDiffusion(
        HollowNet(2, hidden=(4,), time=False).double(), torch.ones(2, dtype=torch.float64)))
    x, t = rotating_snapshots(100, times.numpy())
    snapshots = [torch.as_tensor(x[t == s]) for s in times.numpy()]
    repeats = [torch.randint(1, 5, (100,)) for _ in snapshots]
    weights = [r.double() / r.double().mean() for r in repeats]
    weighted = MomentEquations(model, times, snapshots, torch.Generator().manual_seed(0), weights)
    repeated = MomentEquations(model, times, [z.repeat_interleave(r, 0) for z, r in zip(snapshots, repeats, strict=True)],
                               torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighted.change, repeated.change, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(weighted.linearise(), repeated.linearise(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert weighted.counts == pytest.approx([float(r.sum() ** 2 / r.square().sum()) for r in repeats])
    weighted.counts = repeated.counts
    torch.testing.assert_close(weighted.noise(), repeated.noise(), rtol=1e-9, atol=1e-14)
