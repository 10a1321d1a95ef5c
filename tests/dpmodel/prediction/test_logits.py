"""Noise on logits: sensitivity, charges, and answers that are free."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory
from dpmodel.callbacks import Silence
from dpmodel.prediction import Answer, BudgetExhausted, ConvexHead, DPLogits
from dpmodel.prediction.clipped_logits import clipped_logits
from dpmodel.statistics import Standardise
from mechanisms.sums.vector_sum import grid_for
from monitors import GaussianEvent, Ledger
from monitors.errors import DataError, UnprotectedUpdateError

from .fixed_network import Fixed

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(deadline=None)
@given(hnp.arrays(np.float64, (3, 4), elements=FLOATS), st.floats(1e-3, 1e3))
def test_clipped_logits_are_within_the_bound_and_finite(logits, bound):
    grid = grid_for(bound, 1)
    clipped = clipped_logits(logits, bound, grid) * grid
    assert np.isfinite(clipped).all()
    assert (np.linalg.norm(clipped, axis=1) <= bound).all()
    assert (clipped[~np.isfinite(logits).all(axis=1)] == 0).all()


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, (5,), elements=st.floats(-50, 50)),
    hnp.arrays(np.float64, (5,), elements=st.floats(-1, 1)),
)
def test_clipping_moves_logits_no_further_apart(logits, change):
    grid = grid_for(1.0, 1)
    first, second = (clipped_logits(row[None], 1.0, grid) * grid for row in (logits, logits + change))
    assert np.linalg.norm(first - second) <= np.linalg.norm(change) + 2.0**-28


def test_each_row_is_charged_before_it_is_answered(ledger):
    private = DPLogits(nn.Linear(4, 3), noise_multiplier=10.0, ledger=ledger)
    order, charge, noisy = [], ledger.charge, private.noise.noisy
    ledger.charge = lambda *args: order.append("charge") or charge(*args)
    private.noise.noisy = lambda *args: order.append("noise") or noisy(*args)
    answer = private.query(torch.randn(7, 4))
    assert order == ["charge", "noise"]
    assert answer.scores.shape == (7, 3)
    assert list(ledger.ledger) == [(GaussianEvent(10.0), 7)]
    assert ledger.spent == pytest.approx(private.epsilon(7, 1e-5))


def test_a_batch_that_does_not_fit_gets_no_answer(ledger):
    private = DPLogits(nn.Linear(4, 3), noise_multiplier=1.0, ledger=ledger)
    left = ledger.left(private.noise.event)
    with pytest.raises(BudgetExhausted):
        private.query(torch.randn(left + 1, 4))
    assert ledger.spent == 0.0
    assert private.predict(torch.randn(left, 4)).shape == (left,)


def test_the_noise_has_the_scale_of_the_worst_case(ledger):
    private = DPLogits(Fixed(torch.zeros(4000, 5)), noise_multiplier=1000.0, norm_bound=3.0, ledger=ledger)
    scores = private.query(torch.zeros(4000, 1)).scores
    assert float(scores.std()) == pytest.approx(1000.0 * 6.0, rel=0.03)


def test_broken_logits_are_charged_and_become_noise(ledger):
    logits = torch.tensor([[1e300, float("inf"), 0.0], [float("nan"), 1.0, 2.0]], dtype=torch.float64)
    answer = DPLogits(Fixed(logits), noise_multiplier=20.0, ledger=ledger).query(torch.zeros(2, 1))
    assert answer.scores.isfinite().all()
    assert sum(count for _, count in ledger.ledger) == 2


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 2, 2)], ids=str)
def test_outputs_that_are_not_logits_are_refused_for_free(ledger, logits):
    with pytest.raises(DataError, match="one row of at least two scores"):
        DPLogits(Fixed(logits), ledger=ledger).query(torch.zeros(3, 1))
    assert ledger.spent == 0.0


def test_inputs_of_the_wrong_shape_cost_nothing(ledger):
    with pytest.raises(RuntimeError):
        DPLogits(nn.Linear(4, 3), ledger=ledger).query(torch.randn(5, 6))
    assert ledger.spent == 0.0


def test_a_claimed_sensitivity_is_noted(ledger):
    private = DPLogits(nn.Linear(4, 3), sensitivity=0.1, ledger=ledger)
    assert any("0.1" in note and "not verified" in note for note in ledger.ledger.notes)
    assert "not verified" in private.explain()
    assert private.noise.sensitivity == pytest.approx(0.1, rel=1e-6)


def test_without_a_sensitivity_there_is_no_epsilon(ledger):
    private = DPLogits(nn.Linear(4, 3), sensitivity=None)
    assert private.epsilon(5, 1e-5) is None
    assert "no epsilon" in private.explain()
    assert private.query(torch.randn(2, 4)).scores.shape == (2, 3)
    with pytest.raises(ValueError, match="nothing to charge"):
        DPLogits(nn.Linear(4, 3), sensitivity=None, ledger=ledger)


def test_a_guarantee_needs_a_ledger():
    with pytest.raises(ValueError, match="pass ledger=QueryLedger"):
        DPLogits(nn.Linear(4, 3))


@pytest.mark.parametrize("sensitivity", ["worst", 0.0, -1.0, float("nan"), True])
def test_other_sensitivities_are_refused(ledger, sensitivity):
    with pytest.raises((ValueError, TypeError)):
        DPLogits(nn.Linear(4, 3), sensitivity=sensitivity, ledger=ledger)


def test_a_seed_is_noted(ledger):
    DPLogits(nn.Linear(4, 3), ledger=ledger, seed=5)
    assert any("no guarantee" in note for note in ledger.ledger.notes)


def trained(network=None, noisy=True, **options):
    torch.manual_seed(0)
    network = network or nn.Linear(4, 3)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0) if noisy else None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)
    data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
    model.fit(DataLoader(data, batch_size=8), callbacks=Silence())
    return model


def test_a_privately_trained_network_answers_exactly_and_for_free():
    model, x = trained(), torch.randn(6, 4)
    private = DPLogits(model.network)
    assert torch.equal(private.query(x).scores, model.network(x).detach().double())
    assert private.epsilon(10**6, 1e-5) == 0.0
    assert "post-processing" in private.why_free


def _loaded(network):
    network.load_state_dict(nn.Linear(4, 3).state_dict())


def _stepped(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()


def _replaced(network):
    network.weight = nn.Parameter(torch.randn(3, 4))


def _by_data(network):
    network.weight.data.copy_(torch.randn(3, 4))


def _by_vector(network):
    parameters = nn.Linear(4, 3).parameters()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters), network.parameters())


def _by_numpy(network):
    network.bias.detach().numpy()[1] += 1.0


def _by_new_buffer(network):
    network.register_buffer("shift", torch.ones(3))


@pytest.mark.parametrize("change", [_loaded, _stepped, _replaced, _by_data, _by_vector, _by_numpy, _by_new_buffer])
def test_answers_are_not_free_after_the_weights_have_changed(change):
    network = trained().network
    private, x = DPLogits(network), torch.randn(6, 4)
    for _ in range(2):
        private.query(x)
    change(network)
    with pytest.raises(UnprotectedUpdateError, match="its weights have changed"):
        private.query(x)


@pytest.mark.parametrize("change", [_loaded, _stepped])
def test_values_that_no_private_training_left_are_not_free(ledger, change):
    network = trained().network
    kept = copy.deepcopy(network.state_dict())
    change(network)
    assert DPLogits(network, ledger=ledger).why_free is None
    network.load_state_dict(kept)
    assert DPLogits(network).why_free is not None


def test_a_network_of_parts_that_were_trained_privately_is_free():
    first, second = trained(), trained()
    both = nn.ModuleList([first.network, second.network])
    assert DPLogits(both).why_free is not None


def test_a_network_that_hides_others_is_not_free(ledger):
    class Hiding(nn.Module):
        def __init__(self, first, hidden):
            super().__init__()
            self.first, self.hidden = first, [hidden]

        def forward(self, x):
            return self.hidden[0](x) + 0 * self.first(x)

    network = trained().network
    assert DPLogits(Hiding(network, nn.Linear(4, 3)), ledger=ledger).why_free is None
    assert DPLogits(Hiding(network, trained().network)).why_free is not None


class _Bank(nn.Module):
    """Adds what it keeps of other data to a network that was trained privately."""

    def __init__(self, network, kept):
        super().__init__()
        self.network = network
        if isinstance(kept, torch.Tensor):
            self.register_buffer("kept", kept)
        else:
            self.kept = kept

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize(
    "kept", [torch.randn(64, 4), nn.Linear(4, 3).requires_grad_(False), np.ones((64, 4)), [np.ones(3)]]
)
def test_a_network_with_other_data_in_it_is_not_free(ledger, kept):
    network = trained().network
    with pytest.raises(ValueError, match="free only if all parameters, frozen ones too, and all buffers"):
        DPLogits(_Bank(network, kept))
    assert DPLogits(_Bank(network, kept), ledger=ledger).why_free is None
    assert DPLogits(network).why_free is not None


@pytest.mark.parametrize("name", ["0.weight", "scale"])
def test_frozen_parts_and_buffers_are_free_as_fit_left_them(ledger, name):
    body = nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 3))
    body.register_buffer("scale", torch.ones(3))
    network = trained(body).network
    assert DPLogits(nn.Sequential(network, nn.Softmax(1))).why_free is not None
    dict(network.state_dict())[name].add_(1.0)
    assert DPLogits(network, ledger=ledger).why_free is None


def test_infinite_exact_logits_have_no_probabilities_in_json():
    answer = Answer(torch.tensor([[math.inf, 0.0], [-math.inf, 1.0]], dtype=torch.float64))
    assert answer.to_dict(probabilities=True) == {"labels": [0, 1], "probabilities": [None, [0.0, 1.0]]}


def test_only_networks_that_were_trained_privately_answer_for_free(ledger):
    untrained = nn.Sequential(trained().network, nn.Linear(3, 3))
    seeded, trusted = trained(seed=7).network, trained(isolation="trust").network
    for network in (nn.Linear(4, 3), untrained, trained(noisy=False).network, seeded, trusted):
        private = DPLogits(network, ledger=ledger)
        assert private.why_free is None
        private.query(torch.randn(1, 4))
    assert sum(count for _, count in ledger.ledger) == 5


def test_noise_that_was_asked_for_is_charged_even_if_the_network_was_trained_privately(ledger):
    DPLogits(trained().network, sensitivity="worst_case", ledger=ledger).query(torch.randn(2, 4))
    assert sum(count for _, count in ledger.ledger) == 2


def test_a_network_without_a_valid_claim_does_not_answer():
    model = trained()
    model.claim.violate("something leaked")
    with pytest.raises(UnprotectedUpdateError, match="no valid claim"):
        DPLogits(model.network)


def blobs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 2, generator=generator) + 2 * torch.eye(3)[y, :2], y


def test_a_convex_head_is_at_its_optimum():
    x, y = blobs(400)
    head = ConvexHead(2, 3, regularization=1.0, norm_bound=4.0).fit(x, y)
    weight = head.weight.clone().requires_grad_()
    rows = torch.from_numpy(head._rows(x))
    loss = nn.functional.cross_entropy(rows @ weight.T, y, reduction="sum") + 0.5 * weight.square().sum()
    (slope,) = torch.autograd.grad(loss, weight)
    assert float(slope.norm()) <= 1e-4 * 4.0
    assert float((head(x).argmax(1) == y).double().mean()) > 0.7


@pytest.mark.parametrize("regularization", [0.5, 20.0])
def test_no_neighbour_moves_the_logits_of_a_convex_head_beyond_its_sensitivity(regularization):
    x, y = blobs(40)
    head = ConvexHead(2, 3, regularization=regularization, norm_bound=2.0).fit(x, y)
    queries = torch.cat([x, 100 * torch.randn(50, 2)])
    farthest = 0.0
    for target in range(3):
        for point in (torch.tensor([[50.0, -50.0]]), torch.tensor([[-2.0, -2.0]]), x[:1]):
            other = ConvexHead(2, 3, regularization=regularization, norm_bound=2.0)
            other.fit(torch.cat([x, point]), torch.cat([y, torch.tensor([target])]))
            farthest = max(farthest, float((other(queries) - head(queries)).norm(dim=1).max()))
    assert 0.05 * head.logit_sensitivity <= farthest <= head.logit_sensitivity


def test_the_sensitivity_of_a_convex_head_is_nearly_reached():
    """One example against an empty data set moves the minimiser by almost the bound, if it is regularised strongly."""
    head = ConvexHead(1, 2, regularization=100.0, norm_bound=1.0).fit(torch.tensor([[30.0]]), torch.tensor([0]))
    moved = float(head(torch.tensor([[30.0]])).norm())
    uniform = 0.5  # the gradient at zero weights is (p - y) x' with p uniform, half the largest one
    assert moved == pytest.approx(uniform * head.logit_sensitivity, rel=0.02)


def test_convex_answers_need_a_convex_head(ledger):
    with pytest.raises(ValueError, match="needs a ConvexHead"):
        DPLogits(nn.Linear(2, 3), sensitivity="convex", ledger=ledger)
    head = ConvexHead(2, 3, regularization=50.0, norm_bound=4.0)
    assert math.isinf(head.logit_sensitivity)
    head.fit(*blobs(400))
    private = DPLogits(head, sensitivity="convex", norm_bound=5.0, ledger=ledger)
    assert private.noise.sensitivity == pytest.approx(head.logit_sensitivity, rel=1e-6)
    assert private.query(blobs(3, 1)[0]).scores.shape == (3, 3)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)),
        (torch.randn(4, 2), torch.zeros(3, dtype=torch.long)),
        (torch.randn(4, 2), torch.full((4,), 3)),
        (torch.full((4, 2), float("nan")), torch.zeros(4, dtype=torch.long)),
        (torch.randn(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_data_that_do_not_fit_a_convex_head_are_refused(x, y):
    with pytest.raises(DataError):
        ConvexHead(2, 3, regularization=1.0).fit(x, y)


def test_noise_that_does_not_fit_is_refused_before_anything_is_charged(ledger):
    with pytest.raises(ValueError, match="use a noise_multiplier below"):
        DPLogits(nn.Linear(4, 3), noise_multiplier=1e12, ledger=ledger)
    assert ledger.spent == 0.0


def test_a_convex_head_refuses_rows_that_occur_again():
    x, y = torch.randn(60, 2), torch.randint(3, (60,))
    with pytest.raises(DataError, match="more than once"):
        ConvexHead(2, 3, regularization=5.0).fit(x.repeat(5, 1), y.repeat(5))


def test_loaded_weights_of_a_convex_head_have_no_sensitivity():
    x, y = torch.randn(60, 2), torch.randint(3, (60,))
    head = ConvexHead(2, 3, regularization=1.0).fit(x, y)
    other = ConvexHead(2, 3, regularization=100.0).fit(x, y)
    other.load_state_dict(head.state_dict())
    assert math.isinf(other.logit_sensitivity)


@pytest.mark.parametrize("options", [{"noisy": False}, {"seed": 7}])
def test_frozen_values_of_a_training_without_guarantee_are_not_free(ledger, options):
    other = trained(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), **options).network
    network = trained(nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 3))).network
    assert DPLogits(network).why_free is not None
    network[0].load_state_dict(other[0].state_dict())
    assert DPLogits(network, ledger=ledger).why_free is None


def test_private_statistics_stay_free_when_they_move_but_not_when_they_change(ledger):
    network = nn.Sequential(Standardise(torch.zeros(4), torch.ones(4), ledger=Ledger().record(GaussianEvent(5.0))))
    network.append(nn.Linear(4, 3))
    trained(network)
    assert DPLogits(network.to("cpu")).why_free is not None
    network[0].mean.add_(0.37)
    assert DPLogits(network.to("cpu"), ledger=ledger).why_free is None


class _Keeps(nn.Linear):
    def forward(self, x):
        self.latest = super().forward(x)
        return self.latest


def test_a_network_that_keeps_its_latest_result_goes_on_answering():
    private = DPLogits(trained(_Keeps(4, 3)).network)
    for _ in range(3):
        private.query(torch.randn(2, 4))


def test_what_cannot_be_compared_is_not_free_and_does_not_disturb_the_training(ledger):
    network = nn.Linear(4, 3)
    network.names = np.array([lambda x: x], dtype=object)
    assert DPLogits(trained(network).network, ledger=ledger).why_free is None
    sparse = trained().network
    sparse.register_buffer("table", torch.eye(4).to_sparse())
    assert DPLogits(sparse, ledger=ledger).why_free is None
