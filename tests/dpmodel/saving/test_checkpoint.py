import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dpmodel.nets import LeNet5
from dpmodel.optimizers import build_optimizer, optimizer_names
from dpmodel.saving.checkpoint import (
    architecture_fingerprint,
    load_checkpoint,
    load_param_into_net,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from monitors.errors import CheckpointError
from monitors.events import GaussianEvent
from monitors.ledger import Ledger


class FakeModel:
    """The part of a DPModel that a checkpoint reads."""

    def __init__(self, network, optimizer):
        self.network, self.optimizer = network, optimizer
        self.ledger = Ledger().record(GaussianEvent(1.0), 12)
        self.steps_done = 12
        self.clip_mech = type("Clip", (), {"norm_bound": 0.25})()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def trained(name, network, steps=3):
    optimizer = build_optimizer(name, [p for p in network.parameters() if p.dim() == 2], lr=0.01)
    for _ in range(steps):
        network(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", optimizer_names())
def test_a_restored_training_continues_bit_for_bit(tmp_path, name):
    network = small()
    model = FakeModel(network, trained(name, network))
    save_checkpoint(tmp_path / "a.ckpt", model)
    other = small(seed=1)
    optimizer = trained(name, other, steps=1)
    read_checkpoint(tmp_path / "a.ckpt").restore(other, optimizer)
    for net, opt in ((network, model.optimizer), (other, optimizer)):
        opt.zero_grad()
        net(torch.ones(2, 3)).square().sum().backward()
        opt.step()
    assert equal(network.state_dict(), other.state_dict())


def test_step_bound_and_ledger_digest_are_stated(tmp_path):
    network = small()
    model = FakeModel(network, trained("SGD", network))
    save_checkpoint(tmp_path / "a.ckpt", model, extra={"note": [1, 2]})
    info = read_checkpoint(tmp_path / "a.ckpt").info
    assert (info.step, info.norm_bound, info.ledger_total) == (12, 0.25, 12)
    assert info.ledger_digest == model.ledger.digest()
    assert info.architecture == architecture_fingerprint(network)
    assert info.extra == {"note": [1, 2]}


def test_weights_and_buffers_of_any_type_come_back(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())
    network.register_buffer("empty", torch.zeros(0))
    network.register_buffer("scalar", torch.tensor(3))
    save_checkpoint(tmp_path / "a.ckpt", network)
    assert equal(load_checkpoint(tmp_path / "a.ckpt"), network.state_dict())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    network, other = Tied(), Tied()
    save_checkpoint(tmp_path / "a.ckpt", network)
    load_weights(other, tmp_path / "a.ckpt")
    assert torch.equal(other.encoder.weight, network.encoder.weight)
    assert other.decoder.weight is other.encoder.weight
    assert (tmp_path / "a.ckpt").stat().st_size < 4 * 4 * 4 * 2 + 900


def test_different_values_for_tied_weights_are_refused(tmp_path):
    network = Tied()
    before = network.encoder.weight.clone()
    values = {"encoder.weight": torch.zeros(4, 4), "decoder.weight": torch.ones(4, 4)}
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="are tied in the network and differ"):
            load_param_into_net(network, values, strict)
    assert torch.equal(network.encoder.weight, before)


def test_weights_that_share_memory_in_part_are_saved(tmp_path):
    whole = torch.arange(6.0)
    network = nn.Module()
    network.register_buffer("left", whole[:3])
    network.register_buffer("all", whole)
    save_checkpoint(tmp_path / "a.ckpt", network)
    assert equal(load_checkpoint(tmp_path / "a.ckpt"), {"left": whole[:3], "all": whole})


def test_the_tutorials_two_calls_load_a_network(tmp_path):
    network, other = LeNet5(seed=1), LeNet5(seed=2)
    save_checkpoint(tmp_path / "checkpoint_lenet-10_234.ckpt", network)
    load_param_into_net(other, load_checkpoint(tmp_path / "checkpoint_lenet-10_234.ckpt"))
    assert equal(network.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
            r"0\.weight is \(4, 3\) of torch\.float32 in the checkpoint",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh()), r"2\.weight is not in the network"),
        (nn.Sequential(*small(), nn.Linear(2, 2)), r"3\.bias is not in the checkpoint"),
        (small().double(), "float64 in the network"),
    ],
)
def test_a_checkpoint_of_a_different_network_is_refused_with_the_differences(tmp_path, foreign, message):
    save_checkpoint(tmp_path / "a.ckpt", small())
    before = {name: item.clone() for name, item in foreign.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(foreign, tmp_path / "a.ckpt")
    assert equal(foreign.state_dict(), before)


def test_a_different_optimizer_is_refused_and_the_network_is_unchanged(tmp_path):
    network = small()
    save_checkpoint(tmp_path / "a.ckpt", FakeModel(network, trained("SGD", network)))
    other = small(seed=1)
    before = {name: item.clone() for name, item in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="state of the optimizer SGD, the model uses Adam"):
        read_checkpoint(tmp_path / "a.ckpt").restore(other, build_optimizer("Adam", other.parameters()))
    with pytest.raises(CheckpointError, match="updates parameters of shapes"):
        read_checkpoint(tmp_path / "a.ckpt").restore(other, build_optimizer("SGD", other.parameters(), lr=0.1))
    assert equal(other.state_dict(), before)


def test_a_bare_network_has_no_optimizer_state_to_restore(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", small())
    other = small()
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        read_checkpoint(tmp_path / "a.ckpt").restore(other, build_optimizer("SGD", other.parameters(), lr=0.1))


def outcome(path):
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        return error


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "a.ckpt"
    network = small()
    save_checkpoint(path, FakeModel(network, trained("SGD", network)))
    return path, path.read_bytes(), load_checkpoint(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_an_error_or_changes_nothing_that_is_read(file_bytes, data):
    path, content, weights = file_bytes
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    other = path.with_name("flipped.ckpt")
    other.write_bytes(bytes(damaged))
    found = outcome(other)
    if isinstance(found, CheckpointError):
        assert "flipped.ckpt" in str(found)
    else:
        assert equal(found.weights, weights)
        assert found.info == read_checkpoint(path).info


def test_every_flipped_bit_of_the_tensors_is_noticed(file_bytes):
    path, content, _ = file_bytes
    start = 8 + int.from_bytes(content[:8], "little")
    other = path.with_name("flipped.ckpt")
    for at in range(start, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        other.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(other)


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0))
def test_a_truncated_file_is_an_error(file_bytes, length):
    path, content, _ = file_bytes
    other = path.with_name("short.ckpt")
    other.write_bytes(content[: length % len(content)])
    with pytest.raises(CheckpointError, match=r"short\.ckpt"):
        read_checkpoint(other)


def test_a_pickle_is_never_loaded(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Exploit()))
    torch.save(small().state_dict(), tmp_path / "torch.ckpt")
    for name in ("evil.ckpt", "torch.ckpt"):
        with pytest.raises(CheckpointError, match="is not a checkpoint, or is truncated or damaged"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_refused_with_the_call_that_reads_it(tmp_path, zipped):
    network, other = small(), small(seed=1)
    torch.save(network.state_dict(), tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="but a safetensors file of save_checkpoint") as caught:
        load_checkpoint(tmp_path / "t.pt")
    exec(str(caught.value).partition("Weights from torch: ")[2], {"network": other, "torch": torch})
    assert equal(network.state_dict(), other.state_dict())


def test_the_error_for_any_other_file_says_what_is_expected(tmp_path):
    (tmp_path / "a.ckpt").write_text("epoch,step\n")
    with pytest.raises(CheckpointError, match=r"A safetensors file of save_checkpoint or ModelCheckpoint is expected"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_network_with_a_new_head_loads_the_rest_and_names_what_is_missing(tmp_path):
    old = small()
    new = nn.Sequential(*small(seed=1)[:2], nn.Linear(4, 5), nn.Linear(5, 2))
    before = new[2].weight.clone()
    save_checkpoint(tmp_path / "a.ckpt", old)
    weights = load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="To load what fits: strict_load=False"):
        load_param_into_net(new, weights)
    missed = load_param_into_net(new, weights, strict_load=False)
    assert missed == ["2.weight", "2.bias", "3.weight", "3.bias"]
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[2].weight, before)
    assert load_param_into_net(small(seed=2), weights) == []


def test_weights_of_which_none_fits_are_refused_even_if_not_strict():
    with pytest.raises(
        CheckpointError, match=r"none of the 2 tensors in parameter_dict \(module\.weight, module\.bias\)"
    ):
        load_param_into_net(nn.Linear(2, 1), {f"module.{k}": v for k, v in nn.Linear(2, 1).state_dict().items()}, False)


def test_foreign_safetensors_and_missing_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="without dpmodel's description"):
        load_checkpoint(tmp_path / "other.safetensors")
    save_file(
        {"weight": torch.zeros(2)}, tmp_path / "fake.safetensors", metadata={"dpmodel": json.dumps({"aliases": 3})}
    )
    with pytest.raises(CheckpointError, match="description has an unknown form"):
        load_checkpoint(tmp_path / "fake.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_a_value_that_cannot_be_saved_is_refused_and_no_file_is_left(tmp_path):
    with pytest.raises(CheckpointError, match="a run, a DPModel or a network"):
        save_checkpoint(tmp_path / "a.ckpt", object())
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "a.ckpt", small(), extra={"function": print})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.ckpt", small(0))
    before = (tmp_path / "a.ckpt").read_bytes()

    def no_space(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("monitors.atomic.os.fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path / "a.ckpt", small(1))
    assert (tmp_path / "a.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
