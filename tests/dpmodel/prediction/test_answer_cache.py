"""A query that was answered is answered again for free, if asked; a lost answer stays charged."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.prediction import BudgetExhausted, Confidence, DPLogits, EnsembleLogits, QueryLedger
from dpmodel.prediction.answer_cache import ANSWERS_NAME, row_digests
from monitors.errors import CheckpointError

DELTA = 1e-5


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queries"


@pytest.fixture
def ledger(folder):
    with QueryLedger(folder, 8.0, DELTA) as opened:
        yield opened


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def private(network, ledger, **settings):
    return DPLogits(network, noise_multiplier=20.0, ledger=ledger, cache=True, **settings)


def test_a_repeated_query_gets_the_same_answer_for_free(network, ledger):
    x = torch.randn(5, 4)
    first = private(network, ledger).query(x).scores
    assert ledger.asked == 5
    again = private(network, ledger).query(x[[3, 0]]).scores
    assert torch.equal(again, first[[3, 0]])
    assert ledger.asked == 5


def test_an_answer_that_another_ledger_has_paid_for_is_not_free(network, ledger, tmp_path):
    x = torch.randn(2, 4)
    with QueryLedger(tmp_path / "other", 8.0, DELTA) as other:
        private(network, other).query(x)
    shutil.copy(tmp_path / "other" / ANSWERS_NAME, ledger.path)
    private(network, ledger).query(x)
    assert ledger.asked == 2


def test_without_the_cache_each_query_is_charged_and_gets_fresh_noise(network, ledger):
    x = torch.randn(2, 4)
    plain = DPLogits(network, noise_multiplier=20.0, ledger=ledger)
    assert not torch.equal(plain.query(x).scores, plain.query(x).scores)
    assert ledger.asked == 4
    assert not (ledger.path / ANSWERS_NAME).exists()


def test_equal_rows_of_one_batch_are_charged_once(network, ledger):
    scores = private(network, ledger).query(torch.ones(6, 4)).scores
    assert ledger.asked == 1
    assert torch.equal(scores, scores[:1].expand(6, 3))


def test_answers_are_kept_for_later_processes(network, folder):
    x = torch.randn(3, 4)
    with QueryLedger(folder, 8.0, DELTA) as ledger:
        first = private(network, ledger).query(x).scores
    with QueryLedger(folder) as ledger:
        assert torch.equal(private(network, ledger).query(x).scores, first)
        assert ledger.asked == 3


def test_known_queries_are_answered_when_the_budget_is_exhausted(network, folder):
    x = torch.randn(50, 4)
    with QueryLedger(folder, 0.8, DELTA) as ledger:
        mechanism = private(network, ledger)
        left = ledger.left(mechanism.noise.event)
        first = mechanism.query(x[:left]).scores
        with pytest.raises(BudgetExhausted) as caught:
            mechanism.query(x[: left + 2])
        assert (caught.value.asked, caught.value.left) == (2, 0)
        assert torch.equal(mechanism.query(x[:left]).scores, first)


CHANGES = {
    "weights": lambda network, ledger: (
        (network.weight.data.add_(1.0), network.bias.detach().add_(0.0)) and private(network, ledger)
    ),
    "noise": lambda network, ledger: DPLogits(network, noise_multiplier=20.0000001, ledger=ledger, cache=True),
    "norm bound": lambda network, ledger: private(network, ledger, norm_bound=2.0),
    "sensitivity": lambda network, ledger: private(network, ledger, sensitivity=0.5),
    "network": lambda network, ledger: private(nn.Sequential(network), ledger),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_other_queries(network, ledger, change):
    x = torch.randn(2, 4)
    private(network, ledger).query(x)
    CHANGES[change](network, ledger).query(x)
    assert ledger.asked == 4


def test_a_network_that_was_changed_while_it_is_queried_is_another_network(network, ledger):
    x, mechanism = torch.randn(2, 4), private(network, ledger)
    mechanism.query(x)
    with torch.no_grad():
        network.weight.mul_(2.0)
    mechanism.query(x)
    assert ledger.asked == 4


@pytest.mark.parametrize("fused", [False, True])
def test_a_network_that_was_trained_further_is_another_network(fused, network, ledger):
    x, model = torch.randn(3, 4), private(network, ledger)
    model.query(x)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=fused)
    network(x).sum().backward()
    optimizer.step()  # a fused step raises no version
    model.query(x)
    assert ledger.asked == 6


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8]), hnp.array_shapes(min_dims=2, max_dims=3)))
def test_a_digest_covers_bytes_shape_and_type_of_a_row(values):
    x = torch.from_numpy(values)
    digests = row_digests(x, "settings")
    for one, other in zip(range(len(x)), reversed(range(len(x))), strict=True):
        same = values[one].tobytes() == values[other].tobytes()
        assert (digests[one] == digests[other]) == same
    assert digests[0] not in row_digests(x.unsqueeze(1), "settings")
    assert digests[0] not in row_digests(x, "others")
    assert digests[0] not in row_digests(x.to(torch.float64), "settings")
    assert digests[0] not in row_digests((x, x), "settings")


def test_inputs_of_several_tensors_and_loaders_are_cached(ledger):
    class Two(nn.Module):
        def forward(self, a, b):
            return torch.stack([a.sum(1), b.sum(1)], 1)

    a, b = torch.randn(7, 2), torch.randn(7, 3)
    mechanism = private(Two(), ledger)
    first = mechanism.query({"a": a, "b": b}).scores
    assert torch.equal(mechanism.query({"a": a, "b": b}).scores, first)
    assert ledger.asked == 7
    data = TensorDataset(torch.randn(7, 4), torch.zeros(7))
    other = private(nn.Linear(4, 2), ledger)
    first = other.query(DataLoader(data, batch_size=3)).scores
    assert torch.equal(other.query(data.tensors[0]).scores, first)
    assert ledger.asked == 14


def test_rows_without_an_answer_are_kept_too(ledger):
    teachers = [nn.Linear(4, 3) for _ in range(20)]
    confidence = Confidence(threshold=19.0, noise_multiplier=4.0)
    ensemble = EnsembleLogits(teachers, noise_multiplier=20.0, confidence=confidence, ledger=ledger, cache=True)
    x = torch.randn(30, 4)
    first, asked = ensemble.query(x), ledger.asked
    again = ensemble.query(x)
    assert not first.answered.all()
    assert torch.equal(first.answered, again.answered)
    assert torch.equal(first.labels, again.labels)
    assert ledger.asked == asked


def test_an_answer_that_cannot_be_kept_is_not_given_but_charged(network, ledger, monkeypatch):
    mechanism = private(network, ledger)
    mechanism.query(torch.randn(1, 4))
    synced, fsync = [], os.fsync

    def full(handle):
        synced.append(handle)
        if len(synced) == 2:  # the charge is written, the answer is not
            raise OSError(28, "No space left on device")
        fsync(handle)

    x = torch.randn(2, 4)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"not given; they were charged"):
        mechanism.query(x)
    monkeypatch.undo()
    assert ledger.asked == 3
    assert len(ledger.answers) == 1
    mechanism.query(x)
    assert ledger.asked == 5
    assert len(ledger.answers) == 3


def test_every_cut_of_the_file_loses_answers_only(network, folder):
    x = torch.randn(2, 4)
    with QueryLedger(folder, 8.0, DELTA) as ledger:
        private(network, ledger).query(x)
    content = (folder / ANSWERS_NAME).read_bytes()
    for cut in range(0, len(content), 7):
        (folder / ANSWERS_NAME).write_bytes(content[:cut])
        with QueryLedger(folder) as ledger:
            assert len(ledger.answers) == content[:cut].count(b"\n")
            assert ledger.asked == 2
    with QueryLedger(folder) as ledger:
        private(network, ledger).query(x)
        assert ledger.asked == 2 + 2 - content[:cut].count(b"\n")
    with QueryLedger(folder) as ledger:
        assert len(ledger.answers) == 2


def test_a_changed_answer_is_noticed(network, folder):
    with QueryLedger(folder, 8.0, DELTA) as ledger:
        private(network, ledger).query(torch.randn(2, 4))
    path = folder / ANSWERS_NAME
    content = path.read_bytes()
    path.write_bytes(content[:100] + (b"A" if content[100:101] != b"A" else b"B") + content[101:])
    with QueryLedger(folder) as ledger, pytest.raises(CheckpointError, match="line 1: it was changed"):
        _ = ledger.answers


def test_a_link_in_place_of_the_answers_is_not_followed(network, folder, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    with QueryLedger(folder, 8.0, DELTA) as ledger:
        (folder / ANSWERS_NAME).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="link"):
            private(network, ledger).query(torch.randn(2, 4))
        assert ledger.asked == 0


def test_a_closed_ledger_gives_no_cached_answers(network, folder):
    with QueryLedger(folder, 8.0, DELTA) as ledger:
        mechanism = private(network, ledger)
        mechanism.query(torch.ones(1, 4))
    with pytest.raises(CheckpointError, match="is closed"):
        mechanism.query(torch.ones(1, 4))


def test_a_cache_needs_a_ledger(network):
    with pytest.raises(ValueError, match="leave cache out"):
        DPLogits(network, sensitivity=None, cache=True)
