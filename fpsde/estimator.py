"""The facade: snapshots in, a fitted SDE out, with the conventions of scikit-learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from fpsde import ranks
from fpsde.arguments import checked, fit_config, to_numpy
from fpsde.assembly import (
    build_members,
    check_fitted,
    check_functions,
    check_header,
    describe_members,
    plain_parameters,
    reason,
)
from fpsde.batches import MOST_POINTS
from fpsde.checkpoints import Checkpoints
from fpsde.coordinates import Coordinates
from fpsde.ensemble import Member, bootstraps
from fpsde.files import FileError
from fpsde.fingerprint import fingerprint
from fpsde.fitted import FittedModel
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.given import Function
from fpsde.identifiability import Identifiability, identifiability
from fpsde.identification import Identification, identify
from fpsde.mapped import Mapped
from fpsde.memory import kept_memory
from fpsde.model_file import load_file, save_file
from fpsde.progress import Progress
from fpsde.snapshots import Snapshots
from fpsde.threads import one_thread
from fpsde.train import Report, choose_device, singular_matrices

__all__ = ["MOST_PATH_ERROR", "FokkerPlanckSDE", "unexplained"]

Array = NDArray[np.float64]

try:
    __version__ = version("fpsde")
except PackageNotFoundError:
    __version__ = "unknown"

MOST_PATH_ERROR = 1.0


class FokkerPlanckSDE(FittedModel):
    r"""Learns an Ito SDE :math:`dx = f(t, x)\,dt + g(t, x) \odot dW` from unpaired snapshots of a population.

    Marginals alone do not fix the split of drift and noise. With ``drift="autonomous"`` it is pinned by f and g being the
    same at all times; with ``drift="time"`` by least kinetic energy of the drift, an assumption rather than a finding.

    What is known of drift or noise can be given as a function of points X, shape (n, d), and times t, shape (n,), in data
    units. It takes float64 tensors on the device of the fit and returns a tensor (n, d), made row by row of torch
    operations on X, so that its derivatives can be found.

    Arguments:
        n_components: components of the mixture path, fewer if a snapshot has fewer than 8 points for each.
        n_members: fits, each from a seed of its own and, if there are several, to a Bayesian bootstrap of the points (each
            one's weight times an exponential draw): their mean is the model, their spread says how firm it is, by the
            sampling of the points and the chance of the fit. :meth:`forecast` needs three or more.
        drift: "time" for f(t, x) and g(t, x), "autonomous" for f(x) and g(x), "gradient" for f = -grad V(x) and g(x), where
            all coordinates have the same data units.
        diffusion: "state" for a free-form g, "constant" for one level for each coordinate, or the known g: a number, an
            array of d or a function, positive, in data units per square root of the time unit.
        drift_prior: known terms of the drift, a function in data units per time unit; what `drift` says is learned beside
            them: f = prior + learned.
        positive: coordinates that are above zero by nature, all (True) or some by name or place: they are modelled by their
            logarithm, so that no path ever falls to zero. Drift and noise stay those of x itself.
        growth: "learned" where points multiply and die at a rate that depends on where they are, with an autonomous drift:
            the shapes of the snapshots tell it up to a constant, and weakly. "counts" if the number of points at each time
            is in proportion to the size of the population, which tells far more.
        conditioner: of the hollow nets, "leave-one-out" or "masked".
        hidden: widths of the nets' hidden layers.
        max_steps: training steps.
        validation_fraction: share of each snapshot held out, by which the best state of the path is chosen; if left out,
            0.05, and 0.1 where the drift is autonomous or a gradient.
        device: "auto", "cpu" or "cuda".
        compile: whether steps are compiled by torch.compile, on a GPU with CUDA graphs: those that train the path and, of a
            drift free in time, those of the nets, unless functions are given. That takes a minute or two and changes the
            result by round-off; "auto" does so where a long fit gains more than that. It has not run on a GPU yet.
        random_state: seed; on the CPU the same seed gives the same fit bit for bit, on any number of cores, unless with
            OMP_WAIT_POLICY=passive in the environment operations have as many threads as torch.
        verbose: 0 for silence, 1 for progress.

    Attributes:
        sde_: the fitted equation in data units, a module that `torchsde.sdeint` takes as it is.
        density_: the density path, in dimensionless units.
        members_: the fits, each a tuple (sde, density); `sde_` and `density_` are their means.
        history_: learning curves, one dict for each report, of the first member.
        summary_: residual, held-out likelihood and skipped steps; for an autonomous drift also `path_error`, the error that
            the path must have between the snapshots for drift and noise to explain them, as a multiple of the sampling
            error, and `moment_misfit`, what the moment equations leave relative to both errors together. Beside a small
            path error a misfit near 1 is sampling error; a path error above 1 says that the model is wrong, or the path
            between the snapshots, and brings a warning. Of several members it is the first one's, but for the largest path
            error, with their number beside. `fpsde fit` adds `density_ratio`, how the SDE follows its own density at the
            worst step, and `density_ratio_allowed`, what ten per cent and chance explain of it.
        times_: the times of the snapshots.
        n_features_in_: number of coordinates d.

    References:
        Neural Networks with Cheap Differential Operators (Chen & Duvenaud, 2019), https://arxiv.org/abs/1912.03579

    Example:
        >>> model = FokkerPlanckSDE(drift="autonomous", random_state=0).fit(X, t)
        >>> paths = model.simulate(X[t == 0], times=[0.0, 0.5, 1.0])
    """

    def __init__(self, n_components: int = 32, *, n_members: int = 1, drift: str = "time",
                 diffusion: str | float | ArrayLike | Function = "state", drift_prior: Function | None = None,
                 positive: bool | Sequence[str | int] = False, growth: str | None = None,
                 conditioner: str = "leave-one-out", hidden: Sequence[int] = (64,), max_steps: int = 2000,
                 validation_fraction: float | None = None, device: str = "auto", compile: bool | str = "auto",
                 random_state: Any = None, verbose: int = 0) -> None:
        self.n_components = n_components
        self.n_members = n_members
        self.drift = drift
        self.diffusion = diffusion
        self.drift_prior = drift_prior
        self.positive = positive
        self.growth = growth
        self.conditioner = conditioner
        self.hidden = hidden
        self.max_steps = max_steps
        self.validation_fraction = validation_fraction
        self.device = device
        self.compile = compile
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, *,
            checkpoint: str | Path | None = None, checkpoint_seconds: float = 60.0) -> FokkerPlanckSDE:
        """Fits density, drift and diffusion.

        With a checkpoint the fit can be killed at any moment: started again with the same arguments it goes on, and on the
        CPU its result is the same bit for bit. Ctrl-C and SIGTERM then save first. docs/checkpoints.md says more.

        In a program that torchrun has started, the processes fit together: docs/many_machines.md. All are given the same
        arguments and return the same fit. A memory map of points, such as `numpy.load` gives with `mmap_mode="r"`, stays
        on disk.

        Arguments:
            X: the points, shape (n, d), numpy, torch or DataFrame, in any units.
            y: the time of each point, shape (n,).
            sample_weight: the weight of each point, shape (n,), equal if left out: a snapshot's law is its weighted
                empirical measure. Only ratios within one time matter; points of weight 0 are left out.
            checkpoint: a folder for the state of the fit, made if it is not there.
            checkpoint_seconds: between two states that are saved.

        Raises:
            SnapshotError: a ValueError; if the points, times or weights cannot be used.
            CheckpointError: a ValueError; if the folder cannot be written to, or holds the state of another fit.
            ValueError: if a setting, or a function that is given, cannot be used.
        """
        # What is not finite is refused below, by row and coordinate.
        X, y = checked(self, X, y, y_numeric=True)
        names = tuple(map(str, getattr(self, "feature_names_in_", ()))) or None
        data = Snapshots.of(X, y, names, to_numpy(sample_weight))
        config = fit_config(self.get_params(deep=False), data)
        device = ranks.join(choose_device(self.device))
        seed = ranks.told_by_first(lambda: int(check_random_state(self.random_state).randint(2**31 - 1)))
        checkpoints = None
        if checkpoint is not None:
            # Where the first process alone reads and writes.
            fields = fingerprint(self.get_params(deep=False), data, None if self.random_state is None else seed, device,
                                 __version__) if ranks.first() else {}
            checkpoints = Checkpoints(checkpoint, fields, seed, checkpoint_seconds)
        # One system of units, so that the members' equations can be averaged.
        units = Coordinates.of(data, config.positive or (False,) * data.dim)
        fits: list[Identification] = []
        bar = Progress("fitting", self.n_members * config.steps, silent=self.verbose < 1 or not ranks.first())
        with checkpoints or nullcontext(), one_thread(device), bar as progress:
            seed = seed if checkpoints is None else checkpoints.seed
            shown: dict[str, float] = {}

            def report(state: Report) -> None:
                shown.update(state.values)
                done = len(fits) * config.steps + state.step
                if state.stage:
                    progress.stage(done, state.stage)
                else:
                    progress.update(done, shown)

            with singular_matrices():
                for k, (part, member_seed) in enumerate(bootstraps(data, seed, self.n_members)):
                    course = None if checkpoints is None else checkpoints.course(k)
                    fits.append(identify(part, config, member_seed, device, report, units, course))
            if checkpoints is not None:
                checkpoints.finish()
        self.names_ = data.names
        self._data: Snapshots | None = data
        self.times_ = data.times
        self.counts_ = data.counts
        self._set_parts([Member(fit.sde, fit.path) for fit in fits])
        self.history_, self.summary_ = fits[0].history, fits[0].summary
        if self.n_members > 1:
            self.summary_["members"] = float(self.n_members)
        self.n_iter_ = config.steps
        error = max(fit.summary.get("path_error", 0.0) for fit in fits)
        if "path_error" in self.summary_:
            self.summary_["path_error"] = error
        if error > MOST_PATH_ERROR and ranks.first():
            warnings.warn(f"{unexplained(error)}; what is assumed or given may be wrong, or the steps too few", UserWarning,
                          stacklevel=2)
        return self

    def identifiability(self, X: ArrayLike | None = None, y: ArrayLike | None = None,
                        sample_weight: ArrayLike | None = None) -> Identifiability:
        """Says how far the snapshots fix noise and drift; printed, it is two or three lines in plain words.

        Of an ensemble it is about the first member, on the points as they are, not on that member's bootstrap.

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
        # Of points on disk some are enough, and come to memory.
        steps = [math.ceil(len(x) / MOST_POINTS) if isinstance(x, Mapped) else 1 for x in data.groups()]
        snapshots = [self._coordinates.inside(torch.as_tensor(x[::step], device=self._device))
                     for x, step in zip(data.groups(), steps, strict=True)]
        given = data.group_weights()
        weights = None if given is None else [torch.as_tensor(w[::step], device=self._device)
                                              for w, step in zip(given, steps, strict=True)]
        sde, density = self.members_[0]
        model = FokkerPlanckLoss(density, sde.drift, sde.diffusion, growth=sde.growth)
        sizes = torch.tensor(data.counts, dtype=torch.float64, device=self._device) if self.growth == "counts" else None
        with one_thread(self._device), kept_memory():
            return identifiability(model, times, snapshots, self._coordinates.span, weights=weights, sizes=sizes)

    def save(self, path: str | Path) -> None:
        """Writes the model to one file: weights, configuration, scaling, names and a summary of the data.

        No file holds a function: :meth:`load` takes those that were given to the fit again.

        Raises:
            FileError: if the file cannot be written.
        """
        check_is_fitted(self, "sde_")
        header, tensors = describe_members(self.members_)
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
            FileError: if the file is missing, damaged or not a model, or if a function of the fit is not given.
        """
        tensors, header = load_file(path)
        functions = {"drift_prior": drift_prior, "diffusion": diffusion}
        try:
            check_header(header, cls._get_param_names())
            check_functions(path, header["parts"], functions)
            members = build_members(header["parts"], tensors, functions)
            fitted = header["fitted"]
            check_fitted(fitted, members[0].density.dim)
            saved = {"drift_prior": None, "n_members": 1, "compile": "auto", **fitted["parameters"]}
            saved.update({name: function for name, function in functions.items() if function is not None})
            parameters = {name: saved[name] for name in cls._get_param_names()}
            model = cls(**{**parameters, "device": device, "hidden": tuple(parameters["hidden"])})
            model._data = None
            model.names_, model.times_ = tuple(fitted["names"]), np.array(fitted["times"], dtype=np.float64)
            model.counts_ = np.array(fitted["counts"], dtype=int)
            model.history_, model.summary_ = fitted["history"], fitted["summary"]
            model.n_iter_, model.n_features_in_ = model.get_params()["max_steps"], members[0].density.dim
            if fitted["named"]:
                model.feature_names_in_ = np.array(model.names_, dtype=object)
        except FileError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ArithmeticError) as error:
            raise FileError(f"{path}: damaged, its parts do not fit together ({reason(error)})") from error
        where = choose_device(device)
        model._set_parts([Member(sde.to(where), density.to(where)) for sde, density in members])
        return model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments by name."""
        names = {"drift", "diffusion", "growth"}
        return {**super().get_params(deep), **{name: vars(self)[name] for name in names}}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def unexplained(path_error: float) -> str:
    """Says what a large error of the path means."""
    return (f"no drift and noise of the kind that was asked for explain the snapshots: between them the path has to err by "
            f"{path_error:.2g} times the sampling error")
