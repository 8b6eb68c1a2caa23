import errno
import os

import numpy as np
import pytest

from fpsde.files import FileError
from fpsde.paths_file import PathsFile


def test_parts_in_any_order_make_the_whole(tmp_path, rng):
    paths = rng.normal(size=(3, 10, 2))
    with PathsFile.at(tmp_path / "p.npy", paths.shape) as file:
        for here in (slice(7, 10), slice(0, 4), slice(4, 7)):
            file.write(here, paths[:, here])
        assert not (tmp_path / "p.npy").exists()
    assert np.array_equal(np.load(tmp_path / "p.npy"), paths)
    assert [p.name for p in tmp_path.iterdir()] == ["p.npy"]
    assert os.stat(tmp_path / "p.npy").st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_after_an_error_all_is_as_before(error, tmp_path):
    (tmp_path / "p.npy").write_text("before")

    def stop():
        with PathsFile.at(tmp_path / "p.npy", (1, 1, 1)):
            raise error

    with pytest.raises(error):
        stop()
    assert [p.name for p in tmp_path.iterdir()] == ["p.npy"]
    assert (tmp_path / "p.npy").read_text() == "before"


def test_a_disk_that_is_too_small_is_found_before_the_work(tmp_path, monkeypatch):
    asked = []

    def full(handle, start, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match=r"p.npy: cannot be written \(No space left on device\)"), \
            PathsFile.at(tmp_path / "p.npy", (5, 7, 3)):
        pytest.fail("the work was begun")
    assert asked == [128 + 8 * 5 * 7 * 3]
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(FileError, match="it is a folder"), PathsFile.at(tmp_path, (1, 1, 1)):
        pytest.fail("the work was begun")
