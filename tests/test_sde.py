import re

import numpy as np
import pytest
import torch
import torchsde
from scipy import stats

from fpsde.coordinates import Coordinates
from fpsde.diffusion import ConstantDiffusion, StateDiffusion
from fpsde.hollow import HollowNet
from fpsde.sde import FittedSDE
from fpsde.simulation import FreshIncrements, SimulationError, simulate


class Brownian(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return 0 * y

    def g(self, t, y):
        return torch.ones_like(y)


class OrnsteinUhlenbeck(Brownian):
    def f(self, t, y):
        return -2.0 * y


class Exploding(Brownian):
    def f(self, t, y):
        return y**3


def test_brownian_motion_has_the_right_variance_at_times_off_the_grid(device):
    """Interpolated outputs would have a quarter of the variance; level 1e-6 of the chi-squared test."""
    times = torch.tensor([0.0, 0.05, 0.13, 1.0])
    n = 20_000
    paths = simulate(Brownian(), torch.zeros(n, 1, device=device), times, time_step=0.1, seed=0).cpu().double()
    for k in range(1, 4):
        statistic = float((paths[k] ** 2).sum() / times[k])
        assert stats.chi2.cdf(statistic, n) == pytest.approx(0.5, abs=0.5 - 5e-7)
    increments = (paths[3] - paths[2])[:, 0].numpy() / np.sqrt(0.87)
    assert stats.kstest(increments, "norm").pvalue > 1e-6


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_law_of_ornstein_uhlenbeck(method, device):
    paths = simulate(OrnsteinUhlenbeck(), torch.ones(4000, 1, device=device), torch.tensor([0.0, 0.333, 1.0]), 0.005, 1,
                     method)
    for k, t in ((1, 0.333), (2, 1.0)):
        law = stats.norm(np.exp(-2 * t), np.sqrt((1 - np.exp(-4 * t)) / 4))
        assert stats.kstest(paths[k, :, 0].cpu().numpy(), law.cdf).pvalue > 1e-6


def test_seeds_and_numpy_leave_each_other_alone(device):
    y0, times = torch.zeros(5, 2, device=device), torch.tensor([0.0, 1.0])
    np.random.seed(0)
    first = simulate(Brownian(), y0, times, 0.1, seed=3)
    np.random.seed(1)
    assert torch.equal(first, simulate(Brownian(), y0, times, 0.1, seed=3))
    assert not torch.equal(first, simulate(Brownian(), y0, times, 0.1, seed=4))


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_paths_do_not_depend_on_chunks_or_on_the_paths_after_them(method, device):
    y0, times = torch.linspace(-1, 1, 2500, device=device)[:, None].repeat(1, 2), torch.tensor([0.0, 0.1, 0.3])
    paths = simulate(OrnsteinUhlenbeck(), y0, times, 0.1, 5, method)
    assert torch.equal(paths, simulate(OrnsteinUhlenbeck(), y0, times, 0.1, 5, method, chunk=1024))
    first = 2048 if method == "srk" else 1500
    assert torch.equal(paths[:, :first], simulate(OrnsteinUhlenbeck(), y0[:first], times, 0.1, 5, method))
    noise = paths[-1] - paths[-1].mean(0)
    assert abs(float(torch.corrcoef(noise[:2048, 0].reshape(2, 1024))[0, 1])) < 0.15


class GeometricBrownianMotion(Brownian):
    def f(self, t, y):
        return 0.1 * y

    def g(self, t, y):
        return 0.8 * y


def test_strong_order_on_geometric_brownian_motion():
    """Euler's error against the closed form falls with the root of the step, Milstein's with the step itself."""
    y0, steps = torch.ones(4000, 1, dtype=torch.float64), (1 / 16, 1 / 64)

    def error(method, step):
        # The sum of the increments that the same seed draws is the Brownian motion at the end.
        motion = simulate(Brownian(), 0 * y0, torch.tensor([0.0, 1.0]), step, 2, "euler")[-1]
        exact = torch.exp((0.1 - 0.32) + 0.8 * motion)
        return float((simulate(GeometricBrownianMotion(), y0, torch.tensor([0.0, 1.0]), step, 2, method)[-1] - exact)
                     .square().mean().sqrt())

    slopes = [np.log(error(method, steps[0]) / error(method, steps[1])) / np.log(4) for method in ("euler", "milstein")]
    assert slopes[0] == pytest.approx(0.5, abs=0.15)
    assert slopes[1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_explosion_is_an_error_that_says_when(method, device):
    """dy = y^3 dt is infinite at 1 / (2 y^2); Euler's steps of 0.1 pass the largest float32 in the fifth."""
    start = torch.tensor([[0.0], [5.0], [0.1]], device=device)
    when = r"0\.5" if method != "srk" else r"0\.0[2-9]\d*"
    with pytest.raises(SimulationError, match=rf"^[12] of 3 paths became infinite, the first by time {when}; try a smaller"):
        simulate(Exploding(), start, torch.tensor([0.0, 2.0]), 0.1, 0, method)


class Returning(Brownian):
    def f(self, t, y):
        return -y**3


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_a_step_too_large_for_a_start_far_outside(method, device):
    """Steps of 0.1 overshoot from y = 30 on, though the equation itself returns."""
    start, times = torch.full((3, 1), 30.0, device=device), torch.tensor([0.0, 0.05, 0.5])
    with pytest.raises(SimulationError, match=r"3 of 3 paths became infinite, the first by time 0\.\d+; try a smaller time"):
        simulate(Returning(), start, times, 0.1, 0, method)
    paths = simulate(Returning(), start, times, 1e-3, 0, method)
    assert paths[-1].abs().max() < 5


class Lost(Brownian):
    def f(self, t, y):
        return torch.where(t > 0.55, torch.nan, 0 * y)


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_a_drift_that_is_not_a_number_is_an_error_that_says_when(method):
    # The state is lost one step after the drift.
    with pytest.raises(SimulationError, match=r"2 of 2 paths became infinite, the first by time 0\.[567]"):
        simulate(Lost(), torch.zeros(2, 1), torch.tensor([0.0, 0.3, 1.0]), 0.1, 0, method)


def test_fresh_increments_refuse_what_they_cannot_do():
    noise = FreshIncrements((2, 1), [torch.Generator()], torch.float32)
    with pytest.raises(ValueError, match="euler and milstein only"):
        noise(torch.tensor(0.0), torch.tensor(1.0), return_U=True)
    with pytest.raises(ValueError, match="method must be"):
        simulate(Brownian(), torch.zeros(1, 1), torch.tensor([0.0, 1.0]), 0.1, 0, "heun")


def fitted(time=True):
    return FittedSDE(HollowNet(2, time=time), ConstantDiffusion(torch.tensor([0.5, 2.0])), Coordinates(
        torch.tensor([1.0, -3.0]), torch.tensor([10.0, 0.1]), torch.tensor([5.0, 4.0])))


def test_units_of_the_fitted_equation(close):
    sde = fitted()
    z = torch.randn(6, 2)
    x = sde.coordinates.outside(z).float()
    close(sde.f(torch.tensor(6.0), x), (sde.drift(torch.tensor(0.25), z) * sde.coordinates.scale / 4).float(), 1e-5)
    close(sde.g(torch.tensor(6.0), x), torch.tensor([[2.5, 0.1]]).expand(6, 2), 1e-6)
    for a, b in zip(sde.f_and_g(torch.tensor(6.0), x), (sde.f(torch.tensor(6.0), x), sde.g(torch.tensor(6.0), x)),
                    strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", range(4))
def test_no_path_holds_what_is_no_number(seed):
    """Whatever the net, its size and the step: finite paths, positive where they are to be, or an error."""
    draw = np.random.default_rng(seed)
    outcomes = []
    for size in 10 ** np.linspace(-2, 4, 5):
        positive = torch.tensor([True, False])
        sde = FittedSDE(HollowNet(2), ConstantDiffusion(torch.tensor([0.5, 2.0])), Coordinates(
            torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.1]), torch.tensor([5.0, 4.0]), positive))
        with torch.no_grad():
            sde.drift.matrix.normal_().mul_(size)
            sde.drift.offset.normal_().mul_(size)
        caught = None
        try:
            paths = sde.paths(torch.tensor([[2.0, -3.0]] * 4, dtype=torch.float64), torch.tensor([5.0, 6.0, 9.0]),
                              10 ** draw.uniform(-1, 0.5), seed, draw.choice(["euler", "milstein"]))
        except SimulationError as error:
            caught = str(error)
        if caught is None:
            assert torch.isfinite(paths).all()
            assert (paths[..., 0] > 0).all()
        else:
            assert re.search(r"the first by time (5\.\d+|[678](\.\d+)?|9);", caught)
        outcomes.append(caught is None)
    assert outcomes[0]
    assert not all(outcomes)


def test_a_positive_coordinate_beyond_the_numbers_is_an_error_that_says_when():
    """The logarithm moves by 1000 in a time unit: after .7 the coordinate is infinite, or zero."""
    for speed in (1000.0, -1000.0):
        sde = FittedSDE(HollowNet(1, random_readout=False), ConstantDiffusion(torch.ones(1)), Coordinates(
            torch.zeros(1), torch.ones(1), torch.tensor([0.0, 1.0]), torch.tensor([True])))
        with torch.no_grad():
            sde.drift.offset.fill_(speed)
        x0 = torch.ones(3, 1, dtype=torch.float64)
        with pytest.raises(SimulationError, match=r"3 of 3 paths had a positive coordinate beyond the numbers, the first by time 0\.8;"):
            sde.paths(x0, torch.tensor([0.0, 0.4, 0.8, 1.0], dtype=torch.float64), 0.01, 0)
        assert (sde.paths(x0, torch.tensor([0.0, 0.4]), 0.01, 0) > 0).all()


def test_torchsde_takes_it_as_it_is(device):
    sde = fitted().to(device)
    y0 = (torch.randn(7, 2) + torch.tensor([1.0, -3.0])).to(device)
    for method in ("euler", "milstein", "srk"):
        paths = torchsde.sdeint(sde, y0, torch.tensor([5.0, 5.5, 6.0], device=device), dt=0.1, method=method)
        assert paths.shape == (3, 7, 2)
    torchsde.sdeint_adjoint(sde, y0, torch.tensor([5.0, 5.2], device=device), dt=0.1, method="euler",
                            adjoint_method="euler").sum().backward()
    assert sde.drift.readout.grad.abs().max() > 0


def test_time_step_follows_the_fastest_rate():
    sde = fitted()
    t, z = torch.linspace(0, 1, 8), torch.randn(8, 64, 2)
    sde.choose_time_step(t, z)
    slow = float(sde.time_step)
    with torch.no_grad():
        sde.drift.readout *= 1000
    sde.choose_time_step(t, z)
    assert float(sde.time_step) < 0.2 * slow


def test_simulating_asks_each_net_once_a_step():
    """And not once more where torchsde looks at what it has got, before every interval between outputs."""
    calls, drift, noise = [], HollowNet(2), StateDiffusion(HollowNet(2), torch.ones(2))
    sde = FittedSDE(drift, noise, Coordinates(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 1.0])))
    for name, module in (("drift", drift), ("noise", noise)):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    sde.paths(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.75, 1.0]), 0.1, 0)
    assert calls.count("drift") == calls.count("noise") == 5 + 3 + 3


def test_paths_report_within_an_interval():
    sde = FittedSDE(HollowNet(2), ConstantDiffusion(torch.ones(2)), Coordinates(torch.zeros(2), torch.ones(2), torch.tensor([1.0, 4.0])))
    seen = []
    sde.paths(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([1.0, 5.0]), 0.01, 0, report=seen.append)
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
