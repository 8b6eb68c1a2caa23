"""The facade: snapshots in, a fitted SDE out, with the conventions of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fpsde.arguments import Setting, check_positive, fit_config, times_of, to_numpy
from fpsde.checkpoint import ModelFileError, load_file, save_file
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.given import Function
from fpsde.identifiability import Identifiability, identifiability
from fpsde.identification import identify
from fpsde.model_file import build_parts, check_fitted, check_functions, describe_parts, plain_parameters, reason
from fpsde.progress import Progress
from fpsde.sde import FittedSDE
from fpsde.snapshots import Snapshots, check_weights
from fpsde.train import Report, choose_device, one_thread, singular_matrices

__all__ = ["FokkerPlanckSDE"]

Array = NDArray[np.float64]

CHUNK = 8192

try:
    __version__ = version("fpsde")
except PackageNotFoundError:
    __version__ = "unknown"


class FokkerPlanckSDE(DensityMixin, BaseEstimator):
    r"""Learns an Ito SDE :math:`dx = f(t, x)\,dt + g(t, x) \odot dW` from unpaired snapshots of a population.

    Marginals alone do not fix the split of drift and noise. With ``drift="autonomous"`` it is pinned by f and g being the
    same at all times; with ``drift="time"`` by least kinetic energy of the drift, an assumption rather than a finding.

    What is known of drift or noise can be given as a function of points X, shape (n, d), and times t, shape (n,), in data
    units. It takes float64 tensors on the device of the fit and returns a tensor (n, d), made row by row of torch
    operations on X, so that its derivatives can be found.

    Arguments:
        n_components: components of the mixture path, fewer if a snapshot has fewer than 8 points for each.
        drift: "time" for f(t, x) and g(t, x), "autonomous" for f(x) and g(x), "gradient" for f = -grad V(x) and g(x), where
            all coordinates have the same data units.
        diffusion: "state" for a free-form g, "constant" for one level for each coordinate, or the known g: a number, an
            array of d or a function, positive, in data units per square root of the time unit.
        drift_prior: known terms of the drift, a function in data units per time unit; what `drift` says is learned beside
            them: f = prior + learned.
        positive: coordinates that are above zero by nature, all (True) or some by name or place: they are modelled by their
            logarithm, so that no path ever falls to zero. Drift and noise stay those of x itself.
        conditioner: of the hollow nets, "leave-one-out" or "masked".
        hidden: widths of the nets' hidden layers.
        max_steps: training steps.
        validation_fraction: share of each snapshot held out for monitoring.
        device: "auto", "cpu" or "cuda".
        random_state: seed; on the CPU the same seed gives the same fit bit for bit.
        verbose: 0 for silence, 1 for progress.

    Attributes:
        sde_: the fitted equation in data units, a module that `torchsde.sdeint` takes as it is.
        density_: the density path, in dimensionless units.
        history_: learning curves, one dict for each report.
        summary_: residual, held-out likelihood and skipped steps; for an autonomous drift also what its moment equations
            leave (near 1 is sampling error) and the error of the path as a multiple of the sampling error.
        times_: the times of the snapshots.
        n_features_in_: number of coordinates d.

    References:
        Neural Networks with Cheap Differential Operators (Chen & Duvenaud, 2019), https://arxiv.org/abs/1912.03579

    Example:
        >>> model = FokkerPlanckSDE(drift="autonomous", random_state=0).fit(X, t)
        >>> paths = model.simulate(X[t == 0], times=[0.0, 0.5, 1.0])
    """

    def __init__(self, n_components: int = 32, *, drift: str = "time",
                 diffusion: str | float | ArrayLike | Function = "state", drift_prior: Function | None = None,
                 positive: bool | Sequence[str | int] = False, conditioner: str = "leave-one-out",
                 hidden: Sequence[int] = (64,), max_steps: int = 2000, validation_fraction: float = 0.1,
                 device: str = "auto", random_state: Any = None, verbose: int = 0) -> None:
        self.n_components = n_components
        self.drift = drift
        self.diffusion = diffusion
        self.drift_prior = drift_prior
        self.positive = positive
        self.conditioner = conditioner
        self.hidden = hidden
        self.max_steps = max_steps
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> FokkerPlanckSDE:
        """Fits density, drift and diffusion.

        Arguments:
            X: the points, shape (n, d), numpy, torch or DataFrame, in any units.
            y: the time of each point, shape (n,).
            sample_weight: the weight of each point, shape (n,), equal if left out: a snapshot's law is its weighted
                empirical measure. Only ratios within one time matter; points of weight 0 are left out.

        Raises:
            SnapshotError: a ValueError; if the points, times or weights cannot be used.
            ValueError: if a setting, or a function that is given, cannot be used.
        """
        X, y = validate_data(self, to_numpy(X), to_numpy(y), dtype=np.float64, y_numeric=True)
        names = tuple(map(str, getattr(self, "feature_names_in_", ()))) or None
        data = Snapshots.of(X, y, names, to_numpy(sample_weight))
        config = fit_config(self.get_params(deep=False), data)
        device = choose_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with Progress("fitting", config.steps, silent=self.verbose < 1) as progress, one_thread(device):
            shown: dict[str, float] = {}

            def report(state: Report) -> None:
                shown.update(state.values)
                progress.update(state.step, shown)

            with singular_matrices():
                fitted = identify(data, config, seed, device, report)
        self.names_ = data.names
        self._data: Snapshots | None = data
        self.times_ = data.times
        self.counts_ = np.array([len(x) for x in data.groups()])
        self._set_parts(fitted.sde, fitted.model.density)
        self.history_, self.summary_ = fitted.history, fitted.summary
        self.n_iter_ = config.steps
        return self

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

    def score_samples(self, X: ArrayLike, t: ArrayLike | None = None) -> Array:
        """Evaluates log p(x | t) in data units.

        Arguments:
            X: points, shape (n, d).
            t: times, shape () or (n,); left out, the density is that of all snapshots pooled.

        Returns:
            The log-density, shape (n,).
        """
        check_is_fitted(self, "sde_")
        x = self._points(X)
        if t is None:
            shares = np.log(self.counts_ / self.counts_.sum())
            return logsumexp([self.score_samples(X, s) + w for s, w in zip(self.times_, shares, strict=True)], axis=0)
        t, result = times_of(t, len(x)), np.empty(len(x))
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
        """Draws n points from the density at time t, shape (n, d), in data units."""
        check_is_fitted(self, "sde_")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator(device=self._device).manual_seed(seed)
        z = self.density_.sample(self._dimensionless(t), int(n), generator)[0]
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
        self._warn_outside(times)
        x0 = torch.tensor(self._inside(X0), device=self._device)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        silent = (self.verbose if verbose is None else verbose) < 1
        with Progress("simulating", len(times) - 1, silent=silent) as progress:
            paths = self.sde_.paths(x0, torch.as_tensor(times), time_step or float(self.sde_.time_step), seed, method,
                                    lambda done, _: progress.update(done))
        return paths.cpu().numpy()

    def identifiability(self, X: ArrayLike | None = None, y: ArrayLike | None = None,
                        sample_weight: ArrayLike | None = None) -> Identifiability:
        """Says how far the snapshots fix noise and drift; printed, it is two sentences.

        Arguments:
            X: the points that the model was fitted to, shape (n, d); known after `fit`, to be given after `load`.
            y: the time of each point, shape (n,).
            sample_weight: as in `fit`, shape (n,).

        Raises:
            ValueError: if a loaded model is asked without points, or if points or times are given alone.
        """
        check_is_fitted(self, "sde_")
        if (X is None) != (y is None) or (X is None and sample_weight is not None):
            raise ValueError("X and y go together: give the points and their times, or neither")
        if X is None or y is None:
            if self._data is None:
                raise ValueError("a model file holds no points: give the X and y that the model was fitted to")
            data = self._data
        else:
            data = Snapshots.of(self._points(X), to_numpy(y), weights=to_numpy(sample_weight))
        if not np.isin(data.times, self.times_).all() or len(data.times) < 2:
            known, got = (", ".join(f"{t:g}" for t in times) for times in (self.times_, data.times))
            raise ValueError(f"the model was fitted to snapshots at {known}, got points at {got}")
        times = self._coordinates.time(torch.as_tensor(data.times, device=self._device))
        snapshots = [self._coordinates.inside(torch.as_tensor(x, device=self._device)) for x in data.groups()]
        given = data.group_weights()
        weights = None if given is None else [torch.as_tensor(w, device=self._device) for w in given]
        model = FokkerPlanckLoss(self.density_, self.sde_.drift, self.sde_.diffusion)
        with one_thread(self._device):
            return identifiability(model, times, snapshots, self._coordinates.span, weights=weights)

    def save(self, path: str | Path) -> None:
        """Writes the model to one file: weights, configuration, scaling, names and a summary of the data.

        No file holds a function: :meth:`load` takes those that were given to the fit again.

        Raises:
            ModelFileError: if the file cannot be written.
        """
        check_is_fitted(self, "sde_")
        header, tensors = describe_parts(self.sde_, self.density_)
        fitted = {"parameters": plain_parameters(self.get_params(deep=False)), "names": list(self.names_),
                  "named": hasattr(self, "feature_names_in_"), "times": self.times_.tolist(),
                  "counts": self.counts_.tolist(), "history": self.history_, "summary": self.summary_,
                  "written_by": f"fpsde {__version__}"}
        save_file(path, tensors, {"parts": header, "fitted": fitted})

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", *, drift_prior: Function | None = None,
             diffusion: Function | None = None) -> FokkerPlanckSDE:
        """Reads a model that :meth:`save` wrote.

        Arguments:
            path: the file.
            device: "auto", "cpu" or "cuda".
            drift_prior: the known terms of the drift, if the model was fitted with any.
            diffusion: the known diffusion, if the model was fitted with a function.

        Raises:
            ModelFileError: if the file is missing, damaged or not a model, or if a function of the fit is not given.
        """
        tensors, header = load_file(path)
        functions = {"drift_prior": drift_prior, "diffusion": diffusion}
        try:
            check_functions(path, header["parts"], functions)
            sde, density = build_parts(header["parts"], tensors, functions)
            fitted = header["fitted"]
            check_fitted(fitted, density.dim)
            saved = {"drift_prior": None, **fitted["parameters"]}
            saved.update({name: function for name, function in functions.items() if function is not None})
            parameters = {name: saved[name] for name in cls._get_param_names()}
            model = cls(**{**parameters, "device": device, "hidden": tuple(parameters["hidden"])})
            model._data = None
            model.names_, model.times_ = tuple(fitted["names"]), np.array(fitted["times"], dtype=np.float64)
            model.counts_ = np.array(fitted["counts"], dtype=int)
            model.history_, model.summary_ = fitted["history"], fitted["summary"]
            model.n_iter_, model.n_features_in_ = model.get_params()["max_steps"], density.dim
            if fitted["named"]:
                model.feature_names_in_ = np.array(model.names_, dtype=object)
        except ModelFileError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise ModelFileError(f"{path}: damaged, its parts do not fit together ({reason(error)})") from error
        where = choose_device(device)
        model._set_parts(sde.to(where), density.to(where))
        return model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments by name."""
        names = {"drift", "diffusion"}
        return {**super().get_params(deep), **{name: vars(self)[name] for name in names}}

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

    def _warn_outside(self, times: Array) -> None:
        first, last = self.sde_.time_range
        slack = 1e-9 * (last - first)
        if times[0] >= first - slack and times[-1] <= last + slack:
            return
        how = ("this is a forecast, which holds only as far as the dynamics stay the same and the paths stay where data "
               "were" if self.sde_.autonomous else
               "drift and diffusion are held at their value at the nearest time of the data")
        warnings.warn(f"simulating from {times[0]:g} to {times[-1]:g}, outside the data's times {first:g} to {last:g}: "
                      f"{how}", UserWarning, stacklevel=3)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
