"""Passes that cannot be recorded as CUDA graphs leave the device as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.cuda_graphs import as_cuda_graphs, unwaiting
from mechanisms.units import ClippedUnit

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)


class Copying(nn.Module):
    """Copies a number from pageable memory of the host in each pass."""

    def forward(self, x):
        return x * torch.tensor([1.0], device=x.device)


def require_usable_device():
    assert torch.cuda.current_stream(DEVICE) == torch.cuda.default_stream(DEVICE)
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()
    assert torch.randn(10, device=DEVICE).isfinite().all()
    total = torch.zeros(3, device=DEVICE)
    replay = as_cuda_graphs(DEVICE)(lambda: total.add_(1.0))
    replay()
    assert total.tolist() == [2.0] * 3  # it runs once before it is recorded


@pytest.mark.parametrize("clip", [1.0, 0.1])
def test_a_network_that_copies_from_the_host_trains_without_replays(clip):
    network = nn.Sequential(nn.Linear(4, 5), Copying(), nn.Linear(5, 3)).to(DEVICE)
    engine, mechanism = BookKeepingEngine(ClippedUnit(1, 6)), Fixed()
    mechanism.start(clip)
    layout = torch.zeros(sum(value.numel() for value in network.parameters()), device=DEVICE)
    for _ in range(6):
        batch = Batch(torch.randn(6, 4, device=DEVICE), torch.arange(6, device=DEVICE) % 3)
        assert engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, mechanism, layout).flat_grad.any()
    assert engine.graphs.recorded == 0
    assert "the host waits for the GPU" in engine.graphs.refusal
    require_usable_device()


@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.neg])
def test_a_function_that_fails_or_waits_is_not_recorded(wait):
    def fails():
        wait(torch.ones(2, device=DEVICE).sum())
        raise ZeroDivisionError

    with pytest.raises((RuntimeError, ZeroDivisionError)):
        as_cuda_graphs(DEVICE)(fails)
    require_usable_device()


def test_waits_are_noticed_in_the_backward_pass_too():
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float(grad.sum())

    x = torch.ones(2, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="the host waits"), unwaiting():
        Reading.apply(x).sum().backward()
