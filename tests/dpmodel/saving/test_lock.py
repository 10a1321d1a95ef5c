import os

import pytest

from dpmodel.saving.lock import LOCK_NAME, FolderLock
from monitors.errors import ConfigError


def test_a_released_lock_removes_its_file_and_an_empty_folder_that_it_created(tmp_path):
    with FolderLock(tmp_path / "new" / "folder") as lock:
        assert (tmp_path / "new" / "folder" / LOCK_NAME).read_text() == str(os.getpid())
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(lock.path).acquire()
    assert not (tmp_path / "new" / "folder").exists()
    with FolderLock(tmp_path):
        (tmp_path / "file").write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "file"}
    with pytest.raises(ConfigError, match="cannot be used"):
        FolderLock(tmp_path / "file" / "below").acquire()
