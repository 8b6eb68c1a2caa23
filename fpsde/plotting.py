"""Figures: snapshots with the learned density, drift and noise, trajectories, learning curves, marginals, pairs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fpsde.files import FileError, check_writable, write_atomically
from fpsde.identifiability import LOSS_AT_ENDS, Identifiability
from fpsde.metrics import halves, wasserstein
from fpsde.plane import Plane
from fpsde.snapshots import Snapshots

if TYPE_CHECKING:
    from fpsde.estimator import FokkerPlanckSDE

__all__ = ["plot_density", "plot_drift", "plot_forecast", "plot_identifiability",
           "plot_learning", "plot_marginals", "plot_pairs", "plot_trajectories", "save_figures"]

Array = NDArray[np.float64]

MAX_PANELS = 6
COLORS = "viridis"
INK = "#333333"


def plot_density(model: FokkerPlanckSDE, data: Snapshots, seed: int = 0) -> Figure:
    """Draws each snapshot with the learned density; above two dimensions, the density of its projection."""
    plane, times = Plane(data), _some(data.times)
    figure, axes = _grid(len(times))
    limits = plane.limits(*(plane.project(model.sample(1000, time, random_state=seed)) for time in times))
    for axis, time in zip(axes, times, strict=True):
        points = plane.project(_thin(data.at(time), 1500, seed))
        if data.dim == 1:
            grid = np.linspace(limits[0, 0], limits[1, 0], 300)
            observed = data.at(time)[:, 0]
            axis.hist(observed, bins=int(np.clip(2 * np.sqrt(len(observed)), 10, 60)), density=True, color="#b8c4d6")
            axis.plot(grid, np.exp(model.score_samples(grid[:, None], time)), color="#c1432e", lw=1.8)
            axis.set_xlabel(plane.labels[0])
        else:
            axis.scatter(*points.T, s=4, color="#5b7aa8", alpha=0.35, lw=0, rasterized=True)
            x, y, log_density = _density_on_grid(model, plane, time, limits, seed)
            peak = log_density.max()
            axis.contour(x, y, log_density, levels=peak + np.log([0.01, 0.05, 0.2, 0.5, 0.8]), colors="#c1432e",
                         linewidths=0.9, linestyles="solid")
            axis.set(xlim=limits[:, 0], ylim=limits[:, 1])
        axis.set_title(f"t = {time:g}", fontsize=10)
    _label_outer(figure, axes, plane)
    figure.suptitle("Snapshots (points) and learned density (contours at 1, 5, 20, 50, 80 % of the peak)"
                    if data.dim > 1 else "Snapshots (histogram) and learned density (line)", fontsize=11)
    return figure


def plot_drift(model: FokkerPlanckSDE, data: Snapshots, seed: int = 0) -> Figure:
    """Draws the drift as arrows coloured by speed, and the noise level, where the density is."""
    plane = Plane(data)
    times = data.times[[len(data.times) // 2]] if model.sde_.autonomous else _some(data.times, 3)
    figure, axes = _grid(2 * len(times), columns=2, width=4.6)
    for k, time in enumerate(times):
        x = data.x if model.sde_.autonomous else data.at(time)
        x = _spread_out(x, plane, 350, seed)
        f, g = model.drift(x, time), model.diffusion(x, time)
        left, right = axes[2 * k], axes[2 * k + 1]
        noise = (g / data.x.std(0)).mean(1)
        if data.dim == 1:
            order = np.argsort(x[:, 0])
            left.plot(x[order, 0], f[order, 0], color="#c1432e", lw=1.8)
            left.axhline(0, color="#999999", lw=0.7)
            right.plot(x[order, 0], g[order, 0], color="#c1432e", lw=1.8)
            right.set_ylim(0, 1.3 * g.max())
            left.set(xlabel=plane.labels[0], ylabel="drift")
            right.set(xlabel=plane.labels[0], ylabel="noise level")
        else:
            points, arrows = plane.project(x), plane.project_vectors(f)
            speed = np.linalg.norm(arrows, axis=1)
            quiver = left.quiver(*points.T, *(arrows / np.sqrt(speed * np.median(speed) + 1e-30)[:, None]).T, speed,
                                 cmap=COLORS, angles="xy", width=0.004)
            figure.colorbar(quiver, ax=left, label="speed")
            dots = right.scatter(*points.T, c=noise, s=14, cmap="magma", norm=Normalize(0, 1.05 * noise.max()))
            figure.colorbar(dots, ax=right, label="g / standard deviation, mean over coordinates")
            for axis in (left, right):
                axis.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
        when = "" if model.sde_.autonomous else f" at t = {time:g}"
        left.set_title(f"Drift{when}", fontsize=10)
        right.set_title(f"Noise level{when}", fontsize=10)
    return figure


def plot_pairs(model: FokkerPlanckSDE, data: Snapshots, seed: int = 0) -> Figure:
    """Draws snapshots and learned density along every pair of the first four principal directions, above two dimensions."""
    k = min(data.dim, 4)
    plane, times = Plane(data, k), _some(data.times, 3)
    colors = colormaps[COLORS](np.linspace(0, 0.85, len(times)))
    observed = [plane.project(_thin(data.at(time), 600, seed)) for time in times]
    drawn = [plane.project(model.sample(2000, time, random_state=seed)) for time in times]
    limits = plane.limits(*drawn)
    figure = _figure(2.5 * (k - 1) + 0.6, 2.5 * (k - 1) + 0.6)
    grid = figure.subplots(k - 1, k - 1, squeeze=False, sharex="col", sharey="row").tolist()
    for row, column in np.ndindex(k - 1, k - 1):
        axis, pair = grid[row][column], [column, row + 1]
        if column > row:
            axis.remove()
            continue
        for points, samples, color in zip(observed, drawn, colors, strict=True):
            axis.scatter(*points[:, pair].T, s=4, color=color, alpha=0.3, lw=0, rasterized=True)
            x, y, log_density = _smoothed(samples[:, pair], limits[:, pair], 60)
            axis.contour(x, y, log_density, levels=log_density.max() + np.log([0.05, 0.5]), colors=[color],
                         linewidths=[0.8, 1.6], linestyles="solid")
        axis.set(xlim=limits[:, pair[0]], ylim=limits[:, pair[1]])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for i in range(k - 1):
        grid[-1][i].set_xlabel(plane.labels[i], fontsize=9)
        grid[i][0].set_ylabel(plane.labels[i + 1], fontsize=9)
    for time, color in zip(times, colors, strict=True):
        grid[0][0].plot([], [], color=color, lw=1.6, label=f"t = {time:g}")
    figure.legend(loc="upper right", bbox_to_anchor=(0.98, 0.92), fontsize=9, frameon=False)
    figure.suptitle("Snapshots (points) and learned density\n(contours at 5 and 50 % of the peak)", fontsize=11)
    return figure


def plot_trajectories(model: FokkerPlanckSDE, data: Snapshots, seed: int = 0, n_paths: int = 40) -> Figure:
    """Draws simulated trajectories over the snapshots."""
    plane, times = Plane(data), data.times
    start = _thin(data.at(times[0]), n_paths, seed)
    fine = np.linspace(times[0], times[-1], 121)
    paths = plane.project(model.simulate(start, fine, random_state=seed))
    figure = _figure(6.4, 4.8)
    axis = figure.add_subplot()
    if data.dim == 1:
        axis.scatter(data.t, data.x[:, 0], c=data.t, cmap=COLORS, s=5, alpha=0.4, lw=0)
        axis.plot(fine, paths[:, :, 0], color=INK, lw=0.6, alpha=0.7)
        axis.set(xlabel="time", ylabel=plane.labels[0])
    else:
        points = plane.project(data.x)
        keep = np.random.default_rng(seed).permutation(len(points))[:6000]
        dots = axis.scatter(points[keep, 0], points[keep, 1], c=data.t[keep], cmap=COLORS, s=6, alpha=0.45, lw=0,
                            rasterized=True)
        figure.colorbar(dots, ax=axis, label="time of the snapshot")
        for i in range(paths.shape[1]):
            axis.plot(*paths[:, i].T, color=INK, lw=0.6, alpha=0.6)
        axis.scatter(paths[0, :, 0], paths[0, :, 1], s=14, color="white", edgecolor=INK, lw=0.8, zorder=3)
        limits = plane.limits()
        axis.set(xlabel=plane.labels[0], ylabel=plane.labels[1], xlim=limits[:, 0], ylim=limits[:, 1])
    axis.set_title(f"{paths.shape[1]} simulated trajectories over the snapshots", fontsize=11)
    return figure


def plot_learning(model: FokkerPlanckSDE) -> Figure:
    """Draws likelihood, residual and noise level against the training step."""
    curves = (("likelihood", "log-likelihood per point", "linear"), ("residual", "mean squared residual", "log"),
              ("noise", "noise level (dimensionless)", "linear"))
    figure, axes = _grid(3, width=3.6)
    for axis, (name, label, scale) in zip(axes, curves, strict=True):
        # Each phase of a fit reports what it changes.
        steps, values = np.array([(row["step"], row[name]) for row in model.history_ if name in row]).reshape(-1, 2).T
        axis.plot(steps, values, color="#c1432e", lw=0.7 if name == "likelihood" else 1.3)
        if name == "likelihood" and len(values) > 20:
            # A batch is a noisy sample of the points; the mean of ten shows where it goes.
            axis.plot(steps[9:], np.convolve(values, np.full(10, 0.1), "valid"), color=INK, lw=1.6)
        axis.set(xlabel="step", ylabel=label, yscale=scale)
        axis.tick_params(which="both", labelsize=8)
    return figure


def plot_marginals(model: FokkerPlanckSDE, data: Snapshots, seed: int = 0) -> Figure:
    """Draws predicted against observed marginals of every coordinate, each snapshot predicted from the one before."""
    times = data.times
    shown = _some(times[1:])
    coordinates = range(min(data.dim, 4))
    figure, axes = _grid(len(shown) * len(coordinates), columns=len(shown), width=2.5, height=2.1)
    for column, time in enumerate(shown):
        before = times[np.searchsorted(times, time) - 1]
        observed = data.at(time)
        predicted = model.push(_thin(data.at(before), 2000, seed), before, time, random_state=seed)
        for i in coordinates:
            axis = axes[i * len(shown) + column]
            low, high = np.quantile(np.concatenate([observed[:, i], predicted[:, i]]), [0.002, 0.998])
            bins = np.linspace(low, high, 36)
            axis.hist(observed[:, i], bins=bins, density=True, color="#b8c4d6", label="observed")
            axis.hist(predicted[:, i], bins=bins, density=True, histtype="step", color="#c1432e", lw=1.4,
                      label="predicted")
            distance, floor = _marginal_distances(observed[:, [i]], predicted[:, [i]], seed)
            axis.set_yticks([])
            axis.set_title(f"t = {time:g}, $W_1$ {distance:.2g} (floor {floor:.2g})", fontsize=8)
            axis.set_xlabel(data.names[i], fontsize=8)
            axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("Each snapshot predicted from the one before (floor: $W_1$ of two halves of the snapshot)", fontsize=11)
    return figure


def plot_forecast(model: FokkerPlanckSDE, X0: Array, times: Array, data: Snapshots | None = None, level: float = 0.9,
                  seed: int = 0) -> Figure:
    """Draws the band of the mean of the first six coordinates, with the means of the snapshots as dots.

    Arguments:
        model: fitted with three members or more.
        X0: points at times[0], shape (n, d).
        times: increasing times, shape (k,).
        data: the snapshots, those after the fit too; no dots if left out.
        level: of the band.
        seed: of resamples and noise.

    Raises:
        ValueError: if the model has too few members, or an argument cannot be used.
    """
    found, last = model.forecast(X0, times, level, seed), model.times_[-1]
    shown = min(model.n_features_in_, MAX_PANELS)
    figure, axes = _grid(shown, width=3.6)
    for i, axis in enumerate(axes):
        axis.fill_between(found.times, found.low[:, i], found.high[:, i], color="#b8c4d6", alpha=0.7, lw=0,
                          label=f"{100 * level:g} % band")
        axis.plot(found.times, found.mean[:, i], color="#c1432e", lw=1.6, label="mean of members")
        if data is not None:
            means = [np.average(data.x[data.t == t, i], weights=None if data.weights is None else data.weights[data.t == t])
                     for t in data.times]
            fitted = np.isin(data.times, model.times_)
            for chosen, face, label in ((fitted, INK, "snapshots fitted"), (~fitted, "white", "others")):
                if chosen.any():
                    axis.scatter(data.times[chosen], np.array(means)[chosen], s=18, color=face, edgecolor=INK, lw=0.9,
                                 zorder=3, label=label)
        if found.times[-1] > last:
            axis.axvline(last, color=INK, lw=0.8, ls="--", label="end of the data fitted")
        axis.set(xlabel="time", ylabel=f"mean of {model.names_[i]}")
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("Forecast of the population's mean", fontsize=11)
    return figure


def plot_identifiability(found: Identifiability) -> Figure:
    """Draws how much worse the snapshots are explained as the noise is scaled, what fixes the drift, and how well."""
    # Of a drift that is free in time nothing is known place by place.
    widths = [1.8, 1, 1] if found.autonomous else [1.8, 1]
    figure = _figure(2.75 * sum(widths), 3.4)
    left, right, *last = figure.subplots(1, len(widths), width_ratios=widths)
    left.set_xscale("log", base=2)
    left.plot(found.scales, found.worse, color="#c1432e", lw=0 if found.autonomous else 1.8, marker="o", ms=3.5)
    if found.autonomous:
        # Between the scales that were tried the loss is close to a parabola in the logarithm.
        fine = np.geomspace(found.scales[0], found.scales[-1], 801)
        side = np.where(found.scales < found.scales[found.worse.argmin()], -1, 1)
        loss = np.interp(np.log(fine), np.log(found.scales), side * np.sqrt(found.worse)) ** 2
        left.plot(fine, loss, color="#c1432e", lw=1.8)
        left.axhline(LOSS_AT_ENDS, color=INK, lw=0.8, ls="--")
        left.axvspan(*found.noise_interval, color="#b8c4d6", alpha=0.5, lw=0)
        left.set(ylim=(-0.3, 12), ylabel="growth of half the misfit")
        left.text(4, LOSS_AT_ENDS + 0.2, "95 %", fontsize=8, ha="right", color=INK)
    else:
        left.set(ylim=(0, max(0.1, 1.2 * float(found.worse.max()))), ylabel="missed share of the path's velocity")
    left.set(xlabel="noise, multiples of the fitted level", xticks=[0.25, 0.5, 1, 2, 4],
             xticklabels=["1/4", "1/2", "1", "2", "4"])
    left.set_title("How well other noise explains the snapshots")
    told = "not fixed" if not found.autonomous else "by the assumption" if found.turning_known else "turns are not fixed"
    share = 100 * found.gradient_share
    _two_bars(right, [share, 100 - share], ["gradient:\neach snapshot", f"circulation:\n{told}"], ["", ""])
    right.set(ylabel="% of the drift's mean square", title="What fixes the drift")
    for axis in last:
        errors = [100 * found.drift_error, 100 * found.noise_error]
        known = [f"{error:.2g} %" if error < 100 else "not known" for error in errors]
        if found.noise_given:
            known[1] = "given"
        _two_bars(axis, [min(error, 100) for error in errors], ["drift", "noise"], known)
        axis.set(ylabel="standard error, % of its size", title="Known place by place")
    for axis in (left, right, *last):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(10)
    return figure


def _two_bars(axis: Axes, heights: Sequence[float], names: list[str], labels: list[str]) -> None:
    axis.bar_label(axis.bar([0, 1], heights, color=["#5b7aa8", "#c1432e"], width=0.55), labels, fontsize=8, padding=2)
    axis.set_ylim(0, 108)
    axis.set_xticks([0, 1], names)


def save_figures(model: FokkerPlanckSDE, data: Snapshots, folder: str | Path, seed: int = 0,
                 inputs: Sequence[str | Path] = ()) -> list[Path]:
    """Writes all figures as png files and returns their paths.

    Arguments:
        model: a fitted model.
        data: what it was fitted to, or other snapshots of as many coordinates; of unequal weights, a thinned sample is
            drawn.
        folder: where to write; made if it is not there.
        seed: of points and noise.
        inputs: files that are read, which no figure must replace.

    Raises:
        FileError: if a figure cannot be written; most reasons are found before any is drawn.
        SnapshotError: if weights are so uneven that a sample in proportion to them has fewer than three points at a time.
    """
    folder, data = Path(folder), data.thinned(np.random.default_rng(seed))
    figures: dict[str, Callable[[], Figure]] = {
        "density": lambda: plot_density(model, data, seed), "drift": lambda: plot_drift(model, data, seed),
        "trajectories": lambda: plot_trajectories(model, data, seed), "learning": lambda: plot_learning(model),
        "marginals": lambda: plot_marginals(model, data, seed)}
    if data.dim > 2:
        figures["pairs"] = lambda: plot_pairs(model, data, seed)
    _check_folder(folder, list(figures), inputs)
    drawn = {folder / f"{name}.png": _png(draw()) for name, draw in figures.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in drawn.items():
        write_atomically(path, content)
    return list(drawn)


def _check_folder(folder: Path, names: list[str], inputs: Sequence[str | Path]) -> None:
    """Finds out before the work, not after it, that figures cannot be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise FileError(f"{folder}: cannot be written ({there} is no folder)")
    for name in names if there == folder else []:
        check_writable(folder / f"{name}.png", *inputs)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()


def _density_on_grid(model: FokkerPlanckSDE, plane: Plane, time: float, limits: Array,
                     seed: int) -> tuple[Array, Array, Array]:
    """The log density on a grid of the plane; above 2-D that of a mixture fitted to projected draws."""
    if plane.dim > 2:
        return _smoothed(plane.project(model.sample(4000, time, random_state=seed)), limits, 90)
    x, y = np.meshgrid(*(np.linspace(low, high, 90) for low, high in limits.T))
    return x, y, model.score_samples(np.stack([x.ravel(), y.ravel()], 1), time).reshape(x.shape)


def _marginal_distances(observed: Array, predicted: Array, seed: int) -> tuple[float, float]:
    """W1 between as many points as half the snapshot has, shapes (n, 1) and (m, 1), and that of its two halves."""
    rng = np.random.default_rng(seed)
    first, second = halves(observed, len(observed) // 2, rng)
    n = min(len(first), len(predicted))
    return wasserstein(first, predicted[rng.permutation(len(predicted))[:n]]), wasserstein(first, second)


def _smoothed(points: Array, limits: Array, size: int) -> tuple[Array, Array, Array]:
    """The log density of points in a plane, (n, 2), on a grid within limits, by kernels."""
    from scipy.stats import gaussian_kde

    x, y = np.meshgrid(*(np.linspace(low, high, size) for low, high in limits.T))
    return x, y, np.log(gaussian_kde(points.T)(np.stack([x.ravel(), y.ravel()])) + 1e-300).reshape(x.shape)


def _some(times: Array, most: int = MAX_PANELS) -> Array:
    return times if len(times) <= most else times[np.linspace(0, len(times) - 1, most).round().astype(int)]


def _thin(x: Array, n: int, seed: int) -> Array:
    return x if len(x) <= n else x[np.random.default_rng(seed).choice(len(x), n, replace=False)]


def _spread_out(x: Array, plane: Plane, n: int, seed: int) -> Array:
    """About n points that cover the plane evenly: at most one for each cell of a grid."""
    x = _thin(x, 20_000, seed)
    points, (low, high) = plane.project(x), plane.limits()
    side = n if points.shape[1] == 1 else round(np.sqrt(1.6 * n))
    inside = ((points >= low) & (points <= high)).all(1)
    cells = ((points - low) / (high - low) * side).astype(int)
    x, cells = x[inside], cells[inside]
    return x[np.unique(cells, axis=0, return_index=True)[1]]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(n: int, columns: int | None = None, width: float = 3.0, height: float | None = None) -> tuple[Figure, list]:
    columns = columns or min(n, 3)
    rows = -(-n // columns)
    figure = _figure(width * columns, (height or 0.85 * width) * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[n:]:
        axis.remove()
    for axis in axes[:n]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes[:n]


def _label_outer(figure: Figure, axes: list, plane: Plane) -> None:
    if plane.dim > 1:
        figure.supxlabel(plane.labels[0], fontsize=9)
        figure.supylabel(plane.labels[1], fontsize=9)
