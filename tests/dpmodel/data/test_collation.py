"""Batches are put together such that an example is the same whichever others were drawn."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
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
    """Averages over all positions, padding included, or over the others alone."""

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
def test_padding_that_scales_an_example_is_refused_before_anything_is_spent(lengths):
    model = model_of(Mean(masked=False))
    with pytest.raises(DataError, match="pads to the longest example of a batch, and padding changes"):
        model.fit(DataLoader(Texts(lengths), batch_size=8, collate_fn=pad))
    assert model.ledger.total == 0


def test_padding_that_comes_late_is_found_before_the_step_in_which_it_is_seen():
    lengths = [3] * 997 + [9] + [3] * 2  # not among those that are looked at first
    model = model_of(Mean(masked=False))
    with pytest.raises(DataError, match="padding changes an example's gradient"):
        model.fit(poisson_loader(Texts(lengths), batch_size=250, collate_fn=pad), epochs=40)
    assert model.ledger.total < 160


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


def test_random_masks_of_tokens_are_no_padding():
    """The collation of a masked language model: what is masked is drawn anew each time."""

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
