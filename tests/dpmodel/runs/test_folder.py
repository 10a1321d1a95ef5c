import pytest

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from monitors.errors import ConfigError


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    assert folder.claim() is None
    assert folder.path.is_dir()


def test_an_empty_folder_may_be_used(tmp_path):
    assert RunFolder(tmp_path).claim() is None


def test_a_folder_in_use_is_refused_and_force_keeps_every_earlier_one(tmp_path):
    folder = RunFolder(tmp_path / "a")
    for number in range(3):
        folder.claim(force=True)
        folder.ledger.write_text(str(number))
    with pytest.raises(ConfigError, match="is not empty"):
        folder.claim()
    kept = [(tmp_path / f"a.previous-{number}" / "ledger.json").read_text() for number in (1, 2)]
    assert kept == ["0", "1"]
    assert folder.ledger.read_text() == "2"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        RunFolder(tmp_path / "a").claim()
    with pytest.raises(ConfigError, match="cannot be created"):
        RunFolder(tmp_path / "a" / "b").claim()


def test_a_training_that_never_began_leaves_only_files_that_it_did_not_write(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.claim()
    folder.config.write_text("")
    with FolderLock(folder.path) as lock:
        folder.abandon(lock)
    assert not folder.path.exists()
    folder.claim()
    (folder.path / "mine.txt").write_text("")
    with FolderLock(folder.path) as lock:
        folder.abandon(lock)
    assert (folder.path / "mine.txt").exists()
