"""Fuzzes the readers: what is read from damaged files is read, or refused in one sentence; no crash, no hang, no memory.

Valid files of each kind are mutated, in bytes and in their own parts, and read in this process under a limit of memory and
an alarm. A kind's corpus keeps what reaches lines of its readers that nothing reached before.

    python benchmarks/fuzz.py --inputs 250000 --seed 0 -o benchmarks/results/fuzz.md
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load, save

from fpsde import (
    FokkerPlanckSDE,
    archive,
    assembly,
    checkpoints,
    estimator,
    identification,
    model_file,
    reading,
    snapshots,
    state_file,
    train,
)
from fpsde.checkpoints import CheckpointError, saved_states
from fpsde.files import FileError, digest
from fpsde.reading import read_snapshots, read_start
from fpsde.snapshots import SnapshotError
from fpsde.state_file import StateFileError
from fpsde.train import StateError, TrainingError

SECONDS = 5
MEBIBYTES = 256
LONGEST = 20_000
WORDS = [b"", b"0", b"-1", b"2.5", b"1e308", b"1e-320", b"nan", b"inf", b"-", b"=1+1", b"1_0", b"0x10", b"\"", b",", b";",
         b"\n",
         b"\r", b"\0", b"\xef\xbb\xbf", b"day", b"t", b"X", b"9" * 400, b"true", b"null", b"[]", b"{}", b"[" * 600,
         b"../x", b"\xd9\xa1", b"2020-01-01", b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 8, b"\0" * 8, b"1e400"]
VALUES: list[Any] = [None, True, 0, -1, 1.5, 2**31, 2**63, 10**400, -0.0, 1e308, float("nan"), float("inf"), "", "x", "\0",
                     [], {}, [0], ["x"] * 3, [[]], {"x": 1}, 1 << 20]


class Kind(NamedTuple):
    """A kind of file: what is written before it is read, who reads it, and how a valid one is bent by its parts."""

    suffix: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    bend: Callable[[bytes, np.random.Generator], bytes]
    refusal: type[Exception]
    modules: tuple[str, ...]
    share: float = 1.0
    """Of the inputs asked for: what is slow gets fewer."""
    seconds: int = SECONDS
    """What one may take: a fit may start anew."""


class Outcome(NamedTuple):
    """What became of one input."""

    said: str
    lines: set[tuple[str, int]]
    memory: int


def of_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes, removes, doubles or puts in bytes at a few places."""
    parts = bytearray(content)
    for _ in range(int(rng.geometric(0.5))):
        place = int(rng.integers(len(parts) + 1))
        end = min(len(parts), place + int(2 ** rng.uniform(0, 8)))
        match rng.integers(6):
            case 0 if parts:
                parts[place % len(parts)] ^= 1 << int(rng.integers(8))
            case 1:
                parts[place:place] = WORDS[rng.integers(len(WORDS))]
            case 2:
                del parts[place:end]
            case 3:
                parts[place:place] = parts[place:end] * int(rng.integers(1, 4))
            case 4:
                word = WORDS[rng.integers(len(WORDS))]
                parts[place:place + len(word)] = word
            case _:
                parts[place:end] = rng.bytes(end - place)
    return bytes(parts[:LONGEST])


def of_rows(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes cells of a csv."""
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(int(rng.geometric(0.5))):
        row = rows[rng.integers(len(rows))]
        row[rng.integers(len(row))] = WORDS[rng.integers(len(WORDS))]
    return b"\n".join(b",".join(row) for row in rows)[:LONGEST]


def of_arrays(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes the header of an array of an npz, its name or its bytes, and keeps the archive whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            entries = {name: old.read(name) for name in old.namelist()}
    except Exception:
        return of_bytes(content, rng)
    out = io.BytesIO()
    chosen = int(rng.integers(len(entries))) if entries else 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED) as new:
        for k, (name, part) in enumerate(entries.items()):
            if k == chosen and rng.random() < 0.2:
                name = str(rng.choice(["X.npy", "t.npy", "X", "../X.npy", "w.npy", ".npy"]))
            elif k == chosen:
                part = _header(part, rng) if rng.random() < 0.7 else of_bytes(part, rng)
            new.writestr(name, part)
    return out.getvalue()


def _header(part: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        out = io.BytesIO()
        dtype = str(rng.choice(["f2", "f4", ">f8", "i1", "u8", "c16", "U5", "?", "S3", "M8[D]", "V7", "g"]))
        np.save(out, np.zeros(tuple(rng.integers(0, 10, rng.integers(0, 4))), dtype=dtype))
        return out.getvalue()
    dtype = rng.choice([b"<f8", b"|O", b"<f4", b"<V900000000", b"<U9999", b"<i8"])
    shape = rng.choice([b"", b"9", b"-1, ", b"1e9, ", b"10**9, ", b"(" * 90, b"9" * 40 + b", "])
    return part[:128].replace(b"<f8", dtype).replace(b"(", b"(" + shape, 1) + part[128:]


def of_model(content: bytes, rng: np.random.Generator, tree: str = "header") -> bytes:
    """Changes a value anywhere in a file's tree, or a tensor or its shape, and writes a true digest beside it."""
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:8 + size])["__metadata__"]
        header, tensors = json.loads(metadata[tree]), load(content)
    except Exception:
        return of_bytes(content, rng)
    if rng.random() < 0.6:
        _change(header, rng)
    if tensors and rng.random() < 0.5:
        name = str(rng.choice(sorted(tensors)))
        match rng.integers(6):
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = np.zeros(tuple(rng.integers(0, 9, rng.integers(0, 5))), tensors[name].dtype)
            case 2:
                tensors[name] = tensors[name].astype(str(rng.choice(["float32", "float64", "bool", "int32", "float16"])))
            case 3:
                tensors[name] = tensors[name] * rng.choice([-1, 0, 1e30, 1e-30])
            case 4:
                tensors[f"{name}x"] = tensors[name]
            case _:
                tensors[name] = tensors[name].T
    text = json.dumps(header)
    metadata = {**metadata, tree: text}
    if "digest" in metadata:
        metadata["digest"] = digest(text, {name: torch.as_tensor(np.asarray(v, order="C")) for name, v in tensors.items()})
    return save({name: np.asarray(v, order="C") for name, v in tensors.items()}, metadata)


def of_state(content: bytes, rng: np.random.Generator) -> bytes:
    """The same for the state of a fit."""
    return of_model(content, rng, "tree")


def _change(part: Any, rng: np.random.Generator) -> None:
    """Replaces, removes or adds one value somewhere below a dict or list."""
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.8:
            part = part[key]
            continue
        if rng.random() < 0.2:
            del part[key]
        elif isinstance(part, dict) and rng.random() < 0.1:
            part["more"] = VALUES[rng.integers(len(VALUES))]
        else:
            part[key] = VALUES[rng.integers(len(VALUES))]
        return


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds of file that are read; a new one is a new entry here."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(9, 2)).round(3), np.repeat([0.0, 1.0, 2.5], 3)
    rows = "".join(f"{a},{b},{c},{i + 1}\n" for i, (a, (b, c)) in enumerate(zip(t, x, strict=True)))
    text = f"day,a,b,w\n{rows}".encode()
    arrays = []
    for write, given in ((np.savez, {"X": x, "t": t}), (np.savez_compressed, {"X": x.astype("f4"), "t": t, "w": t + 1}),
                         (np.savez, {"X": x.reshape(3, 3, 2), "t": t[::3]})):
        out = io.BytesIO()
        write(out, **given)
        arrays.append(out.getvalue())
    models = []
    for settings in ({}, {"drift": "autonomous", "diffusion": "constant"}, {"drift": "gradient", "growth": "learned"}):
        model = FokkerPlanckSDE(1, max_steps=1, hidden=(2,), random_state=0, device="cpu", **settings).fit(x, t)
        model.save(folder / "seed.fpsde")
        models.append((folder / "seed.fpsde").read_bytes())

    states = []
    settings: dict[str, Any] = {"n_components": 1, "max_steps": 4, "hidden": (2,), "random_state": 0, "device": "cpu"}
    for drift in ("time", "autonomous"):
        state = folder / drift
        FokkerPlanckSDE(drift=drift, **settings).fit(x, t, checkpoint=state, checkpoint_seconds=0.0)
        left = saved_states(state)
        states.append([path.read_bytes() for path in left])

    def resume(path: Path, drift: str) -> None:
        """A fit that goes on from a state, or starts anew because the state is refused."""
        place = folder / "resumed"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copy(path, place / left[0].name)
        try:
            FokkerPlanckSDE(drift=drift, **settings).fit(x, t, checkpoint=place, checkpoint_seconds=1e9)
        except (CheckpointError, StateError, TrainingError) as error:
            raise StateFileError(f"{path}: {error}") from error

    data = (reading.__file__, snapshots.__file__, archive.__file__)
    kept = (checkpoints.__file__, identification.__file__, train.__file__, state_file.__file__)
    return {
        "csv": Kind(".csv", [text, b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"), text.replace(b"day", b"", 1)],
                    read_snapshots, of_rows, SnapshotError, data),
        "weighted csv": Kind(".csv", [text], lambda path: read_snapshots(path, "day", weights="w"), of_rows, SnapshotError,
                             data),
        "start csv": Kind(".csv", [text, b"a,b\n1,2\n3,4\n"], read_start, of_rows, SnapshotError, data),
        "npz": Kind(".npz", arrays, read_snapshots, of_arrays, SnapshotError, data),
        "model file": Kind(".fpsde", models, model_file.load_file, of_model, FileError, (model_file.__file__,), 0.1),
        "model": Kind(".fpsde", models, lambda path: FokkerPlanckSDE.load(path, device="cpu"), of_model, FileError,
                      (model_file.__file__, assembly.__file__, estimator.__file__), 0.04),
        "state": Kind(".safetensors", [*states[0], *states[1]], state_file.read_state, of_state, StateFileError,
                      (state_file.__file__,), 0.1),
        "fit from a state": Kind(".safetensors", states[0], partial(resume, drift="time"), of_state, StateFileError, kept,
                                 0.004, 60),
        "autonomous fit from one": Kind(".safetensors", states[1], partial(resume, drift="autonomous"), of_state,
                                        StateFileError, kept, 0.004, 60),
    }


def attempt(kind: Kind, path: Path, traced: bool) -> Outcome:
    """Reads a file; raises what the reader may not raise."""
    lines: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, _: object) -> Any:
        return local if frame.f_code.co_filename in kind.modules else None

    if traced:
        tracemalloc.start()
        sys.settrace(trace)
    signal.alarm(kind.seconds)
    try:
        kind.read(path)
        said = "read"
    except kind.refusal as error:
        said = str(error)
        if not said.isprintable() or len(said) > 1000 or not said.startswith(f"{path}: "):
            raise RuntimeError(f"not one sentence about the file: {said:.200}") from error
    finally:
        signal.alarm(0)
        sys.settrace(None)
        memory = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    return Outcome(said, lines, memory)


def fuzz(name: str, kind: Kind, inputs: int, rng: np.random.Generator, folder: Path, every: int) -> dict[str, Any]:
    """Reads so many mutations of a kind's files, one in `every` of them with lines and memory watched.

    Returns:
        Counts, seconds, largest memory, and the failures: places in the program with the first input that led there.
    """
    path, corpus = folder / f"input{kind.suffix}", list(kind.seeds)
    seen: set[tuple[str, int]] = set()
    counts: Counter[str] = Counter()
    failures: dict[str, bytes] = {}
    largest, begin = 0, time.monotonic()
    for k in range(inputs):
        # Half of them from valid files: most of the corpus is beyond reading.
        pool = corpus if rng.random() < 0.5 else kind.seeds
        content = pool[rng.integers(len(pool))]
        content = kind.bend(content, rng) if rng.random() < 0.6 else of_bytes(content, rng)
        path.write_bytes(content)
        try:
            outcome = attempt(kind, path, k % every == 0)
            counts["read" if outcome.said == "read" else "refused"] += 1
            largest = max(largest, outcome.memory)
            if outcome.lines - seen:
                seen |= outcome.lines
                corpus.append(content)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error).strip()[:120]}"
            counts["failed"] += 1
            if place not in failures:
                failures[place] = content
                print(f"{name}: {place}", flush=True)
        if (k + 1) % 50_000 == 0:
            print(f"{name}: {k + 1} inputs, {dict(counts)}, {time.monotonic() - begin:.0f} s", flush=True)
    return {"kind": name, "inputs": inputs, **{what: counts[what] for what in ("read", "refused", "failed")},
            "corpus": len(corpus), "lines": len(seen), "MiB": largest / 2**20, "seconds": time.monotonic() - begin,
            "failures": failures}


def report(results: Iterable[dict[str, Any]], command: str) -> str:
    """Lays the counts out as a table."""
    columns = ("kind", "inputs", "read", "refused", "failed", "corpus", "lines", "MiB", "seconds")
    lines = ["# Fuzzing of the readers", "", f"`{command}`", "",
             f"Python {platform.python_version()}, numpy {np.__version__}, limits: {SECONDS} s and "
             f"{MEBIBYTES} MiB beyond what the program takes.", "",
             "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(f"{r[c]:.1f}" if isinstance(r[c], float) else str(r[c]) for c in columns) + " |"
              for r in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all kinds, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind but the slow ones, which get fewer")
    parser.add_argument("--kinds", default="", help="with commas; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", type=int, default=10, help="one input in so many is watched for lines and memory")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    def late(*_: object) -> None:
        raise TimeoutError("too long")

    signal.signal(signal.SIGALRM, late)
    # In memory where there is such a folder: most of the time would go into the disk.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        all_kinds = kinds(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEBIBYTES * 2**20,) * 2)
        results = []
        for i, (kind, how) in enumerate(all_kinds.items()):
            if not arguments.kinds or kind in arguments.kinds.split(","):
                rng = np.random.default_rng([arguments.seed, i])
                results.append(fuzz(kind, how, round(how.share * arguments.inputs), rng, folder, arguments.watch))
                print(report(results[-1:], kind).splitlines()[-1], flush=True)
    text = report(results, " ".join(["python", *sys.argv]))
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text)
    for result in results:
        for k, (place, content) in enumerate(result["failures"].items()):
            print(f"{result['kind']} {k}: {place}")
            if arguments.keep is not None:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{result['kind']}_{k}").write_bytes(content)
    if any(result["failed"] for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
