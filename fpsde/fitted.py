"""What a fitted model answers: drift, noise, density, trajectories."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fpsde.arguments import Setting, check_positive, checked, times_of, to_numpy
from fpsde.density import GaussianMixturePath
from fpsde.ensemble import MeanDensity, Member, mean_density, mean_equation
from fpsde.forecast import Forecast, Statistic, check_band, prediction_band, values_at
from fpsde.growth import multiplied
from fpsde.memory import kept_memory
from fpsde.paths_file import PathsFile
from fpsde.progress import Progress
from fpsde.sde import FittedSDE
from fpsde.snapshots import check_finite, check_weights, floats

__all__ = ["FittedModel"]

Array = NDArray[np.float64]

CHUNK = 8192
GROWTH_STEPS = 20
MIN_PATHS = 4000
MAX_STEPS = 10**8

FORECAST = "this is a forecast, which holds only as far as the dynamics stay the same and the paths stay where data were"
HELD = "drift and diffusion are held at their value at the nearest time of the data"
DENSITY_HELD = "the density is held at that of the nearest time of the data"


class FittedModel(DensityMixin, BaseEstimator):
    """The methods of a model that do not depend on how it was fitted; data come first (X, t), in data units."""

    sde_: FittedSDE
    density_: GaussianMixturePath | MeanDensity
    members_: tuple[Member, ...]
    times_: Array
    counts_: NDArray[np.int_]
    names_: tuple[str, ...]
    verbose: int

    @Setting
    def drift(self, X: ArrayLike, t: ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Evaluates the drift f at points X, shape (n, d), and times t, shape () or (n,).

        Returns:
            f, shape (n, d), in data units per time unit; with `return_std` also its standard deviation
            over the members, shape (n, d).

        Raises:
            ValueError: if the standard deviation of a single member is asked for.
        """
        return self._with_deviation(lambda sde: sde.f, X, t, return_std)

    @Setting
    def diffusion(self, X: ArrayLike, t: ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Evaluates the diffusion g at points X, shape (n, d), and times t, shape () or (n,).

        Returns:
            g, shape (n, d), in data units per square root of the time unit; with `return_std` also its standard deviation
            over the members, shape (n, d).

        Raises:
            ValueError: if the standard deviation of a single member is asked for.
        """
        return self._with_deviation(lambda sde: sde.g, X, t, return_std)

    def potential(self, X: ArrayLike) -> Array:
        """Evaluates the potential V of a drift learned as f = -grad V, known terms left out.

        Arguments:
            X: points, shape (n, d).

        Returns:
            V, shape (n,), up to a constant, in data units squared per time unit.

        Raises:
            ValueError: unless the model was fitted with drift="gradient".
        """
        check_is_fitted(self, "sde_")
        values = [self._evaluate(lambda _, y, sde=member.sde: sde.potential(y), X, 0.0) for member in self.members_]
        return values[0] if len(values) == 1 else np.mean(values, axis=0)

    @Setting
    def growth(self, X: ArrayLike) -> Array:
        """Evaluates the rate of growth at points X, shape (n, d).

        Returns:
            The rate, shape (n,), per time unit; with growth="learned" only its differences mean something.

        Raises:
            ValueError: if no growth was learned.
        """
        check_is_fitted(self, "sde_")
        return self._evaluate(self.sde_.rate, X, 0.0)

    def score_samples(self, X: ArrayLike, t: ArrayLike | None = None) -> Array:
        """Evaluates log p(x | t) in data units.

        Arguments:
            X: points, shape (n, d).
            t: times, shape () or (n,); left out, the density is that of all snapshots pooled. Outside the data's times
                it is held at that of the nearest one, with a warning.

        Returns:
            The log-density, shape (n,).
        """
        check_is_fitted(self, "sde_")
        x = self._points(X)
        if t is None:
            shares = np.log(self.counts_ / self.counts_.sum())
            return logsumexp([self.score_samples(X, s) + w for s, w in zip(self.times_, shares, strict=True)], axis=0)
        t, result = times_of(t, len(x)), np.empty(len(x))
        self._warn_outside("density", t, DENSITY_HELD)
        with torch.no_grad():
            # One time at a time in float64: the answer for a point does not depend on the points beside it.
            for time in np.unique(t):
                rows = np.flatnonzero(t == time)
                for part in np.array_split(rows, -(-len(rows) // CHUNK)):
                    points = torch.as_tensor(x[part], device=self._device)
                    z = self._coordinates.inside(points)
                    known = torch.isfinite(z).all(-1)
                    log_p = self.density_.log_prob(self._dimensionless(time), torch.where(known[:, None], z, 0.0)[None])[0]
                    log_p = log_p + self._coordinates.log_volume(points)
                    # A coordinate that is positive has no density at or below zero, and where squares overflow is none.
                    result[part] = torch.where(known & ~log_p.isnan(), log_p, -torch.inf).cpu().numpy()
        return result

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Returns the mean log-likelihood of points X at times y, over all points by their weights."""
        values = self.score_samples(X, y)
        weights = None if sample_weight is None else check_weights(to_numpy(sample_weight), len(values))
        return float(values.mean() if weights is None else np.average(values, weights=weights))

    def sample(self, n: int, t: float, random_state: Any = None) -> Array:
        """Draws n points from the density at time t, shape (n, d), in data units.

        Outside the data's times the density is held at that of the nearest one, with a warning.

        Raises:
            ValueError: if n is not at least 1 or t not a finite number.
        """
        check_is_fitted(self, "sde_")
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
        time = times_of(t, 1)
        self._warn_outside("density", time, DENSITY_HELD)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator(device=self._device).manual_seed(seed)
        z = self.density_.sample(self._dimensionless(float(time[0])), int(n), generator)[0]
        return self._coordinates.outside(z).cpu().numpy()

    def simulate(self, X0: ArrayLike, times: ArrayLike, *, time_step: float | None = None,
                 method: str = "euler", random_state: Any = None, verbose: int | None = None,
                 out: str | Path | None = None) -> Array:
        """Simulates trajectories with torchsde.

        Arguments:
            X0: start points at times[0], shape (n, d).
            times: increasing times, shape (k,).
            time_step: largest step in time units; left out, one that leads clouds astray by some hundredths of a width.
            method: "euler" or "milstein" in fixed steps, "srk" in adaptive ones.
            random_state: seed of the noise.
            verbose: 1 for progress; as in the constructor if left out.
            out: an npy file to write the trajectories to as they are made, whatever their number; there is no file if an
                error ends the work.

        Returns:
            The trajectories, shape (k, n, d), in data units; with `out` those of the file, which stay on disk.

        Raises:
            ValueError: if times do not increase, X0 has the wrong number of coordinates, or the file cannot be written.
            SimulationError: if paths become infinite.
        """
        check_is_fitted(self, "sde_")
        stops = _increasing(times)
        if time_step is not None and not (isinstance(time_step, (int, float, np.number)) and 0 < time_step < math.inf):
            raise ValueError(f"time_step must be positive, got {time_step!r}")
        self._warn_outside("simulating", stops, self._beyond())
        silent = (self.verbose if verbose is None else verbose) < 1
        rng = check_random_state(random_state)
        return self._paths(self.sde_, self._inside(X0), stops, rng, silent, time_step, method, out)

    def push(self, X0: ArrayLike, start: float, end: float, *, random_state: Any = None) -> Array:
        """Moves a population from one time to another.

        Arguments:
            X0: points at the start, shape (n, d).
            start: their time.
            end: a later time.
            random_state: seed of the noise.

        Returns:
            Points at the end, shape (n, d): the ends of simulated paths or, where growth was learned, as many draws from
            them in proportion to their progeny, the copies of one path side by side.
        """
        check_is_fitted(self, "sde_")
        times = _increasing([start, end])
        self._warn_outside("simulating", times, self._beyond())
        rng = check_random_state(random_state)
        return self._populations(self.sde_, self._inside(X0), times, rng, self.verbose < 1)[-1]

    def forecast(self, X0: ArrayLike, times: ArrayLike, level: float = 0.9, random_state: Any = None,
                 statistic: Statistic | None = None) -> Forecast:
        r"""Tells a statistic of the population at later times, with a band that holds the truth with a chance of `level`.

        Every member moves a bootstrap resample of X0 with noise of its own, each point by as many paths as it takes to have
        4000: the statistic is that of the population, and a sample of it would scatter more. The truth is taken to err from
        the members' mean as a member does: the band is the prediction interval of Student's t, mean
        :math:`\pm\ t_{m-1,(1+q)/2}\, s \sqrt{1 + 1/m}` with s the standard deviation over m members; few members give a
        wide one. It covers the sampling error of the snapshots and of X0 and the chance of the fits, for each number at
        each time by itself.

        It does not cover a bias that all members share (nets too smooth, too few steps, noise and drift that the
        snapshots cannot tell apart), nor an equation that is wrong as such: an autonomous drift held where the dynamics
        change with time, coordinates that do not determine their own future.

        Arguments:
            X0: points at times[0], a sample of the population, shape (n, d).
            times: increasing times, shape (k,).
            level: chance, between 0 and 1, that the band of one number at one time holds the truth.
            random_state: seed of resamples and noise.
            statistic: takes points of shape (n, d) and returns an array, as large at every time; the mean of each
                coordinate if left out.

        Returns:
            Mean over the members and ends of the band, each of shape (k, ...).

        Raises:
            ValueError: if there are fewer than three members, or an argument cannot be used.
            SimulationError: if paths become infinite.
        """
        check_is_fitted(self, "sde_")
        check_band(len(self.members_), level)
        stops, x0 = _increasing(times), self._inside(X0)
        self._warn_outside("simulating", stops, self._beyond())
        copies, values = math.ceil(MIN_PATHS / len(x0)), []
        seeds = check_random_state(random_state).randint(2**31 - 1, size=len(self.members_))
        with Progress("forecasting", len(self.members_), silent=self.verbose < 1) as progress:
            for k, member in enumerate(self.members_):
                rng = np.random.RandomState(seeds[k])
                # Few points are an error of the start that the resample holds; few paths would add one of our making.
                start = x0[rng.randint(len(x0), size=len(x0))].repeat(copies, 0)
                values.append(values_at(self._populations(member.sde, start, stops, rng, silent=True), statistic))
                progress.update(k + 1)
        return prediction_band(stops, np.stack(values), level)

    def _paths(self, sde: FittedSDE, x0: Array, times: Array, rng: np.random.RandomState, silent: bool,
               time_step: float | None = None, method: str = "euler", out: str | Path | None = None) -> Array:
        """Simulated paths, shape (k, n, d)."""
        start, seed = torch.tensor(x0, device=self._device), int(rng.randint(2**31 - 1))
        step = time_step or float(sde.time_step)
        steps = math.ceil(min((times[-1] - times[0]) / step, 2 * MAX_STEPS))
        if steps > MAX_STEPS:
            raise ValueError(f"from time {times[0]:g} to {times[-1]:g} in steps of {step:g} are more than {MAX_STEPS:g} "
                             "steps; simulate a shorter time or in larger steps")
        with Progress("simulating", steps, silent=silent) as progress, kept_memory():
            job = (start, torch.as_tensor(times), step, seed, method, lambda share: progress.update(round(share * steps)))
            if out is None:
                return sde.paths(*job).cpu().numpy()
            with PathsFile.at(out, (len(times), *x0.shape)) as file:
                for here, part in sde.paths_in_chunks(*job):
                    file.write(here, part.cpu().numpy())
        return np.load(out, mmap_mode="r")

    def _populations(self, sde: FittedSDE, x0: Array, times: Array, rng: np.random.RandomState,
                     silent: bool) -> list[Array]:
        """The population at every time, each of shape (n, d): paths, multiplied where growth was learned."""
        if sde.growth is None:
            return list(self._paths(sde, x0, times, rng, silent))
        # The rate is summed up along each path.
        counts = [math.ceil(GROWTH_STEPS * step / (times[-1] - times[0]) - 1e-9) for step in np.diff(times)]
        parts = [np.linspace(a, b, n + 1)[1:] for a, b, n in zip(times[:-1], times[1:], counts, strict=True)]
        fine = np.concatenate([times[:1], *parts])
        paths = self._paths(sde, x0, fine, rng, silent)
        rates = np.stack([self._evaluate(sde.rate, x, 0.0) for x in paths])
        sizes = cumulative_trapezoid(rates, fine, axis=0, initial=0)
        return [paths[0], *(multiplied(paths[k], sizes[k], rng) for k in np.cumsum(counts))]

    def _set_parts(self, members: Sequence[Member]) -> None:
        self.members_ = tuple(Member(sde.requires_grad_(False), density.double().requires_grad_(False))
                              for sde, density in members)
        self.sde_ = mean_equation([member.sde for member in self.members_]).requires_grad_(False)
        self.density_ = mean_density([member.density for member in self.members_])
        self._coordinates = self.sde_.coordinates
        self._device = self._coordinates.centre.device

    def _with_deviation(self, function: Callable[[FittedSDE], Any], x: ArrayLike, t: ArrayLike,
                        return_std: bool) -> Array | tuple[Array, Array]:
        """What a function takes from the equation, shape (n, d), and, if asked for, its deviation over the members."""
        check_is_fitted(self, "sde_")
        value = self._evaluate(function(self.sde_), x, t)
        if not return_std:
            return value
        if len(self.members_) == 1:
            raise ValueError("one member has no standard deviation: fit with n_members=2 or more")
        values = [self._evaluate(function(member.sde), x, t) for member in self.members_]
        return value, np.std(values, axis=0, ddof=1)

    def _points(self, x: ArrayLike) -> Array:
        points = checked(self, x, reset=False)
        check_finite(points, np.zeros(len(points)), self.names_)
        return points

    def _inside(self, x: ArrayLike) -> Array:
        """The points, if they lie where the equation holds."""
        points = self._points(x)
        check_positive(points, self._coordinates.positive.cpu().numpy(), self.names_)
        return points

    def _dimensionless(self, time: float) -> torch.Tensor:
        return self._coordinates.time(torch.tensor([time], dtype=torch.float64, device=self._device))

    @torch.no_grad()
    def _evaluate(self, function: Any, x: ArrayLike, t: ArrayLike) -> Array:
        points = torch.tensor(self._inside(x), device=self._device)
        times = torch.tensor(times_of(t, len(points)), device=self._device)
        parts = [function(a, b) for a, b in zip(times.split(CHUNK), points.split(CHUNK), strict=True)]
        return torch.cat(parts).cpu().numpy()

    def _warn_outside(self, what: str, times: Array, then: str) -> None:
        first, last = self.sde_.time_range
        slack, start, end = 1e-9 * (last - first), times.min(), times.max()
        if start < first - slack or end > last + slack:
            when = f"at {start:g}" if start == end else f"from {start:g} to {end:g}"
            warnings.warn(f"{what} {when}, outside the data's times {first:g} to {last:g}: {then}", UserWarning,
                          stacklevel=3)

    def _beyond(self) -> str:
        return FORECAST if self.sde_.autonomous else HELD


def _increasing(times: ArrayLike) -> Array:
    """Returns times, shape (k,), if they increase."""
    stops = floats(to_numpy(times), "times").copy()
    if stops.ndim != 1 or not len(stops) or not np.isfinite(stops).all() or not (np.diff(stops) > 0).all():
        raise ValueError(f"times must be increasing numbers, shape (k,), got {stops!r}")
    return stops
