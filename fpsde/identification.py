"""From snapshots to an SDE: the order in which density, noise and drift are found.

1. The density path is started on matched chains and trained by likelihood.
2. Drift and noise are solved for from the moments of the snapshots, which need of the path no more than that it
   interpolates.
3. The path descends likelihood and residual together under that drift and noise, with a growing weight of the residual:
   between the snapshots it comes to follow the Fokker-Planck equation.
4. Steps 2 and 3 are repeated with the better path.

A drift that is free in time can follow any path, so that its residual says nothing about the density: then the path is
fitted first, by likelihood and least kinetic energy, as the mean of several small mixtures. The nets learn its velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fpsde.batches import SnapshotBatches
from fpsde.checkpoints import Course
from fpsde.config import IdentificationConfig
from fpsde.coordinates import Coordinates
from fpsde.density import AbstractDensity, GaussianMixturePath
from fpsde.diffusion import AbstractDiffusion, ConstantDiffusion, FunctionDiffusion, KnownDiffusion, StateDiffusion
from fpsde.drift import AbstractDrift, PriorDrift
from fpsde.fokker_planck import FokkerPlanckLoss, LossTerms, LossWeights, influence, residual
from fpsde.given import GivenField, check_function, given_fields
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.mixture import averaged, initial_path
from fpsde.moments import MomentEquations
from fpsde.path import PathLoss
from fpsde.potential import GradientDrift
from fpsde.projection import ReadoutSolver
from fpsde.readouts import solve_moments
from fpsde.sde import FittedSDE
from fpsde.snapshots import Snapshots, mean_and_variance
from fpsde.train import Report, State, TrainConfig, copy_state, train

__all__ = ["Identification", "identify"]

PATH_SHARE = 0.4
PATH_TIMES = 8
# Of 16, 32 and 64 components, 16 had the best likelihood of held-out points; several such paths are then averaged.
PATH_COMPONENTS = 16
# A potential has as many features for each coordinate as a net, up to four of them.
POTENTIAL_COORDINATES = 4


class Identification(NamedTuple):
    """A fitted model and how it came about."""

    model: FokkerPlanckLoss
    path: GaussianMixturePath
    sde: FittedSDE
    history: list[dict[str, float]]
    summary: dict[str, float]


def identify(data: Snapshots, config: IdentificationConfig, seed: int, device: torch.device,
             report: Callable[[Report], None] | None = None, coordinates: Coordinates | None = None,
             course: Course | None = None) -> Identification:
    """Fits density, drift and diffusion to snapshots.

    Arguments:
        data: the snapshots, in data units.
        config: how to fit.
        seed: of all randomness.
        device: where to train.
        report: called after every step, with values now and then.
        coordinates: units of space and time; those of the data if left out.
        course: keeps the state of the fit, and where it is taken up.
    """
    fit = _Fit(data, config, seed, device, report, coordinates, course or Course())
    if config.drift == "time":
        # Several small paths one after the other, and the mean of their densities. Each starts on a matching of points of
        # its own, so that where between the snapshots they differ by chance the mean does not commit to one; and it fits
        # new points better than one path of as many components.
        train_path: Callable[[], None] = partial(fit.train_path, (1 - config.net_share) / fit.n_paths)
        phases = [train_path, *[fit.start_path, train_path] * (fit.n_paths - 1), fit.average_paths, fit.train_nets,
                  fit.polish]
    elif config.solve and MomentEquations.fits(fit.model, len(data.times)):
        phases = [partial(fit.train_path, PATH_SHARE), partial(fit.solve_nets, rounds=8), partial(fit.refine_path, 0.5),
                  partial(fit.solve_nets, rounds=4), partial(fit.refine_path, 1.0)]
    else:
        phases = [partial(fit.train_path, PATH_SHARE), fit.train_jointly]
    fit.course.run(phases, fit.state, fit.restore)
    return fit.result()


class _Fit:
    """The state of a fit between its phases."""

    def __init__(self, data: Snapshots, config: IdentificationConfig, seed: int, device: torch.device,
                 report: Callable[[Report], None] | None, coordinates: Coordinates | None, course: Course) -> None:
        self.config, self.device, self.report, self.course = config, device, report, course
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.data = data
        times = data.times
        self.coordinates = deepcopy(coordinates) or Coordinates.of(data, config.positive or (False,) * data.dim)
        volumes = self.coordinates.log_volume(torch.as_tensor(data.x)).numpy()
        self.log_volume = float(np.average(volumes, weights=data.weights))
        """What the mean log-likelihood gains in data units."""
        self.given = self._given()
        kept, held = data.split(config.held_out, self.rng)
        self.kept, self.weights = self._batches(kept), kept.group_weights()
        self.held = self._batches(held) if held is not None else self.kept
        self.t = self.coordinates.time(torch.as_tensor(times)).float().to(device)
        self.n_paths = math.ceil(config.n_components / PATH_COMPONENTS) if config.drift == "time" else 1
        self.density = self._initial_path()
        self.paths: list[GaussianMixturePath] = []
        """Those that are finished, of several whose mean is taken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drift, diffusion = self._nets(data.dim)
            growth = Growth(data.dim) if config.growth is not None else None
        self.model = FokkerPlanckLoss(self.density, drift, diffusion, config.drift != "time", growth).to(device)
        self.solves = config.solve and ReadoutSolver.fits(self.model)
        # Counts of all points, those held out too: what was measured is what grew.
        counts = torch.tensor([len(x) for x in data.groups()], dtype=torch.float64, device=device)
        self.sizes = counts if config.growth == "counts" else None
        self.history: list[dict[str, float]] = []
        self.summary: dict[str, float] = {"skipped_steps": 0.0}
        self.done = 0

    def state(self) -> State:
        """Returns all that changes from phase to phase."""
        return {"rng": self.rng.bit_generator.state, "generator": self.generator.get_state(),
                "model": copy_state(self.model), "paths": [copy_state(path) for path in self.paths],
                "learning": [name for name, p in self.model.named_parameters() if p.requires_grad],
                "history": list(self.history), "summary": dict(self.summary), "done": self.done}

    def restore(self, state: State) -> None:
        """Goes on from a state of a fit to the same data."""
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        # Paths differ in their number of components.
        shape = {name.removeprefix("density."): v for name, v in state["model"].items() if name.startswith("density.")}
        self.density = self.model.density = self._path_of(shape)
        self.model.load_state_dict(state["model"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in state["learning"])
        self.paths = [self._path_of(part) for part in state["paths"]]
        self.history, self.summary, self.done = state["history"], state["summary"], state["done"]
        self._tell("taken up again")

    def _path_of(self, state: State) -> GaussianMixturePath:
        path = GaussianMixturePath.shaped(state, constant_weights=self.config.drift == "time")
        path.to(self.device, state["means"].dtype).load_state_dict(state)
        return path

    def _scaled(self, data: Snapshots) -> list[np.ndarray]:
        return [self.coordinates.inside(torch.as_tensor(x)).numpy() for x in data.groups()]

    def _batches(self, data: Snapshots) -> SnapshotBatches:
        return SnapshotBatches(self._scaled(data), self.generator, self.device, data.group_weights())

    def _initial_path(self) -> GaussianMixturePath:
        snapshots = [self.kept.group(j).double().cpu().numpy() for j in range(len(self.t))]
        times = self.coordinates.time(torch.as_tensor(self.data.times)).numpy()
        path = initial_path(snapshots, times, self.config.n_components // self.n_paths, self.rng,
                            constant_weights=self.config.drift == "time", weights=self.weights)
        return path.float().to(self.device)

    def _given(self) -> dict[str, GivenField]:
        """What is given as functions, found to be usable."""
        given = {"drift_prior": self.config.drift_prior, "diffusion": self.config.diffusion}
        x, t = (torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in (self.data.x, self.data.t))
        for name, function in given.items():
            if callable(function):
                check_function(name, function, x, t, positive=name == "diffusion")
        return given_fields(given, deepcopy(self.coordinates).to(self.device))

    def _nets(self, dim: int) -> tuple[AbstractDrift, AbstractDiffusion]:
        c = self.config
        new: dict[str, Any] = {"dim": dim, "conditioner": c.conditioner, "hidden": c.hidden, "activation": c.activation,
                               "time": c.drift == "time", "random_readout": False}
        if c.drift != "time" and c.solve:
            # Features that are not trained: close to polynomials, half of them without coupling between coordinates.
            new.update(bend=0.5, own_share=0.5)
        drift: AbstractDrift
        if c.drift == "gradient":
            scale = self.coordinates.scale
            metric = (2 * scale.log().mean()).exp() / scale.square()
            drift = GradientDrift(dim, c.hidden[-1] * min(dim, POTENTIAL_COORDINATES), metric.float())
        else:
            drift = HollowNet(**new)
        if "drift_prior" in self.given:
            drift = PriorDrift(drift, self.given["drift_prior"])
        level = self._typical_width()
        if c.diffusion == "constant":
            return drift, ConstantDiffusion(level)
        if c.diffusion == "state":
            return drift, StateDiffusion(HollowNet(**new), level)
        if "diffusion" in self.given:
            return drift, FunctionDiffusion(self.given["diffusion"])
        known = torch.as_tensor(c.diffusion, dtype=torch.float64) * math.sqrt(self.coordinates.span)
        return drift, KnownDiffusion((known / self.coordinates.scale).float())

    def _typical_width(self) -> Tensor:
        """Noise that would spread points over one snapshot's width in the time of the data: where the search starts."""
        weights = self.data.group_weights()
        widths = np.sqrt(np.mean([mean_and_variance(x, None if weights is None else weights[j])[1]
                                  for j, x in enumerate(self._scaled(self.data))], axis=0))
        return torch.as_tensor(widths, dtype=torch.float32)

    def train_path(self, share: float) -> None:
        """Trains the density alone: by likelihood and, for a drift free in time, by what chooses the path in between."""
        chosen = (self.config.path_energy, self.config.path_pooling) if self.config.drift == "time" else ()
        loss = PathLoss(self.density, self.t, *chosen)

        def draw(step: int) -> tuple[Any, ...]:
            noise = torch.randn(PATH_TIMES, 1, self.density.noise_size, generator=self.generator, device=self.device)
            noise = noise.to(self.density.means)
            return *self.kept.draw(self.t, self.config.points), self._times(PATH_TIMES), torch.cat([noise, -noise], 1)

        self._train(loss, round(share * self.config.steps), [{"params": list(self.density.parameters())}], draw,
                    lambda loss: -self._likelihood(loss.density))

    def start_path(self) -> None:
        """Puts the density that is trained aside and starts another."""
        self.paths.append(self.density)
        self.density = self.model.density = self._initial_path()

    def average_paths(self) -> None:
        """Takes the mean of all densities that were trained."""
        self.density = self.model.density = averaged([*self.paths, self.density])
        self.paths = []

    def solve_nets(self, rounds: int) -> None:
        """Solves for drift and diffusion in the moment equations of the snapshots, and holds them."""
        self._tell("solving for drift and noise")
        snapshots = [self.kept.group(j) for j in range(len(self.t))]
        equations = MomentEquations(self.model, self.t, snapshots, self.generator, self.kept.weights, self.sizes)
        explained = solve_moments(equations, rounds, self.course.offer, self.course.loop)
        self.summary["moment_misfit"] = explained.misfit
        self.summary["path_error"] = float(explained.variances[0].sqrt())
        for net in self.model.nets():
            net.requires_grad_(False)

    def refine_path(self, share: float) -> None:
        """Trains the density for a share of the steps left, with drift and diffusion as they are."""
        self._train_jointly(round(share * (self.config.steps - self.done)), [])

    def train_jointly(self) -> None:
        """Trains density and nets together by gradient descent alone."""
        inner, readouts = self._net_parameters()
        self._train_jointly(self.config.steps - self.done, [
            {"params": inner, "lr": 0.1 * self.config.learning_rate}, {"params": readouts}])

    def _train_jointly(self, steps: int, nets: list[dict[str, Any]]) -> None:
        first, last = self.config.residual_weights
        entered = round(PATH_SHARE * self.config.steps)
        before = self.done - entered

        def draw(step: int) -> tuple[Any, ...]:
            share = 2 * (before + step) / max(self.config.steps - entered, 1)
            weights = LossWeights(residual=first * (last / first) ** min(share, 1.0))
            return *self.kept.draw(self.t, self.config.points), *self._collocation(), weights

        check = self._collocation(2 * self.config.collocation[0])

        def score(model: FokkerPlanckLoss) -> float:
            x = model.density.sample(check[0], check[1].shape[1], self.generator)
            return last * _mean_squared_residual(model, check[0], x) - self._likelihood(model.density)

        self._train(self.model, steps, [{"params": list(self.density.parameters())}, *nets], draw, score)

    def train_nets(self) -> None:
        """Trains the nets to follow a fixed path: by its velocity, its residual and least kinetic energy of the drift."""
        steps = self.config.steps - self.done
        inner, readouts = self._net_parameters()
        groups = [{"params": inner + ([] if self.solves else readouts), "lr": 0.25 * self.config.learning_rate}]
        weights = LossWeights(self.config.net_residual, 1.0, self.config.drift_energy)
        solver = ReadoutSolver(self.model, self.config.ridge) if self.solves else None

        def draw(step: int) -> tuple[Any, ...]:
            return *self.kept.draw(self.t, len(self.t)), *self._collocation(), weights

        def before(step: int, batch: tuple[Any, ...]) -> None:
            if solver is not None and step % solver.interval == 0:
                solver.step(batch[2], batch[3], weights)

        check = self._collocation(2 * self.config.collocation[0])

        def score(model: FokkerPlanckLoss) -> float:
            with torch.no_grad():
                return float(model(self.t[:1], check[1][:1], *check, weights).loss
                             + model.density.log_prob(self.t[:1], check[1][:1]).mean())

        for parameter in self.density.parameters():
            parameter.requires_grad_(False)
        self._train(self.model, steps, groups, draw, score, before, solver)

    def polish(self) -> None:
        """Solves for the readouts under the final density, on many points."""
        if not self.solves:
            return
        weights = LossWeights(self.config.net_residual, 1.0, self.config.drift_energy)
        solver = ReadoutSolver(self.model, self.config.ridge, memory=0.9)
        for _ in range(max(20, 4 * len(solver.systems))):
            solver.step(*self._collocation(64, 32), weights)

    @torch.no_grad()
    def result(self) -> Identification:
        """Wraps the fitted parts in data units."""
        sde = FittedSDE(self.model.drift, self.model.diffusion, self.coordinates, self.model.growth).to(self.device)
        t, x = self._collocation(32, 128)
        sde.choose_time_step(t, x)
        self.summary["residual"] = _mean_squared_residual(self.model, t, x)
        self.summary["held_out_likelihood"] = self._likelihood(self.density) + self.log_volume
        self.model.eval()
        return Identification(self.model, self.density, sde, self.history, self.summary)

    def _tell(self, stage: str) -> None:
        if self.report is not None:
            self.report(Report(self.done, self.config.steps, 0.0, 0, {}, stage))

    def _net_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        nets = self.model.nets()
        readouts = [p for net in nets for p in net.readout_parameters()]
        known = {id(p) for p in readouts}
        return [p for net in nets for p in net.parameters() if id(p) not in known], readouts

    def _collocation(self, n_times: int | None = None, n_points: int | None = None) -> tuple[Tensor, Tensor]:
        """Stratified random times and points drawn from the density at each."""
        t = self._times(n_times or self.config.collocation[0])
        return t, self.density.sample(t, n_points or self.config.collocation[1], self.generator)

    def _times(self, n: int) -> Tensor:
        shift = torch.rand(n, generator=self.generator, device=self.device)
        return (torch.arange(n, device=self.device) + shift) / n

    @torch.no_grad()
    def _likelihood(self, density: AbstractDensity) -> float:
        return float(torch.stack([self.held.mean(j, density.log_prob(self.t[j:j + 1], self.held.group(j)[None])[0])
                                  for j in range(len(self.t))]).mean())

    def _train(self, module: nn.Module, steps: int, groups: list[dict[str, Any]], draw: Callable[[int], tuple[Any, ...]],
               score: Callable[[Any], float], before: Callable[[int, tuple[Any, ...]], None] | None = None,
               solver: ReadoutSolver | None = None) -> None:
        if steps < 1:
            return
        first, every = self.done, max(1, self.config.steps // 100)
        learned = {id(p) for group in groups for p in group["params"]}

        def report(state: Report, terms: LossTerms) -> None:
            values: dict[str, float] = {}
            if state.step % every == 0 or state.step == steps:
                values = self._curves(terms, learned)
                self.history.append({"step": float(first + state.step), **values})
            if self.report is not None:
                self.report(state._replace(step=first + state.step, steps=self.config.steps, values=values))

        def offer(loop: Callable[[], State]) -> None:
            self.course.offer(lambda: {
                "training": loop(), "generator": self.generator.get_state(), "history": list(self.history),
                "solver": None if solver is None else solver.state()})

        saved = self.course.loop
        if saved is not None:
            self.generator.set_state(saved["generator"])
            self.history = saved["history"]
            if solver is not None:
                solver.restore(saved["solver"])
            saved = saved["training"]
        config = TrainConfig(steps=steps, learning_rate=self.config.learning_rate, check_every=max(1, min(100, steps // 8)))
        result = train(module, groups, draw, score, config, before=before, report=report, offer=offer, saved=saved)
        module.load_state_dict(result.state)
        self.done += steps
        self.summary["skipped_steps"] += result.skipped

    @torch.no_grad()
    def _curves(self, terms: LossTerms, learned: set[int]) -> dict[str, float]:
        """The values that the present phase changes: likelihood of the path, residual of path and nets, level of noise."""
        values = {}
        if any(id(p) in learned for p in self.density.parameters()):
            values["likelihood"] = float(terms.likelihood) + self.log_volume
        if float(terms.residual):
            centre = torch.zeros(1, self.data.dim).to(self.t)
            values["residual"] = float(terms.residual)
            values["noise"] = float(self.model.diffusion(self.t[:1], centre).mean())
        return values


@torch.no_grad()
def _mean_squared_residual(model: FokkerPlanckLoss, t: Tensor, x: Tensor) -> float:
    terms = model.density.terms(t, x)
    f, f_slope = model.drift.derivatives(t[:, None], x, order=1)
    r = model.less_growth(residual(terms, (f, f_slope), model.diffusion.variance(t[:, None], x)), x)
    return float((influence(terms.log_prob, r) * r.square()).mean())
