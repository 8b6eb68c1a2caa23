"""The command line: fpsde fit, simulate, evaluate, plot, info."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import numpy as np
import torch

from fpsde import ranks
from fpsde.arguments import check_positive, fit_config, positive_places
from fpsde.checkpoints import saved_states
from fpsde.description import describe
from fpsde.estimator import FokkerPlanckSDE, __version__
from fpsde.evaluation import (
    DISTANCES,
    LeftOutScore,
    evaluate_steps,
    follow_density,
    format_fit,
    format_following,
    format_left_out,
    format_scores,
    leave_one_out,
    worst,
)
from fpsde.files import FileError, check_writable, write_atomically
from fpsde.interruption import told
from fpsde.reading import as_cell, read_snapshots, read_start
from fpsde.simulation import SimulationError
from fpsde.snapshots import SnapshotError, Snapshots
from fpsde.train import TrainingError, choose_device

__all__ = ["main"]

Read = TypeVar("Read")

TRACEBACK = "FPSDE_TRACEBACK"

DATA_HELP = "DATA is a csv with a header or an npz with points and times."


@contextmanager
def _plain_errors(advice: Callable[[], str] = str) -> Iterator[None]:
    """Turns what a user can mend into one sentence and exit code 2, and warnings into one line each.

    Arguments:
        advice: gives what to say when the user stops it.
    """
    with told(advice), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
        try:
            yield
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (FileError, SnapshotError, SimulationError, TrainingError, ValueError, ImportError, OSError) as error:
            _refuse(str(error), 2, error)
        except Exception as error:
            # torch has no class of its own for too little memory on the CPU.
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
                _refuse(f"not enough memory ({error}); use fewer points, paths, components or members", 2, error)
            if TRACEBACK in os.environ:
                raise
            if ranks.left_alone(error):
                _refuse("another process has ended; its own message says why", 2, error)
            _refuse(f"this is a bug of fpsde, {type(error).__name__}: {error}; please report it, with what the same "
                    f"command shows after `export {TRACEBACK}=1`", 1, error)


def _refuse(message: str, code: int, error: BaseException) -> NoReturn:
    where = "" if ranks.first() else f", process {ranks.rank()}"
    click.echo(f"Error{where}: {' '.join(message.split())}", err=True)
    raise SystemExit(code) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="fpsde")
def main() -> None:
    """Learn a stochastic differential equation from unpaired snapshots of a population."""


def _number_or_word(_: click.Context, __: click.Parameter, value: str) -> str | float | list[float]:
    if value in ("state", "constant"):
        return value
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("expected 'state', 'constant', a number or numbers with commas") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _all_or_names(_: click.Context, __: click.Parameter, value: str) -> bool | list[str]:
    return value == "all" if value in ("", "all") else [name.strip() for name in value.split(",")]


def _fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say how to fit."""
    for option in reversed((
            click.option("--components", "n_components", default=32, show_default=True,
                         help="Components of the mixture path."),
            click.option("--members", "n_members", default=1, show_default=True,
                         help="Fits, each to a bootstrap of the points; the model is their mean."),
            click.option("--drift", type=click.Choice(["time", "autonomous", "gradient"]), default="time",
                         show_default=True, help="f(t, x), f(x), or minus the gradient of a potential V(x)."),
            click.option("--diffusion", default="state", show_default=True, callback=_number_or_word,
                         help="state, constant, or the known value."),
            click.option("--positive", default="", callback=_all_or_names, metavar="all|NAMES",
                         help="Coordinates above zero by nature, modelled by their logarithm."),
            click.option("--growth", type=click.Choice(["learned", "counts"]),
                         help="Learn where points multiply and die; counts: their numbers are the population's size."),
            click.option("--steps", "max_steps", default=2000, show_default=True, help="Training steps."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."))):
        command = option(command)
    return command


@main.command(help="Fit an SDE to snapshots. " + DATA_HELP)
@click.argument("data")
@click.option("--time", help="Column or array with the times; found by its usual names if left out.")
@click.option("--weights", help="Column or array with the weight of each point; equal if left out.")
@click.option("--features", help="Columns to use, with commas; all but time and weights if left out.")
@click.option("-o", "--output", default="model.fpsde", show_default=True, help="The model file to write.")
@_fit_options
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@click.option("--checkpoint", metavar="DIR", help="Folder for the state of the fit; after a stop or a crash the same "
              "command goes on.")
@click.option("--checkpoint-every", default=60.0, show_default=True, metavar="SECONDS",
              help="Time between two states that are saved.")
@click.option("--quiet", is_flag=True, help="No progress.")
def fit(data: str, time: str | None, weights: str | None, features: str | None, output: str, seed: int,
        checkpoint: str | None, checkpoint_every: float, quiet: bool, **settings: Any) -> None:
    with _plain_errors(lambda: _how_to_go_on(checkpoint)):
        ranks.join(choose_device(settings["device"]))
        snapshots = _read(data, time, features, weights, on_disk=True)
        check_writable(output, data)
        settings["positive"] = _positive(settings["positive"], snapshots)
        model = FokkerPlanckSDE(random_state=seed, verbose=0 if quiet else 1, **settings)
        model.fit(snapshots.x, snapshots.t, snapshots.weights, checkpoint=checkpoint, checkpoint_seconds=checkpoint_every)
        model.names_ = snapshots.names
        if ranks.first():
            # What comes now takes a while, and the fit is not to be lost by it.
            model.save(output)
            _note_following(model, snapshots)
            model.save(output)
            click.echo(f"{describe(model)}\nWrote {output}")


def _note_following(model: FokkerPlanckSDE, snapshots: Snapshots) -> None:
    """Keeps in the summary how the SDE follows its own density; what keeps it from being known is a warning, not an end."""
    verbose, model.verbose = model.verbose, 0
    try:
        step = worst(follow_density(model, snapshots))
    except (ArithmeticError, ValueError) as error:
        warnings.warn(f"whether the SDE follows its own density is not known: {error}", UserWarning, stacklevel=2)
    else:
        model.summary_ |= {"density_ratio": step.ratio, "density_ratio_allowed": step.allowed}
    finally:
        model.verbose = verbose


def _how_to_go_on(checkpoint: str | None) -> str:
    if checkpoint is None:
        return "Nothing of the fit is kept; with --checkpoint DIR it would be."
    if not saved_states(checkpoint):
        return "There is no checkpoint yet."
    program = click.get_current_context().find_root().info_name if ranks.count() == 1 else "torchrun [OPTIONS] -m fpsde"
    command = f"{program} {shlex.join(sys.argv[1:])}"
    return f"The fit is saved in {checkpoint}; this goes on with it: {command}"


@main.command(help="Simulate trajectories from the points of a file. " + DATA_HELP)
@click.argument("model")
@click.option("--start", required=True, help="File with the start points; those of its first time are used, "
              "or all if it holds nothing but points.")
@click.option("--time", help="Column or array with the times in the start file.")
@click.option("--times", required=True, help="FIRST:LAST:STEP, or times with commas.")
@click.option("-o", "--output", default="paths.npz", show_default=True, help="npz with times and paths (k, n, d), csv, or "
              "npy: the paths alone, written as they are made, whatever their number.")
@click.option("--paths", type=click.IntRange(1), help="Number of paths, as many as start points if left out.")
@click.option("--step", type=float, help="Largest time step, chosen from the model if left out.")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--quiet", is_flag=True, help="No progress.")
def simulate(model: str, start: str, time: str | None, times: str, output: str, paths: int | None, step: float | None,
             seed: int, quiet: bool) -> None:
    with _plain_errors():
        fitted = FokkerPlanckSDE.load(model)
        wanted = _parse_times(times)
        x = _by_names(fitted, start, lambda names: read_start(start, time, names))
        _check_dim(fitted, start, x.shape[1])
        check_writable(output, model, start)
        suffix = Path(output).suffix.lower()
        if suffix not in (".npz", ".npy", ".csv"):
            raise ValueError(f"{output}: unknown format, use a name that ends in .npz, .npy or .csv")
        if paths is not None:
            x = x[np.random.default_rng(seed).choice(len(x), paths, replace=paths > len(x))]
        result = fitted.simulate(x, wanted, time_step=step, random_state=seed,
                                 verbose=0 if quiet else 1, out=output if suffix == ".npy" else None)
        if suffix != ".npy":
            _write_paths(output, wanted, result, fitted.names_)
        click.echo(f"Wrote {result.shape[1]} paths at {len(wanted)} times to {output}")


@main.command(help="Compare a model with snapshots, step by step; or, with --leave-one-out and without a model, refit "
              "without every inner time in turn, with the options of fit, and predict it. " + DATA_HELP)
@click.argument("model")
@click.argument("data", required=False)
@click.option("--leave-one-out", "left_out", is_flag=True, help="Refit without every inner time in turn.")
@click.option("--time", help="Column or array with the times.")
@click.option("--weights", help="Column or array with the weight of each point: what is compared with is a sample of the "
              "points that keeps each by its weight.")
@click.option("--features", help="Columns to use with --leave-one-out, with commas; all but time and weights if left out.")
@click.option("--points", type=click.IntRange(4), help="Most points in a comparison; 1000 if left out, and all of them "
              "with --leave-one-out, which needs the extra 'transport'.")
@_fit_options
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1),
              help="With --leave-one-out, fits for each left-out time, from seeds that count up from --seed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(model: str, data: str | None, left_out: bool, time: str | None, weights: str | None, features: str | None,
             points: int | None, seed: int, seeds: int, as_json: bool, **settings: Any) -> None:
    with _plain_errors():
        if left_out != (data is None):
            raise click.UsageError("give MODEL and DATA, or DATA with --leave-one-out and no model")
        if data is None:
            _evaluate_left_out(_read(model, time, features, weights), points, range(seed, seed + seeds), as_json, settings)
            return
        fitted = FokkerPlanckSDE.load(model)
        snapshots = _matching(fitted, data, time, weights)
        scores = evaluate_steps(fitted, snapshots, points or 1000, seed)
        likelihood = fitted.score(snapshots.x, snapshots.t, snapshots.weights)
        if as_json:
            click.echo(_json({"log_likelihood": likelihood, "steps": [score._asdict() for score in scores]}))
            return
        for name in DISTANCES:
            click.echo(f"{format_scores(scores, name)}\n")
        click.echo(format_following(scores))
        click.echo(format_fit(scores))
        click.echo(f"Mean log-likelihood per point {likelihood:.4f}")


def _evaluate_left_out(snapshots: Snapshots, points: int | None, seeds: range, as_json: bool,
                       settings: dict[str, Any]) -> None:
    settings["positive"] = _positive(settings["positive"], snapshots)
    # Uneven counts are warned of here, once.
    fit_config(FokkerPlanckSDE(**settings).get_params(deep=False), snapshots)

    def refit(rest: Snapshots, seed: int) -> FokkerPlanckSDE:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the number of points at a time varies")
            return FokkerPlanckSDE(random_state=seed, **settings).fit(rest.x, rest.t, rest.weights)

    def report(score: LeftOutScore) -> None:
        which = f", seed {score.seed}" if len(seeds) > 1 else ""
        click.echo(f"Without {score.time:g}{which}: fitted in {score.seconds:.0f} s", err=True)

    scores = leave_one_out(refit, snapshots, points, seeds, report)
    click.echo(_json([score._asdict() for score in scores]) if as_json else format_left_out(scores))


@main.command(help="Draw density, drift, noise, trajectories, learning curves and marginals. " + DATA_HELP)
@click.argument("model")
@click.argument("data")
@click.option("--time", help="Column or array with the times.")
@click.option("--weights", help="Column or array with the weight of each point: what is drawn is a sample of the points "
              "that keeps each by its weight.")
@click.option("-o", "--output", default="figures", show_default=True, help="Folder for the figures.")
@click.option("--seed", default=0, show_default=True, help="Seed of points and noise.")
def plot(model: str, data: str, time: str | None, weights: str | None, output: str, seed: int) -> None:
    with _plain_errors():
        from fpsde.plotting import save_figures

        fitted = FokkerPlanckSDE.load(model)
        snapshots = _matching(fitted, data, time, weights)
        try:
            written = save_figures(fitted, snapshots, output, seed, inputs=(model, data))
        except OSError as error:
            raise ValueError(f"{output}: cannot be written ({error.strerror or error})") from error
        click.echo("\n".join(f"Wrote {path}" for path in written))


@main.command(help="Say what a model file holds; with the DATA that it was fitted to, also what they cannot tell of noise "
              "and drift. " + DATA_HELP)
@click.argument("model")
@click.argument("data", required=False)
@click.option("--time", help="Column or array with the times.")
@click.option("--weights", help="Column or array with the weight of each point, as it was fitted to.")
@click.option("--figure", help="Draw the noise's profile into this file, png or pdf; needs DATA.")
def info(model: str, data: str | None, time: str | None, weights: str | None, figure: str | None) -> None:
    with _plain_errors():
        if figure is not None and data is None:
            raise click.UsageError("--figure draws what the data tell: give DATA as well")
        if figure is not None:
            check_writable(figure, model, data or model)
            if Path(figure).suffix.lower() not in (".png", ".pdf"):
                raise ValueError(f"{figure}: unknown format, use a name that ends in .png or .pdf")
        fitted = FokkerPlanckSDE.load(model)
        click.echo(describe(fitted))
        if data is None:
            return
        snapshots = _matching(fitted, data, time, weights)
        found = fitted.identifiability(snapshots.x, snapshots.t, snapshots.weights)
        click.echo(found)
        if figure is not None:
            from fpsde.plotting import plot_identifiability

            buffer = io.BytesIO()
            plot_identifiability(found).savefig(buffer, dpi=130, format=Path(figure).suffix[1:].lower())
            write_atomically(figure, buffer.getvalue())
            click.echo(f"Wrote {figure}")


def _read(data: str, time: str | None, features: str | None, weights: str | None, on_disk: bool = False) -> Snapshots:
    names = tuple(name.strip() for name in features.split(",")) if features else ()
    return read_snapshots(data, time, names, weights, on_disk)


def _positive(wanted: bool | list[str], snapshots: Snapshots) -> list[int]:
    """The places of positive coordinates, checked under the names of the file: the estimator gets arrays."""
    places = positive_places(wanted, snapshots.names)
    check_positive(snapshots.x, np.isin(np.arange(snapshots.dim), places), snapshots.names)
    return places


def _matching(model: FokkerPlanckSDE, path: str, time: str | None, weights: str | None = None) -> Snapshots:
    """Reads data with the model's own columns."""
    snapshots = _by_names(model, path, lambda names: read_snapshots(path, time, names, weights))
    _check_dim(model, path, snapshots.dim)
    return replace(snapshots, names=model.names_)


def _by_names(model: FokkerPlanckSDE, path: str, read: Callable[[tuple[str, ...]], Read]) -> Read:
    if Path(path).suffix.lower() != ".csv":
        return read(())
    try:
        return read(model.names_)
    except SnapshotError:
        if model.names_ != tuple(f"x{i + 1}" for i in range(model.n_features_in_)):
            raise
        # A model of arrays has made up its names: then all columns of the file are meant.
        return read(())


def _check_dim(model: FokkerPlanckSDE, path: str, dim: int) -> None:
    if dim != model.n_features_in_:
        raise SnapshotError(f"{path}: points have {dim} coordinates, the model {model.n_features_in_}")


def _parse_times(text: str) -> list[float]:
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0 or last <= first or (last - first) / step > 1e6:
                raise ValueError
            return [float(v) for v in first + step * np.arange(round((last - first) / step) + 1) if v <= last + 1e-9 * step]
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--times must be FIRST:LAST:STEP or increasing numbers with commas, got {text!r}") from None


def _json(value: Any) -> str:
    """JSON, which knows no NaN: what is not finite is null."""
    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: plain(inner) for name, inner in part.items()}
        if isinstance(part, list):
            return [plain(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), allow_nan=False)


def _write_paths(output: str, times: list[float], paths: np.ndarray, names: tuple[str, ...]) -> None:
    if Path(output).suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, times=np.array(times), paths=paths, names=np.array(names))
        write_atomically(output, buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "time", *map(as_cell, names)])
    for k, time in enumerate(times):
        for i, point in enumerate(paths[k]):
            writer.writerow([i, repr(time), *(repr(float(v)) for v in point)])
    write_atomically(output, text.getvalue().encode())
