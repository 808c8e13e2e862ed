"""What a system says when it refuses to write is told with what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from zoodip_core.base import files
from zoodip_core.base.errors import StorageError
from zoodip_core.base.files import storage_errors, write_atomically
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.journal import Journal, Record
from zoodip_core.train.run_folder import RunFolder

ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "choose another disk, or raise the limit",
    errno.EIO: "see that it is connected and sound",
    errno.ENOENT: "connect it again, else choose another folder",
    errno.ESTALE: "connect it again, or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose a folder you may write to",
    errno.ENAMETOOLONG: "choose a shorter one",
}


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_what_the_system_refuses_is_told_with_advice(number: int) -> None:
    with pytest.raises(StorageError) as told, storage_errors(Path("rex.safetensors")):
        raise OSError(number, os.strerror(number))
    assert told.value.errno == number
    assert str(told.value.strerror).startswith("could not write rex.safetensors: ")
    assert ADVICE[number] in str(told.value.strerror)


@pytest.mark.parametrize("refusals", [2, 9])
def test_a_file_that_somebody_reads_is_replaced_when_they_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """As on Windows, where a virus scanner or the page's list of runs may have it open."""
    path, replace, asked = tmp_path / "state", Path.replace, []
    path.write_text("before")

    def refuse(self: Path, target: Path) -> Path:
        asked.append(target)
        if len(asked) <= refusals:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(files, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(Path, "replace", refuse)
    if refusals < 4:
        write_atomically(path, "after")
    else:
        with pytest.raises(StorageError, match="permission denied"):
            write_atomically(path, "after")
    assert path.read_text() == ("after" if refusals < 4 else "before")
    assert len(asked) == min(refusals + 1, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    """Deleted while it is worked on, or on a disk that was unplugged."""
    folder = RunFolder.create(tmp_path / "run", TrainConfig(images=("x",), token="<rex>", initializer="dog"))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match=r"could not write .*steps\.jsonl: it or its folder is gone"):
        Journal(folder.journal_path, 0)
    folder = RunFolder.create(tmp_path / "run", folder.config)
    with Journal(folder.journal_path, 0) as journal:
        journal.append(Record(1, 0, 0, 600, (0.5,)))
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(StorageError, match=r"could not write .*steps\.jsonl: it or its folder is gone"):
            journal.sync()
