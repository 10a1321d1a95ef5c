from __future__ import annotations

import pytest
import torch

from mechanisms.engines import Batch
from mechanisms.engines.batch import call_network, first_tensor, map_tensors


def test_nested_tensors_are_mapped_and_flattened():
    nest = {"a": torch.zeros(2), "b": [torch.ones(3), (torch.ones(1),)]}
    doubled = map_tensors(lambda t: t * 2, nest)
    assert doubled["b"][1][0].item() == 2.0
    assert first_tensor(nest) is nest["a"]


def test_a_batch_with_something_else_than_tensors_is_refused_with_its_type():
    with pytest.raises(TypeError, match="got str"):
        map_tensors(lambda t: t, ["text"])


def test_networks_receive_tuples_as_positional_and_dicts_as_keyword_arguments():
    one, two = torch.ones(1), torch.ones(1) * 2
    assert call_network(lambda a, b: a - b, (one, two)).item() == -1.0
    assert call_network(lambda a, b: a - b, {"b": one, "a": two}).item() == 1.0
    assert call_network(lambda a: a, one) is one


def test_select_applies_to_all_tensors_and_keeps_units():
    batch = Batch((torch.arange(4), torch.arange(4) * 10), torch.arange(4), torch.tensor([0, 2, 2, 1]), 3)
    part = batch.select(torch.tensor([1, 3]))
    assert (part.x[1].tolist(), part.group_ids.tolist(), part.num_units) == ([10, 30], [2, 1], 3)
    assert Batch(torch.zeros(0, 2), torch.zeros(0)).size == 0


def test_the_losses_of_fillers_do_not_count():
    losses = torch.tensor([1.0, 2.0, torch.nan])
    rows = Batch(torch.zeros(3), torch.zeros(3), real=torch.tensor([True, True, False]), fillers=1)
    assert rows.loss_sum(losses).item() == 3.0
    ids, real = torch.tensor([0, 0, 2]), torch.tensor([True, False, False])
    assert Batch(torch.zeros(3), torch.zeros(3), ids, 3, real, 2).loss_sum(losses).item() == 3.0
    assert Batch(torch.zeros(3), torch.zeros(3)).loss_sum(losses).isnan()
