import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.correlated.workload import Workload

SGD = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "dampening": st.sampled_from([0.0, 0.3]),
        "nesterov": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.05]),
    }
)


@settings(max_examples=30, deadline=None)
@given(options=SGD, rates=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=9))
def test_a_weight_is_how_far_the_gradient_of_its_step_moves_the_last_weights_of_sgd(options, rates):
    if options["nesterov"]:
        options = {**options, "dampening": 0.0, "momentum": options["momentum"] or 0.9}

    def last(gradients):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=1.0, **options)
        # torch leaves the first step undampened; a step of zeros before makes all steps alike
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        for rate, gradient in zip(rates, gradients, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        return -weight.item()

    found = Workload.of_last_iterate(rates, **options)
    moved = [last(np.eye(len(rates))[step]) for step in range(len(rates))]
    assert found.signal[::-1] == pytest.approx(moved, rel=1e-9, abs=1e-12)
    assert (found.importance == 1).all()
    assert found.steps == len(rates)


def test_prefix_sums_count_each_sum_alike():
    found = Workload.of_prefix_sums(4)
    assert found.signal.tolist() == [1, 1, 1, 1]
    assert found.importance == pytest.approx([1, 0.75, 0.5, 0.25])
