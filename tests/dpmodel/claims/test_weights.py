"""The ledger follows the weights into every model that holds them."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

from dpmodel import Callback, DPModel
from dpmodel.callbacks import Silence
from dpmodel.claims.claim import NOT_CONTAINED, Claim
from mechanisms import Gaussian
from monitors import GaussianEvent, Ledger
from monitors.errors import UnprotectedUpdateError, UnsupportedEventError

DELTA = 1e-5


def test_a_second_model_on_a_network_continues_with_its_ledger_and_says_so(make_model, loader, capsys):
    network = nn.Linear(4, 3)
    first = make_model(network)
    first.fit(loader)
    alone = first.privacy_spent(DELTA).epsilon
    second = make_model(network)
    assert second.privacy_spent(DELTA) == first.privacy_spent(DELTA)
    capsys.readouterr()
    second.fit(loader)
    second.fit(loader)
    assert capsys.readouterr().out.count("the ledger continues from those 4 releases") == 1
    assert second.ledger is first.ledger
    assert first.ledger.total == 12
    assert first.privacy_spent(DELTA).epsilon > alone


def test_other_networks_start_with_a_new_ledger(make_model, loader, capsys):
    first, second = make_model(nn.Linear(4, 3)), make_model(nn.Linear(4, 3))
    first.fit(loader)
    second.fit(loader)
    assert second.ledger is not first.ledger
    assert second.ledger.total == first.ledger.total == 4
    assert "continues" not in capsys.readouterr().out
    assert first.ledger.notes == second.ledger.notes == ()


class InList(nn.Linear):
    def __init__(self, encoder):
        super().__init__(5, 3)
        self.hidden = [encoder]

    def forward(self, x):
        return super().forward(self.hidden[0](x))


class AsBuffer(nn.Linear):
    def __init__(self, encoder):
        super().__init__(5, 3)
        self.register_buffer("encoder", encoder.weight.data)

    def forward(self, x):
        return super().forward(x @ self.encoder.T)


@pytest.mark.sample(2)
@pytest.mark.parametrize("keep", [InList, AsBuffer])
def test_trained_weights_outside_of_the_parameters_bring_their_ledger_with_them(make_model, loader, keep):
    encoder = nn.Linear(4, 5)
    first = make_model(nn.Sequential(encoder, nn.Linear(5, 3)))
    first.fit(loader)
    second = make_model(keep(encoder))
    second.fit(loader)
    assert second.ledger is first.ledger
    assert second.ledger.total == 8


@pytest.mark.sample(2)
@pytest.mark.parametrize("built_before", [True, False])
def test_models_that_share_an_encoder_share_one_ledger_after_the_first_training(make_model, loader, built_before):
    encoder = nn.Linear(4, 5)
    networks = [nn.Sequential(encoder, nn.Linear(5, 3)) for _ in range(2)]
    first = make_model(networks[0], sampling="shuffle")
    second = make_model(networks[1]) if built_before else None
    first.fit(loader)
    second = second or make_model(networks[1])
    second.fit(loader)
    assert first.ledger is second.ledger
    assert first.ledger.total == 8
    for model in (first, second):
        spent = model.privacy_spent(DELTA)
        assert spent.relation == "zero out one example"
        assert "Poisson" in spent.sampling
        assert "shuffled batches" in spent.sampling
    first.fit(loader)
    assert second.ledger.total == 12


def test_ledgers_of_several_earlier_models_are_joined_in_one_that_uses_their_parts(make_model, loader):
    bodies = [nn.Linear(4, 4) for _ in range(2)]
    models = [make_model(nn.Sequential(body, nn.Linear(4, 3)), sampling="shuffle") for body in bodies]
    for model in models:
        model.fit(loader)
    both = make_model(nn.Sequential(*bodies, nn.Linear(4, 3)), sampling="shuffle")
    assert both.ledger.total == 8
    assert {event.partition for event, _ in both.ledger} == {0, 1}
    assert both.ledger is models[0].ledger is models[1].ledger


def test_a_chosen_ledger_is_kept_and_says_what_it_does_not_contain(make_model, loader):
    network = nn.Linear(4, 3)
    first = make_model(network)
    first.fit(loader)
    other = make_model(network, ledger=Ledger())
    assert other.ledger.total == 0
    assert other.ledger.notes == (NOT_CONTAINED,)
    other.fit(loader)
    assert (first.ledger.total, other.ledger.total) == (4, 4)
    assert NOT_CONTAINED in str(other.privacy_spent(DELTA))
    first.fit(loader)
    assert first.ledger.total == 8
    assert first.ledger.notes == (NOT_CONTAINED,) or first.ledger.covers(other.ledger)


def test_a_ledger_that_contains_what_the_weights_have_spent_gets_no_note(make_model, loader):
    network = nn.Linear(4, 3)
    first = make_model(network)
    first.fit(loader)
    statistics = Ledger().record(GaussianEvent(8.0)).merge(Ledger.from_json(first.ledger.to_json()))
    assert make_model(network, ledger=statistics).ledger.notes == ()
    assert make_model(network, ledger=first.ledger).ledger.notes == ()
    assert make_model(nn.Linear(4, 3), ledger=Ledger()).ledger.notes == ()


def test_equal_releases_of_another_training_are_not_those_of_the_weights(make_model, loader):
    networks = [nn.Linear(4, 3) for _ in range(2)]
    first, other = [make_model(network) for network in networks]
    for model in (first, other):
        model.fit(loader)
    assert make_model(networks[0], ledger=other.ledger.copy()).ledger.notes == (NOT_CONTAINED,)
    assert make_model(networks[0], ledger=other.ledger.merge(first.ledger)).ledger.notes == ()


def test_exchanging_the_ledger_after_training_leaves_a_note(make_model, loader):
    model = make_model(nn.Linear(4, 3))
    before = Ledger()
    model.ledger = before
    assert before.notes == ()
    model.fit(loader)
    assert model.ledger is before
    model.ledger = Ledger()
    assert NOT_CONTAINED in model.privacy_spent(DELTA).notes
    assert make_model(model.network).ledger is before
    model.ledger = before
    assert model.ledger.notes == ()


@pytest.mark.sample(2)
@pytest.mark.parametrize("pickled", [False, True])
def test_copies_of_a_model_have_their_own_ledger_which_follows_their_weights(make_model, loader, pickled):
    model = make_model(nn.Linear(4, 3), noise_mech=Gaussian())
    model.fit(loader)
    other = pickle.loads(pickle.dumps(model)) if pickled else copy.deepcopy(model)
    assert other.ledger == model.ledger
    assert other.ledger is not model.ledger
    assert other.statements == model.statements
    other.fit(loader)
    assert (model.ledger.total, other.ledger.total) == (4, 8)
    assert make_model(other.network).ledger is other.ledger


def test_weights_that_are_reset_to_before_training_start_a_new_ledger(make_model, loader):
    network = nn.Sequential(nn.Linear(4, 3))
    before = copy.deepcopy(network.state_dict())
    first = make_model(network)
    first.fit(loader)
    network.load_state_dict(before)
    second = make_model(network)
    assert second.ledger.total == 0
    second.fit(loader)
    assert second.ledger.total == 4
    network.load_state_dict(before)
    with torch.no_grad():
        network[0].bias.add_(1.0)
    again = make_model(network).ledger
    assert again is second.ledger
    assert again.total == 8  # which of the two trainings these weights come from is not known


@pytest.mark.parametrize("lr", [0.5, 0.0])
def test_reset_weights_continue_the_ledger_that_the_optimizer_carries(make_model, loader, lr):
    network = nn.Linear(4, 3)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    first = make_model(network, optimizer=optimizer)
    first.fit(loader)
    network.load_state_dict(before)
    assert make_model(network, optimizer=optimizer, ledger=Ledger()).ledger.notes == (NOT_CONTAINED,)
    assert make_model(network).ledger.total == 0
    second = make_model(network, optimizer=optimizer)
    second.fit(loader)
    assert second.ledger is first.ledger
    assert second.ledger.total == 8


def test_weights_of_one_training_and_momentum_of_another_have_the_ledgers_of_both(make_model, loader):
    network = nn.Linear(4, 3)
    before = copy.deepcopy(network.state_dict())
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.1) for _ in range(2)]
    models = [make_model(network, optimizer=optimizers[0])]
    models[0].fit(loader)
    network.load_state_dict(before)
    models.append(make_model(network, optimizer=optimizers[1]))
    models[1].fit(loader)
    assert [model.ledger.total for model in models] == [4, 4]
    assert make_model(network, optimizer=optimizers[1]).ledger is models[1].ledger
    assert models[1].ledger.total == 4
    assert make_model(network, optimizer=optimizers[0]).ledger.total == 8


def test_weights_that_are_loaded_again_bring_the_ledger_of_their_training_back(make_model, loader):
    network = nn.Linear(4, 3)
    before = copy.deepcopy(network.state_dict())
    first = make_model(network)
    first.fit(loader)
    trained = copy.deepcopy(network.state_dict())
    network.load_state_dict(before)
    second = make_model(network)
    second.fit(loader)
    assert second.ledger.total == 4
    network.load_state_dict(trained)
    assert make_model(network).ledger is first.ledger
    network.load_state_dict({name: (value + trained[name]) / 2 for name, value in before.items()})
    third = make_model(network)
    third.fit(loader)
    assert third.ledger.total == 12
    assert third.ledger is second.ledger is first.ledger


def test_a_trained_encoder_in_a_list_keeps_reset_weights_from_being_fresh(make_model, loader):
    encoder = nn.Linear(4, 5)
    network = InList(encoder)
    before = copy.deepcopy(network.state_dict())
    make_model(network).fit(loader)
    other = make_model(nn.Sequential(encoder, nn.Linear(5, 3)))
    other.fit(loader)
    network.load_state_dict(before)
    assert make_model(network).ledger.total == 8


def test_a_nested_training_of_weights_that_have_not_moved_yet_records_on_the_outer_ledger(make_model, loader):
    outer = make_model(nn.Linear(4, 3), lr=0.0)
    ledgers = []

    class Inner(Callback):
        def on_train_end(self, run):
            ledgers.append(make_model(run.network).ledger)

    outer.fit(loader, callbacks=[Inner()])
    assert ledgers[0] is outer.ledger


def test_a_ledger_without_a_common_relation_is_refused_with_a_remedy(make_model, loader):
    from dpmodel import ClipMechanismsFactory

    network = nn.Linear(4, 3)
    make_model(network, sampling="shuffle").fit(loader)
    clip = ClipMechanismsFactory.create("Gaussian", fraction_stddev=0.5)
    with pytest.raises(UnsupportedEventError, match="no single epsilon covers both"):
        make_model(network, clip_mech=clip).fit(loader)
    make_model(network, clip_mech=ClipMechanismsFactory.create("Gaussian"), ledger=Ledger()).fit(loader)


def test_a_nested_training_that_shares_weights_records_on_the_outer_ledger(make_model, loader):
    encoder = nn.Linear(4, 5)
    outer = make_model(nn.Sequential(encoder, nn.Linear(5, 3)))
    inner_network = nn.Sequential(encoder, nn.Linear(5, 3))
    encoder_ledgers = []

    class Inner(Callback):
        def on_train_end(self, run):
            inner = make_model(inner_network)
            with run.post_processing("a private training of the same encoder"):
                inner.fit(loader)
            encoder_ledgers.append(inner.ledger)

    outer.fit(loader, callbacks=[Inner()])
    assert encoder_ledgers[0] is outer.ledger
    assert outer.ledger.total == 8


def test_two_trainings_that_both_record_are_not_joined():
    first, second = Claim(), Claim()
    training = [].append, list
    first.begin(*training)
    second.begin(*training)
    with pytest.raises(UnprotectedUpdateError, match="one after the other"):
        first.join(second)
    second.end(*training)
    second.ledger.record(GaussianEvent(2.0))
    assert second.join(first) is first
    assert second.current is first
    assert first.ledger.total == 1


@pytest.mark.parametrize("wrong", [[], "ledger.json", 3])
def test_anything_except_a_ledger_is_refused(make_model, wrong):
    with pytest.raises(ValueError, match=r"ledger must be a monitors\.Ledger"):
        make_model(ledger=wrong)
    with pytest.raises(ValueError, match=r"ledger must be a monitors\.Ledger"):
        make_model().ledger = wrong


def test_a_void_ledger_is_not_trained_on_with_fresh_weights_either(make_model, loader):
    from monitors import ViolationEvent

    model = make_model(ledger=Ledger().record(ViolationEvent("found elsewhere")))
    assert math.isinf(model.privacy_spent(DELTA).epsilon)
    with pytest.raises(UnprotectedUpdateError, match="found elsewhere"):
        model.fit(loader)


def test_what_was_verified_is_stated_once_and_joined(make_model, loader):
    encoder = nn.Linear(4, 5)
    first = make_model(nn.Sequential(encoder, nn.Linear(5, 3)))
    second = make_model(nn.Sequential(encoder, nn.Linear(5, 3)), engine="loop")
    assert first.verification == []
    first.fit(loader)
    first.fit(loader)
    assert len(first.verification) == len(set(first.verification)) == 6
    second.fit(loader)
    assert any("passes through the network alone" in sentence for sentence in first.verification)
    assert isinstance(first, DPModel)


def test_a_lazy_network_is_taken_after_a_private_training_in_the_same_process(make_model, loader):
    trained = make_model()
    trained.fit(loader)
    assert len(make_model(nn.LazyLinear(3)).ledger) == 0


def test_a_training_leaves_nothing_alive_but_digests(make_model, loader):
    model = make_model()
    model.fit(loader, callbacks=Silence())
    left = weakref.ref(model.claim), weakref.ref(model.ledger)
    del model
    gc.collect()
    assert [one() for one in left] == [None, None]
