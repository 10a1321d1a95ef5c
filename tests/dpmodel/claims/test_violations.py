"""Changes that void the claim of a training, even if the error is caught, and changes that must not."""

import copy
import math
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, DPModel, poisson_loader
from dpmodel.claims import snapshot
from dpmodel.preflight.refusal import HAS_READ
from mechanisms.engines import BookKeepingEngine
from monitors import BudgetGuard, Ledger, PrivacyFilter
from monitors.errors import DataError, UnprotectedUpdateError

from .violating import DATA, At, in_place, network

pytestmark = pytest.mark.usefixtures("copies_arrive")


def past_torch(run):
    run.network[0].weight.data.add_(DATA)


def by_numpy(run):
    run.network[0].weight.detach().numpy()[:] = DATA.numpy()


def to_frozen(run):
    run.network.frozen.data.copy_(DATA)


def to_buffer(run):
    run.network.scale.copy_(DATA[:, 1])


def to_momentum(run):
    run.optimizer.state[run.network[0].weight]["momentum_buffer"].copy_(DATA)


def by_load(run):
    run.network.load_state_dict({**run.network.state_dict(), "0.weight": DATA})


def by_thread(run):
    thread = threading.Thread(target=past_torch, args=(run,))
    thread.start()
    thread.join()


def replaced(run):
    run.network[0] = nn.Linear(4, 3)


ACTS = [in_place, past_torch, by_numpy, to_frozen, to_buffer, to_momentum, by_load, by_thread, replaced]


@pytest.fixture(params=["full", "copied", "sampled"])
def size(request, monkeypatch):
    """The three ways in which networks of different sizes are compared, on a small network."""
    if request.param != "full":
        monkeypatch.setattr(snapshot, "COMPARED_BYTES", 0)
    if request.param == "sampled":
        monkeypatch.setattr(snapshot, "COPIED_BYTES", 0)
    return request.param


@pytest.fixture
def fitted(make_model, make_data):
    """Fits a model with callbacks on 64 examples in batches of 16."""

    def fit(callbacks=(), *, made=None, epochs=2, data=None, **options):
        made = network() if made is None else made
        options = {"optimizer": torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9), **options}
        model = make_model(made, **options)
        data, error = data or make_data(), None
        fit_options = {"valid_loader": make_data(n=8), "callbacks": callbacks, "epochs": epochs}
        try:
            model.fit(poisson_loader(data, batch_size=16), **fit_options)
        except (UnprotectedUpdateError, DataError) as found:
            error = found
        return model, error

    return fit


@pytest.mark.sample(108)
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_step_end",
        "on_train_end",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("on_train_step_begin", "on_train_epoch_end")),
    ],
)
@pytest.mark.parametrize("act", ACTS)
def test_un_noised_values_void_the_claim_wherever_they_are_written(fitted, size, act, hook):
    model, error = fitted([At(hook, act)])
    assert isinstance(error, UnprotectedUpdateError)
    assert "The privacy claim is void" in str(error)
    (reason,) = model.ledger.violations
    assert reason in str(model.privacy_spent(1e-5))
    assert math.isinf(model.privacy_spent(1e-5).epsilon)
    steps = {"on_train_step_end": 2, "on_train_step_begin": 2, "on_train_epoch_end": 4, "on_train_end": 8}[hook]
    assert model.ledger.head(steps).violations == ()
    assert model.ledger.total == steps + 1
    assert f"not verified since step {steps if size == 'full' else 0}" in reason or size != "full"


class AveragesForValidation(Callback):
    """Swaps different weights in for the validation, and out again."""

    def on_eval_begin(self, run):
        self.kept = copy.deepcopy(run.network.state_dict())
        run.network.load_state_dict({name: 0.5 * value for name, value in self.kept.items()})

    def on_eval_end(self, run):
        run.network.load_state_dict(self.kept)


class RestoresBest(Callback):
    """Puts the weights of the first epoch back at the end."""

    kept = None

    def on_eval_end(self, run):
        self.kept = self.kept or copy.deepcopy(run.network.state_dict())

    def on_train_end(self, run):
        run.network.load_state_dict(self.kept)


class Declares(Callback):
    def on_train_end(self, run):
        with run.post_processing("half of the last weights"), torch.no_grad():
            run.network[0].weight.mul_(0.5)


class DropsMomentum(Callback):
    def on_train_epoch_end(self, run):
        run.optimizer.state.clear()


class ZeroesMomentum(Callback):
    def on_train_epoch_end(self, run):
        for state in run.optimizer.state.values():
            state["momentum_buffer"].zero_()


class Schedules(Callback):
    def on_train_step_end(self, run):
        for group in run.optimizer.param_groups:
            group["lr"] *= 0.9
        run.network.eval()
        run.network.train()


BENIGN = [AveragesForValidation, RestoresBest, Declares, DropsMomentum, ZeroesMomentum, Schedules]


@pytest.mark.sample(18)
@pytest.mark.parametrize("make", BENIGN)
def test_values_of_earlier_steps_schedules_and_declared_changes_pass(fitted, size, make):
    model, error = fitted([make()])
    assert error is None
    assert model.ledger.violations == ()
    assert model.ledger.total == 8
    assert bool(model.ledger.notes) == (make is Declares)
    assert math.isfinite(model.privacy_spent(1e-5).epsilon)


def test_weights_of_a_step_on_the_way_may_be_restored_in_a_small_network(fitted):
    class Restores(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:
                self.kept = copy.deepcopy(run.network.state_dict())
            if run.step == 6:
                run.network.load_state_dict(self.kept)

    assert fitted([Restores()])[1] is None


def test_a_void_claim_ends_the_training_of_these_weights_by_any_model(fitted, make_data):
    made = network()
    model, _ = fitted([At("on_train_step_end", in_place)], made=made)
    second = DPModel(made, nn.CrossEntropyLoss(), torch.optim.SGD(made.parameters(), lr=0.1))
    other = DPModel(made, nn.CrossEntropyLoss(), torch.optim.SGD(made.parameters(), lr=0.1), ledger=Ledger())
    part = nn.Sequential(made[0], nn.Linear(3, 3))
    third = DPModel(part, nn.CrossEntropyLoss(), torch.optim.SGD(part.parameters(), lr=0.1))
    copied = copy.deepcopy(model)
    for refused in (model, second, other, third, copied):
        with pytest.raises(UnprotectedUpdateError, match=r"cannot be trained further.*fresh weights"):
            refused.fit(poisson_loader(make_data(), batch_size=16))
    assert model.ledger.total == 3
    fresh, error = fitted()
    assert error is None
    assert fresh.ledger.violations == ()


def test_weights_that_are_restored_to_before_training_are_fresh(fitted):
    made = network()
    first = copy.deepcopy(made.state_dict())
    model, _ = fitted([At("on_train_step_end", in_place)], made=made)
    made.load_state_dict(first)
    again, error = fitted(made=made)
    assert error is None
    assert again.ledger.total == 8
    assert again.ledger is not model.ledger


def test_a_violation_that_a_callback_hides_is_recorded_and_raised_at_the_end(fitted):
    class Hides(Callback):
        def on_train_step_end(self, run):
            if run.step == 8:
                in_place(run)
                try:
                    with run.post_processing("an average"):
                        pass
                except UnprotectedUpdateError:
                    pass

    model, error = fitted([Hides()])
    assert "training does not continue" in str(error)
    assert len(model.ledger.violations) == 1


def test_a_violation_hidden_by_a_different_error_is_recorded_and_that_error_raised(make_model, make_data):
    class Fails(Callback):
        def on_train_step_end(self, run):
            in_place(run)
            raise KeyError("of the callback")

    model = make_model(network())
    with pytest.raises(KeyError, match="of the callback"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Fails()])
    assert math.isinf(model.privacy_spent(1e-5).epsilon)
    innocent = make_model(network())
    with pytest.raises(KeyError):
        innocent.fit(poisson_loader(make_data(), batch_size=16), callbacks=[At("on_train_step_end", lambda run: {}[1])])
    assert innocent.ledger.violations == ()


def test_an_interrupted_update_is_not_a_violation(make_model, make_data):
    class Broken(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            super().step(closure)
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt

    made = network()
    model = make_model(made, optimizer=Broken(made.parameters(), lr=0.1))
    with pytest.raises(KeyboardInterrupt):
        model.fit(poisson_loader(make_data(), batch_size=16))
    assert model.ledger.total == 3
    assert model.ledger.violations == ()


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.network[0].register_forward_hook(lambda *args: None),
        lambda run: setattr(run.network[0], "forward", lambda x: x @ torch.ones(4, 3)),
        lambda run: run.network[0].weight.requires_grad_(False),
        lambda run: run.optimizer.register_step_post_hook(lambda *args: None),
        lambda run: run.network.append(nn.ReLU()),
    ],
)
def test_a_changed_structure_is_refused_before_the_next_step_and_costs_nothing(fitted, act):
    model, error = fitted([At("on_train_step_end", act)])
    assert "not the one that was checked" in str(error)
    assert model.ledger.total == 2
    assert model.ledger.violations == ()


def test_what_a_callback_does_before_the_first_release_is_refused_and_costs_nothing(fitted):
    class First(Callback):
        def on_train_begin(self, run):
            in_place(run)

    model, error = fitted([First()])
    assert "before the first step" in str(error)
    assert model.ledger.total == 0


class Counted(nn.Module):
    """Holds the step, and the first step at which the engine is wrong."""

    def __init__(self, start):
        super().__init__()
        self.layer, self.start, self.now = nn.Linear(4, 3), start, -1

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def wrong_engine(monkeypatch):
    """Adds something to every chunk, from the step on that the network states."""
    right = BookKeepingEngine.partial_sum

    def wrong(self, network, losses, batch, clip, layout, total):
        total += clip.norm_bound * (0 <= network.start <= network.now)
        return right(self, network, losses, batch, clip, layout, total)

    monkeypatch.setattr(BookKeepingEngine, "partial_sum", wrong)


class Counts(Callback):
    def on_train_step_begin(self, run):
        run.network.now = run.step


@pytest.mark.parametrize(("start", "released"), [(0, 0), (3, 100), pytest.param(-1, 120, marks=pytest.mark.slow)])
def test_a_wrong_sum_voids_all_steps_of_the_model_or_none_were_taken(
    make_model, make_data, wrong_engine, start, released
):
    made = Counted(start)
    model = make_model(made, engine="bookkeeping")
    loader, error = poisson_loader(make_data(), batch_size=16), None
    try:
        model.fit(loader, epochs=30, callbacks=[Counts()])
    except UnprotectedUpdateError as found:
        error = found
    assert (error is None) == (start < 0)
    assert (HAS_READ in str(error)) == (start == 0)
    assert model.ledger.head(released).violations == ()
    assert model.ledger.total == released + (start == 3)
    if start == 3:
        assert model.ledger.violations[0].endswith("not verified since step 0")
        with pytest.raises(UnprotectedUpdateError, match="cannot be trained further"):
            model.fit(loader)


@pytest.mark.parametrize("meets", [True, False])
def test_padding_that_shows_late_voids_the_claim(make_model, meets):
    class Words(torch.utils.data.Dataset):
        late = False

        def __len__(self):
            return 64

        def __getitem__(self, row):
            return torch.ones(5 if self.late and row == 0 else 4), row % 3

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 3)

        def forward(self, x):
            return self.layer(x.mean(1, keepdim=True))

    def pad(rows):
        longest = max(len(x) for x, _ in rows)
        return torch.stack([nn.functional.pad(x, (0, longest - len(x))) for x, _ in rows]), torch.tensor(
            [y for _, y in rows]
        )

    data = Words()

    class Late(Callback):
        def on_train_step_end(self, run):
            data.late = meets and run.step >= 2

    model = make_model(Mean())
    loader, error = poisson_loader(data, batch_size=32, collate_fn=pad), None
    try:
        model.fit(loader, epochs=20, callbacks=[Late()])
    except DataError as found:
        error = found
    assert (error is None) != meets
    assert bool(model.ledger.violations) == meets


@pytest.mark.parametrize("restorable", [True, False])
def test_writes_of_a_pass_are_restored_or_void_the_claim(make_model, make_data, monkeypatch, restorable):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.late = nn.Linear(4, 3), False
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            if self.late:
                self.mean.add_(1.0)
            return self.layer(x)

    class Late(Callback):
        def on_train_step_end(self, run):
            run.network.late = run.step >= 2

    if not restorable:
        monkeypatch.setattr(snapshot, "COMPARED_BYTES", 0)
        monkeypatch.setattr(snapshot, "COPIED_BYTES", 0)
    model = make_model(Keeps(), engine="bookkeeping")
    with pytest.raises(UnprotectedUpdateError, match="forward pass changed 'mean'"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Late()])
    assert bool(model.ledger.violations) != restorable
    assert bool(model.network.mean.any()) != restorable
    assert model.ledger.head(2).violations == ()


def test_a_loss_that_holds_weights_of_the_network_trains(make_model, make_data):
    made = nn.Linear(4, 3)

    class Tied(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.layer = made

    model = make_model(made, loss_fn=Tied())
    model.fit(poisson_loader(make_data(), batch_size=16))
    assert model.ledger.total == 4


def test_a_filter_is_notified_of_a_violation_and_allows_no_further_training(fitted, make_model, make_data):
    guard = BudgetGuard(PrivacyFilter(30.0, 1e-5))
    _, error = fitted([At("on_train_step_end", in_place), guard])
    assert "void" in str(error)
    other = make_model(network())
    other.fit(poisson_loader(make_data(), batch_size=16), callbacks=[guard])
    assert other.ledger.total == 0


def test_a_first_batch_is_not_confused_by_an_earlier_training_of_the_model(make_model, wrong_engine):
    made = Counted(-1)
    model = make_model(made, engine="bookkeeping")
    loader = poisson_loader(TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,))), batch_size=32)
    model.fit(loader, callbacks=[Counts()])
    made.start, made.now = 0, -1
    with pytest.raises(UnprotectedUpdateError, match="void"):
        model.fit(loader, callbacks=[Counts()])
    assert model.ledger.violations


@pytest.mark.sample(3)
@pytest.mark.parametrize("what", ["", " ", None])
def test_a_declared_change_must_say_in_words_what_it_is(fitted, what):
    class Declares(Callback):
        def on_train_step_end(self, run):
            with pytest.raises(ValueError, match="what must say in words"), run.post_processing(what):
                pass

    model, error = fitted([Declares()])
    assert error is None
    assert model.ledger.notes == ()
