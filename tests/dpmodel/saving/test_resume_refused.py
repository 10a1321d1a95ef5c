"""States that are not resumed: damaged ones, and those of a different training."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel import Callback, StateKeeper
from dpmodel.optimizers import build_optimizer
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.state import read_state
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.errors import CheckpointError

from ..power_cut import PowerCut
from .trainings import SECRET, build, fit


@pytest.fixture
def broken_off(tmp_path):
    """A folder with a training that was broken off after step 6, its state that of step 4."""
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    return RunFolder(tmp_path)


def resumed(folder, model=None, case=SECRET, **options):
    return fit(model or build(case), case, keeper=StateKeeper(folder.path, 4, resume=True), **options)


def test_the_state_of_another_training_is_refused_by_what_differs(broken_off):
    other = build(SECRET)
    other.network[0] = nn.Linear(4, 7)
    other.network[3] = nn.Linear(7, 2)
    other.optimizer = build_optimizer("Momentum", other.network.parameters(), lr=0.1)
    before = [value.clone() for value in other.network.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"0\.weight is \(6, 4\) .* in the checkpoint and \(7, 4\)"):
        resumed(broken_off, other)
    assert all(map(torch.equal, before, other.network.state_dict().values()))
    assert other.ledger.total == 0
    with pytest.raises(CheckpointError, match="epochs is 4 here and 3 in the state"):
        resumed(broken_off, epochs=4)
    decaying = {**SECRET, "decay": True}
    with pytest.raises(CheckpointError, match="noise_decay_mode is 'Exp' here and None in the state"):
        resumed(broken_off, build(decaying), decaying)
    with pytest.raises(CheckpointError, match="optimizer is 'Adam' here and 'Momentum'"):
        resumed(broken_off, build({**SECRET, "optimizer": "Adam"}))
    with pytest.raises(CheckpointError, match="reproducible is"):
        resumed(broken_off, build(SECRET, seed=0))
    with pytest.raises(CheckpointError, match="callbacks EarlyStopping, but the training has EarlyStopping, Learn"):
        resumed(broken_off, build(SECRET), {**SECRET, "schedule": "falling"})
    # none of the refusals has spoilt anything
    torch.manual_seed(0)
    resumed(broken_off)


def test_a_model_that_has_trained_already_is_refused(broken_off):
    used = build(SECRET)
    fit(used, SECRET)
    with pytest.raises(CheckpointError, match="already holds 12 releases"):
        resumed(broken_off, used)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), truncated=st.booleans())
def test_a_damaged_state_is_refused_and_named(where, truncated, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.getbasetemp() / "damaged")
    if not folder.state.exists():
        with pytest.raises(KeyboardInterrupt):
            fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(folder.path, 4))
    whole = folder.state.read_bytes()
    at = int(where * len(whole))
    damaged = whole[:at] if truncated else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    try:
        folder.state.write_bytes(damaged)
        model = build(SECRET)
        with pytest.raises(CheckpointError, match=r"training_state\.safetensors"):
            resumed(folder, model)
        assert model.ledger.total == 0
    finally:
        folder.state.write_bytes(whole)


def test_a_missing_state_and_a_mere_checkpoint_are_refused(broken_off):
    tensors, values = read_tensor_file(broken_off.state)
    write_tensor_file(broken_off.state, tensors, {key: values[key] for key in ("info", "optimizer")})
    with pytest.raises(CheckpointError, match="is a checkpoint, not a training state"):
        resumed(broken_off)
    broken_off.state.unlink()
    with pytest.raises(CheckpointError, match="there is nothing to resume"):
        resumed(broken_off)


def test_a_journal_that_is_missing_older_or_changed_is_refused(broken_off):
    whole = broken_off.journal.read_bytes()
    broken_off.journal.unlink()
    with pytest.raises(CheckpointError, match=r"releases\.jsonl is missing, or older"):
        resumed(broken_off)
    broken_off.journal.write_bytes(whole.replace(b'"step": 4', b'"step": 9'))
    with pytest.raises(CheckpointError, match=r"line \d: the record of releases was changed"):
        resumed(broken_off)
    broken_off.journal.write_bytes(whole.splitlines(keepends=True)[1])
    with pytest.raises(CheckpointError, match="line 1: the record of releases was changed"):
        resumed(broken_off)


def test_a_state_of_another_format_is_refused_by_its_number(broken_off):
    tensors, values = read_tensor_file(broken_off.state)
    values["training"]["mapping"] = [entry for entry in values["training"]["mapping"] if entry[0] != "format"]
    write_tensor_file(broken_off.state, tensors, values)
    with pytest.raises(CheckpointError, match=r"format 'dpmodel-training-state/1'.*reads 'dpmodel-training-state/2'"):
        resumed(broken_off)


def test_a_folder_that_holds_a_training_is_not_written_over(broken_off):
    before = broken_off.state.read_bytes()
    with pytest.raises(CheckpointError, match="resume=True"):
        fit(build(SECRET), SECRET, keeper=StateKeeper(broken_off.path, 4))
    assert broken_off.state.read_bytes() == before


def test_what_cannot_be_saved_is_refused_before_any_budget_is_spent(tmp_path):
    class Strange(Callback):
        def state_dict(self):
            return {"thing": object()}

    model = build(SECRET)
    with pytest.raises(CheckpointError, match=r"thing of type object.*no keeper"):
        fit(model, SECRET, Strange(), keeper=StateKeeper(tmp_path))
    assert model.ledger.total == 0


def test_a_keeper_that_is_used_again_finds_what_lies_in_its_folder(make_model, loader, tmp_path):
    keeper = StateKeeper(tmp_path)
    make_model().fit(loader, epochs=1, keeper=keeper)
    before = read_state(RunFolder(tmp_path).state).step
    other = make_model()
    with pytest.raises(CheckpointError):
        other.fit(loader, epochs=1, keeper=keeper)
    assert other.ledger.total == 0
    assert read_state(RunFolder(tmp_path).state).step == before
