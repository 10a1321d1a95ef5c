import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.chacha import reference, tensor_ops
from mechanisms.chacha.backends import difference_in, input_words

CPU = torch.device("cpu")
MATERIALS = st.binary(min_size=40, max_size=40)
STARTS = st.one_of(st.integers(0, 2**40), st.integers(2**32 - 30, 2**32), st.integers(2**63 - 200, 2**63 - 100))


def at(start):
    return torch.tensor([start])


@settings(max_examples=50, deadline=None)
@given(material=MATERIALS, start=STARTS, blocks=st.integers(0, 40))
def test_words_match_the_definition_for_any_key_and_counter(material, start, blocks):
    found = tensor_ops.words(input_words(material, CPU), at(start), blocks).numpy().view(np.uint32)
    assert difference_in("(word, block)", found, reference.block_words(material, start, blocks)) == ""


@pytest.mark.parametrize("size", [1, 19, 250, 999])
def test_draws_do_not_depend_on_the_chunk_size(monkeypatch, size):
    key = input_words(bytes(range(40)), CPU)

    def drawn():
        single, double = torch.zeros(size), torch.zeros(size, dtype=torch.float64)
        coins = torch.zeros(size, dtype=torch.bool)
        tensor_ops.add_singles(single, key, at(3), 1.5)
        tensor_ops.add_doubles(double, lambda start, count: tensor_ops.words(key, start, count), at(3), 1.5)
        tensor_ops.write_coins(coins, key, at(3), 2**63)
        return single, double, coins

    whole = drawn()
    monkeypatch.setattr(tensor_ops, "_BLOCKS", {"cpu": 7})
    for one, other in zip(whole, drawn(), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=30, deadline=None)
@given(material=MATERIALS, coin=st.integers(0, 79))
def test_only_words_below_the_threshold_are_successes(material, coin):
    words = reference.block_words(material, 0, 10)
    whole = (words[0::2].astype(object) + words[1::2].astype(object) * 2**32).ravel()
    key, out = input_words(material, CPU), torch.zeros(80, dtype=torch.bool)
    for threshold, success in ((whole[coin], False), (whole[coin] + 1, True)):
        tensor_ops.write_coins(out, key, at(0), int(threshold))
        assert bool(out[coin]) is success
        assert difference_in("coin", out.numpy(), reference.coins(words, 80, int(threshold))) == ""
