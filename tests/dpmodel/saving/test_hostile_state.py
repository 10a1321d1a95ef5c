"""States whose checksum is right but whose content does not fit: refused before anything is used or written."""

import json
import re
import zlib

import pytest
import torch
from torch import nn

from dpmodel import StateKeeper
from dpmodel.callbacks import ModelCheckpoint
from dpmodel.optimizers import OPTIMIZERS, REFUSED_OPTIMIZERS, build_optimizer, optimizer_names, stepped_copy
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from dpmodel.saving.optimizer_state import fitting_state
from dpmodel.saving.state import read_state
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.errors import CheckpointError

from ..power_cut import PowerCut
from .trainings import SECRET, build, fit

SHUFFLED = {**SECRET, "sampling": "shuffle"}


def interrupted(place, case):
    with pytest.raises(KeyboardInterrupt):
        fit(build(case), case, PowerCut(6), keeper=StateKeeper(place, 4))
    return RunFolder(place)


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def refused(folder, case, message):
    before = tree(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(build(case), case, keeper=StateKeeper(folder.path, 4, resume=True))
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


def entry(values, *path):
    """The JSON value at ``path`` of the packed training state."""
    here = values["training"]
    for key in path:
        here = dict(map(tuple, here["mapping"]))[key] if isinstance(here, dict) else here[key]
    return here


def put(values, value, *path):
    for pair in entry(values, *path[:-1])["mapping"]:
        if pair[0] == path[-1]:
            pair[1] = value


def rewritten(folder, change):
    tensors, values = read_tensor_file(folder.state)
    change(tensors, values)
    write_tensor_file(folder.state, tensors, values)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1),
        torch.zeros(2, 6).double(),
        torch.zeros(6, 2),
        torch.zeros(2, 6).int(),
        torch.full((2, 6), torch.nan),
    ],
)
def test_a_momentum_buffer_of_another_form_is_refused_before_native_code_sees_it(tmp_path, value):
    folder = interrupted(tmp_path, SECRET)
    rewritten(folder, lambda tensors, _: tensors.update({"optimizer.state.state.2.momentum_buffer": value}))
    refused(folder, SECRET, "of parameter 2: momentum_buffer does not fit, got")


def test_a_parameter_without_the_buffers_that_others_have_is_refused(tmp_path):
    folder = interrupted(tmp_path, SECRET)

    def change(_, values):
        buffers = dict(values["optimizer"]["state"]["mapping"])["state"]["mapping"]
        next(pair for pair in buffers if pair[0] == 2)[1] = {"mapping": []}

    rewritten(folder, change)
    refused(folder, SECRET, "has nothing for parameter 2, unlike for others")


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    folder = interrupted(tmp_path, SECRET)
    rewritten(folder, lambda tensors, _: tensors["network.0.weight"].fill_(torch.nan))
    refused(folder, SECRET, r"0\.weight holds values that are not numbers")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["privacy_report.json", "privacy_report.md", "history.csv"])
def test_a_folder_in_place_of_a_result_is_refused_before_anything_is_written(tmp_path, name):
    folder = interrupted(tmp_path, SECRET)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="is a folder, in place of a result"):
        fit(build(SECRET), SECRET, keeper=StateKeeper(tmp_path, 4, resume=True))
    assert folder.state.is_file()


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("name", "value"),
    [("step", 1.5), ("ledger_total", []), ("heads", [{}]), ("heads", "ab"), ("heads", 3), ("step", -1)],
)
def test_a_description_of_a_wrong_type_is_refused(tmp_path, name, value):
    folder = interrupted(tmp_path, SECRET)
    rewritten(folder, lambda _, values: values["info"].update({name: value}))
    refused(folder, SECRET, name)
    with pytest.raises(CheckpointError, match=name):
        folder.read_ledger()


@pytest.mark.parametrize("heads", [[{}], [[]], {"x": 1}, 3, "ab", [3, None]])
@pytest.mark.sample(3)
def test_heads_of_a_wrong_type_in_a_report_belong_to_no_training(tmp_path, heads):
    folder = interrupted(tmp_path, SECRET)
    folder.report.write_text(json.dumps({"journals": heads}))
    with pytest.raises(CheckpointError, match="does not match ledger"):
        folder.read_ledger()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "x"),
        ("lr", float("nan")),
        ("lr", True),
        ("lr", -0.1),
        ("momentum", float("inf")),
        ("nesterov", 1),
        ("maximize", True),
    ],
)
@pytest.mark.sample(7)
def test_an_option_of_the_optimizer_that_does_not_fit_is_refused(tmp_path, name, value):
    folder = interrupted(tmp_path, SECRET)

    def change(_, values):
        group = dict(map(tuple, values["optimizer"]["state"]["mapping"]))["param_groups"][0]
        for pair in group["mapping"]:
            if pair[0] == name:
                pair[1] = value

    rewritten(folder, change)
    refused(folder, SECRET, f"group 0: {name} is .* here, got")


def test_the_way_an_optimizer_runs_is_that_of_the_live_one():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    state = stepped_copy(optimizer).state_dict()
    state["param_groups"][0] |= {"fused": True, "foreach": True, "capturable": True, "differentiable": True}
    loaded = fitting_state(optimizer, state, "file")["param_groups"][0]
    assert [loaded[name] for name in ("fused", "foreach", "capturable", "differentiable")] == [None, None, False, False]


class Lookahead(torch.optim.SGD):
    """An optimizer of a different package, which adds a buffer in its second step."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["taken"] = state.get("taken", 0) + 1
            if state["taken"] == 2:
                state["slow"] = torch.zeros_like(state["momentum_buffer"])


def test_buffers_that_an_optimizer_adds_later_are_accepted_if_their_shape_is_possible():
    network = nn.Linear(3, 2)
    optimizer = Lookahead(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    assert (
        fitting_state(Lookahead(network.parameters(), lr=0.1, momentum=0.9), state, "file")["state"] == state["state"]
    )
    state["state"][0]["slow"] = torch.zeros(5, 3)
    with pytest.raises(CheckpointError, match=r"of parameter 0: slow does not fit, got \(5, 3\) of torch.float32"):
        fitting_state(optimizer, state, "file")


@pytest.mark.parametrize("name", sorted({*optimizer_names(), *OPTIMIZERS.names()} - {*REFUSED_OPTIMIZERS}))
def test_the_state_of_every_optimizer_is_accepted_back(tmp_path, name):
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = build_optimizer(name, network.parameters(), lr=0.01)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    expected = optimizer.state_dict()
    assert str(fitting_state(build_optimizer(name, network.parameters(), lr=0.01), expected, "file")) == str(expected)


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (7, ("loop", "run", "step"), "the steps contradict each other"),
        (-1, ("loop", "run", "epoch"), "epoch must be an integer of at least 0"),
        (10**300, ("loop", "run", "planned_steps"), "planned steps"),
        (True, ("loop", "run", "epoch"), "epoch has the type bool"),
        ("x", ("loop", "run", "loss"), "loss has the type str"),
        ({"mapping": [["norm_bound", 1e300]]}, ("loop", "run", "clip"), "lies outside"),
        ({"mapping": [["norm_bound", float("nan")]]}, ("loop", "run", "clip"), "positive finite"),
        ({"mapping": []}, ("loop", "run", "clip"), "norm_bound"),
        ({"mapping": [["broken_steps", -5]]}, ("loop", "step"), "broken_steps must be"),
        ({"mapping": [["losses", 3], ["seconds", 1.0]]}, ("loop", "progress"), "does not fit"),
        ({"mapping": []}, ("loop", "run", "history"), "epochs"),
        ([], ("loop", "callbacks"), "holds the state of the callbacks none"),
        ({"mapping": []}, ("loop",), "must have the entries run"),
        ({"tensor": 3}, ("loop",), "which is not a tensor, tuple or mapping"),
        ({"mapping": [[1]]}, ("loop",), "which is not a tensor, tuple or mapping"),
    ],
)
@pytest.mark.sample(15)
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, value, path, message):
    folder = interrupted(tmp_path, SECRET)
    rewritten(folder, lambda _, values: put(values, value, *path))
    refused(folder, SECRET, message)


@pytest.mark.sample(3)
@pytest.mark.parametrize("partition", [1, 2, 5])
def test_a_partition_that_moved_cannot_make_two_epochs_one(tmp_path, partition):
    folder = interrupted(tmp_path, SHUFFLED)
    rewritten(folder, lambda _, values: put(values, partition, "loop", "run", "first_partition"))
    with pytest.raises(CheckpointError, match="digest of some") as caught:
        fit(build(SHUFFLED), SHUFFLED, keeper=StateKeeper(folder.path, 4, resume=True))
    fitting = re.search(r"'(\w+)' here", str(caught.value))[1]
    rewritten(folder, lambda _, values: put(values, fitting, "settings", "planned releases (digest of some)"))
    refused(folder, SHUFFLED, "does not charge those from step 0 on")


@pytest.mark.sample(3)
@pytest.mark.parametrize("order", [torch.zeros(24, dtype=torch.int64), torch.arange(23), torch.arange(24).double()])
def test_an_order_that_is_not_of_all_rows_is_refused(tmp_path, order):
    folder = interrupted(tmp_path, SHUFFLED)
    rewritten(folder, lambda tensors, _: tensors.update({"training.loop.run.sampler.order": order}))
    refused(folder, SHUFFLED, "order must hold each of the rows 0 to 23 once")


def test_a_state_with_fewer_releases_than_steps_is_refused(tmp_path):
    folder = interrupted(tmp_path, SECRET)
    empty = torch.frombuffer(bytearray(zlib.compress(b"[]")), dtype=torch.uint8)
    rewritten(folder, lambda tensors, _: tensors.update({"training.rows": empty}))
    refused(folder, SECRET, "states the origins of 4 releases and holds 0")
    rewritten(folder, lambda _, values: values.pop("origins"))
    refused(folder, SECRET, "states 4 steps, but its ledger charges only 0 releases")


@pytest.mark.parametrize("content", [b"[]", zlib.compress(b"[]")[:-3]], ids=["not compressed", "incomplete"])
def test_rows_that_are_not_compressed_or_incomplete_are_refused(tmp_path, content):
    folder = interrupted(tmp_path, SECRET)
    damaged = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    rewritten(folder, lambda tensors, _: tensors.update({"training.rows": damaged}))
    refused(folder, SECRET, "the rows of the ledger are")


def test_files_that_a_checkpoint_callback_did_not_write_are_never_deleted(tmp_path):
    callback = ModelCheckpoint(directory=tmp_path / "checkpoints")
    for path in (
        "/etc/passwd",
        str(tmp_path / "checkpoints" / "notes.txt"),
        str(tmp_path / "checkpoints" / "../x.ckpt"),
    ):
        with pytest.raises(ValueError, match="is not a checkpoint"):
            callback.load_state_dict({"saved": [path], "last_step": 3, "prefix": "CKP"})
    with pytest.raises(ValueError, match="prefix must be"):
        callback.load_state_dict({"saved": [], "last_step": 3, "prefix": "../x"})


@pytest.mark.parametrize(
    "aliases", [{"a": "b"}, {"a": "a"}, {"network.bias": "network.weight"}, {"a": 3}, {"a": ["x"]}]
)
def test_an_alias_names_a_tensor_of_the_file(tmp_path, aliases, monkeypatch):
    import dpmodel.saving.tensor_file as module

    without = module._without_duplicates
    monkeypatch.setattr(module, "_without_duplicates", lambda tensors: (without(tensors)[0], aliases))
    save_checkpoint(tmp_path / "w", nn.Linear(2, 1))
    with pytest.raises(CheckpointError, match="which the file does not hold"):
        load_checkpoint(tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((2**63).to_bytes(8, "little") + b"{}", "state a header of"),
        ((2).to_bytes(8, "little") + b"{}", "without dpmodel's description"),
        ((8).to_bytes(8, "little") + b"[" * 8, "is truncated or damaged"),
        (b"\0" * 3, "is truncated or damaged"),
        (b"", "is truncated or damaged"),
    ],
)
def test_a_header_is_checked_before_it_is_believed(tmp_path, content, message):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "w")
    with (tmp_path / "w").open("ab") as stream:
        stream.truncate(2**40)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(tmp_path / "w")
