"""States that are not resumed: damaged ones, and those of a different training."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, DPModel, EarlyStopping, StateKeeper
from dpmodel.callbacks import Silence
from dpmodel.data.loader import PrivateLoader
from dpmodel.optimizers import build_optimizer
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.state import read_state
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from mechanisms.noise import Gaussian
from monitors.errors import CheckpointError, DataError

from ..power_cut import PowerCut
from .trainings import EPOCHS, SECRET, build, data, fit


@pytest.fixture
def interrupted(tmp_path):
    """A folder with a training that was interrupted after step 6 and saved at step 4."""
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    return RunFolder(tmp_path)


def resumed(folder, model=None, case=SECRET, **options):
    return fit(model or build(case), case, keeper=StateKeeper(folder.path, 4, resume=True), **options)


def test_the_state_of_a_different_training_is_refused_with_the_differences(interrupted):
    other = build(SECRET)
    other.network[0] = nn.Linear(4, 7)
    other.network[3] = nn.Linear(7, 2)
    other.optimizer = build_optimizer("Momentum", other.network.parameters(), lr=0.1)
    before = [value.clone() for value in other.network.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"0\.weight is \(6, 4\) .* in the checkpoint and \(7, 4\)"):
        resumed(interrupted, other)
    assert all(map(torch.equal, before, other.network.state_dict().values()))
    assert other.ledger.total == 0
    with pytest.raises(CheckpointError, match="epochs is 4 here and 3 in the state"):
        resumed(interrupted, epochs=4)
    decaying = {**SECRET, "decay": True}
    with pytest.raises(CheckpointError, match="noise_decay_mode is 'Exp' here and None in the state"):
        resumed(interrupted, build(decaying), decaying)
    with pytest.raises(CheckpointError, match="optimizer is 'Adam' here and 'Momentum'"):
        resumed(interrupted, build({**SECRET, "optimizer": "Adam"}))
    with pytest.raises(CheckpointError, match="reproducible is"):
        resumed(interrupted, build(SECRET, seed=0))
    with pytest.raises(CheckpointError, match="callbacks EarlyStopping, but the training has EarlyStopping, Learn"):
        resumed(interrupted, build(SECRET), {**SECRET, "schedule": "falling"})
    # none of the refusals has changed the folder
    torch.manual_seed(0)
    resumed(interrupted)


def test_a_model_that_has_trained_already_is_refused(interrupted):
    used = build(SECRET)
    fit(used, SECRET)
    with pytest.raises(CheckpointError, match="already holds 12 releases"):
        resumed(interrupted, used)


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


def test_a_digit_beyond_the_precision_of_a_number_is_refused_as_a_change(interrupted):
    content = interrupted.state.read_bytes()
    numbers = (match for match in re.finditer(rb"0\.\d{16,}", content))
    place, digit = next(
        (match.end() - 1, digit)
        for match in numbers
        for digit in b"0123456789"
        if digit != content[match.end() - 1] and float(match[0][:-1] + bytes([digit])) == float(match[0])
    )
    interrupted.state.write_bytes(content[:place] + bytes([digit]) + content[place + 1 :])
    with pytest.raises(CheckpointError, match="training_state"):
        resumed(interrupted)


def test_a_missing_state_and_a_plain_checkpoint_are_refused(interrupted):
    tensors, values = read_tensor_file(interrupted.state)
    write_tensor_file(interrupted.state, tensors, {key: values[key] for key in ("info", "optimizer")})
    with pytest.raises(CheckpointError, match="is a checkpoint, not a training state"):
        resumed(interrupted)
    interrupted.state.unlink()
    with pytest.raises(CheckpointError, match=r"there is nothing to resume in .* or --force in place of --resume"):
        resumed(interrupted)


def test_a_journal_that_is_missing_older_or_changed_is_refused(interrupted):
    whole = interrupted.journal.read_bytes()
    interrupted.journal.unlink()
    with pytest.raises(CheckpointError, match=r"releases\.jsonl beside it is missing, older"):
        resumed(interrupted)
    interrupted.journal.write_bytes(whole.replace(b'"step": 4', b'"step": 9'))
    with pytest.raises(CheckpointError, match=r"line \d: the record of releases was changed"):
        resumed(interrupted)
    interrupted.journal.write_bytes(whole.splitlines(keepends=True)[1])
    with pytest.raises(CheckpointError, match="line 1: the record of releases was changed"):
        resumed(interrupted)


def test_a_state_of_a_different_format_is_refused_with_its_version(interrupted):
    tensors, values = read_tensor_file(interrupted.state)
    values["training"]["mapping"] = [entry for entry in values["training"]["mapping"] if entry[0] != "format"]
    write_tensor_file(interrupted.state, tensors, values)
    with pytest.raises(CheckpointError, match=r"format 'dpmodel-training-state/1'.*reads 'dpmodel-training-state/4'"):
        resumed(interrupted)


def test_a_folder_that_holds_a_training_is_not_overwritten(interrupted):
    before = interrupted.state.read_bytes()
    with pytest.raises(CheckpointError, match="resume=True"):
        fit(build(SECRET), SECRET, keeper=StateKeeper(interrupted.path, 4))
    assert interrupted.state.read_bytes() == before


def test_a_state_that_cannot_be_saved_is_refused_before_any_budget_is_spent(tmp_path):
    class Strange(Callback):
        def state_dict(self):
            return {"thing": object()}

    model = build(SECRET)
    with pytest.raises(CheckpointError, match=r"thing of type object.*no keeper"):
        fit(model, SECRET, Strange(), keeper=StateKeeper(tmp_path))
    assert model.ledger.total == 0


def test_a_keeper_that_is_used_again_finds_the_state_in_its_folder(make_model, loader, tmp_path):
    keeper = StateKeeper(tmp_path)
    make_model().fit(loader, epochs=1, keeper=keeper)
    before = read_state(RunFolder(tmp_path).state).step
    other = make_model()
    with pytest.raises(CheckpointError):
        other.fit(loader, epochs=1, keeper=keeper)
    assert other.ledger.total == 0
    assert read_state(RunFolder(tmp_path).state).step == before


def test_weights_restored_before_a_refusal_keep_their_claim(interrupted):
    model, empty = build(SECRET), TensorDataset(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    loader, keeper = PrivateLoader(data(), 6), StateKeeper(interrupted.path, 4, resume=True)
    callbacks = [Silence(), EarlyStopping("accuracy", patience=50)]
    with pytest.raises(DataError, match="holds no example"):
        model.fit(loader, EPOCHS, valid_loader=empty, keeper=keeper, callbacks=callbacks)
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.1)
    again = DPModel(model.network, nn.CrossEntropyLoss(), optimizer, noise_mech=Gaussian())
    again.fit(loader, 1, callbacks=[Silence()])
    assert again.ledger.covers(read_state(interrupted.state).ledger)
