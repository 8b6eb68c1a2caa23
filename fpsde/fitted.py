"""What a fitted model answers: drift, noise, density, trajectories."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fpsde.arguments import Setting, check_positive, times_of, to_numpy
from fpsde.density import GaussianMixturePath
from fpsde.growth import multiplied
from fpsde.progress import Progress
from fpsde.sde import FittedSDE
from fpsde.snapshots import check_weights

__all__ = ["FittedModel"]

Array = NDArray[np.float64]

CHUNK = 8192
GROWTH_STEPS = 20

FORECAST = "this is a forecast, which holds only as far as the dynamics stay the same and the paths stay where data were"
HELD = "drift and diffusion are held at their value at the nearest time of the data"
DENSITY_HELD = "the density is held at that of the nearest time of the data"


class FittedModel(DensityMixin, BaseEstimator):
    """The methods of a model that do not depend on how it was fitted; data come first (X, t), in data units."""

    sde_: FittedSDE
    density_: GaussianMixturePath
    times_: Array
    counts_: NDArray[np.int_]
    names_: tuple[str, ...]
    verbose: int

    @Setting
    def drift(self, X: ArrayLike, t: ArrayLike) -> Array:
        """Evaluates the drift f at points X, shape (n, d), and times t, shape () or (n,).

        Returns:
            f, shape (n, d), in data units per time unit.
        """
        check_is_fitted(self, "sde_")
        return self._evaluate(self.sde_.f, X, t)

    @Setting
    def diffusion(self, X: ArrayLike, t: ArrayLike) -> Array:
        """Evaluates the diffusion g at points X, shape (n, d), and times t, shape () or (n,).

        Returns:
            g, shape (n, d), in data units per square root of the time unit.
        """
        check_is_fitted(self, "sde_")
        return self._evaluate(self.sde_.g, X, t)

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
        return self._evaluate(lambda _, y: self.sde_.potential(y), X, 0.0)

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
                    # A coordinate that is positive has no density at or below zero.
                    result[part] = torch.where(known, log_p, -torch.inf).cpu().numpy()
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
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n!r}")
        time = times_of(t, 1)
        self._warn_outside("density", time, DENSITY_HELD)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator(device=self._device).manual_seed(seed)
        z = self.density_.sample(self._dimensionless(float(time[0])), int(n), generator)[0]
        return self._coordinates.outside(z).cpu().numpy()

    def simulate(self, X0: ArrayLike, times: ArrayLike, *, time_step: float | None = None,
                 method: str = "euler", random_state: Any = None, verbose: int | None = None) -> Array:
        """Simulates trajectories with torchsde.

        Arguments:
            X0: start points at times[0], shape (n, d).
            times: increasing times, shape (k,).
            time_step: largest step in time units, chosen from the model's own rates if left out.
            method: "euler" or "milstein" in fixed steps, "srk" in adaptive ones.
            random_state: seed of the noise.
            verbose: 1 for progress; as in the constructor if left out.

        Returns:
            The trajectories, shape (k, n, d), in data units.

        Raises:
            ValueError: if times do not increase or X0 has the wrong number of coordinates.
            SimulationError: if paths become infinite.
        """
        check_is_fitted(self, "sde_")
        times = np.array(to_numpy(times), dtype=np.float64)
        if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
            raise ValueError(f"times must be increasing numbers, shape (k,), got {times!r}")
        if time_step is not None and not (np.isfinite(time_step) and time_step > 0):
            raise ValueError(f"time_step must be positive, got {time_step!r}")
        self._warn_outside("simulating", times, FORECAST if self.sde_.autonomous else HELD)
        x0 = torch.tensor(self._inside(X0), device=self._device)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        silent = (self.verbose if verbose is None else verbose) < 1
        step = time_step or float(self.sde_.time_step)
        steps = math.ceil((times[-1] - times[0]) / step)
        with Progress("simulating", steps, silent=silent) as progress:
            paths = self.sde_.paths(x0, torch.as_tensor(times), step, seed, method,
                                    lambda share: progress.update(round(share * steps)))
        return paths.cpu().numpy()

    def push(self, X0: ArrayLike, start: float, end: float, *, random_state: Any = None) -> Array:
        """Moves a population from one time to another.

        Arguments:
            X0: points at the start, shape (n, d).
            start: their time.
            end: a later time.
            random_state: seed of the noise.

        Returns:
            Points at the end, shape (n, d): the ends of simulated paths or, where growth was learned, as many draws from
            them in proportion to their progeny.
        """
        rng = check_random_state(random_state)
        if self.sde_.growth is None:
            return self.simulate(X0, [start, end], random_state=rng)[-1]
        times = np.linspace(start, end, GROWTH_STEPS + 1)
        paths = self.simulate(X0, times, random_state=rng)
        rates = np.stack([self.growth(x) for x in paths])
        return multiplied(paths[-1], np.trapezoid(rates, times, axis=0), rng)

    def _set_parts(self, sde: FittedSDE, density: Any) -> None:
        self.sde_, self.density_ = sde.requires_grad_(False), density.double().requires_grad_(False)
        self._coordinates = sde.coordinates
        self._device = sde.coordinates.centre.device

    def _points(self, x: ArrayLike) -> Array:
        return validate_data(self, to_numpy(x), dtype=np.float64, reset=False)

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
