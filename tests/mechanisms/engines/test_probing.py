from __future__ import annotations

import torch
from torch import nn

from mechanisms.engines.probing import preserve_state, shared_recordings


class Counting(nn.Linear):
    """Counts its calls."""

    def __init__(self):
        super().__init__(2, 2)
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.detach().sum())
        return super().forward(x)


def test_trial_passes_leave_no_trace_even_with_shared_recordings():
    network = Counting()
    with shared_recordings():
        for _ in range(3):
            with preserve_state(network):
                network(torch.ones(1, 2))
                with preserve_state(network):
                    network(torch.ones(1, 2))
                    network.eval()
                assert (network.calls, len(network.seen), network.training) == (1, 1, True)
            assert (network.calls, network.seen, network.training) == (0, [], True)


def test_state_that_changed_since_a_recording_is_recorded_again():
    network = Counting()
    with shared_recordings():
        with preserve_state(network):
            network(torch.ones(1, 2))
        network.calls, network.seen = 7, [torch.zeros(())]
        network.eval()
        with preserve_state(network, nn.CrossEntropyLoss()):
            network(torch.ones(1, 2))
        with preserve_state(network):
            network.train()
            network(torch.ones(1, 2))
    assert (network.calls, len(network.seen), network.training) == (7, 1, False)


def test_a_recording_of_one_network_is_not_used_for_a_different_one():
    one, other = Counting(), Counting()
    other.calls = 5
    with shared_recordings():
        for network in (one, other):
            with preserve_state(network):
                network(torch.ones(1, 2))
    assert (one.calls, other.calls) == (0, 5)
