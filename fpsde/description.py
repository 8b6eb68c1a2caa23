"""What a model file holds, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fpsde.drift import AbstractDrift, learned
from fpsde.estimator import MOST_PATH_ERROR, FokkerPlanckSDE, unexplained
from fpsde.field import ADDITIVE, COUPLED, CUBE, LINEAR, OWN, OWN_LINEAR, PRODUCT, AbstractField
from fpsde.library import LibraryDrift

__all__ = ["describe"]

WORDS = {OWN_LINEAR: "what is linear in the coordinate itself", LINEAR: "what is linear in others", CUBE: "its cube",
         PRODUCT: "squares and products of two", OWN: "bends of its own", ADDITIVE: "bends and cubes of single coordinates",
         COUPLED: "other functions"}
# Of a readout, in the fit's own units: what is smaller is as good as not there.
SLIGHT = 1e-3
# Of terms, the most that are named.
MOST_NAMED = 12


def describe(model: FokkerPlanckSDE) -> str:
    """Says in a few lines what a fitted model is, how it was fitted and what to mind."""
    parameters = model.get_params()
    pinned = {
        "time": "drift and noise may change with time; least kinetic energy of the drift splits them, an assumption",
        "autonomous": "drift and noise are the same at all times, which is what splits them",
        "gradient": "the drift goes down a potential, an assumption, and with the noise is the same at all times",
    }[parameters["drift"]]
    shown = ", ".join(model.names_[:6]) + (", ..." if len(model.names_) > 6 else "")
    coordinates = model.sde_.coordinates
    centre = coordinates.outside(torch.zeros_like(coordinates.centre)[None])
    noise = ", ".join(f"{v:.3g}" for v in model.diffusion(centre, model.times_[0])[0][:6])
    members = f"mean of {len(model.members_)} members, together " if len(model.members_) > 1 else ""
    lines = [
        f"{model.n_features_in_} coordinates ({shown}), {int(model.counts_.sum())} points at {len(model.times_)} times "
        f"from {model.times_[0]:g} to {model.times_[-1]:g}",
        f"drift {parameters['drift']}, diffusion {parameters['diffusion']}: {pinned}",
        f"{members}{model.density_.n_components} components, {parameters['max_steps']} steps{' each' if members else ''}, "
        f"{int(model.summary_['skipped_steps'])} skipped",
        f"held-out log-likelihood per point {model.summary_['held_out_likelihood']:.4f}, mean squared residual "
        f"{model.summary_['residual']:.3g}",
        f"noise at the centre of the data {noise}"]
    if parameters["drift"] != "time":
        lines.append(f"found in the drift: {_made_of(model.sde_.drift, model.names_)}")
        if parameters["diffusion"] == "state":
            lines.append(f"found in the noise, beside its level: {_made_of(model.sde_.diffusion, model.names_)}")
    if model.summary_.get("path_error", 0.0) > MOST_PATH_ERROR:
        lines.append(unexplained(model.summary_["path_error"]))
    if "density_ratio" in model.summary_:
        ratio, allowed = model.summary_["density_ratio"], model.summary_["density_ratio_allowed"]
        found = f"W1 of one step at most {ratio:.3g} times that of the density's own draws (chance allows {allowed:.3g})"
        lines.append(f"the SDE does not follow its own density: {found}; more steps or points may help" if ratio > allowed
                     else f"the SDE follows its own density as far as chance lets see: {found}")
    return "\n".join(lines)


def _made_of(field: AbstractField, names: Sequence[str]) -> str:
    """Which kinds of terms the evidence left in a field, and of a library's which."""
    kinds, large = field.groups(), field.get_readout().abs() > SLIGHT
    library, there = learned(field) if isinstance(field, AbstractDrift) else field, []
    for kind, word in WORDS.items():
        of_kind = (kinds == kind) & large
        if bool(of_kind.any()):
            terms = _terms(library, kind, of_kind, names) if isinstance(library, LibraryDrift) else []
            named = ", ".join([*terms[:MOST_NAMED], *["..."] * (len(terms) > MOST_NAMED)])
            there.append(f"{word} ({named})" if terms else word)
    return ", ".join(there) or "nothing"


def _terms(library: LibraryDrift, kind: int, there: Tensor, names: Sequence[str]) -> list[str]:
    """Names products, and whose bends and cubes there are, by the coordinate in whose drift they are."""
    if kind == PRODUCT:
        of_pairs = [f"{names[a]} {names[b]}" for a, b in library.pairs.T.tolist()]
        return [f"{of_pairs[column]} in {names[row]}" for row, column in there.nonzero().tolist()]
    if kind == ADDITIVE:
        return [f"{names[source]} in {names[row]}" for row, sources in enumerate(library.sources())
                for source in sources[there[row]].unique().tolist()]
    return []
