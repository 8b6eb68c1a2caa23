"""How to fit: what the estimator asks of the identification."""

from __future__ import annotations

from dataclasses import dataclass

from fpsde.fokker_planck import LossWeights
from fpsde.given import Function
from fpsde.projection import Ridge

__all__ = ["IdentificationConfig"]


@dataclass(frozen=True)
class IdentificationConfig:
    """How to fit; all weights and sizes are dimensionless.

    Attributes:
        n_components: components of the mixture path.
        drift: "time", "autonomous" or "gradient".
        drift_prior: known terms of the drift, a function in data units.
        diffusion: "state", "constant", or known: values, shape (d,), in data units per square root of time, or a function.
        positive: which coordinates are taken by their logarithm; none if empty.
        growth: None, "learned" from the shapes of the snapshots alone, or "counts", from their numbers of points too.
        conditioner: "leave-one-out" or "masked".
        hidden: widths of the hidden layers of both nets.
        activation: of both nets.
        steps: training steps in all.
        net_share: share of the steps that train the nets of a drift free in time.
        residual_weights: weight of the residual when it enters and from half-way on; small, for the path must stay with the
            data where drift and noise are rough; of snapshots of fewer than 2000 points, in proportion less.
        net_residual: weight of the residual for a drift free in time.
        path_energy: weight of the path's kinetic energy for a drift free in time; 0.01 draws the path away from the
            snapshots themselves, 0.003 already slows what turns.
        path_pooling: weight, for a drift free in time, of the path's relative entropy to the pooled law of all snapshots.
        drift_energy: weight of the drift's kinetic energy for a drift free in time; it decides how much noise there is.
        rest_energy: the same where terms of the drift are known, for what is learned beside them; the residual weighs one.
        ridge: weights of the squared readouts.
        points: snapshot points in a step, over all times.
        collocation: times and points at each time where the residual is evaluated in a step.
        solve: whether the readouts are solved for; otherwise, and in several hundred dimensions, they are descended.
        held_out: share of each snapshot kept for monitoring.
        compile: whether steps that train the path alone, or the nets after a path that is held, are compiled; None where
            that pays.
    """

    n_components: int = 32
    drift: str = "time"
    drift_prior: Function | None = None
    diffusion: str | tuple[float, ...] | Function = "state"
    positive: tuple[bool, ...] = ()
    growth: str | None = None
    conditioner: str = "leave-one-out"
    hidden: tuple[int, ...] = (64,)
    activation: str = "tanh"
    steps: int = 2000
    net_share: float = 0.2
    residual_weights: tuple[float, float] = (0.003, 0.03)
    net_residual: float = 0.03
    path_energy: float = 1e-3
    path_pooling: float = 2e-2
    drift_energy: float = 1e-2
    rest_energy: float = 0.3
    ridge: Ridge = Ridge()
    points: int = 2048
    collocation: tuple[int, int] = (32, 64)
    learning_rate: float = 2e-2
    solve: bool = True
    held_out: float = 0.1
    compile: bool | None = None

    def net_weights(self) -> LossWeights:
        """Returns the weights with which the nets of a drift free in time follow the path.

        The path's own velocity would leave no room for what is known: beside known terms the least drift is learned that
        the equation asks for.
        """
        if self.drift_prior is None:
            return LossWeights(self.net_residual, 1.0, self.drift_energy)
        return LossWeights(1.0, 0.0, self.rest_energy)
