import pytest

from dpmodel.callbacks import CSVLogger
from dpmodel.training.history import History


def test_the_file_holds_the_history_after_every_epoch(tmp_path, fake_run):
    path = tmp_path / "logs" / "history.csv"
    seen = []

    class Reader:
        def on_train_epoch_end(self, run):
            seen.append(len(History.from_csv(path)))

    run = fake_run(epochs=3, metrics=[{"accuracy": 0.5}]).train([CSVLogger(path), Reader()])
    assert seen == [1, 2, 3]
    assert History.from_csv(path).column("accuracy") == run.history.column("accuracy")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a file"):
        CSVLogger(tmp_path)


def test_a_path_that_cannot_be_written_is_found_before_the_first_step(tmp_path, fake_run):
    (tmp_path / "file").write_text("")
    run = fake_run()
    with pytest.raises(OSError, match="file"):
        run.train([CSVLogger(tmp_path / "file" / "history.csv")])
    assert run.ledger.total == 0
