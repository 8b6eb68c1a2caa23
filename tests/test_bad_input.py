"""Every row of docs/input.md, tried: what is given either works and is right, or is refused in the sentence of that row."""

import datetime
import io
import json
import re
import struct
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from click.testing import CliRunner
from problems import set_entry
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fpsde import FokkerPlanckSDE, HollowNet, Snapshots, estimator, read_snapshots
from fpsde.cli import main
from fpsde.files import digest
from fpsde.projection import ReadoutSolver
from fpsde.reading import read_start

TABLE = Path(__file__).parents[1] / "docs" / "input.md"
QUICK = {"n_components": 2, "max_steps": 2, "hidden": (4,), "random_state": 0, "device": "cpu"}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 2)).round(2)
T = np.repeat([0.0, 0.5, 2.0], 10)
ROWS = [f"{t},{a},{b}" for t, (a, b) in zip(T, X, strict=True)]
CSV = "\n".join(["day,a,b", *ROWS]) + "\n"
DATES = np.repeat(np.array(["2020-01-01", "2020-01-02", "2020-01-05"], dtype="M8[D]"), 10)
MASKED = np.ma.masked_equal(np.where(X[3, 1] == X, 9.0, X), 9.0)


# --- files --------------------------------------------------------------------------------------------------------------------

def csv(change=lambda text: text, *, encoding="utf-8", options=(), name="data.csv", right=None):
    """A csv file, refused by `fpsde fit` or read to the points that are right."""
    def file(folder):
        content = change(CSV)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return folder / name
    return Given(file, options, right)


def npz(options=(), right=None, damage=lambda content: content, write=np.savez, name="data.npz", **arrays):
    """An npz file, refused by `fpsde fit` or read to the points that are right."""
    def file(folder):
        out = io.BytesIO()
        write(out, **arrays)
        (folder / name).write_bytes(damage(out.getvalue()))
        return folder / name
    return Given(file, options, right)


class Given:
    """A file with snapshots."""

    def __init__(self, file, options, right):
        self.file, self.options, self.right = file, options, right

    def __call__(self, folder, model):
        path = self.file(folder)
        if self.right is not None:
            options = dict(zip(self.options[::2], self.options[1::2], strict=True))
            data = read_snapshots(path, options.get("--time"), tuple(filter(None, options.get("--features", "").split(","))))
            x, t = self.right
            assert np.array_equal(data.x, x)
            assert np.array_equal(data.t, t)
            return None
        return command("fit", path, *self.options, "-o", folder / "m.fpsde", "--steps", 1, "--quiet")


def command(*arguments):
    """Runs the command line; returns the one line that says what is wrong."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    line, = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


def header(part, text):
    """An npz whose first array has another header of the same length."""
    place = part.index(b"{'descr'")
    return part[:place] + text.ljust(part.index(b"\n", place) - place).encode() + part[part.index(b"\n", place):]


def first_entry(change):
    """Changes the bytes of the first array and keeps the archive whole."""
    def damage(content):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for k, name in enumerate(old.namelist()):
                new.writestr(name, old.read(name) if k else change(old.read(name)))
        return out.getvalue()
    return damage


def encrypted(content):
    """Sets the flag that says so, in both places."""
    parts = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = parts.find(mark)
        while place >= 0:
            parts[place + offset] |= 1
            place = parts.find(mark, place + 1)
    return bytes(parts)


def bomb(content):
    """An array of zeros in a file of a thousandth of its size."""
    out, text = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "<f8", "fortran_order": False, "shape": (20 * 2**20, 2)})
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("t.npy", b"")
        with file.open("X.npy", "w", force_zip64=True) as entry:
            entry.write(text.getvalue())
            for _ in range(20):
                entry.write(bytes(2**24))
    return out.getvalue()


def bzipped(content):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def missing(folder, model):
    return command("fit", folder / "none.csv")


def a_folder(folder, model):
    (folder / "data.csv").mkdir()
    return command("fit", folder / "data.csv")


GOOD = (X, T)
FILES = {
    "no file": missing,
    "a folder": a_folder,
    "another format": csv(name="data.xlsx"),
    "an ending in capitals": csv(name="DATA.CSV", right=GOOD),
    "an empty file": csv(lambda text: ""),
    "a header alone": csv(lambda text: "day,a,b\n"),
    "lines that are blank": csv(lambda text: text.replace("\n", "\n\n"), right=GOOD),
    "line ends of other systems": csv(lambda text: text.replace("\n", "\r\n"), right=GOOD),
    "the mark that Excel puts first": csv(encoding="utf-8-sig", right=GOOD),
    "names in Latin-1": csv(lambda text: text.replace("a,b", "ä,b"), encoding="latin-1"),
    "UTF-16": csv(encoding="utf-16"),
    "UTF-16 without its mark": csv(encoding="utf-16-le"),
    "bytes at random": csv(lambda text: bytes(range(256)) * 8),
    "semicolons": csv(lambda text: text.replace(",", ";")),
    "tabs": csv(lambda text: text.replace(",", "\t")),
    "a decimal comma": csv(lambda text: text + '2,"1,5",1\n'),
    "no header": csv(lambda text: "\n".join(ROWS)),
    "columns that pandas numbered": csv(lambda text: "\n".join(["0,1,2", *ROWS]), options=("--time", "0"), right=GOOD),
    "the row numbers that pandas writes": csv(
        lambda text: "\n".join([",day,a,b", *(f"{i},{row}" for i, row in enumerate(ROWS))]), right=GOOD),
    "spaces around names and numbers": csv(lambda text: text.replace(",", " , "), right=GOOD),
    "quoted cells": csv(lambda text: "\n".join(f'"{line}"'.replace(",", '","') for line in text.splitlines()), right=GOOD),
    "a quote that is never closed": csv(lambda text: text.replace("day,a", 'day,"a', 1)),
    "a cell of a megabyte": csv(lambda text: text + "2," + "1" * 2**20 + ",1\n"),
    "two columns of one name": csv(lambda text: text.replace("a,b", "a,a")),
    "no column of that name": csv(options=("--time", "hour")),
    "no column with the times": csv(lambda text: text.replace("day", "zeit")),
    "the time among the features": csv(options=("--features", "day,a")),
    "a feature that is not there": csv(options=("--features", "a,c")),
    "nothing but times": csv(lambda text: "day\n0\n1\n"),
    "a row with a field too few": csv(lambda text: text + "2,1\n"),
    "a row with a field too many": csv(lambda text: text + "2,1,1,1\n"),
    "an empty cell": csv(lambda text: text + "2,,1\n"),
    "NA, null and None": csv(lambda text: text + "2,NA,1\n2,null,1\n2,None,1\n"),
    "inf": csv(lambda text: text + "2,inf,1\n"),
    "a number beyond floating point": csv(lambda text: text + "2,1e400,1\n"),
    "a word among numbers": csv(lambda text: text + "2,x,1\n"),
    "a word of a megabyte": csv(lambda text: text.replace("day,a", "day,c", 1) + "2," + "x" * 100_000 + ",1\n"),
    "a column of words": csv(lambda text: "\n".join(["day,a,b,kind", *(f"{row},cell" for row in ROWS)]),
                             options=("--features", "a,b"), right=GOOD),
    "1_000, which Python takes for 1000": csv(lambda text: text + "2,1_000,1\n"),
    "dates as times": csv(lambda text: text + "2020-01-01,1,1\n"),
    "times of words": csv(lambda text: text + "day 3,1,1\n"),
    "a control character in a name": csv(lambda text: text.replace("day,a", "day,a\x1b[31m")),
    "an npz that is none": npz(damage=lambda content: b"no archive", X=X, t=T),
    "an npz cut short": npz(damage=lambda content: content[:-60], X=X, t=T),
    "a changed byte in an npz": npz(damage=lambda content: content.replace(X.tobytes()[:64], bytes(64)), X=X, t=T),
    "an array that lies about its shape": npz(damage=first_entry(lambda part: header(
        part, "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 2)}")), X=X, t=T),
    "a header of an array that is code": npz(damage=first_entry(lambda part: header(
        part, "{'descr': __import__('os').getcwd(), 'shape': (30, 2)}")), X=X, t=T),
    "an archive that unpacks to a thousand times its size": npz(damage=bomb, X=X),
    "an encrypted archive": npz(damage=encrypted, X=X, t=T),
    "another way to pack": npz(damage=bzipped, X=X, t=T, right=GOOD),
    "objects, which would run code": npz(X=np.array([{}] * 30, dtype=object), t=T),
    "words in an array": npz(X=X.astype(str), t=T),
    "dates in an array": npz(X=X, t=DATES),
    "complex numbers in an array": npz(X=X + 1j, t=T),
    "no array of a usual name": npz(a=X, b=T),
    "points and times of unlike length": npz(X=X, t=T[:5]),
    "an array with three axes": npz(X=X.reshape(3, 10, 2), t=T[::10], right=GOOD),
    "an array with four axes": npz(X=X.reshape(3, 2, 5, 2), t=T[::10]),
    "an array without points": npz(X=np.zeros((3, 0, 0)), t=T[::10]),
    "an array whose name has a line break": npz(**{"a\nb": X, "c": T}),
    "one number": npz(X=np.float64(3), t=T),
    "numbers of 16 bits": npz(X=X.astype(np.float16), t=T, right=(X.astype(np.float16).astype(float), T)),
    "numbers of another machine": npz(X=X.astype(">f8"), t=T.astype(">f4"), right=GOOD),
    "columns first in memory": npz(X=np.asfortranarray(X), t=T, right=GOOD),
    "several features of an npz": npz(options=("--features", "X,t"), X=X, t=T),
}


# --- arrays -------------------------------------------------------------------------------------------------------------------

class Reached(Exception):
    """Raised in place of a fit, with the snapshots that it would have had."""


def fit(x=X, t=T, w=None, right=None, **settings):
    """Arguments of `fit`: refused, or right if the snapshots that a fit gets are those."""
    def run(folder, model):
        def stop(data, *_):
            raise Reached(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimator, "identify", stop)
            try:
                FokkerPlanckSDE(**{**QUICK, **settings}).fit(x, t, w)
            except Reached as reached:
                data, = reached.args
                expected = Snapshots.of(*right)
                assert np.array_equal(data.x, expected.x)
                assert np.array_equal(data.t, expected.t)
                return
        raise AssertionError("nothing was fitted")
    return run


def fitted(x, t=T, same=None, **settings):
    """A whole fit: finite, and the drift's own if that is given as (points, factor) for a fit to other units."""
    def run(folder, model):
        new = FokkerPlanckSDE(**{**QUICK, **settings}).fit(x, t)
        f = new.drift(x, t)
        assert np.isfinite(f).all()
        assert np.isfinite(new.score_samples(x, t)).all()
        assert np.isfinite(new.simulate(x[:3], np.unique(t)[:2], random_state=0)).all()
        if same is not None:
            points, factor = same
            other = FokkerPlanckSDE(**{**QUICK, **settings}).fit(points, t)
            assert np.allclose(f / factor, other.drift(points, t), rtol=1e-3, atol=1e-3)
    return run


def nan_at(row, column, value=np.nan):
    x = X.copy()
    x[row, column] = value
    return x


def mapped(x):
    with tempfile.TemporaryFile() as file:
        on_disk = np.memmap(file, x.dtype, shape=x.shape)
    on_disk[:] = x
    return on_disk


WIDE = RNG.normal(size=(9, 5))
ARRAYS = {
    "lists": fit(X.tolist(), T.tolist(), right=GOOD),
    "float16": fit(X.astype(np.float16), right=(X.astype(np.float16), T)),
    "float32": fit(X.astype(np.float32), right=(X.astype(np.float32), T)),
    "whole numbers": fit((X * 100).astype(np.int8), right=((X * 100).astype(np.int8), T)),
    "a memory map": fit(mapped(X), right=GOOD),
    "bool": fit(X > 0, right=(X > 0, T)),
    "objects that are numbers": fit(X.astype(object), right=GOOD),
    "words that are numbers": fit(X.astype(str), T.astype(str), right=GOOD),
    "a tensor that needs a gradient": fit(torch.tensor(X, requires_grad=True), right=GOOD),
    "a tensor in bfloat16": fit(torch.tensor(X).bfloat16(), right=(torch.tensor(X).bfloat16().double(), T)),
    "a DataFrame and a Series with another index": fit(pd.DataFrame(X, columns=["a", "b"]), pd.Series(T, index=range(30, 0, -1)),
                                                       right=GOOD),
    "times as categories": fit(X, pd.Series(pd.Categorical(T)), right=GOOD),
    "times unsorted": fit(X[::-1], T[::-1], right=(X[::-1], T[::-1])),
    "negative times": fit(X, T - 10, right=(X, T - 10)),
    "times as whole numbers": fit(X, (T * 2).astype(int), right=(X, T * 2)),
    "duplicated points": fit(np.tile(X[:5], (6, 1)), right=(np.tile(X[:5], (6, 1)), T)),
    "longdouble beyond floating point": fit(X.astype(np.longdouble) * np.longdouble("1e400")),
    "NaN": fit(nan_at(3, 1)),
    "infinity": fit(nan_at(3, 1, -np.inf)),
    "None among objects": fit(nan_at(3, 1).astype(object)),
    "masked entries": fit(MASKED),
    "masked times": fit(X, np.ma.masked_equal(T, 0.5)),
    "pd.NA": fit(pd.DataFrame({"a": X[:, 0], "b": pd.Series([None] * 30, dtype="Int64")})),
    "complex numbers": fit(X + 1j),
    "words": fit(np.full((30, 2), "a")),
    "a column of words in a DataFrame": fit(pd.DataFrame({"a": X[:, 0], "b": ["x"] * 30})),
    "a dict": fit({"X": X}),
    "a sparse matrix": fit(scipy.sparse.csr_matrix(X)),
    "a sparse tensor": fit(torch.tensor(X).to_sparse()),
    "rows of unlike length": fit([[1, 2], [3]], [0, 1]),
    "one axis": fit(X[:, 0]),
    "three axes": fit(X[None]),
    "no points": fit(np.zeros((0, 2)), np.zeros(0)),
    "no coordinates": fit(np.zeros((30, 0))),
    "no times": fit(X, None),
    "times of another length": fit(X, T[:5]),
    "two columns of times": fit(X, np.stack([T, T], 1)),
    "NaN among times": fit(X, np.where(T == 0.5, np.nan, T)),
    "dates": fit(X, DATES),
    "lengths of time": fit(X, DATES - DATES[0]),
    "Timestamps with a zone": fit(X, pd.Series(pd.to_datetime(DATES)).dt.tz_localize("UTC")),
    "datetime.date": fit(X, [datetime.date(2020, 1, 1 + int(2 * t)) for t in T]),
    "words as times": fit(X, np.repeat(["mon", "tue", "wed"], 10)),
    "one time only": fit(X, np.zeros(30)),
    "one point at a time": fit(X, np.arange(30.0)),
    "times that nearly coincide": fit(X, np.repeat([0, 1e-9, 1], 10)),
    "a constant coordinate": fit(np.c_[X, np.ones(30)]),
    "a coordinate that varies by less than round-off": fit(X + 1e15),
    "values beyond 1e30": fit(X * 1e32),
    "values that vary by less than 1e-60": fit(X * 1e-200),
    "times beyond 1e30": fit(X, T * 1e31),
    "a weight below zero": fit(X, T, np.where(np.arange(30) == 3, -1, 1)),
    "weights of another shape": fit(X, T, np.ones((30, 1))),
    "weights of words": fit(X, T, ["heavy"] * 30),
    "no weight at a time": fit(X, T, np.where(T == 0.5, 0, 1)),
    "weights over 600 decades": fit(X, T, np.where(np.arange(30) % 2, 1e300, 1e-300),
                                    right=(X, T, None, np.where(np.arange(30) % 2, 1e300, 1e-300))),
    "a point at zero that is said to be positive": fit(np.abs(nan_at(3, 1, 0.0)), positive=True),
    "a gradient of coordinates in unlike units": fit(X * [1e-20, 1e20], drift="gradient"),
    "hidden layers of no width": fit(hidden=(0,)),
    "hidden layers as a number": fit(hidden=8),
    "a share of words": fit(validation_fraction="a"),
    "positive as a number": fit(positive=5),
    "an unknown conditioner": fit(conditioner=["masked"]),
    "noise of NaN": fit(diffusion=np.nan),
    "a fraction of a step": fit(max_steps=2.5),
    "True members": fit(n_members=True),
    "a negative seed": fit(random_state=-1),
    "a scale of 2**-99, about 1e-30": fitted(X * 2.0**-99, same=(X, 2.0**-99)),
    "a scale of 2**96, about 1e29": fitted(X * 2.0**96, same=(X, 2.0**96)),
    "scales from 2**-99 to 2**96": fitted(X * [2.0**-99, 2.0**96], same=(X, [2.0**-99, 2.0**96])),
    "far from zero": fitted(X + 2.0**20, same=(X, 1)),
    "a coordinate twice": fitted(np.c_[X, X[:, :1]]),
    "a coordinate that is the sum of others": fitted(np.c_[X, X.sum(1)]),
    "a coordinate that is the time": fitted(np.c_[X[:, :1], T]),
    "all points of a time in one place": fitted(np.repeat(X[:3], 10, 0)),
    "fewer points than coordinates": fitted(WIDE, np.repeat([0.0, 1.0, 2.0], 3)),
    "one coordinate": fitted(X[:, :1]),
    "three points at a time": fitted(X[:9], np.repeat([0.0, 1.0, 2.0], 3)),
}


# --- methods of a fitted model ------------------------------------------------------------------------------------------------

def call(function, check=None):
    def run(folder, model):
        result = function(model)
        if check is None:
            raise AssertionError(f"it returned {result!r:.100}")
        assert check(result, model)
    return run


@pytest.fixture(scope="module")
def model():
    return FokkerPlanckSDE(**QUICK).fit(pd.DataFrame(X, columns=["a", "b"]), T)


def frame(x, names=("a", "b")):
    return pd.DataFrame(x, columns=list(names))


METHODS = {
    "drift of another number of coordinates": call(lambda m: m.drift(X[:, :1], 0.0)),
    "drift of one axis": call(lambda m: m.drift(X[0], 0.0)),
    "drift of columns in another order": call(lambda m: m.drift(frame(X, "ba"), 0.0)),
    "drift of no points": call(lambda m: m.drift(frame(np.zeros((0, 2))), 0.0)),
    "drift of NaN": call(lambda m: m.drift(frame(nan_at(3, 1)), T)),
    "drift at times of another length": call(lambda m: m.drift(frame(X), [0.0, 1.0])),
    "drift at NaN": call(lambda m: m.drift(frame(X), np.nan)),
    "drift at a date": call(lambda m: m.drift(frame(X), DATES)),
    "drift at a word": call(lambda m: m.drift(frame(X), "now")),
    "drift at no time": call(lambda m: m.drift(frame(X), None)),
    "diffusion of a sparse matrix": call(lambda m: m.diffusion(scipy.sparse.csr_matrix(X), 0.0)),
    "density of other data, far away": call(lambda m: m.score_samples(frame(X * 1e200), 0.0),
                                            lambda p, m: (p == -np.inf).all()),
    "density of points of float32": call(lambda m: m.score_samples(frame(X.astype(np.float32)), 0.0),
                                         lambda p, m: np.allclose(p, m.score_samples(frame(X), 0.0), atol=1e-4)),
    "score with weights below zero": call(lambda m: m.score(frame(X), T, -np.ones(30))),
    "sample of no points": call(lambda m: m.sample(0, 0.5)),
    "sample of a fraction": call(lambda m: m.sample(2.5, 0.5)),
    "sample of a word": call(lambda m: m.sample("3", 0.5)),
    "sample at infinity": call(lambda m: m.sample(3, np.inf)),
    "simulate at times that do not increase": call(lambda m: m.simulate(frame(X), [0.0, 0.0])),
    "simulate at one number": call(lambda m: m.simulate(frame(X), 1.0)),
    "simulate at complex times": call(lambda m: m.simulate(frame(X), np.array([0, 1j]))),
    "simulate in no step": call(lambda m: m.simulate(frame(X), [0, 1], time_step=0.0)),
    "simulate in steps of words": call(lambda m: m.simulate(frame(X), [0, 1], time_step="small")),
    "simulate in endless steps": call(lambda m: m.simulate(frame(X), [0, 1], time_step=1e-300)),
    "simulate to the end of time": call(lambda m: m.simulate(frame(X), [0, 1e300])),
    "simulate by an unknown method": call(lambda m: m.simulate(frame(X), [0, 1], method="rk4")),
    "push backwards": call(lambda m: m.push(frame(X), 1.0, 0.0)),
    "forecast of one member": call(lambda m: m.forecast(frame(X), [0, 1])),
    "potential of a drift that is none": call(lambda m: m.potential(frame(X))),
    "growth that was not learned": call(lambda m: type(m).growth(m, frame(X))),
    "identifiability at other times": call(lambda m: m.identifiability(frame(X), T + 1)),
    "identifiability without times": call(lambda m: m.identifiability(frame(X))),
    "save to a folder": call(lambda m: m.save(Path(__file__).parent)),
}


# --- model files and the command line -----------------------------------------------------------------------------------------

def info(change):
    """A model file, changed, refused by `fpsde info`."""
    def run(folder, model):
        model.save(folder / "m.fpsde")
        content = change((folder / "m.fpsde").read_bytes())
        (folder / "m.fpsde").write_bytes(content)
        return command("info", folder / "m.fpsde")
    return run


def metadata(**changes):
    """Changes what stands beside the weights; None takes it away."""
    def change(content):
        size, = struct.unpack("<Q", content[:8])
        kept = {**json.loads(content[8:8 + size])["__metadata__"], **changes}
        return save_tensors(load_tensors(content), {name: value for name, value in kept.items() if value is not None})
    return change


def parts(change):
    """Changes the header, and writes a true digest beside it."""
    def rewrite(content):
        size, = struct.unpack("<Q", content[:8])
        header, tensors = json.loads(json.loads(content[8:8 + size])["__metadata__"]["header"]), load_tensors(content)
        change(header, tensors)
        text = json.dumps(header)
        return metadata(header=text, digest=digest(text, tensors))(save_tensors(
            tensors, json.loads(content[8:8 + size])["__metadata__"]))
    return rewrite


def flip(content):
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


def many_breaks(header, tensors):
    tensors["density.basis.breaks"] = torch.linspace(0, 1, 10**6, dtype=torch.float64)


def wide_units(header, tensors):
    tensors["density.covariance.units"] = torch.ones(10**6, 1)


def put(place, value):
    return lambda header, tensors: set_entry(header, place, value)


def cli(*arguments):
    """Arguments with MODEL and DATA in place of files."""
    def run(folder, model):
        model.save(folder / "m.fpsde")
        (folder / "data.csv").write_text(CSV)
        files = {"MODEL": folder / "m.fpsde", "DATA": folder / "data.csv", "OUT": folder / "out.npz"}
        return command(*(files.get(a, a) for a in arguments))
    return run


def other_data(text, *arguments):
    def run(folder, model):
        model.save(folder / "m.fpsde")
        (folder / "other.csv").write_text(text)
        return command(*(folder / {"MODEL": "m.fpsde", "OTHER": "other.csv"}.get(a, a) if a.isupper() else a
                         for a in arguments))
    return run


SIMULATE = ("simulate", "MODEL", "--start", "DATA", "-o", "OUT", "--times")
COMMANDS = {
    "a model that is none": info(lambda content: b"no model"),
    "a model cut short": info(lambda content: content[:-100]),
    "a changed byte in a model": info(flip),
    "a pickle": info(lambda content: b"\x80\x04cos\nsystem\n."),
    "weights of something else": info(lambda content: save_tensors({"a": torch.zeros(3)})),
    "a model of a later version": info(metadata(version="5")),
    "a model of the first version": info(metadata(version="1")),
    "a model without its digest": info(metadata(digest=None)),
    "more beside the weights": info(metadata(code="import os")),
    "an unknown part in the header": info(parts(put("parts.hook", "x"))),
    "an unknown parameter": info(parts(put("fitted.parameters.callback", "x"))),
    "nets of a billion coordinates": info(parts(put("parts.drift.dim", 10**9))),
    "a number of 400 digits": info(parts(put("fitted.counts", [10**400] * 3))),
    "a million break points": info(parts(many_breaks)),
    "weights that would multiply": info(parts(wide_units)),
    "a name with a control character": info(parts(put("fitted.names", ["a\x1b[2J", "b"]))),
    "a step of nothing": info(parts(lambda header, tensors: tensors.update({"sde.time_step": torch.tensor(
        1e-300, dtype=torch.float64)}))),
    "evaluate on data without a column": other_data(CSV.replace("b", "c", 1), "evaluate", "MODEL", "OTHER"),
    "info on data at other times": other_data(CSV.replace("\n2.0,", "\n3.0,"), "info", "MODEL", "OTHER"),
    "evaluate on data at one time": other_data("day,a,b\n0,1,2\n0,2,3\n0,3,3\n", "evaluate", "MODEL", "OTHER"),
    "start points that are missing": other_data("a,b\n1,\n", "simulate", "MODEL", "--start", "OTHER", "--times", "0,1"),
    "a start file of a header": other_data("a,b\n", "simulate", "MODEL", "--start", "OTHER", "--times", "0,1"),
    "times in words": cli(*SIMULATE, "soon"),
    "times backwards": cli(*SIMULATE, "1,0"),
    "a step of zero": cli(*SIMULATE, "0:1:0"),
    "times without end": cli(*SIMULATE, "0:1e300:1e-300"),
    "NaN as a time": cli(*SIMULATE, "0,nan"),
    "a negative seed of the noise": cli(*SIMULATE, "0,1", "--seed", "-1"),
    "more paths than memory": cli(*SIMULATE, "0,1", "--paths", str(10**13)),
    "an unknown ending": cli("simulate", "MODEL", "--start", "DATA", "--times", "0,1", "-o", "paths.xlsx"),
    "noise in words": cli("fit", "DATA", "--diffusion", "loud"),
    "noise below zero": cli("fit", "DATA", "--diffusion", "-1"),
    "a coordinate that is not there, said to be positive": cli("fit", "DATA", "--positive", "c"),
    "no components": cli("fit", "DATA", "--components", "0"),
    "an unknown device": cli("fit", "DATA", "--device", "abacus"),
    "leaving out one of two times": other_data("day,a\n" + "0,1\n0,2\n0,3\n" + "1,1\n1,2\n1,4\n", "evaluate", "OTHER",
                                               "--leave-one-out", "--steps", "1"),
}

CASES = {"Files": FILES, "Arrays": ARRAYS, "Methods": METHODS, "Command line and model files": COMMANDS}


def table():
    """The rows of docs/input.md: section, what is given, and what happens."""
    section, rows = "", []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and line != "| given | answer |":
            given, answer = line.removeprefix("| ").removesuffix(" |").split(" | ", 1)
            rows.append((section, given, answer))
    return rows


def test_the_table_is_what_is_tried():
    rows = [(section, given) for section, given, _ in table()]
    assert len(rows) == len(set(rows)) >= 60
    assert set(rows) == {(section, given) for section, cases in CASES.items() for given in cases}


@pytest.mark.filterwarnings("ignore:the number of points at a time varies", "ignore:simulating from",
                            "ignore:.*outside the data's times", "ignore:X does not have valid feature names",
                            "ignore:overflow encountered in cast")
@pytest.mark.parametrize(("section", "given", "answer"), table(), ids=lambda text: text[:40])
def test_row(section, given, answer, tmp_path, model):
    run = CASES[section][given]
    if answer.startswith("works"):
        assert run(tmp_path, model) is None
        return
    try:
        said = run(tmp_path, model)
    except (ValueError, TypeError) as error:
        said = str(error)
    assert said is not None, "it was not refused"
    pieces = [" ".join(piece.split()) for piece in answer.strip("`").split("…")]
    assert re.search(".*".join(map(re.escape, pieces)), " ".join(said.split())), said
    assert len(said) < 1000
    assert not list(tmp_path.glob("out*"))


def test_start_points_follow_the_same_table(tmp_path):
    """What refuses snapshots refuses start points, but for what only snapshots need."""
    for given in ("names in Latin-1", "semicolons", "a control character in a name", "a quote that is never closed"):
        with pytest.raises(ValueError, match="data.csv: "):
            read_start(FILES[given].file(tmp_path))


def test_the_cases_make_what_they_say(tmp_path, model):
    model.save(tmp_path / "m.fpsde")
    with safe_open(tmp_path / "m.fpsde", framework="pt") as file:
        assert {*file.metadata()} == {"format", "version", "header", "digest"}
    assert len(bomb(b"")) < 2**23
    # The same rewriting without a change is no damage.
    (tmp_path / "m.fpsde").write_bytes(parts(lambda header, tensors: None)((tmp_path / "m.fpsde").read_bytes()))
    assert np.array_equal(FokkerPlanckSDE.load(tmp_path / "m.fpsde", device="cpu").drift(frame(X), T), model.drift(frame(X), T))


@pytest.mark.slow
def test_a_thousand_coordinates():
    """Two gibibytes and some minutes; with normal equations for all readouts it would be 32."""
    t = np.repeat([0.0, 1.0], 12)
    x = np.random.default_rng(0).normal(size=(24, 1000)) + t[:, None]
    wide = FokkerPlanckSDE(**{**QUICK, "n_components": 1}).fit(x, t)
    assert np.isfinite(wide.drift(x, t)).all()
    assert np.isfinite(wide.score_samples(x, t)).all()


def test_what_is_solved_for_fits_in_memory():
    for dim, fits in ((2, True), (300, True), (1000, False)):
        with torch.device("meta"):
            net = HollowNet(dim, hidden=(4,))
            fields = SimpleNamespace(drift=net, diffusion=HollowNet(dim, hidden=(4,)))
        assert ReadoutSolver.fits(fields) is fits
