"""How snapshots are read from files: a csv with a header, or an npz with arrays of points and times."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpsde.archive import Archive
from fpsde.snapshots import SnapshotError, Snapshots, check_finite, listed

__all__ = ["as_cell", "read_snapshots", "read_start"]

Array = NDArray[np.float64]

POINT_KEYS = ("X", "Xs", "x", "pcs", "X_pca")
TIME_KEYS = ("t", "time", "times", "dts", "day", "sample_labels", "samples")
MISSING = ("", "na", "n/a", "nan", "null", "none")
FORMULAS = ("=", "+", "-", "@")


class _Columns(NamedTuple):
    """What a file holds: points (n, d), times (n,) and weights (n,) if there are any, names of the coordinates if any."""

    x: Array
    t: Array | None
    names: tuple[str, ...] | None
    weights: Array | None


def read_snapshots(path: str | Path, time: str | None = None, features: tuple[str, ...] = (),
                   weights: str | None = None, on_disk: bool = False) -> Snapshots:
    """Reads snapshots from a csv or npz file.

    Arguments:
        path: a csv file with a header and one row a point, or an npz file with an array of points, shape (n, d) or
            (T, n, d), and an array of times, shape (n,) or (T,).
        time: the column or array with the times; found by its usual names if left out.
        features: the columns to use, all that have a name but time and weights if empty; for npz, the name of the array of
            points.
        weights: the column or array with the weights of the points; equal if left out.
        on_disk: whether points of an npz that is not packed and larger than 256 MB stay there: they can be fitted to.

    Raises:
        SnapshotError: if the file cannot be read or used.
    """
    with _reading(Path(path)):
        x, t, names, given = _read(Path(path), time, features, weights, on_disk=on_disk)
        if t is None:
            raise SnapshotError("no times; name them with --time")
        return Snapshots.of(x, t, names, given)


def read_start(path: str | Path, time: str | None = None, features: tuple[str, ...] = ()) -> Array:
    """Reads the points that paths start from: those of the first time, or all if the file holds nothing but points.

    Arguments:
        path: a csv or npz file as :func:`read_snapshots` takes it; it may hold one time only, or no times.
        time: the column or array with the times; found by its usual names if left out.
        features: the columns to use; for npz, the name of the array of points.

    Returns:
        The points, shape (n, d).

    Raises:
        SnapshotError: if the file cannot be read or used.
    """
    with _reading(Path(path)):
        x, t, names, _ = _read(Path(path), time, features, None, may_lack_times=True)
        t = np.zeros(len(x)) if t is None else t
        if x.ndim != 2 or t.shape != x.shape[:1] or not x.size:
            raise SnapshotError(f"start points must have shape (n, d) and times shape (n,), got {x.shape} and {t.shape}")
        check_finite(x, t, names or tuple(f"x{i + 1}" for i in range(x.shape[1])))
        return x[t == t.min()]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of which file an error is."""
    try:
        yield
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise SnapshotError(f"{path}: not UTF-8 text ({error.reason} {error.object[error.start]:#04x}); save it as csv "
                            "with the encoding UTF-8") from error
    except csv.Error as error:
        raise SnapshotError(f"{path}: cannot be read ({error}); check its quotes") from error
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({error})") from error


def _read(path: Path, time: str | None, features: tuple[str, ...], weights: str | None,
          may_lack_times: bool = False, on_disk: bool = False) -> _Columns:
    if not os.path.isfile(path):
        raise SnapshotError("a folder, not a file" if os.path.isdir(path) else "no such file")
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise SnapshotError(f"unknown format {path.suffix!r}, expected one of {', '.join(sorted(readers))}")
    return readers[path.suffix.lower()](path, time, features, weights, may_lack_times, on_disk)


def _read_csv(path: Path, time: str | None, features: tuple[str, ...], weights: str | None,
              may_lack_times: bool, _: bool) -> _Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        rows = [(reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()]
    header = [_name(cell) for cell in rows[0][1]] if rows else []
    if len(rows) < 2:
        raise SnapshotError("the file is empty; a header and one row for each point are needed")
    _check_header(header)
    missing = [name for name in features if name not in header]
    if missing:
        raise SnapshotError(f"no column {missing[0]!r}; the columns are {listed(header)}")
    # A column without a name is the row number that pandas writes.
    named = [name for name in header if name] or header
    only_points = time is None and not {*named} & {*TIME_KEYS} and (not features or {*features} >= {*named})
    times = () if may_lack_times and only_points else (_choose(time, header, TIME_KEYS, "column", "--time"),)
    given = () if weights is None else (_choose(weights, header, (), "column", "--weights"),)
    rest = [name for name in header if name not in (*times, *given)]
    names = features or tuple(name for name in rest if name) or tuple(rest)
    if not names:
        raise SnapshotError(f"no column beside the time {header[0]!r}")
    wanted = (*names, *times, *given)
    columns, uses = Counter(header), Counter(wanted)
    for name in wanted:
        if columns[name] > 1:
            raise SnapshotError(f"the header has {columns[name]} columns {name!r:.60}; rename them")
        if uses[name] > 1:
            raise SnapshotError(f"column {name!r:.60} is named {uses[name]} times among coordinates, time and weights; "
                                "name it once in --features, --time and --weights")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise SnapshotError(f"line {line} has {len(row)} fields, the header has {len(header)}")
    places = {name: i for i, name in enumerate(header)}
    values = {name: _numbers([(line, row[places[name]]) for line, row in rows[1:]], name, name in times) for name in wanted}
    return _Columns(np.stack([values[name] for name in names], 1), values[times[0]] if times else None, names,
                    values[given[0]] if given else None)


def as_cell(name: str) -> str:
    """Returns a name as a csv cell that no spreadsheet takes for a formula: one that could be gets an apostrophe."""
    return f"'{name}" if name.lstrip("'").startswith(FORMULAS) else name


def _name(cell: str) -> str:
    """The name that :func:`as_cell` wrote."""
    name = cell.strip()
    return name[1:] if name.startswith("'") and name.lstrip("'").startswith(FORMULAS) else name


def _check_header(header: Sequence[str]) -> None:
    """Refuses a first line that holds no names."""
    for name in header:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise SnapshotError(f"the header has a control character in {name!r:.60}; save the file with commas and the "
                                "encoding UTF-8, or rename the column")
    if len(header) == 1 and ";" in header[0]:
        raise SnapshotError("the columns are separated by ';'; save the file with commas, and numbers with a decimal point")
    # 0, 1, 2, ... are the names that pandas makes up.
    named = [name for name in header if name]
    if named and named != [str(i) for i in range(len(named))] and all(_number(name) is not None for name in named):
        raise SnapshotError(f"the first line holds numbers ({listed(named)}), not names; add a header")


def _number(cell: str) -> float | None:
    try:
        # Python's own reading of 1_000 is no number elsewhere.
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _numbers(cells: list[tuple[int, str]], name: str, time: bool) -> Array:
    """Numbers from the cells of a column, each with its line in the file."""
    values = np.full(len(cells), np.nan)
    for i, (line, cell) in enumerate(cells):
        if cell.strip().lower() not in MISSING:
            value = _number(cell)
            if value is None:
                todo = "choose the columns to use with --features"
                if time:
                    todo = "write times as numbers, such as days since the first"
                elif _number(cell.replace(",", ".")) is not None:
                    todo = "write numbers with a decimal point"
                raise SnapshotError(f"column {name!r:.60} is not numeric: line {line} has {cell!r:.60}; {todo}")
            values[i] = value
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise SnapshotError(f"column {name!r:.60} has missing or infinite values in {len(bad)} rows (lines "
                            f"{listed(cells[i][0] for i in bad)}); drop or impute them")
    return values


def _read_npz(path: Path, time: str | None, features: tuple[str, ...], weights: str | None,
              may_lack_times: bool, on_disk: bool) -> _Columns:
    if len(features) > 1:
        raise SnapshotError(f"--features names the array of points of an npz file, which is one, got {', '.join(features)}")
    with Archive(path) as archive:
        keys = archive.keys
        times = [] if may_lack_times and time is None and len(keys) == 1 else [
            _choose(time, keys, TIME_KEYS, "array", "--time")]
        given = [] if weights is None else [_choose(weights, keys, (), "array", "--weights")]
        rest = [key for key in keys if key not in (*times, *given)]
        wanted = [_choose(features[0] if features else None, rest, POINT_KEYS if times else tuple(rest), "array",
                          "--features"), *times, *given]
        arrays = {key: archive.array(key, on_disk and key == wanted[0]) for key in wanted}
    x = arrays[wanted[0]]
    t, w = (arrays[key[0]] if key else None for key in (times, given))
    if x.ndim == 3 and t is not None and t.shape == x.shape[:1]:
        w = w.reshape(-1) if w is not None and w.shape == x.shape[:2] else w
        x, t = x.reshape(x.shape[0] * x.shape[1], x.shape[2]), np.repeat(t, x.shape[1])
    return _Columns(x, t, None, w)


def _choose(wanted: str | None, present: list[str], usual: tuple[str, ...], kind: str, option: str) -> str:
    if wanted is not None:
        if wanted not in present:
            raise SnapshotError(f"no {kind} {wanted!r}; there are {listed(present) or 'none'}")
        return wanted
    found = [name for name in usual if name in present]
    if not found:
        raise SnapshotError(f"cannot tell which {kind} to use, name it with {option}; there are "
                            f"{listed(present) or 'none'}")
    return found[0]
