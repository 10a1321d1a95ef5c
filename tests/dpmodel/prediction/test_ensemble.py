"""Ensembles: one example changes one teacher, and each teacher moves the scores by at most the sensitivity."""

from __future__ import annotations

import contextlib
import copy
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from dpmodel.prediction import Answer, BudgetExhausted, Confidence, EnsembleLogits, Partition, QueryLedger
from monitors import GaussianEvent
from monitors.errors import DataError

from .fixed_network import Fixed

CLASSES = 4


def teachers(logits):
    return [Fixed(one) for one in logits]


LOGITS = hnp.arrays(np.float64, (2, CLASSES), elements=st.floats(-1e6, 1e6) | st.just(float("nan")))


@pytest.mark.sample(2)
@settings(deadline=None, max_examples=60)
@given(others=hnp.arrays(np.float64, (3, 2, CLASSES), elements=st.floats(-9, 9)), one=LOGITS, other=LOGITS)
@pytest.mark.parametrize("mode", ["votes", "logits"])
def test_one_teacher_moves_the_scores_by_at_most_the_sensitivity(mode, tmp_path_factory, others, one, other):
    with QueryLedger(tmp_path_factory.mktemp("queries"), 8.0, 1e-5) as ledger:
        found = []
        for changed in (one, other):
            ensemble = EnsembleLogits(
                teachers([*others, changed]), noise_multiplier=5.0, mode=mode, norm_bound=2.0, ledger=ledger
            )
            found.append(ensemble._summed(torch.zeros(2, 1), 10) * ensemble._grid)
    moves = np.linalg.norm(found[0] - found[1], axis=1)
    assert (moves <= ensemble.noise.sensitivity * (1 + 1e-12)).all()


@pytest.mark.parametrize("mode", ["votes", "logits"])
def test_the_sensitivity_is_reached(mode, ledger):
    rest, found = np.zeros((4, 1, CLASSES)), []
    for best in (0, 1):
        logits = np.full((1, CLASSES), 0.0)
        logits[0, best], logits[0, 1 - best] = 1e6, -1e6
        ensemble = EnsembleLogits(teachers([*rest, logits]), noise_multiplier=5.0, mode=mode, ledger=ledger)
        found.append(ensemble._summed(torch.zeros(1, 1), 10) * ensemble._grid)
    assert np.linalg.norm(found[0] - found[1]) == pytest.approx(ensemble.noise.sensitivity, rel=1e-6)


def test_votes_are_counted_and_charged(ledger):
    logits = np.zeros((20, 3, CLASSES))
    logits[:15, :, 2] = 1.0
    ensemble = EnsembleLogits(teachers(logits), noise_multiplier=10.0, ledger=ledger)
    answer = ensemble.query(torch.zeros(3, 1))
    assert list(ledger.ledger) == [(GaussianEvent(10.0), 3)]
    assert answer.votes
    assert answer.scores.shape == (3, CLASSES)
    assert ensemble.noise.deviation == pytest.approx(10.0 * math.sqrt(2))


def test_the_noise_on_votes_has_its_scale(ledger):
    many = np.zeros((2, 3000, CLASSES))
    ensemble = EnsembleLogits(teachers(many), noise_multiplier=500.0, ledger=ledger)
    spread = float(ensemble.query(torch.zeros(3000, 1)).scores.std())
    assert spread == pytest.approx(500.0 * math.sqrt(2), rel=0.05)


def test_agreement_outvotes_the_noise(tmp_path):
    logits = np.zeros((250, 50, CLASSES))
    logits[:, :, 1] = 1.0
    with QueryLedger(tmp_path / "q", 5.0, 1e-5) as ledger:
        for mode in ("votes", "logits"):
            ensemble = EnsembleLogits(teachers(logits), noise_multiplier=15.0, mode=mode, ledger=ledger)
            assert (ensemble.predict(torch.zeros(50, 1)) == 1).double().mean() > 0.95


def test_only_queries_on_which_teachers_agree_are_answered(ledger):
    logits = np.random.default_rng(0).normal(size=(100, 40, CLASSES))
    logits[:, :20, 3] = 50.0
    confidence = Confidence(threshold=75.0, noise_multiplier=12.0)
    ensemble = EnsembleLogits(teachers(logits), noise_multiplier=8.0, confidence=confidence, ledger=ledger)
    answer = ensemble.query(torch.zeros(40, 1))
    counts = dict(ledger.ledger)
    assert counts[GaussianEvent(12.0)] == 40
    assert counts[GaussianEvent(8.0)] == int(answer.answered.sum())
    assert int(answer.answered[:20].sum()) >= 12
    assert int(answer.answered[20:].sum()) <= 4
    assert (answer.labels[~answer.answered] == -1).all()
    assert (answer.labels[answer.answered][:12] == 3).all()


def test_a_random_number_of_answers_is_noted(ledger):
    networks = teachers(np.zeros((4, 1, CLASSES)))
    EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger, rows=[[0], [1], [2], [3]])
    assert not ledger.ledger.notes
    EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger, confidence=Confidence(3.0, 5.0))
    assert any("the guarantee is the budget of the queries, epsilon 8 at" in note for note in ledger.ledger.notes)


def test_a_batch_whose_answers_might_not_fit_is_refused_whole(ledger):
    confidence = Confidence(threshold=1.0, noise_multiplier=5.0)
    ensemble = EnsembleLogits(
        teachers(np.zeros((4, 10_000, CLASSES))), noise_multiplier=5.0, confidence=confidence, ledger=ledger
    )
    with pytest.raises(BudgetExhausted):
        ensemble.query(torch.zeros(10_000, 1))
    assert ledger.spent == 0.0


def test_no_other_thread_takes_the_room_between_a_comparison_and_its_answers(ledger):
    confidence = Confidence(threshold=1.0, noise_multiplier=50.0)
    ensemble = EnsembleLogits(
        teachers(np.zeros((500, 3, CLASSES))), noise_multiplier=20.0, confidence=confidence, ledger=ledger
    )
    compared, others = ensemble._check.noisy, []

    def spend():
        with contextlib.suppress(BudgetExhausted):
            ledger.charge(GaussianEvent(1000.0), 5000)

    def interrupted(*args):
        others.append(threading.Thread(target=spend))
        others[0].start()
        others[0].join(0.1)
        return compared(*args)

    ensemble._check.noisy = interrupted
    ledger.charge(GaussianEvent(20.0), ledger.left(GaussianEvent(20.0)) - 4)
    assert ensemble.query(torch.zeros(3, 1)).answered.all()
    others[0].join()


def test_all_teachers_see_the_same_inputs_of_a_loader(ledger):
    sign = nn.Linear(1, 2)
    with torch.no_grad():
        sign.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        sign.bias.zero_()
    ensemble = EnsembleLogits([copy.deepcopy(sign) for _ in range(200)], noise_multiplier=5.0, ledger=ledger)
    x = torch.tensor([[1.0], [-1.0]]).repeat(10, 1)
    any_order = [torch.utils.data.DataLoader(x, batch_size=4, sampler=AnyOrder(len(x))), iter(x.split(4))]
    for inputs in any_order:
        assert ensemble.query(inputs).scores.amax(dim=1).min() > 150


class AnyOrder(torch.utils.data.Sampler):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(torch.randperm(self.count).tolist())

    def __len__(self):
        return self.count


@pytest.mark.parametrize("rows", [[[0, 1], [-1]], [[0.0], [1.0]], [[True], [False]], [[[0]], [[1]]]])
def test_rows_must_be_numbers_from_zero_on(ledger, rows):
    with pytest.raises(DataError, match="must be a vector of whole numbers"):
        EnsembleLogits(teachers(np.zeros((2, 1, CLASSES))), noise_multiplier=5.0, ledger=ledger, rows=rows)


def test_one_network_is_not_two_teachers(ledger):
    with pytest.raises(ValueError, match="listed twice"):
        EnsembleLogits(teachers(np.zeros((1, 1, CLASSES))) * 2, noise_multiplier=5.0, ledger=ledger, rows=[[0], [1]])


def test_teachers_that_share_rows_are_refused(ledger):
    networks = teachers(np.zeros((3, 1, CLASSES)))
    with pytest.raises(DataError, match="teachers 0 and 2 were both trained on row 7"):
        EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger, rows=[[1, 7], [2], [3, 7]])
    EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger, rows=[[1], [2], [3]])
    assert not ledger.ledger.notes
    EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger)
    assert any("disjoint" in note for note in ledger.ledger.notes)


def test_bad_arguments_are_refused(ledger):
    networks = teachers(np.zeros((3, 1, CLASSES)))
    for options, message in (
        ({"mode": "mean"}, "mode must be one of"),
        ({"noise_multiplier": 0.0}, "positive"),
        ({"rows": [[1]]}, "one entry per teacher"),
        ({"mode": "logits", "confidence": Confidence(1.0, 1.0)}, "counts votes"),
        ({"ledger": None}, "must be a QueryLedger"),
    ):
        with pytest.raises(ValueError, match=message):
            EnsembleLogits(networks, **{"noise_multiplier": 5.0, "ledger": ledger, **options})
    with pytest.raises(ValueError, match="at least 2 teachers, got 1"):
        EnsembleLogits(networks[:1], noise_multiplier=5.0, ledger=ledger)


def test_teachers_with_different_classes_are_refused_for_free(ledger):
    networks = [Fixed(np.zeros((2, 3))), Fixed(np.zeros((2, 4)))]
    with pytest.raises(DataError, match="teacher 1 returns scores of shape"):
        EnsembleLogits(networks, noise_multiplier=5.0, ledger=ledger).query(torch.zeros(2, 1))
    assert ledger.spent == 0.0


@given(count=st.integers(0, 200), parts=st.integers(2, 9), seed=st.integers(1, 99))
def test_a_partition_covers_each_row_once(count, parts, seed):
    if count == 0:
        return
    partition = Partition.draw(count, parts, seed)
    rows = np.concatenate([partition.rows(part) for part in range(parts)])
    assert sorted(rows.tolist()) == list(range(count))


def test_another_row_leaves_the_parts_of_the_others_as_they_are():
    first, second = Partition.draw(100, 5, seed=3), Partition.draw(101, 5, seed=3)
    assert (first.owners == second.owners[:100]).all()


@pytest.mark.parametrize(("owners", "parts"), [([0, 1], 1), ([0, 3], 3), ([-1, 0], 2), ([0.5, 1.0], 2), ([[0, 1]], 2)])
def test_bad_partitions_are_refused(owners, parts):
    with pytest.raises(ValueError, match=r"parts must be at least 2|owners must be"):
        Partition(owners, parts)


def test_shares_of_noisy_votes():
    answer = Answer(torch.tensor([[3.0, -1.0, 1.0], [-2.0, -1.0, -5.0]], dtype=torch.float64), votes=True)
    assert answer.probabilities.tolist() == [[0.75, 0.0, 0.25], [1 / 3, 1 / 3, 1 / 3]]
    assert answer.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="at most the number of classes"):
        answer.top_k(4)


def _with_one_body(trainable):
    body = nn.Linear(4, 3).requires_grad_(trainable)
    return [nn.Sequential(body, nn.Linear(3, 3)) for _ in range(4)]


def _copied():
    network = nn.Linear(4, 3)
    return [copy.copy(network) for _ in range(4)]


def _views():
    network = nn.Linear(4, 3)
    return [nn.Sequential(network) for _ in range(4)]


@pytest.mark.parametrize("make", [lambda: _with_one_body(True), _copied, _views])
def test_teachers_that_share_parameters_are_refused(make, ledger):
    with pytest.raises(ValueError, match="teachers 0 and 1 share parameters, so one example could change both"):
        EnsembleLogits(make(), noise_multiplier=5.0, ledger=ledger)


def test_frozen_parts_that_teachers_share_are_noted(ledger):
    EnsembleLogits([nn.Linear(4, 3) for _ in range(4)], noise_multiplier=5.0, ledger=ledger)
    assert not any("taken for public" in note for note in ledger.ledger.notes)
    EnsembleLogits(_with_one_body(False), noise_multiplier=5.0, ledger=ledger)
    assert any("taken for public" in note for note in ledger.ledger.notes)
