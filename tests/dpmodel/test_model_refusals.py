"""Refusals before any budget is spent, and their messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import NoiseMechanismsFactory, PrivacyMonitorFactory, poisson_loader
from monitors.errors import DataError, UnsupportedLoaderError, UnsupportedModuleError


@pytest.mark.parametrize("as_given", [lambda data: data, lambda data: DataLoader(data, 8)], ids=["data set", "loader"])
def test_the_training_data_are_refused_as_held_out_data_before_any_budget_is_spent(make_model, make_data, as_given):
    data, model = make_data(), make_model()
    with pytest.raises(UnsupportedLoaderError, match="valid_loader holds the training data"):
        model.fit(DataLoader(data, 16), epochs=1, valid_loader=as_given(data))
    assert model.ledger.total == 0


class TestBadInputIsRefusedBeforeAnyBudgetIsSpent:
    @pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf, None, "big"])
    def test_norm_bound(self, make_model, bound):
        with pytest.raises(ValueError, match="norm_bound must be a positive finite number, got"):
            make_model(norm_bound=bound)

    def test_noise_and_model_bound_that_disagree(self, make_model):
        noise = NoiseMechanismsFactory.create("Gaussian", norm_bound=0.5)
        with pytest.raises(ValueError, match=r"norm_bound=0\.5 but DPModel norm_bound=1"):
            make_model(noise_mech=noise)

    def test_epochs(self, make_model, loader):
        with pytest.raises(ValueError, match="epochs must be an integer of at least 1, got 0"):
            make_model().fit(loader, epochs=0)

    def test_unknown_engine_and_sampling_suggest_the_nearest(self, make_model):
        with pytest.raises(ValueError, match="did you mean 'poisson'"):
            make_model(sampling="Poison")
        with pytest.raises(ValueError, match="did you mean 'vmap'"):
            make_model(engine="vmaps")

    def test_micro_batches_that_do_not_divide_the_batch(self, make_model, loader):
        model = make_model(micro_batches=5)
        with pytest.raises(ValueError, match="batch_size=16 must be a multiple of micro_batches=5"):
            model.fit(loader)
        assert model.ledger.total == 0

    def test_batch_normalisation_is_named_with_its_replacement(self, make_model, loader):
        model = make_model(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
        with pytest.raises(UnsupportedModuleError, match=r"layer '1' \(BatchNorm1d\).*GroupNorm\(1, 8\)"):
            model.fit(loader)
        assert model.ledger.total == 0

    def test_a_mixing_layer_of_unknown_type_is_found_by_running_it(self, make_model, loader):
        class Centre(nn.Module):
            def forward(self, x):
                return x - x.mean(dim=0)

        model = make_model(nn.Sequential(nn.Linear(4, 3), Centre()))
        with pytest.raises(UnsupportedModuleError, match="depends on the other examples"):
            model.fit(loader)
        assert model.ledger.total == 0

    def test_classes_and_names_in_place_of_objects(self, make_model):
        with pytest.raises(ValueError, match="noise_mech must be from NoiseMechanismsFactory"):
            make_model(noise_mech="Gaussian")
        with pytest.raises(ValueError, match="optimizer must be a torch optimizer"):
            make_model(optimizer=torch.optim.SGD)

    def test_targets_out_of_range(self, make_model):
        targets = torch.zeros(32, dtype=torch.long)
        targets[29] = 3
        model = make_model()
        with pytest.raises(DataError, match="target 3 at row 29 is out of range: the network gives 3 classes"):
            model.fit(DataLoader(TensorDataset(torch.randn(32, 4), targets), 16))
        assert model.ledger.total == 0

    def test_class_targets_of_the_wrong_type(self, make_model):
        model = make_model()
        with pytest.raises(DataError, match=r"torch.float32 and shape \(32,\)"):
            model.fit(DataLoader(TensorDataset(torch.randn(32, 4), torch.zeros(32)), 16))
        assert model.ledger.total == 0


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_optimizer_that_cannot_use_a_noisy_gradient_is_refused_immediately(make_model, kind):
    network = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=f"optimizer '{kind.__name__}' cannot train with differential privacy"):
        make_model(network, optimizer=kind(list(network.parameters())))


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_learning_rate_that_would_break_the_weights_is_refused_immediately(make_model, rate):
    with pytest.raises(ValueError, match=f"optimizer 'SGD': lr must be a finite number, got {rate}"):
        make_model(lr=rate)


def test_the_class_of_a_loss_is_refused_in_place_of_an_object(make_model):
    with pytest.raises(ValueError, match=r"loss_fn is the class CrossEntropyLoss; pass an object"):
        make_model(loss_fn=nn.CrossEntropyLoss)


@pytest.mark.parametrize("inputs", [torch.zeros(64, 4, dtype=torch.float64), torch.zeros(64, 5)])
def test_inputs_that_the_network_cannot_take_are_named_before_any_release(make_model, inputs):
    model = make_model()
    kind = str(inputs.dtype).removeprefix("torch.")
    with pytest.raises(DataError, match=rf"Sequential cannot take the inputs of the data set \({kind} of shape"):
        model.fit(DataLoader(TensorDataset(inputs, torch.zeros(64, dtype=torch.int64)), 16))
    assert model.ledger.total == 0


@pytest.mark.parametrize("inputs", [torch.zeros(64, 4, dtype=torch.float64), torch.zeros(64, 4, dtype=torch.uint8)])
def test_inputs_of_the_wrong_type_are_refused_with_the_conversion(make_model, inputs):
    with pytest.raises(DataError, match=r"It takes float32: convert the inputs in the data set, with x\.float\(\)"):
        make_model().fit(DataLoader(TensorDataset(inputs, torch.zeros(64, dtype=torch.int64)), 16))


def test_a_data_set_without_examples_is_called_empty(make_model):
    empty = TensorDataset(torch.zeros(0, 4), torch.zeros(0).long())
    with pytest.raises(DataError, match=r"the data set is empty: len\(TensorDataset\) is 0"):
        make_model(seed=0).fit(DataLoader(empty, batch_size=4))


def test_targets_that_a_loss_would_broadcast_are_refused_before_any_release(make_model):
    model = make_model(nn.Linear(4, 1), nn.MSELoss())
    with pytest.raises(DataError, match=r"one output has shape \(1,\) and one target \(\); give both the same shape"):
        model.fit(DataLoader(TensorDataset(torch.zeros(64, 4), torch.zeros(64)), 16))
    assert model.ledger.total == 0
    model.fit(DataLoader(TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1)), 16))
    assert model.ledger.total == 4


@pytest.mark.parametrize("inputs", [None, 3, "x", [torch.zeros(3, 4), None], np.array(["a", "b"])])
def test_predict_refuses_anything_except_numbers(make_model, inputs):
    with pytest.raises(DataError, match="predict takes a tensor, or a tuple, list or dict of tensors, got"):
        make_model().predict(inputs)


class TestValidationIsTriedBeforeAnyBudgetIsSpent:
    def fails(self, model, data, valid, words):
        with pytest.raises(DataError, match=words):
            model.fit(poisson_loader(data, batch_size=16), valid_loader=valid)
        assert model.ledger.total == 0

    def test_inputs_that_the_network_cannot_take(self, make_model, make_data):
        valid = (torch.randn(8, 5), torch.zeros(8, dtype=torch.int64))
        self.fails(make_model(), make_data(), valid, "cannot be computed on the validation data")

    def test_labels_out_of_range(self, make_model, make_data):
        valid = TensorDataset(torch.randn(50, 4), torch.tensor([0] * 49 + [7]))
        self.fails(make_model(metrics="accuracy"), make_data(), valid, "target 7 at row 49 is out of range")

    def test_a_metric_that_the_outputs_do_not_fit(self, make_model, make_data):
        self.fails(make_model(metrics="mae"), make_data(), make_data(n=8), "'mae' compares element by element")

    def test_no_example(self, make_model, make_data):
        valid = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        self.fails(make_model(), make_data(), valid, "no example")

    def test_an_iterator_serves_one_epoch(self, make_model, make_data):
        data, valid = make_data(), make_data(n=8).tensors
        history = make_model().fit(poisson_loader(data, batch_size=16), valid_loader=iter([valid]))
        assert history.column("valid_loss")[-1] > 0
        with pytest.raises(DataError, match="an iterator, which can be read once, but there are 2 epochs"):
            make_model().fit(poisson_loader(data, batch_size=16), epochs=2, valid_loader=iter([valid]))

    def test_a_metric_that_needs_more_than_a_few_examples(self, make_model, make_data):
        class OfAll:
            def __init__(self):
                self.seen = 0

            def update(self, outputs, targets):
                self.seen += len(targets)

            def compute(self):
                if self.seen < 64:
                    raise ValueError("one class only")
                return float(self.seen)

            def reset(self):
                self.seen = 0

        model = make_model(metrics={"all": OfAll()})
        history = model.fit(poisson_loader(make_data(), batch_size=16), valid_loader=make_data(n=64))
        assert history.column("all")[-1] == 64

    def test_the_trial_leaves_metrics_as_they_were(self, make_model, make_data):
        model, valid = make_model(metrics="accuracy"), make_data(n=64)
        history = model.fit(poisson_loader(make_data(), batch_size=16), valid_loader=valid)
        assert history.column("accuracy")[-1] == model.eval(valid)["accuracy"]


def test_mindspores_sink_mode_must_be_false(make_model, make_data):
    model, data = make_model(metrics="accuracy"), make_data()
    model.train(1, poisson_loader(data, batch_size=16), dataset_sink_mode=False)
    model.eval(data, dataset_sink_mode=False)
    for call in (lambda **options: model.train(1, data, **options), lambda **options: model.eval(data, **options)):
        with pytest.raises(ValueError, match="dataset_sink_mode=True"):
            call(dataset_sink_mode=True)


@pytest.mark.parametrize("delta", [1e-5, 0.05])
def test_a_delta_above_one_over_the_number_of_examples_is_announced(make_model, make_data, capsys, delta):
    monitor = PrivacyMonitorFactory.create("rdp", target_delta=delta)
    make_model().fit(poisson_loader(make_data(), batch_size=16), callbacks=[monitor])
    assert ("delta 0.05 is not below 1 / 64 examples" in capsys.readouterr().out) is (delta == 0.05)


def test_a_class_loss_for_a_single_output_is_refused(make_model):
    data = TensorDataset(torch.randn(32, 4), torch.rand(32, 1))
    model = make_model(nn.Linear(4, 1))
    message = "the network has a single output, for which the loss is always 0.*save class indices as integers"
    with pytest.raises(DataError, match=message):
        model.fit(poisson_loader(data, batch_size=16))
    assert model.ledger.total == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "bookeeping"}, "did you mean 'bookkeeping'"),
        ({"device": "gpu"}, "device='gpu' cannot be used here: .* Leave it out, or pass 'cpu'"),
    ],
)
def test_unusable_options_are_refused_when_the_model_is_built(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_paths_are_refused_as_keepers_and_tensors_as_loaders(make_model, loader, make_data, tmp_path):
    with pytest.raises(ValueError, match=r"write keeper=StateKeeper\("):
        make_model().fit(loader, keeper=str(tmp_path))
    with pytest.raises(ValueError, match=r"DataLoader\(TensorDataset\(x, y\), batch_size=64\)"):
        make_model().fit(make_data().tensors)
