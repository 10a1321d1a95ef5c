import inspect

import pytest

from dpmodel.callbacks import CALLBACKS, HOOKS, Callback, build_callback, tensorboard_logger

ARGUMENTS = {
    "CSVLogger": lambda folder: {"path": folder / "history.csv"},
    "LearningRateScheduler": lambda folder: {"scheduler": "LinearLR", "start_factor": 1.0, "end_factor": 0.0},
    "ModelCheckpoint": lambda folder: {"directory": folder / "checkpoints"},
    "TensorBoardLogger": lambda folder: {"directory": folder / "events"},
}


class SilentWriter:
    def __init__(self, log_dir):
        self.log_dir = log_dir

    def add_scalar(self, name, value, global_step):
        assert isinstance(value, float)

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_logger, "_summary_writer_class", lambda: SilentWriter)

    def build(name):
        return build_callback(name, **ARGUMENTS.get(name, lambda folder: {})(tmp_path))

    return build


@pytest.mark.parametrize("name", CALLBACKS.names())
def test_every_registered_callback_is_a_callback_under_its_class_name(name, built):
    callback = built(name)
    assert isinstance(callback, Callback)
    assert type(callback).__name__ == name


@pytest.mark.parametrize("name", CALLBACKS.names())
def test_every_hook_of_every_callback_takes_the_run_and_nothing_else_and_is_documented(name, built):
    callback = built(name)
    hooks = [hook for hook in HOOKS if hook in vars(type(callback))]
    assert hooks, "a callback without a hook does nothing"
    misspelt = [item for item in vars(type(callback)) if item.startswith("on_") and item not in HOOKS]
    assert not misspelt
    for hook in hooks:
        assert list(inspect.signature(getattr(callback, hook)).parameters) == ["run"]
        assert getattr(callback, hook).__doc__


@pytest.mark.parametrize("name", CALLBACKS.names())
def test_every_callback_survives_two_trainings_and_records_nothing_on_the_ledger(name, built, fake_run):
    callback = built(name)
    metrics = [{"accuracy": 0.5}, {"accuracy": 0.6}]
    first = fake_run(metrics=metrics).train([callback])
    second = fake_run(metrics=metrics).train([callback])
    for run in (first, second):
        assert run.step == 6
        assert run.ledger.total == 6
        assert run.printer == run.lines.append, "the printer must be given back"


def test_an_unknown_argument_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="callback 'EarlyStopping' has no argument 'patiense'; did you mean 'patience'"
    ):
        build_callback("EarlyStopping", patiense=3)


def test_a_missing_argument_is_named():
    with pytest.raises(ValueError, match="callback 'CSVLogger' needs the argument 'path'"):
        build_callback("CSVLogger")


def test_a_callback_that_needs_a_missing_package_is_a_wrong_setting(monkeypatch):
    def missing():
        raise ImportError("TensorBoardLogger needs TensorBoard")

    monkeypatch.setattr(tensorboard_logger, "_summary_writer_class", missing)
    with pytest.raises(ValueError, match="needs TensorBoard"):
        build_callback("TensorBoardLogger")
