"""Padding must not change the gradient of an example."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, poisson_loader
from dpmodel.data.collation import Collation
from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, LoopEngine
from mechanisms.units import ClippedUnit
from monitors.errors import DataError


class Texts(Dataset):
    def __init__(self, lengths, labelled_tokens=False):
        self.lengths, self.labelled_tokens = lengths, labelled_tokens

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, row):
        tokens = torch.randint(1, 12, (self.lengths[row],), generator=torch.Generator().manual_seed(row))
        return tokens, (tokens % 3 if self.labelled_tokens else row % 3)


def pad(examples):
    x, y = zip(*examples, strict=True)
    labels = pad_sequence(y, batch_first=True, padding_value=-100) if torch.is_tensor(y[0]) else torch.tensor(y)
    return pad_sequence(x, batch_first=True), labels


class Mean(nn.Module):
    """Averages over all positions including padding, or over those without padding."""

    def __init__(self, masked):
        super().__init__()
        self.table, self.head, self.masked = nn.Embedding(12, 4, padding_idx=0), nn.Linear(4, 3), masked

    def forward(self, tokens):
        h = self.table(tokens)
        if not self.masked:
            return self.head(h.mean(1))
        used = (tokens != 0).unsqueeze(2)
        return self.head((h * used).sum(1) / used.sum(1).clamp(min=1))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens))).transpose(1, 2)


def model_of(network, loss_fn=None):
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    return DPModel(
        network, loss_fn or nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), 0.1), noise_mech=noise
    )


@pytest.mark.parametrize("lengths", [[3, 9, 4, 3] * 10, [3] * 39 + [9]])
def test_padding_that_scales_an_example_is_refused_before_any_budget_is_spent(lengths):
    model = model_of(Mean(masked=False))
    with pytest.raises(DataError, match="pads to the longest example of a batch, and padding changes"):
        model.fit(DataLoader(Texts(lengths), batch_size=8, collate_fn=pad))
    assert model.ledger.total == 0


def test_late_padding_is_found_before_its_step():
    lengths = [3] * 997 + [9] + [3] * 2  # not among those that are compared first
    model = model_of(Mean(masked=False))
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        model.fit(poisson_loader(Texts(lengths), batch_size=250, collate_fn=pad), epochs=40)
    assert model.ledger.total < 160


@pytest.mark.sample(2)
@pytest.mark.parametrize("lengths", [[3, 9, 4, 3] * 10, [3] * 997 + [9] + [3] * 2])
def test_padding_that_changes_nothing_is_accepted(lengths):
    model = model_of(Mean(masked=True))
    model.fit(poisson_loader(Texts(lengths), batch_size=len(lengths), collate_fn=pad), epochs=2)
    assert model.ledger.total == 2


def test_ignored_labels_make_padding_harmless_and_one_row_moves_the_sum_by_the_bound_at_most():
    data, network = Texts([2] * 39 + [40], labelled_tokens=True), Tagger()
    model = model_of(network)
    loader = poisson_loader(data, batch_size=40, collate_fn=pad)
    model.fit(loader)
    clip = Fixed()
    clip.start(0.1)
    sums = [
        LoopEngine(ClippedUnit(1, 40))
        .clipped_sum(network, model.loss_fn, Batch(*loader.fetcher[torch.arange(rows).numpy()]), clip)
        .flat_grad
        for rows in (40, 39)
    ]
    assert (sums[0] - sums[1]).norm() <= 0.1


def test_random_masks_of_tokens_are_not_padding():
    """The collation of a masked language model: the mask is drawn again each time."""

    def masking(examples):
        x = pad_sequence([tokens for tokens, _ in examples], batch_first=True)
        drawn = (torch.rand(x.shape) < 0.3) & (x != 0)
        return x.masked_fill(drawn, 11), torch.where(drawn, x % 3, -100)

    model = model_of(Tagger())
    model.fit(poisson_loader(Texts([3, 9, 4, 3] * 10), batch_size=20, collate_fn=masking), epochs=2)
    assert model.ledger.total == 4


def test_random_tokens_do_not_hide_padding_that_matters():
    def dropping(examples):
        x, y = pad(examples)
        return x.masked_fill((torch.rand(x.shape) < 0.2) & (x != 0), 11), y

    with pytest.raises(DataError, match="padding changes an example's gradient"):
        model_of(Mean(masked=False)).fit(DataLoader(Texts([3, 9, 4, 3] * 10), batch_size=8, collate_fn=dropping))


class Window(nn.Module):
    """Averages over the last, or the first, ``size`` positions that are not padding."""

    def __init__(self, size=16, last=True, only_in_training=False, dropout=0.0):
        super().__init__()
        self.table, self.head, self.dropout = nn.Embedding(12, 4), nn.Linear(4, 3), nn.Dropout(dropout)
        self.size, self.last, self.only_in_training = size, last, only_in_training

    def forward(self, tokens):
        if self.training or not self.only_in_training:
            tokens = tokens[:, -self.size :] if self.last else tokens[:, : self.size]
        used = (tokens != 0).unsqueeze(2)
        h = (self.table(tokens) * used).sum(1) / used.sum(1).clamp(min=1)
        return self.head(self.dropout(h))


class Growing(Callback):
    """After the second step, all rows except the first few are long, like rows that no batch has held before."""

    def __init__(self, data, length):
        self.data, self.length = data, length

    def on_train_step_end(self, run):
        if run.step == 2:
            self.data.lengths[5:] = [self.length] * len(self.data.lengths[5:])


def collation_of(network, collate=pad, lengths=(3, 9, 4, 40, 5, 20), **options):
    loader = poisson_loader(Texts(list(lengths)), batch_size=2, collate_fn=collate)
    found = Collation(loader, network, nn.CrossEntropyLoss(), torch.device("cpu"), **options)
    return found, found.wrap(loader.fetcher)


def see(collation, fetcher, *rows):
    drawn = fetcher[np.array(rows)]
    collation.watch(drawn)
    return len(drawn.specimens)


def test_every_batch_longer_than_all_before_is_checked():
    collation, fetcher = collation_of(Window())
    assert see(collation, fetcher, 0, 1) == 2
    assert see(collation, fetcher, 1, 0) == 0
    assert see(collation, fetcher, 0, 2) == 2  # a shorter one may have been cut
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        see(collation, fetcher, 0, 1, 3)
    assert see(*collation_of(Window(last=False)), 0, 1, 3) == 3


def test_a_longer_batch_that_mixes_examples_voids_what_was_released():
    data = Texts([3, 9, 4, 3] * 10)
    model = model_of(Window())
    with pytest.raises(DataError, match="claim is void since step 0"):
        model.fit(poisson_loader(data, batch_size=39, collate_fn=pad), epochs=9, callbacks=[Growing(data, 40)])
    assert model.ledger.total > 2
    assert model.privacy_spent(1e-3).epsilon == math.inf


def test_a_longer_batch_that_mixes_nothing_is_trained():
    data = Texts([3, 9, 4, 3] * 10)
    model = model_of(Window(last=False))
    model.fit(poisson_loader(data, batch_size=39, collate_fn=pad), epochs=9, callbacks=[Growing(data, 40)])
    assert model.ledger.total == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_workers_read_are_checked_too(workers):
    data = Texts([3] * 500 + [40] * 4)
    model = model_of(Window())
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        model.fit(poisson_loader(data, batch_size=500, collate_fn=pad, num_workers=workers), epochs=9)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_passes_in_training_mode_are_compared_without_dropout(dropout):
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        see(*collation_of(Window(only_in_training=True, dropout=dropout)), 0, 3)


def test_passes_in_training_mode_that_still_draw_are_not_compared():
    class Draws(Window):
        def forward(self, tokens):
            return super().forward(tokens) * (1 + 0.1 * torch.rand(())) if self.training else super().forward(tokens)

    assert see(*collation_of(Draws(only_in_training=True)), 0, 3) == 2


def test_changes_far_below_the_norm_bound_count_as_rounding():
    """Near the optimum a gradient is a difference of two numbers that are almost one."""

    class Longer(Mean):
        def forward(self, tokens):
            return super().forward(tokens) * (1 + 0.01 * tokens.shape[1])

    clip = Fixed()
    clip.start(1e7)
    assert see(*collation_of(Longer(masked=True), clip=clip), 0, 3) == 2
    clip.start(1.0)
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        see(*collation_of(Longer(masked=True), clip=clip), 0, 3)


def sorting(examples):
    return pad(sorted(examples, key=lambda pair: -len(pair[0])))


def left(examples):
    x, y = zip(*examples, strict=True)
    longest = max(map(len, x))
    return torch.stack([nn.functional.pad(one, (longest - len(one), 0)) for one in x]), torch.tensor(y)


def popping(examples):
    rows = [list(one) for one in examples]
    return pad([(row.pop(0), row.pop(0)) for row in rows])


def cropping(examples):
    x, y = pad(examples)
    return x[:, : int(torch.randint(2, 4, ()))], y


@pytest.mark.parametrize("collate", [sorting, left, popping, cropping])
def test_padding_of_any_kind_is_accepted_if_it_changes_nothing(collate):
    collation, fetcher = collation_of(Mean(masked=True), collate)
    for rows in ((0, 1), (2, 4, 0), (0, 3, 5)):
        see(collation, fetcher, *rows)


def test_cutting_to_the_shortest_is_refused():
    def shortest(examples):
        least = min(len(x) for x, _ in examples)
        return pad([(x[:least], y) for x, y in examples])

    with pytest.raises(DataError, match="beside a longer example"):
        see(*collation_of(Mean(masked=True), shortest), 0, 3)


def test_the_draws_of_a_training_do_not_depend_on_the_checks():
    def masking(examples):
        x, y = pad(examples)
        return x.masked_fill((torch.rand(x.shape) < 0.3) & (x != 0), 11), y

    collation, fetcher = collation_of(Mean(masked=True), masking)
    torch.manual_seed(3)
    collation.watch(first := fetcher[np.array([0, 3])])
    after = torch.rand(1)
    torch.manual_seed(3)
    x, _ = fetcher[np.array([0, 3])][:2]
    assert torch.equal(x, first.x)
    assert torch.equal(torch.rand(1), after)
