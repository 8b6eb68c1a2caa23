import pytest
import torch
from safetensors.torch import save_file as save_tensors

from fpsde.checkpoint import FORMAT_VERSION, ModelFileError, load_file, save_file

TENSORS = {"a": torch.randn(3, 2), "b": torch.arange(4.0, dtype=torch.float64)}


def test_round_trip(tmp_path):
    save_file(tmp_path / "m", TENSORS, {"names": ["x", "ü"], "n": 3})
    tensors, header = load_file(tmp_path / "m")
    assert header == {"names": ["x", "ü"], "n": 3}
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
    with pytest.raises(ModelFileError, match="cannot be written .No space left"):
        save_file(tmp_path / "m", TENSORS, {"n": 2})
    assert load_file(tmp_path / "m")[1] == {"n": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(value, tmp_path):
    with pytest.raises(ModelFileError, match="not written, b is not finite"):
        save_file(tmp_path / "m", {**TENSORS, "b": torch.tensor([1.0, value])}, {})
    assert not list(tmp_path.iterdir())


def test_no_folder(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be written"):
        save_file(tmp_path / "no" / "m", TENSORS, {})


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b[:-5], lambda b: b"\xff" * len(b),
                                    lambda b: b"hello"])
def test_damaged_file(damage, tmp_path):
    save_file(tmp_path / "m", TENSORS, {})
    (tmp_path / "m").write_bytes(damage((tmp_path / "m").read_bytes()))
    with pytest.raises(ModelFileError, match="not a model file, or damaged"):
        load_file(tmp_path / "m")


def test_foreign_later_and_poisoned_files(tmp_path):
    save_tensors(TENSORS, tmp_path / "m")
    with pytest.raises(ModelFileError, match="not a model file of fpsde"):
        load_file(tmp_path / "m")
    save_tensors(TENSORS, tmp_path / "m", {"format": "fpsde-model", "version": "99"})
    with pytest.raises(ModelFileError, match="update fpsde"):
        load_file(tmp_path / "m")
    save_tensors(TENSORS, tmp_path / "m", {"format": "fpsde-model", "version": "1"})
    with pytest.raises(ModelFileError, match="fit again"):
        load_file(tmp_path / "m")
    save_tensors({"a": torch.tensor([float("nan")])}, tmp_path / "m",
                 {"format": "fpsde-model", "version": str(FORMAT_VERSION), "header": "{}"})
    with pytest.raises(ModelFileError, match="not usable"):
        load_file(tmp_path / "m")
    with pytest.raises(ModelFileError, match="no such file"):
        load_file(tmp_path / "other")
