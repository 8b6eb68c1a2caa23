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

from fpsde import ranks
from fpsde.batches import SnapshotBatches
from fpsde.checkpoints import Course
from fpsde.compiled import AUTONOMOUS_PATH, NETS, PATH, Gain, pays
from fpsde.config import IdentificationConfig
from fpsde.coordinates import Coordinates
from fpsde.density import AbstractDensity, GaussianMixturePath
from fpsde.fokker_planck import MOST_NATS, FokkerPlanckLoss, LossTerms, LossWeights
from fpsde.given import GivenField, check_at, given_fields
from fpsde.growth import Growth
from fpsde.memory import kept_memory
from fpsde.mixture import averaged, initial_path
from fpsde.moments import MomentEquations
from fpsde.networks import networks
from fpsde.path import PathLoss
from fpsde.projection import ReadoutSolver
from fpsde.readouts import solve_moments
from fpsde.sde import FittedSDE
from fpsde.snapshots import Snapshots
from fpsde.train import Report, State, TrainConfig, copy_state, restoring, train

__all__ = ["Identification", "identify"]

PATH_SHARE = 0.4
PATH_TIMES = 8
# Points of a snapshot from which drift and noise come out well enough to have the whole weight of the residual.
TRUSTED_POINTS = 2000
# Between few snapshots the path is what the equation makes of it: up to so many turns of path and nets.
FEW_SNAPSHOTS, TURNS = 8, 4
# Of 16, 32 and 64 components, 16 had the best likelihood of held-out points; several such paths are then averaged.
PATH_COMPONENTS = 16


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
        # Several small paths one after the other, and the mean of their densities: each starts on a matching of its own, so
        # that where they differ by chance the mean commits to none. It fits new points better than one of as many parts.
        train_path: Callable[[], None] = partial(fit.train_path, (1 - config.net_share) / fit.n_paths)
        others = [fit.start_path, train_path] * (fit.n_paths - 1)
        phases = [train_path, *others, fit.average_paths, fit.train_nets, fit.polish]
    elif config.solve and MomentEquations.fits(fit.model, len(data.times)):
        turns = [turn for left in range(fit.turns, 0, -1)
                 for turn in (partial(fit.refine_path, 1 / (left + 1)), partial(fit.solve_nets, rounds=4))]
        phases = [partial(fit.train_path, PATH_SHARE), partial(fit.solve_nets, rounds=8), *turns, fit.refine_path]
    else:
        phases = [partial(fit.train_path, PATH_SHARE), fit.train_jointly]
    # From here on, for of points by the million, what was taken while they were sorted would be kept too.
    with kept_memory():
        fit.course.run(phases, fit.state, fit.restore)
        return fit.result()


class _Fit:
    """The state of a fit between its phases."""

    def __init__(self, data: Snapshots, config: IdentificationConfig, seed: int, device: torch.device,
                 report: Callable[[Report], None] | None, coordinates: Coordinates | None, course: Course) -> None:
        self.config, self.device, self.report, self.course = config, device, report, course
        self.rng = np.random.default_rng(seed)
        self.seed, self.generator = seed, torch.Generator(device=device).manual_seed(seed)
        ranks.part_ways(self.generator, seed)
        self.data = data
        times = data.times
        self.coordinates = deepcopy(coordinates) or Coordinates.of(data, config.positive or (False,) * data.dim)
        self.log_volume = self.coordinates.mean_log_volume(data)
        """What the mean log-likelihood gains in data units."""
        self.given = self._given()
        kept, held = data.split(config.held_out, self.rng)
        self.kept = self._batches(kept)
        self.held = self._batches(held) if held is not None else self.kept
        self.t = self.coordinates.time(torch.as_tensor(times)).float().to(device)
        self.n_paths = math.ceil(config.n_components / PATH_COMPONENTS) if config.drift == "time" else 1
        self.density = self._initial_path()
        self.paths: list[GaussianMixturePath] = []
        """Those that are finished, of several whose mean is taken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drift, diffusion = networks(config, self.coordinates, data, self.given)
            growth = Growth(data.dim) if config.growth is not None else None
        # From few points drift and noise are rough, and the path must not be drawn after them, nor again and again.
        self.trust = min(1.0, float(np.mean(data.counts)) / TRUSTED_POINTS)
        self.turns = max(1, round(TURNS * self.trust)) if len(times) < FEW_SNAPSHOTS else 1
        # The fewer points, the less each of them tells of the path against the equation.
        self.model = FokkerPlanckLoss(self.density, drift, diffusion, config.drift != "time", growth,
                                      MOST_NATS / self.trust).to(device)
        ranks.alike(self.model)
        self.solves = config.solve and ReadoutSolver.fits(self.model)
        # Counts of all points, those held out too: what was measured is what grew.
        counts = torch.tensor(data.counts, dtype=torch.float64, device=device)
        self.sizes = counts if config.growth == "counts" else None
        self.points = math.ceil(config.points / ranks.count())
        self.history: list[dict[str, float]] = []
        self.summary: dict[str, float] = {"skipped_steps": 0.0}
        self.done, self.compiles = 0, True

    def state(self) -> State:
        """Returns all that changes from phase to phase."""
        return {"rng": self.rng.bit_generator.state, "generator": self.generator.get_state(),
                "model": copy_state(self.model), "paths": [copy_state(path) for path in self.paths],
                "learning": [name for name, p in self.model.named_parameters() if p.requires_grad],
                "history": list(self.history), "summary": dict(self.summary), "done": self.done, "compiles": self.compiles}

    def restore(self, state: State) -> None:
        """Goes on from a state of a fit to the same data."""
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        ranks.part_ways(self.generator, self.seed, state["done"])
        # Paths differ in their number of components.
        shape = {name.removeprefix("density."): v for name, v in state["model"].items() if name.startswith("density.")}
        self.density = self.model.density = self._path_of(shape)
        self.model.load_state_dict(state["model"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in state["learning"])
        self.paths = [self._path_of(part) for part in state["paths"]]
        self.history, self.summary, self.done = list(state["history"]), dict(state["summary"]), int(state["done"])
        self.compiles = bool(state["compiles"])
        if not 0 <= self.done <= self.config.steps or not math.isfinite(self.summary["skipped_steps"]):
            raise ValueError(f"{self.done} of {self.config.steps} steps")
        # What is of other sizes than the data shows when it meets them.
        self._likelihood(self.density)
        self._tell("taken up again")

    def _path_of(self, state: State) -> GaussianMixturePath:
        path = GaussianMixturePath.shaped(state, constant_weights=self.config.drift == "time")
        path.to(self.device, state["means"].dtype).load_state_dict(state)
        return path

    def _batches(self, data: Snapshots) -> SnapshotBatches:
        """The points of which this process draws."""
        own = data.share(ranks.rank(), ranks.count())
        return SnapshotBatches(self.coordinates.groups(own), self.generator, self.device, own.group_weights(),
                               data.counts.tolist())

    def _initial_path(self) -> GaussianMixturePath:
        points, weights = self.kept.some()
        times = self.coordinates.time(torch.as_tensor(self.data.times)).numpy()
        # The clusters are those of one process; all go on from them.
        return ranks.told_by_first(lambda: initial_path(
            [x.double().cpu().numpy() for x in points], times, self.config.n_components // self.n_paths, self.rng,
            constant_weights=self.config.drift == "time",
            weights=None if weights is None else [w.cpu().numpy() for w in weights]).float()).to(self.device)

    def _given(self) -> dict[str, GivenField]:
        """What is given as functions, found to be usable."""
        given = {"drift_prior": self.config.drift_prior, "diffusion": self.config.diffusion}
        for name in [name for name, function in given.items() if callable(function)]:
            check_at(name, given[name], self.data, self.device)
        return given_fields(given, deepcopy(self.coordinates).to(self.device))

    def train_path(self, share: float) -> None:
        """Trains the density alone: by likelihood and, for a drift free in time, by what chooses the path in between."""
        chosen = (self.config.path_energy, self.config.path_pooling) if self.config.drift == "time" else ()
        loss = PathLoss(self.density, self.t, *chosen)

        def draw(step: int) -> tuple[Any, ...]:
            n = math.ceil(PATH_TIMES / ranks.count())
            noise = torch.randn(n, 1, self.density.noise_size, generator=self.generator, device=self.device)
            noise = torch.cat([noise, -noise], 1).to(self.density.means)
            return *self.kept.draw(self.t, self.points), self._times(PATH_TIMES), noise

        steps = round(share * self.config.steps)
        # Compiled once for all paths, which are of one shape.
        fast = self._compiles(self.n_paths * steps, self.config.points * self.config.n_components // self.n_paths,
                              PATH if chosen else AUTONOMOUS_PATH)
        self._train(loss, steps, [{"params": list(self.density.parameters())}], draw,
                    lambda loss: -self._likelihood(loss.density), compile=fast)

    def _compiles(self, steps: int, size: int, gain: Gain) -> bool:
        wanted = pays(steps, size, gain, self.device) if self.config.compile is None else self.config.compile
        return wanted and self.compiles

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
        points, weights = self.kept.some()

        def solve() -> tuple[list[Tensor], dict[str, float]]:
            equations = MomentEquations(self.model, self.t, points, self.generator, weights, self.sizes)
            explained = solve_moments(equations, rounds, self.course.offer, self.course.loop)
            found = {"moment_misfit": explained.misfit, "path_error": float(explained.variances[0].sqrt())}
            return [net.get_readout().cpu() for net in self.model.nets()], found

        readouts, found = ranks.told_by_first(solve)
        self.summary |= found
        for net, readout in zip(self.model.nets(), readouts, strict=True):
            net.set_readout(readout.to(self.device))
            net.requires_grad_(False)

    def refine_path(self, share: float = 1.0) -> None:
        """Trains the density for a share of the steps left, with drift and diffusion as they are."""
        self._train_jointly(round(share * (self.config.steps - self.done)), [])

    def train_jointly(self) -> None:
        """Trains density and nets together by gradient descent alone."""
        inner, readouts = self.model.net_parameters()
        self._train_jointly(self.config.steps - self.done, [
            {"params": inner, "lr": 0.1 * self.config.learning_rate}, {"params": readouts}])

    def _train_jointly(self, steps: int, nets: list[dict[str, Any]]) -> None:
        first, last = (weight * self.trust for weight in self.config.residual_weights)
        done, entered = self.done, round(PATH_SHARE * self.config.steps)

        def draw(step: int) -> tuple[Any, ...]:
            share = 2 * (done - entered + step) / max(self.config.steps - entered, 1)
            weight = first * (last / first) ** min(share, 1.0)
            return *self.kept.draw(self.t, self.points), *self._collocation(), LossWeights(residual=weight)

        check = self._collocation(2 * self.config.collocation[0])

        def score(model: FokkerPlanckLoss) -> float:
            x = model.density.sample(check[0], check[1].shape[1], self.generator)
            return model.cost(check[0], x, last) - self._likelihood(model.density)

        self._train(self.model, steps, [{"params": list(self.density.parameters())}, *nets], draw, score)

    def train_nets(self) -> None:
        """Trains the nets to follow a fixed path: by its velocity, its residual and least kinetic energy of the drift."""
        steps = self.config.steps - self.done
        inner, readouts = self.model.net_parameters()
        groups = [{"params": inner + ([] if self.solves else readouts), "lr": 0.25 * self.config.learning_rate}]
        weights = self.config.net_weights()
        solver = ReadoutSolver(self.model, self.config.ridge) if self.solves else None

        def draw(step: int) -> tuple[Any, ...]:
            return *self.kept.draw(self.t, len(self.t)), *self._with_density(self._collocation(), weights)

        def before(step: int, batch: tuple[Any, ...]) -> None:
            if solver is not None and step % solver.interval == 0:
                solver.step(*batch[2:])

        check = self._collocation(2 * self.config.collocation[0])
        checked = self._with_density(check, weights)

        def score(model: FokkerPlanckLoss) -> float:
            with torch.no_grad():
                return float(model(self.t[:1], check[1][:1], *checked).loss
                             + model.density.log_prob(self.t[:1], check[1][:1]).mean())

        for parameter in self.density.parameters():
            parameter.requires_grad_(False)
        # Functions of others are not looked into.
        fast = not self.given and self._compiles(steps, math.prod(self.config.collocation) * self.data.dim, NETS)
        self._train(self.model, steps, groups, draw, score, before, solver, fast)

    def polish(self) -> None:
        """Solves for the readouts under the final density, on many points."""
        if not self.solves:
            return
        weights = self.config.net_weights()
        solver = ReadoutSolver(self.model, self.config.ridge, memory=0.9)
        for _ in range(max(4, math.ceil(20 / len(solver.systems)))):
            solver.sweep(*self._collocation(64, 32), weights)

    @torch.no_grad()
    def result(self) -> Identification:
        """Wraps the fitted parts in data units."""
        sde = FittedSDE(self.model.drift, self.model.diffusion, self.coordinates, self.model.growth).to(self.device)
        t, x = self._collocation(32, 128)
        sde.choose_time_step(t, x)
        self.summary["residual"] = ranks.mean_value(self.model.mean_squared_residual(t, x))
        self.summary["held_out_likelihood"] = ranks.mean_value(self._likelihood(self.density)) + self.log_volume
        self.history, self.summary = ranks.told_by_first(lambda: (self.history, self.summary))
        ranks.alike(sde)
        self.model.eval()
        return Identification(self.model, self.density, sde, self.history, self.summary)

    def _tell(self, stage: str) -> None:
        if self.report is not None:
            self.report(Report(self.done, self.config.steps, 0.0, 0, {}, stage))

    def _collocation(self, n_times: int | None = None, n_points: int | None = None) -> tuple[Tensor, Tensor]:
        """Stratified random times, so many in all processes together, and points drawn from the density at each."""
        t = self._times(n_times or self.config.collocation[0])
        return t, self.density.sample(t, n_points or self.config.collocation[1], self.generator)

    @torch.no_grad()
    def _with_density(self, inside: tuple[Tensor, Tensor], weights: LossWeights) -> tuple[Any, ...]:
        """Collocation points for nets that follow a held path, with the density's terms there, which all share."""
        return *inside, weights, self.density.terms(*inside)

    def _times(self, n: int) -> Tensor:
        n = math.ceil(n / ranks.count())
        shift = torch.rand(n, generator=self.generator, device=self.device)
        return (torch.arange(n, device=self.device) + shift) / n

    @torch.no_grad()
    def _likelihood(self, density: AbstractDensity) -> float:
        return float(torch.stack([self.held.mean(j, density.log_prob(self.t[j:j + 1], self.held.group(j)[None])[0])
                                  for j in range(len(self.t))]).mean())

    def _train(self, module: nn.Module, steps: int, groups: list[dict[str, Any]], draw: Callable[[int], tuple[Any, ...]],
               score: Callable[[Any], float], before: Callable[[int, tuple[Any, ...]], None] | None = None,
               solver: ReadoutSolver | None = None, compile: bool = False) -> None:
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
            with restoring():
                self.generator.set_state(saved["generator"])
                ranks.part_ways(self.generator, self.seed, first, saved["training"]["step"])
                self.history = list(saved["history"])
                if solver is not None:
                    solver.restore(saved["solver"])
                saved = saved["training"]
        config = TrainConfig(steps=steps, learning_rate=self.config.learning_rate, check_every=max(1, min(100, steps // 8)))
        result = train(module, groups, draw, score, config, before=before, report=report, offer=offer, saved=saved,
                       compile=compile)
        module.load_state_dict(result.state)
        self.done += steps
        self.summary["skipped_steps"] += result.skipped
        self.compiles &= result.compiles

    @torch.no_grad()
    def _curves(self, terms: LossTerms, learned: set[int]) -> dict[str, float]:
        """The values that the present phase changes: likelihood of the path, residual of path and nets, level of noise."""
        values = {}
        if any(id(p) in learned for p in self.density.parameters()):
            values["likelihood"] = float(terms.likelihood) + self.log_volume
        if float(terms.residual):
            centre = self.t.new_zeros(1, self.data.dim)
            values["residual"] = float(terms.residual)
            values["noise"] = float(self.model.diffusion(self.t[:1], centre).mean())
        return values

