import zipfile

import numpy as np
import pytest
import torch
from problems import rotating_snapshots

from fpsde import FokkerPlanckSDE, read_snapshots
from fpsde.coordinates import Coordinates
from fpsde.mapped import Mapped, blocks
from fpsde.snapshots import SnapshotError, Snapshots

X, T = rotating_snapshots(60, np.array([0.0, 0.5, 1.0]))
X, ORDER = X.astype(np.float32), np.random.default_rng(0).permutation(len(T))
X, T = X[ORDER], T[ORDER]


@pytest.fixture
def on_disk(tmp_path):
    def write(x):
        np.save(tmp_path / "X.npy", x)
        return np.load(tmp_path / "X.npy", mmap_mode="r")
    return write


@pytest.fixture
def _many_blocks(monkeypatch):
    monkeypatch.setattr("fpsde.mapped.BLOCK", 14)


def test_rows_are_read_as_from_an_array(on_disk, rng):
    chosen = rng.permutation(len(X))[:30]
    mapped = Mapped(on_disk(X)).part(chosen).through(lambda x: 2 * x).through(lambda x: x - 1)
    expected = 2 * X[chosen].astype(np.float64) - 1
    assert mapped.shape == expected.shape == (len(mapped), 2)
    np.testing.assert_array_equal(mapped, expected)
    for place in (slice(3, 9), [4, 1, 1], np.array([[2, 0], [5, 29]]), expected[:, 0] > 0):
        np.testing.assert_array_equal(mapped[place], expected[place])
    np.testing.assert_array_equal(mapped.part(expected[:, 0] > 0).and_then([mapped]),
                                  np.concatenate([expected[expected[:, 0] > 0], expected]))


SETTINGS = [{"drift": "time", "positive": ["x2"]},
            {"drift": "time", "diffusion": lambda X, t: 0.3 + 0 * X, "drift_prior": lambda X, t: -X}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["weights", "functions"])
def test_a_fit_to_a_memory_map_is_the_fit_to_the_array(settings, on_disk, tmp_path, monkeypatch):
    """Bit for bit, as long as it is one block; and the checkpoint of one is that of the other."""
    def all_in_memory(*_, **__):
        raise AssertionError("the points were read all at once")

    monkeypatch.setattr(Mapped, "__array__", all_in_memory)
    x, weights = (np.exp(X), 1 + X[:, 0] ** 2) if "positive" in settings else (X, None)
    kwargs = {"n_components": 2, "max_steps": 6, "hidden": (4,), "random_state": 0, "device": "cpu", **settings}
    kept, known = [FokkerPlanckSDE(**kwargs).fit(data, T, weights, checkpoint=tmp_path / "state") for data in (Mapped(on_disk(x)), x)]
    alone = FokkerPlanckSDE(**kwargs).fit(x, T, weights)
    for model in (known, alone):
        assert model.summary_ == kept.summary_
        for name, values in kept.sde_.state_dict().items():
            assert torch.equal(model.sde_.state_dict()[name], values)
    assert isinstance(kept._data.x, Mapped)


@pytest.mark.slow
def test_identifiability_of_a_memory_map(on_disk):
    model = FokkerPlanckSDE(2, max_steps=6, drift="autonomous", hidden=(4,), random_state=0, device="cpu").fit(on_disk(X), T)
    assert model.identifiability().noise_interval == model.identifiability(X, T).noise_interval


@pytest.mark.usefixtures("_many_blocks")
def test_statistics_of_many_blocks(on_disk):
    weights = 1 + X[:, 0] ** 2
    for x, positive, given in ((X, (False, False), None), (np.exp(X), (True, False), weights)):
        mapped, data = Snapshots.of(on_disk(x), T, weights=given), Snapshots.of(x, T, weights=given)
        assert len(list(blocks(mapped.x))) > 20
        units = [Coordinates.of(part, positive) for part in (mapped, data)]
        for name, values in units[1].state_dict().items():
            torch.testing.assert_close(units[0].state_dict()[name], values, rtol=1e-12, atol=1e-14)
        assert units[0].mean_log_volume(mapped) == pytest.approx(units[1].mean_log_volume(data), rel=1e-12)
        for group, expected in zip(units[0].groups(mapped), units[1].groups(data), strict=True):
            np.testing.assert_allclose(group[:], expected, rtol=1e-12, atol=1e-13)


BAD = {"nan": lambda x: x.__setitem__((100, 1), np.nan), "far": lambda x: x.__setitem__((90, 0), 2e30),
       "constant": lambda x: x.__setitem__((slice(None), 1), 3), "none": lambda x: None}


@pytest.mark.usefixtures("_many_blocks")
@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_said_as_of_an_array(kind, on_disk):
    x = X.copy()
    BAD[kind](x)
    positive = {"positive": True} if kind == "none" else {}
    said = []
    for data in (x.astype(np.float64), on_disk(x)):
        with pytest.raises(SnapshotError) as error:
            FokkerPlanckSDE(**positive).fit(data, T)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_the_points_are_read_a_few_times_before_the_first_step(on_disk, monkeypatch):
    """By the reader and by fit: sizes and spread. Then for the scale, and once more in each snapshot, and to start the path."""
    rows, read = [], Mapped.__getitem__

    def counted(points, place):
        found = read(points, place)
        rows.append(len(found))
        return found

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Mapped, "__getitem__", counted)
    monkeypatch.setattr("fpsde.identification.train", stop)
    data = Snapshots.of(on_disk(X), T)
    assert sum(rows) == 2 * len(X)
    with pytest.raises(KeyboardInterrupt):
        FokkerPlanckSDE(2, device="cpu").fit(data.x, data.t)
    assert sum(rows) <= 7 * len(X)


def test_large_points_of_a_file_stay_there(tmp_path, monkeypatch):
    monkeypatch.setattr("fpsde.archive.LARGE", 100)
    path = tmp_path / "d.npz"
    order = np.argsort(T, kind="stable")
    for kind, content in (("flat", {"X": X, "t": T}), ("stacked", {"t": np.unique(T), "X": X[order].reshape(3, 60, 2)})):
        np.savez(path, **content)
        kept, data = read_snapshots(path, on_disk=True), read_snapshots(path)
        assert isinstance(kept.x, Mapped), kind
        assert isinstance(data.x, np.ndarray)
        np.testing.assert_array_equal(kept.x, data.x)
    np.savez_compressed(path, X=X, t=T)
    assert isinstance(read_snapshots(path, on_disk=True).x, np.ndarray)
    np.savez(path, X=np.asfortranarray(X), t=T)
    np.testing.assert_array_equal(read_snapshots(path, on_disk=True).x, X)


def test_a_changed_byte_in_what_stays_on_disk_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("fpsde.archive.LARGE", 100)
    path = tmp_path / "d.npz"
    np.savez(path, X=X, t=T)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("X.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="array 'X' is damaged .*CRC"):
        read_snapshots(path, on_disk=True)


def test_of_many_points_as_many_as_are_needed_are_held_out(rng):
    t = np.repeat([0.0, 1.0], 60_000)
    kept, held = Snapshots.of(rng.normal(size=(len(t), 1)), t).split(0.1, rng)
    assert held.counts.tolist() == [4096, 4096]
    assert kept.counts.tolist() == [55904, 55904]
