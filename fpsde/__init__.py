"""Learns a stochastic differential equation from snapshots.

A fitted SDE is three elements: a density path (:mod:`fpsde.density`), a hollow drift and diffusion (:mod:`fpsde.hollow`),
and the Fokker-Planck residual that ties them (:mod:`fpsde.fokker_planck`).
"""

from fpsde.density import GaussianMixturePath
from fpsde.estimator import FokkerPlanckSDE, __version__
from fpsde.evaluation import evaluate_steps
from fpsde.hollow import HollowNet
from fpsde.metrics import energy_distance, mmd, wasserstein
from fpsde.reading import read_snapshots
from fpsde.sde import FittedSDE
from fpsde.snapshots import Snapshots

__all__ = ["FittedSDE", "FokkerPlanckSDE", "GaussianMixturePath", "HollowNet", "Snapshots", "__version__",
           "energy_distance", "evaluate_steps", "mmd", "read_snapshots", "wasserstein"]
