import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as save_tensors

from fpsde import FokkerPlanckSDE
from fpsde.files import FileError, check_writable, digest
from fpsde.model_file import FORMAT_VERSION, METADATA, load_file, save_file

TENSORS = {"a": torch.randn(3, 2), "b": torch.arange(4.0, dtype=torch.float64)}


def test_round_trip(tmp_path):
    save_file(tmp_path / "m", TENSORS, {"names": ["x", "ü"], "n": 3})
    tensors, header = load_file(tmp_path / "m")
    assert header == {"names": ["x", "ü"], "n": 3}
    with safe_open(tmp_path / "m", framework="pt") as file:
        assert (file.metadata()["format"], file.metadata()["version"]) == ("fpsde-model", str(FORMAT_VERSION))
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_tensors_lie_in_memory_as_new_ones_do(tmp_path):
    save_file(tmp_path / "m", {f"part {n}": torch.randn(n) for n in (3, 35, 64)}, {})
    tensors, _ = load_file(tmp_path / "m")
    assert all(tensor.data_ptr() % 64 == torch.randn(5).data_ptr() % 64 for tensor in tensors.values())


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_file(tmp_path / "m", TENSORS, {"n": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="cannot be written .No space left"):
        save_file(tmp_path / "m", TENSORS, {"n": 2})
    assert load_file(tmp_path / "m")[1] == {"n": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(value, tmp_path):
    with pytest.raises(FileError, match="not written, b is not finite"):
        save_file(tmp_path / "m", {**TENSORS, "b": torch.tensor([1.0, value])}, {})
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        link = tmp_path / name
        link.symlink_to(tmp_path / "there" / "m")
        check_writable(link)
        save_file(link, TENSORS, {"name": name})
        assert link.is_symlink()
        assert load_file(tmp_path / "there" / "m")[1] == {"name": name}
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list((tmp_path / "there").iterdir())) == 1


def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "link", "loop"):
        for write in (check_writable, lambda path: save_file(path, TENSORS, {})):
            with pytest.raises(FileError, match=f"{name}: cannot be written .it is no regular file"):
                write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_an_input_is_not_written_over(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("x")
    (tmp_path / "link").symlink_to(data)
    os.link(data, tmp_path / "other")
    for name in ("data.csv", "link", "other"):
        with pytest.raises(FileError, match=f"{name}: not written over .*data.csv, which is read"):
            check_writable(tmp_path / name, tmp_path / "no file", data)
    check_writable(tmp_path / "new", tmp_path / "no file", data)


def test_no_folder(tmp_path):
    with pytest.raises(FileError, match="cannot be written"):
        save_file(tmp_path / "no" / "m", TENSORS, {})


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b[:-5], lambda b: b"\xff" * len(b),
                                    lambda b: b"hello"])
def test_damaged_file(damage, tmp_path):
    save_file(tmp_path / "m", TENSORS, {})
    (tmp_path / "m").write_bytes(damage((tmp_path / "m").read_bytes()))
    with pytest.raises(FileError, match="not a model file, or damaged"):
        load_file(tmp_path / "m")


def test_foreign_later_and_poisoned_files(tmp_path):
    save_tensors(TENSORS, tmp_path / "m")
    with pytest.raises(FileError, match="not a model file of fpsde"):
        load_file(tmp_path / "m")
    save_tensors(TENSORS, tmp_path / "m", {"format": "fpsde-model", "version": "99"})
    with pytest.raises(FileError, match="update fpsde"):
        load_file(tmp_path / "m")
    save_tensors(TENSORS, tmp_path / "m", {"format": "fpsde-model", "version": "1"})
    with pytest.raises(FileError, match="fit again"):
        load_file(tmp_path / "m")
    for version in ("9" * 9999, "٢", "", "2 "):
        save_tensors(TENSORS, tmp_path / "m", {"format": "fpsde-model", "version": version})
        with pytest.raises(FileError, match="this fpsde reads 2 to 4; update fpsde"):
            load_file(tmp_path / "m")
    poisoned = {"a": torch.tensor([float("nan")])}
    for version, more in (("2", {}), (str(FORMAT_VERSION), {"digest": digest("{}", poisoned)})):
        save_tensors(poisoned, tmp_path / "m", {"format": "fpsde-model", "version": version, "header": "{}", **more})
        with pytest.raises(FileError, match="not usable"):
            load_file(tmp_path / "m")
    with pytest.raises(FileError, match="no such file"):
        load_file(tmp_path / "other")


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_every_changed_byte_is_noticed(tmp_path):
    """Of the weights, of their names, types and shapes, and of the header; what holds the file together is not covered."""
    save_file(tmp_path / "m", TENSORS, {"n": 1})
    content = (tmp_path / "m").read_bytes()
    for place in range(len(content)):
        (tmp_path / "m").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        try:
            tensors, header = load_file(tmp_path / "m")
        except FileError:
            continue
        assert header == {"n": 1}
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize(("change", "message"), [
    ({"digest": None}, "'digest' is missing"), ({"digest": "0" * 64}, "its content is not what its digest says"),
    ({"more": "1"}, "'more' is unknown in this version"), ({"header": None}, "'header' is missing"),
    ({"version": "2"}, "'digest' is unknown in this version"), ({"header": '{"n": 2}'}, "not what its digest says"),
    ({"header": "[" * 100_000}, "not a model file, or damaged"), ({"header": '{"n": ' + "9" * 9999 + "}"}, "or damaged"),
    ({"header": " " * (2**24 + 1)}, "its header has more than 16777216 characters")])
def test_metadata_has_to_be_whole_and_true(change, message, tmp_path):
    save_file(tmp_path / "m", TENSORS, {"n": 1})
    changed = {name: value for name, value in {**metadata(tmp_path / "m"), **change}.items() if value is not None}
    save_tensors(TENSORS, tmp_path / "m", changed)
    with pytest.raises(FileError, match=message):
        load_file(tmp_path / "m")


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    save_file(tmp_path / "m", TENSORS, {})
    tensors, _ = load_file(tmp_path / "m")
    size = (tmp_path / "m").stat().st_size
    with (tmp_path / "m").open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_masked_conditioners_of_earlier_formats_are_refused_by_name(tmp_path):
    """Not as damaged."""
    tensors = {"sde.drift.conditioner.before": torch.zeros(2, 2)}
    save_tensors(tensors, tmp_path / "m", {"format": "fpsde-model", "version": "3", "header": "{}",
                                           "digest": digest("{}", tensors)})
    with pytest.raises(FileError, match="format 3 with conditioner 'masked', which is no longer read; fit again$"):
        load_file(tmp_path / "m")


FILES = sorted((Path(__file__).parent / "data").glob("model_*.fpsde"))


def test_there_is_a_file_of_every_format_that_is_read():
    assert [file.stem.partition("_")[2] for file in FILES] == sorted(METADATA)
    assert str(FORMAT_VERSION) in METADATA


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_released_formats_keep_loading(file):
    """Values of the model that was written, at two points."""
    model, x = FokkerPlanckSDE.load(file, device="cpu"), [[0.0, 0.0], [1.0, -1.0]]
    assert model.names_ == ("prey", "predator")
    assert model.drift(x, 0.0) == pytest.approx(np.array([[1.873171, 5.973862], [-0.889016, 2.209724]]), abs=1e-5)
    assert model.diffusion(x, 0.0) == pytest.approx(np.array([[0.0218871, 0.535963]] * 2), abs=1e-6)
    assert model.score_samples(x, 0.5) == pytest.approx([-16.367144, -2.150363], abs=1e-5)
