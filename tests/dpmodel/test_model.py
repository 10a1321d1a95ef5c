import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import (
    Callback,
    ClipMechanismsFactory,
    DPModel,
    Ledger,
    NoiseMechanismsFactory,
    PrivacyMonitorFactory,
    poisson_loader,
)
from dpmodel.training.step import MAX_BROKEN_STEPS
from monitors.errors import (
    MonitorMismatchError,
    NonFiniteGradientsError,
    UnsupportedModuleError,
)


def test_training_with_little_noise_learns(make_model, make_data):
    train, held_out = torch.utils.data.random_split(make_data(n=512), [256, 256])
    model = make_model(
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.05), metrics="accuracy"
    )
    before = model.eval(held_out)["accuracy"]
    history = model.fit(DataLoader(train, 64), epochs=15, valid_loader=held_out)
    assert history.column("accuracy")[-1] > max(0.85, before)
    assert model.eval(held_out)["accuracy"] == history.column("accuracy")[-1]


def test_history_has_one_row_per_epoch_with_the_figures_in_force(make_model, loader):
    model = make_model(
        noise_mech=NoiseMechanismsFactory.create(
            "AdaGaussian", initial_noise_multiplier=2.0, decay_policy="Time", noise_decay_rate=0.5
        ),
        norm_bound=0.3,
    )
    history = model.fit(loader, epochs=3)
    assert [row.step for row in history] == [4, 8, 12]
    assert history.column("noise_multiplier") == [2.0 / (1 + 0.5 * step) for step in (3, 7, 11)]
    assert history.column("norm_bound") == [0.3] * 3
    assert history.column("epsilon") == sorted(history.column("epsilon"))
    assert history.column("epsilon")[-1] == pytest.approx(model.privacy_spent(1e-5).epsilon)


def test_train_is_fit_by_its_mindspore_name(make_model, loader):
    model = make_model()
    assert len(model.train(2, loader, callbacks=[])) == 2
    assert model.ledger.total == 8


@pytest.mark.slow
def test_a_model_that_is_given_a_ledger_continues_its_count(make_model, loader, tmp_path):
    first = make_model()
    first.fit(loader, epochs=2)
    first.ledger.save(tmp_path / "ledger.json")
    second = make_model()
    second.ledger = Ledger.load(tmp_path / "ledger.json")
    second.fit(loader)
    first.fit(loader)
    assert second.privacy_spent(1e-5).epsilon == first.privacy_spent(1e-5).epsilon


def test_the_statement_names_unit_relation_and_sampling(make_model, loader):
    model = make_model(micro_batches=4)
    model.fit(loader)
    spent = model.privacy_spent(1e-5)
    assert "micro-batches of 4" in spent.unit
    assert spent.relation == "add or remove one example"
    assert "16/64" in spent.sampling


def test_a_rebuilt_plain_loader_is_announced_once(make_model, loader, capsys):
    make_model().fit(loader, epochs=3)
    assert capsys.readouterr().out.count("the DataLoader was rebuilt") == 1


def test_micro_batches_announce_once_that_their_multiplier_counts_half(make_model, loader, capsys):
    make_model(micro_batches=4).fit(loader, epochs=2)
    assert capsys.readouterr().out.count("accounted at half its value") == 1


def test_without_noise_epsilon_is_infinite_and_this_is_announced(loader, capsys):
    network = nn.Linear(4, 3)
    model = DPModel(network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1))
    model.fit(loader)
    assert math.isinf(model.privacy_spent(1e-5).epsilon)
    assert "NOT private" in capsys.readouterr().out


class Branches(nn.Linear):
    """Reads the values of its input, which only the engine of one example at a time shows."""

    def forward(self, x):
        return super().forward(x) if float(x.detach().abs().max()) < 1e9 else x[:, :3]


@pytest.mark.parametrize(
    ("network", "engine", "lines"), [(Branches, "auto", 1), (Branches, "loop", 0), (nn.Linear, "auto", 0)]
)
def test_a_slower_engine_is_announced_with_the_reason_unless_it_was_requested(loader, capsys, network, engine, lines):
    network = network(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, norm_bound=1.0, noise_mech=noise, engine=engine)
    model.fit(loader, epochs=2)
    printed = capsys.readouterr().out
    assert printed.count("trained by engine 'loop', which is slower: not 'bookkeeping' because") == lines
    assert "Batching" not in printed


def test_empty_batches_are_noised_and_charged(make_model):
    data = TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,)))
    model = make_model(clip_mech=ClipMechanismsFactory.create("Gaussian"))
    before = [parameter.clone() for parameter in model.network.parameters()]
    drawn = []

    class Watch(Callback):
        def on_train_step_end(self, run):
            drawn.append(run.loss)

    model.fit(poisson_loader(data, 1), epochs=1, callbacks=[Watch()])
    empty = sum(math.isnan(loss) for loss in drawn)
    assert empty > 3
    assert model.ledger.total == 40
    assert all(not torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True))


@pytest.mark.slow
def test_a_step_on_an_empty_batch_moves_the_weights_by_noise_only(make_model):
    data = TensorDataset(torch.randn(3, 4), torch.randint(0, 3, (3,)))
    for _ in range(20):
        model = make_model(lr=1.0)
        before = torch.cat([parameter.detach().flatten().clone() for parameter in model.network.parameters()])
        losses = []

        class Watch(Callback):
            def on_train_step_end(self, run, losses=losses):
                losses.append(run.loss)
                run.stop("one step is enough")

        model.fit(poisson_loader(data, 1), callbacks=[Watch()])
        after = torch.cat([parameter.detach().flatten() for parameter in model.network.parameters()])
        if math.isnan(losses[0]):
            assert (after - before).std().item() == pytest.approx(1.0, rel=0.35)
            return
    pytest.fail("no empty batch in 20 tries at probability 0.3")


def test_a_nan_example_contributes_nothing_and_the_weights_stay_finite(make_model):
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    x[7] = math.nan
    x[9] = 1e38
    model = make_model()
    model.fit(DataLoader(TensorDataset(x, y), 32), epochs=5)
    assert all(torch.isfinite(parameter).all() for parameter in model.network.parameters())
    assert model.ledger.total == 10


def test_training_stops_with_an_error_when_most_gradients_stay_broken(make_model):
    data = TensorDataset(torch.full((64, 4), math.nan), torch.zeros(64, dtype=torch.long))
    model = make_model()
    with pytest.raises(NonFiniteGradientsError, match=f"{MAX_BROKEN_STEPS} steps in a row"):
        model.fit(DataLoader(data, 32), epochs=50)
    assert model.ledger.total == MAX_BROKEN_STEPS
    assert all(torch.isfinite(parameter).all() for parameter in model.network.parameters())


def test_a_monitor_stops_before_the_step_that_would_pass_its_budget(make_model, loader):
    model = make_model()
    monitor = PrivacyMonitorFactory.create("rdp", max_eps=4.0, target_delta=1e-5, per_print_times=1000)
    model.fit(loader, epochs=100, callbacks=[monitor])
    spent = model.privacy_spent(1e-5).epsilon
    assert 0 < model.ledger.total < 400
    assert spent <= 4.0
    one_more = model.ledger.copy().record(model.ledger.rows[-1][0])
    from monitors import RDPAccountant

    assert RDPAccountant().epsilon(one_more, 1e-5) > 4.0


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "given", [{"num_samples": 65}, {"batch_size": 8}, {"initial_noise_multiplier": 2.0}, {"noise_decay_mode": "Time"}]
)
def test_a_monitor_whose_numbers_contradict_the_run_is_refused_before_any_release(make_model, loader, given):
    model = make_model()
    with pytest.raises(MonitorMismatchError, match=next(iter(given))):
        model.fit(loader, callbacks=[PrivacyMonitorFactory.create("rdp", **given)])
    assert model.ledger.total == 0


def test_callbacks_see_the_run_in_order(make_model, loader, make_data):
    seen = []

    class Recorder(Callback):
        pass

    for hook in [name for name in dir(Callback) if name.startswith("on_")]:
        setattr(Recorder, hook, lambda self, run, hook=hook: seen.append((hook, run.step)))
    make_model(metrics="accuracy").fit(loader, epochs=1, valid_loader=make_data(), callbacks=[Recorder()])
    steps = [item for index in range(4) for item in (("on_train_step_begin", index), ("on_train_step_end", index + 1))]
    assert seen == [
        ("on_train_begin", 0),
        ("on_train_epoch_begin", 0),
        *steps,
        ("on_eval_begin", 4),
        ("on_eval_end", 4),
        ("on_train_epoch_end", 4),
        ("on_train_end", 4),
    ]


def test_train_end_is_called_when_a_step_fails(make_model, loader):
    ended = []

    class Failing(Callback):
        def on_train_step_end(self, run):
            raise RuntimeError("disk full")

        def on_train_end(self, run):
            ended.append(run.step)

    with pytest.raises(RuntimeError, match="disk full"):
        make_model().fit(loader, callbacks=[Failing()])
    assert ended == [1]


def test_a_seeded_model_repeats_itself_bit_for_bit_and_says_that_it_guarantees_nothing(make_data):
    data, results = make_data(), []
    for _ in range(2):
        torch.manual_seed(1)
        network = nn.Linear(4, 3)
        model = DPModel(
            network,
            nn.CrossEntropyLoss(),
            torch.optim.SGD(network.parameters(), lr=0.1),
            noise_mech=NoiseMechanismsFactory.create("Gaussian", seed=5),
            clip_mech=ClipMechanismsFactory.create("Gaussian", seed=6),
            micro_batches=4,
            seed=7,
        )
        model.fit(DataLoader(data, 16), epochs=3)
        results.append(network.weight.detach().clone())
        assert set(model.privacy_spent(1e-5).notes) == {
            "reproducible noise: no guarantee",
            "reproducible sampling: no guarantee",
        }
    assert torch.equal(*results)


def test_an_unseeded_model_never_repeats_itself(make_data):
    data, results = make_data(), []
    for _ in range(2):
        torch.manual_seed(1)
        network = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        noise = NoiseMechanismsFactory.create("Gaussian")
        DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise).fit(DataLoader(data, 16))
        results.append(network.weight.detach().clone())
    assert not torch.equal(*results)


@pytest.mark.sample(6)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop", "AdamW", "Adagrad", "NAdam"])
def test_any_first_order_optimizer_takes_the_private_gradient(make_model, loader, optimizer):
    network = nn.Linear(4, 3)
    before = network.weight.detach().clone()
    make_model(network, optimizer=getattr(torch.optim, optimizer)(network.parameters(), lr=0.01)).fit(loader)
    assert not torch.equal(before, network.weight)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.slow
def test_the_physical_batch_size_does_not_change_results(make_data):
    data, results = make_data(), []
    for physical in (None, 5, 1):
        torch.manual_seed(1)
        network = nn.Linear(4, 3).double()
        model = DPModel(
            network,
            nn.CrossEntropyLoss(),
            torch.optim.SGD(network.parameters(), lr=0.1),
            noise_mech=NoiseMechanismsFactory.create("Gaussian", seed=5),
            physical_batch_size=physical,
            seed=7,
        )
        model.fit(DataLoader(TensorDataset(data.tensors[0].double(), data.tensors[1]), 16), epochs=2)
        results.append(network.weight.detach().clone())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-12)


def test_precision_and_timed_plans_reach_the_engine(make_model, loader):
    images = poisson_loader(TensorDataset(torch.randn(24, 1, 12, 12), torch.randint(0, 3, (24,))), batch_size=8)

    def network():
        return nn.Sequential(nn.Conv2d(1, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 9), nn.Flatten(), nn.Linear(64, 3))

    plain, asked = make_model(network()), make_model(network(), precision="bf16", timed_plans=True)
    for model in (plain, asked):
        model.fit(images)
    assert "precision fp32" in plain.explain_engine()
    assert "multiply-adds (estimated)" in plain.explain_engine()
    assert "precision bf16" in asked.explain_engine()
    assert " ms" in asked.explain_engine()
    with pytest.raises(UnsupportedModuleError, match="'vmap' cannot be used: it has no option 'timed_plans'"):
        make_model(engine="vmap", timed_plans=True).fit(loader)


def test_predict_keeps_order_mode_and_gradients(make_model):
    model = make_model(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    x = torch.randn(2500, 4)
    outputs = model.predict(x)
    assert outputs.shape == (2500, 3)
    assert not outputs.requires_grad
    assert torch.allclose(outputs[1234], model.predict(x[1234:1235])[0])
    assert model.network.training
    assert model.predict(x[:0]).shape == (0, 3)


def test_evaluate_takes_loaders_data_sets_and_pairs_of_tensors(make_model, make_data):
    data = make_data(n=50)
    model = make_model(metrics=["accuracy", "loss"])
    answers = [model.evaluate(given) for given in (data, DataLoader(data, 7), poisson_loader(data, 7), data.tensors)]
    answers += [model.eval(data), model.eval(data, batch_size=3)]
    assert all(answer == pytest.approx(answers[0]) for answer in answers)
    assert set(answers[0]) == {"accuracy", "loss"}


def test_frozen_parameters_get_no_noise_and_unused_ones_do(make_model, loader):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.spare = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(2, 2)
            self.body.requires_grad_(False)

        def forward(self, x):
            return self.head(self.body(x))

    network = Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    make_model(network).fit(loader)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias", "spare.weight", "spare.bias"}


class NamedScores(nn.Module):
    """Takes named inputs and gives named outputs, as networks of language models do."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(4, 3)

    def forward(self, features, mask):
        return {"logits": self.scores(features * mask)}


class NamedInputs(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        features, target = self.data[row]
        return {"features": features, "mask": torch.ones(4)}, target


def test_named_inputs_and_outputs_are_trained_evaluated_and_predicted(make_model, make_data):
    data, network, plain = make_data(), NamedScores(), nn.CrossEntropyLoss()
    model = make_model(network, loss_fn=lambda outputs, targets: plain(outputs["logits"], targets))
    model.fit(DataLoader(NamedInputs(data), 16), valid_loader=NamedInputs(make_data(n=8)))
    x, y = data.tensors
    scores = model.predict({"features": x, "mask": torch.ones(64, 4)})
    assert set(scores) == {"logits"}
    assert scores["logits"].shape == (64, 3)
    assert model.eval(NamedInputs(data))["loss"] == pytest.approx(float(plain(scores["logits"], y)), rel=1e-5)


def test_the_repr_of_a_model_shows_its_parts(make_model, loader):
    model = make_model()
    model.fit(loader)
    assert repr(model) == "DPModel(Sequential, Gaussian(initial_noise_multiplier=1), Fixed(norm_bound=1), 4 steps done)"


def test_callbacks_that_have_begun_see_the_end_if_a_later_one_refuses_to_begin(make_model, loader):
    calls = []

    class Recording(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_begin(self, run):
            calls.append(f"{self.name} begins")

        def on_train_end(self, run):
            calls.append(f"{self.name} ends")

    class Refusing(Recording):
        def on_train_begin(self, run):
            raise RuntimeError("no")

    model = make_model()
    with pytest.raises(RuntimeError, match="no"):
        model.fit(loader, callbacks=[Recording("first"), Refusing("second"), Recording("third")])
    assert calls == ["first begins", "first ends"]
    assert model.ledger.total == 0


@pytest.mark.parametrize("training", [True, False])
def test_a_refused_training_leaves_the_modes_of_all_layers_unchanged(make_model, loader, training):
    model = make_model()
    model.network.train(training)
    modes = [module.training for module in model.network.modules()]
    model.engine = "no such engine"
    with pytest.raises(ValueError, match="no such engine"):
        model.fit(loader)
    assert [module.training for module in model.network.modules()] == modes


def test_other_generators_of_the_user_are_left_alone(make_model, loader, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs of others were seeded"))
    model = make_model(network=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 3)))
    before = torch.get_rng_state()
    model.fit(loader, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_and_metrics_are_computed_in_parts_of_the_physical_batch_size(make_model, make_data):
    sizes = []

    class Sized(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    x, y = make_data(n=40).tensors
    model = make_model(network=Sized(4, 3), physical_batch_size=16)
    model.predict(x)
    model.eval((x, y))
    assert sizes == [16, 16, 8] * 2
    sizes.clear()
    model.predict(x, batch_size=30)
    model.eval((x, y), batch_size=30)
    assert sizes == [30, 10] * 2
    with pytest.raises(ValueError, match="batch_size must be"):
        model.predict(x, batch_size=0)
