"""Couplings in hooks, and in functions with a custom derivative."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.modules.module import register_module_forward_hook

from ..neighbours import Apply, Member, Training, applying, body, one_more_first

HOOK = partial(Member, kind="hook")

FUNCTION = partial(Member, kind="autograd function")

#: Larger than all inputs of the data.
LARGE = 100.0


def hooked(attach):
    """Trainings of a network with a hook that ``attach`` adds to the hidden layer."""

    def make():
        network = body(bias=False)
        attach(network[0])
        return Training(network)

    return make


def clamps_inputs(module, inputs):
    return (inputs[0] / inputs[0].abs().max().clamp(min=LARGE),)


def clamps_each_input(module, inputs):
    return (inputs[0] / inputs[0].abs().amax(1, keepdim=True).clamp(min=LARGE),)


def mixes_outputs(module, inputs, output):
    return output - output.mean(0)


def scales_outputs(module, inputs, output):
    return output * 0.5


def normalises_gradients(module, grad_inputs, grad_outputs):
    return tuple(None if grad is None else grad * 5 / grad.norm() for grad in grad_inputs)


def scales_gradients(module, grad_inputs, grad_outputs):
    return tuple(None if grad is None else grad * 0.5 for grad in grad_inputs)


def subtracts_the_last_mean():
    kept = {"mean": 0.0}

    def hook(module, inputs, output):
        before, kept["mean"] = kept["mean"], output.detach().mean(0)
        return output - 3 * before

    return hook


def records_shapes():
    kept = []
    return lambda module, inputs, output: kept.append(tuple(output.shape[1:]))


def records_activations():
    kept = {}
    return lambda module, inputs, output: kept.update(last=output.detach())


def tensor_hook(function):
    """Trainings in which the gradient of the hidden layer, large where the layer is, passes through a function."""

    def watched(h):
        if h.requires_grad:
            h.register_hook(function)
        return h * h.detach().norm(dim=1, keepdim=True)

    return lambda: Training(body(after=[Apply(watched)]))


def hook_everywhere(function):
    """Trainings with a global module hook."""

    def make():
        network = body(bias=False)
        ours = set(network.modules())
        handle = register_module_forward_hook(
            lambda module, inputs, output: function(module, inputs, output) if module in ours else None
        )
        return Training(network, close=handle.remove)

    return make


def keeping_hook_everywhere(make):
    """Trainings with a global module hook that keeps state."""
    return lambda: hook_everywhere(make())()


def scales_by_the_largest_so_far():
    """An observed range, as for quantisation, which can read values."""
    kept = {"largest": 4.0}

    def hook(module, inputs, output):
        kept["largest"] = max(kept["largest"], float(output.detach().abs().max()))
        return output * 4.0 / kept["largest"]

    return hook


def counts_calls_of_numbers():
    kept = {"calls": 0}

    def hook(module, inputs, output):
        kept["calls"] += float(output.detach().abs().max()) >= 0
        return output * 0.5

    return hook


class MixesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.flip(0)


class Straight(torch.autograd.Function):
    """Signs, with the derivative of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class MixesGenerated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x - x.mean(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


class ReversesGenerated(MixesGenerated):
    """Gradient reversal."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class MixesUnderVmap(torch.autograd.Function):
    """Its code seems to see one example; its custom vmap rule sees the batch."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return x - x.mean(in_dims[0], keepdim=True), in_dims[0]


class HonestUnderVmap(MixesUnderVmap):
    @staticmethod
    def vmap(info, in_dims, x):
        return HonestUnderVmap.apply(x), in_dims[0]


class MixesWhenLarge(MixesUnderVmap):
    """Like ``MixesUnderVmap``, but only for batches that preflight checks do not have."""

    @staticmethod
    def vmap(info, in_dims, x):
        if info.batch_size <= 16:
            return x.clone(), in_dims[0]
        return x - x.mean(in_dims[0], keepdim=True), in_dims[0]


@torch.library.custom_op("dpmodel_zoo::centred", mutates_args=())
def centred(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@torch.library.custom_op("dpmodel_zoo::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


for operator in (centred, doubled):
    operator.register_autograd(lambda ctx, grad: grad, setup_context=lambda ctx, inputs, output: None)
centred.register_vmap(lambda info, in_dims, x: (x - x.mean(in_dims[0], keepdim=True), in_dims[0]))
doubled.register_vmap(lambda info, in_dims, x: (doubled(x), in_dims[0]))


def behind(function):
    """Trainings in which the hidden layer passes through a function."""
    return lambda: Training(body(after=[Apply(function)]))


MEMBERS = [
    HOOK(
        "keeps the largest output of the modules of all networks",
        coupled=keeping_hook_everywhere(scales_by_the_largest_so_far),
        benign=keeping_hook_everywhere(counts_calls_of_numbers),
        pair=one_more_first,
        engine="loop",
    ),
    HOOK(
        "a pre-hook clamps at the largest entry of the batch",
        coupled=hooked(lambda layer: layer.register_forward_pre_hook(clamps_inputs)),
        benign=hooked(lambda layer: layer.register_forward_pre_hook(clamps_each_input)),
    ),
    HOOK(
        "a forward hook centres outputs",
        coupled=hooked(lambda layer: layer.register_forward_hook(mixes_outputs)),
        benign=hooked(lambda layer: layer.register_forward_hook(scales_outputs)),
    ),
    HOOK(
        "a hook on all modules centres outputs",
        coupled=hook_everywhere(lambda module, inputs, output: output - output.mean(0)),
        benign=hook_everywhere(lambda module, inputs, output: output * 0.9),
    ),
    HOOK(
        "a forward hook subtracts the mean of the previous call",
        coupled=hooked(lambda layer: layer.register_forward_hook(subtracts_the_last_mean())),
        benign=hooked(lambda layer: layer.register_forward_hook(records_shapes())),
        pair=one_more_first,
    ),
    HOOK(
        "a forward pre-hook mixes rows",
        coupled=hooked(
            lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + inputs[0].flip(0),))
        ),
        benign=hooked(lambda layer: layer.register_forward_hook(records_activations())),
    ),
    HOOK(
        "a backward hook divides by the norm of the batch's gradients",
        coupled=lambda: Training(_with_backward_hook(normalises_gradients)),
        benign=lambda: Training(_with_backward_hook(scales_gradients)),
    ),
    HOOK(
        "a tensor's hook divides by the norm of the batch's gradients",
        coupled=tensor_hook(lambda grad: 20 * grad / grad.norm()),
        benign=tensor_hook(lambda grad: grad.clamp(-0.1, 0.1)),
    ),
    HOOK(
        "a tensor's hook centres gradients over the batch",
        coupled=tensor_hook(lambda grad: grad - grad.mean(0)),
        benign=tensor_hook(lambda grad: grad * 2),
    ),
    HOOK(
        "a parameter's hook divides by the norm of its gradient",
        coupled=hooked(lambda layer: layer.weight.register_hook(lambda grad: grad * 5 / grad.norm())),
        benign=hooked(lambda layer: layer.weight.register_hook(lambda grad: grad * 0.5)),
        seen=False,
    ),
    FUNCTION(
        "its backward pass reverses the batch",
        coupled=behind(MixesBackward.apply),
        benign=behind(Straight.apply),
    ),
    FUNCTION(
        "its forward centres, with a generated rule for vmap",
        coupled=applying(MixesGenerated.apply),
        benign=behind(ReversesGenerated.apply),
    ),
    FUNCTION(
        "its custom vmap rule mixes",
        coupled=applying(MixesUnderVmap.apply),
        benign=applying(HonestUnderVmap.apply),
        seen=False,
    ),
    FUNCTION(
        "its custom vmap rule mixes large batches",
        coupled=applying(MixesWhenLarge.apply),
        benign=None,
        seen=False,
    ),
    FUNCTION("an operator's rule for vmap mixes", coupled=applying(centred), benign=applying(doubled), seen=False),
]


def _with_backward_hook(function):
    network = body()
    network[1].register_full_backward_hook(function)
    return network
