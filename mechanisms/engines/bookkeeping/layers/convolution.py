"""Convolutions and transposed convolutions, in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.cancellation import TermSizes, channel_squares, row_norms
from mechanisms.engines.bookkeeping.layers.linear import GRAM_LIMIT
from mechanisms.engines.bookkeeping.layers.rules import Call, Formula, LayerRule, Term, layer_rule, squared_norms
from mechanisms.engines.bookkeeping.layers.window_gram import WindowAxis, window_gram
from mechanisms.engines.bookkeeping.unit_members import UnitMembers
from mechanisms.engines.precision import full_float32

#: Cost of moving one entry through memory, in multiply-adds.
COPY_COST = 12.0

#: Number of entries of windows copied at once, by type of device: on a CPU, copies that exceed the cache take a quarter
#: longer to use; a GPU prefers one product for all examples. Other devices are treated like GPUs.
COPIED_AT_ONCE = {"cpu": 5 * 2**17}
COPIED_AT_ONCE_ON_GPU = 2**28

#: Cost, in multiply-adds, of an entry of an example's gradient, which is written once and read twice.
INSTANTIATED_COST = 40.0

#: Entries of a weight from which on Gram matrices are considered (for signals, always).
SMALLEST_FOR_GRAMS = 2**12

#: Cost of a multiply-add in float64, for matrices as small as Gram matrices.
DOUBLE_COST = 3.2

#: Up to this share of a kernel's offsets, a sum over them alone is faster, although its entries are not contiguous.
FEW_OFFSETS = 0.25

#: Relative cost of a multiply-add in the row-wise formula, whose matrix products are smaller.
ROW_WISE_FACTOR = 1.1


@layer_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionRule(LayerRule):
    """The weight gradient of one example is ``g U'``: output gradients times the windows of the input.

    References:
        Chellapilla et al. 2006, "High Performance Convolutional Neural Networks for Document Processing" (windows as
        columns); Bu et al. 2022, "Scalable and Efficient Training of Large Convolutional Neural Networks with
        Differential Privacy" (when Gram matrices pay).
    """

    def batched_dims(self, layer: nn.Module) -> int:
        """Rows, channels and positions."""
        return 2 + len(_conv(layer).kernel_size)

    def folds(self, layer: nn.Module) -> bool:
        """Up to two dimensions, padded with zeros: the rows of an example become a further dimension."""
        conv = _conv(layer)
        return len(conv.kernel_size) < 3 and (conv.padding_mode == "zeros" or not any(_ints(conv.padding)))

    def folded(self, call: Call, fold: int) -> Call:
        """A convolution of one more dimension, in which the kernel has one entry."""
        x, g = (value.unflatten(0, (-1, fold)).transpose(1, 2) for value in (call.inputs[0], call.output_grad))
        return replace(call, layer=_FoldedConvolution(_conv(call.layer)), inputs=(x,), output_grad=g)

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` (B, O, C / groups, *kernel) and ``bias`` (B, O)."""
        layer, g = _conv(call.layer), call.output_grad
        found = {}
        if "weight" in call.wanted:
            rows = _per_group(g, layer.groups) @ _columns(layer, call.inputs[0]).transpose(2, 3)
            found["weight"] = rows.reshape(call.rows, *layer.weight.shape)
        if "bias" in call.wanted:
            found["bias"] = g.flatten(2).sum(2)
        return found

    def summed_gradients(self, call: Call, members: UnitMembers) -> Mapping[str, Tensor]:
        """On a CPU, from copies of a few windows at a time."""
        if call.output_grad.device.type != "cpu" or "weight" not in call.wanted:
            return super().summed_gradients(call, members)
        (rows,) = _instantiate(call, call.inputs[0], call.output_grad).held
        found = {"weight": members.summed(rows)}
        return found | ({"bias": members.summed(call.output_grad.flatten(2).sum(2))} if "bias" in call.wanted else {})

    def term_sizes(self, call: Call) -> Mapping[str, TermSizes]:
        """Those of ``weight`` of signals and of large weights, for which Gram matrices may be used."""
        layer = _conv(call.layer)
        if "weight" not in call.wanted or not _uses_grams(layer):
            return {}
        return {"weight": _term_sizes(layer, call.inputs[0], call.output_grad)}

    def formulas(self, call: Call) -> Mapping[str, Sequence[Formula]]:
        """Instantiate from a copy of all windows or of the windows along a row, or use Gram matrices over positions."""
        x, g = call.inputs[0], call.output_grad
        found: dict[str, Sequence[Formula]] = {}
        if "weight" in call.wanted:
            found["weight"] = _weight_formulas(call, x, g)
        if "bias" in call.wanted:
            found["bias"] = [
                Formula("sum", lambda: Term.of_rows(g.flatten(2).sum(2)), elements=g.shape[0] * g.shape[1])
            ]
        return found


class _FoldedConvolution(nn.Module):
    """The settings of a convolution with a further dimension before the others, in which its kernel has one entry."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.groups, self.padding_mode = layer.groups, layer.padding_mode
        self.is_signal = len(layer.kernel_size) == 1
        self.kernel_size, self.stride, self.dilation = (
            (1, *_ints(sizes)) for sizes in (layer.kernel_size, layer.stride, layer.dilation)
        )
        self._reversed_padding_repeated_twice: Any = [*_ints(layer._reversed_padding_repeated_twice), 0, 0]
        self.weight = nn.Parameter(layer.weight.detach().unsqueeze(2), requires_grad=False)


@layer_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolutionRule(LayerRule):
    """A transposed convolution swaps the roles of input and output gradient."""

    def batched_dims(self, layer: nn.Module) -> int:
        """Rows, channels and positions."""
        return 2 + len(_conv(layer).kernel_size)

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` (B, C, O / groups, *kernel) and ``bias`` (B, O)."""
        layer, x, g = _conv(call.layer), call.inputs[0], call.output_grad
        found = {}
        if "weight" in call.wanted:
            padded = F.pad(g, [side for size in reversed(_ints(layer.padding)) for side in (size, size)])
            windows = _windows(padded, layer, x.shape[2:])
            columns = windows.reshape(call.rows, layer.groups, -1, math.prod(x.shape[2:]))
            rows = _per_group(x, layer.groups) @ columns.transpose(2, 3)
            found["weight"] = rows.reshape(call.rows, *layer.weight.shape)
        if "bias" in call.wanted:
            found["bias"] = g.flatten(2).sum(2)
        return found


def _conv(layer: nn.Module) -> Any:
    return layer


def _ints(sizes: Any) -> list[int]:
    return [int(size) for size in sizes]


def _per_group(values: Tensor, groups: int) -> Tensor:
    """(B, channels, *positions) as (B, groups, channels / groups, positions)."""
    return values.reshape(values.shape[0], groups, values.shape[1] // groups, -1)


def padded_input(layer: Any, x: Tensor) -> Tensor:
    """The input of the convolution, including padding."""
    sides = _ints(layer._reversed_padding_repeated_twice)
    if not any(sides):
        return x
    return F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _windows(padded: Tensor, layer: Any, positions: Sequence[int]) -> Tensor:
    """View (B, C, *kernel, *positions) of every window of ``padded``."""
    batch, channel, *steps = padded.stride()
    kernel, stride, dilation = _ints(layer.kernel_size), _ints(layer.stride), _ints(layer.dilation)
    within = [step * spread for step, spread in zip(steps, dilation, strict=True)]
    between = [step * jump for step, jump in zip(steps, stride, strict=True)]
    shape = (*padded.shape[:2], *kernel, *positions)
    return padded.as_strided(shape, (batch, channel, *within, *between), padded.storage_offset())


def _columns(layer: Any, x: Tensor) -> Tensor:
    """Windows as (B, groups, C / groups * kernel, positions)."""
    padded = padded_input(layer, x)
    positions = [
        (size - spread * (kernel - 1) - 1) // jump + 1
        for size, spread, kernel, jump in zip(
            padded.shape[2:], _ints(layer.dilation), _ints(layer.kernel_size), _ints(layer.stride), strict=True
        )
    ]
    return _windows(padded, layer, positions).reshape(x.shape[0], layer.groups, -1, math.prod(positions))


def whole_formulas(call: Call, x: Tensor, g: Tensor) -> list[Formula]:
    """The formulas whose term holds each example's gradient of the weight, in the layout of the weight."""
    layer, batch, positions = _conv(call.layer), g.shape[0], math.prod(g.shape[2:])
    instantiated = float(batch * layer.weight.numel())
    formulas = [
        Formula(
            "instantiate",
            partial(_instantiate, call, x, g),
            instantiated * (positions + INSTANTIATED_COST) + COPY_COST * _copied_entries(layer, batch, positions),
            instantiated,
        )
    ]
    if x.device.type == "cuda":  # has no estimated cost: formulas are timed there
        formulas.append(
            Formula("positions first", partial(_instantiate_by_positions, layer, x, g), elements=instantiated)
        )
    if torch.backends.cudnn.is_acceptable(x) and x.dtype == torch.float32:
        formulas.append(Formula("grouped", partial(_instantiate_by_groups, layer, x, g), elements=2 * instantiated))
    return formulas


def _uses_grams(layer: Any) -> bool:
    """Whether Gram matrices are considered; independent of the sizes of inputs and of the number of rows."""
    is_signal = getattr(layer, "is_signal", len(layer.kernel_size) == 1)
    return bool(is_signal or layer.weight.numel() >= SMALLEST_FOR_GRAMS)


def _term_sizes(layer: Any, x: Tensor, g: Tensor) -> TermSizes:
    """Sizes of the terms of all positions and groups: norms of windows times norms of output gradients."""
    squares = channel_squares(padded_input(layer, x).unflatten(1, (layer.groups, -1)))
    kernel = range(2, 2 + len(layer.kernel_size))
    windows = _windows(squares, layer, g.shape[2:]).sum(tuple(kernel)).flatten(1).sqrt()
    gradients = channel_squares(_per_group(g, layer.groups)).flatten(1).sqrt()
    most = math.isqrt(int(GRAM_LIMIT * layer.weight.numel() / layer.groups))  # positions with Gram matrices
    return TermSizes(windows * gradients, windows.amax(1), most)


def _weight_formulas(call: Call, x: Tensor, g: Tensor) -> list[Formula]:
    layer, batch, positions = _conv(call.layer), g.shape[0], math.prod(g.shape[2:])
    instantiated = float(batch * layer.weight.numel())
    seen = math.prod(x.shape[2:])
    gram = batch * layer.groups * (seen**2 + positions**2)
    formulas = whole_formulas(call, x, g)
    if _row_wise(layer):
        rows = int(layer.kernel_size[0])
        copied = COPY_COST * _copied_entries(layer, batch, positions) / rows
        cost = instantiated * (ROW_WISE_FACTOR * positions + INSTANTIATED_COST) + copied
        formulas.append(Formula("row-wise", partial(_instantiate_by_rows, call, x, g), cost, instantiated))
    if gram <= GRAM_LIMIT * instantiated and _uses_grams(layer) and x.dtype != torch.float64:
        products = batch * (x.shape[1] * seen**2 + g.shape[1] * positions**2)
        moved = batch * layer.groups * seen * (seen + positions) * sum(_ints(layer.kernel_size))
        cost = DOUBLE_COST * (products + moved) + instantiated * positions
        formulas.append(Formula("Gram", partial(_gram, layer, x, g), cost, 2 * gram))
    return formulas


def _copied_entries(layer: Any, batch: int, positions: int) -> int:
    """Entries of all windows of a batch."""
    return int(batch * layer.groups * math.prod(layer.weight.shape[1:]) * positions)


def _instantiate(call: Call, x: Tensor, g: Tensor) -> Term:
    layer = _conv(call.layer)
    gradients = _per_group(g, layer.groups).flatten(0, 1)
    rows = call.kept("weight", len(gradients), gradients.shape[1], math.prod(layer.weight.shape[1:]))
    for examples, windows in _copied(call, _windows(padded_input(layer, x), layer, g.shape[2:])):
        mine = slice(examples.start * layer.groups, examples.stop * layer.groups)
        columns = windows.view(mine.stop - mine.start, -1, gradients.shape[2])
        torch.bmm(gradients[mine], columns.transpose(1, 2), out=rows[mine])
    return Term.of_rows(rows.view(len(x), -1), overwritable=True)


def _copied(call: Call, windows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Copies of the windows of a few examples at a time, so that they fit the processor's cache."""
    if windows.is_contiguous():  # the kernel has one entry
        yield slice(0, len(windows)), windows
        return
    most = COPIED_AT_ONCE.get(windows.device.type, COPIED_AT_ONCE_ON_GPU)
    size = math.ceil(len(windows) / math.ceil(windows.numel() / most))
    for start in range(0, len(windows), size):
        some = windows[start : start + size]
        yield slice(start, start + len(some)), call.passing(*some.shape).copy_(some)


def _instantiate_by_positions(layer: Any, x: Tensor, g: Tensor) -> Term:
    """Copies windows with contiguous entries, for which a GPU's library uses different kernels."""
    batch, groups, spatial = len(x), layer.groups, g.dim() - 2
    windows = _windows(padded_input(layer, x), layer, g.shape[2:]).unflatten(1, (groups, -1))
    order = (0, 1, *range(3 + spatial, 3 + 2 * spatial), *range(2, 3 + spatial))
    columns = windows.permute(order).reshape(batch * groups, g[0, 0].numel(), -1)
    rows = torch.bmm(_per_group(g, groups).flatten(0, 1), columns)
    return Term.of_rows(rows.view(batch, -1), overwritable=True)


def _instantiate_by_groups(layer: Any, x: Tensor, g: Tensor) -> Term:
    """The library's weight gradient of one grouped convolution, with an example per group; no copy of windows.

    In full float32, like the other formulas, so that the choice among them affects only the last bits.
    """
    (batch, outputs), (source, axes) = g.shape[:2], _zero_padded(layer, x, g)
    with full_float32():
        rows = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[2:]),
            source.reshape(1, -1, *source.shape[2:]),
            g.new_empty(batch * outputs, *layer.weight.shape[1:]),
            None,
            [axis.stride for axis in axes],
            [axis.padding for axis in axes],
            [axis.dilation for axis in axes],
            False,
            [0] * len(axes),
            batch * layer.groups,
            [False, True, False],
        )[1]
    return Term.of_rows(rows.reshape(batch, -1), overwritable=True)


def _row_wise(layer: Any) -> bool:
    """Whether the windows along the width, shifted by each kernel row, are all windows: the vertical stride is 1."""
    return len(layer.kernel_size) == 2 and int(layer.kernel_size[0]) > 1 and int(layer.stride[0]) == 1


def _instantiate_by_rows(call: Call, x: Tensor, g: Tensor) -> Term:
    """Copies the windows of each input row once instead of once per kernel row; one product per kernel row."""
    layer, batch, positions = _conv(call.layer), x.shape[0], g.shape[2] * g.shape[3]
    groups, kernel_rows, step = layer.groups, int(layer.kernel_size[0]), int(layer.dilation[0]) * g.shape[3]
    gradients = _per_group(g, groups).flatten(0, 1).transpose(1, 2)
    fan_out = gradients.shape[2]
    rows = call.kept("weight", kernel_rows, batch * groups, layer.weight[0, :, 0].numel(), fan_out)
    for examples, windows in _copied(call, _row_windows(layer, padded_input(layer, x), g.shape[3])):
        mine = slice(examples.start * groups, examples.stop * groups)
        columns, right, found = windows.view(mine.stop - mine.start, rows.shape[2], -1), gradients[mine], rows[:, mine]
        for row in range(kernel_rows):
            torch.bmm(columns.narrow(2, row * step, positions), right, out=found[row])

    def add(out: Tensor, factors: Tensor, rows: Tensor) -> None:
        summed = factors @ rows.transpose(0, 1)
        summed = summed.view(kernel_rows, groups, -1, int(layer.kernel_size[1]), fan_out)
        out.view(layer.weight.shape).add_(summed.permute(1, 4, 2, 0, 3).reshape(layer.weight.shape))

    squared = squared_norms(rows.view(kernel_rows * batch, -1)).view(kernel_rows, batch).sum(0)
    return Term(squared, add, (rows.view(kernel_rows, batch, -1).transpose(0, 1),), overwritable=True)


def _row_windows(layer: Any, padded: Tensor, width: int) -> Tensor:
    """View (B, C, kernel width, H, positions along the width) of the windows along the width."""
    batch, channels, height, _ = padded.shape
    by_example, by_channel, by_row, by_column = padded.stride()
    kernel, stride, dilation = (int(sizes[1]) for sizes in (layer.kernel_size, layer.stride, layer.dilation))
    return padded.as_strided(
        (batch, channels, kernel, height, width),
        (by_example, by_channel, by_column * dilation, by_row, by_column * stride),
        padded.storage_offset(),
    )


def _gram(layer: Any, x: Tensor, g: Tensor) -> Term:
    """Norms from inner products of windows and of output gradients, over pairs of positions."""
    groups, batch = layer.groups, x.shape[0]
    source, axes = _zero_padded(layer, x, g)
    gradients = _per_group(g, groups).flatten(0, 1)
    if gradients.shape[2] == 1:
        columns = _columns_with_data(layer, axes, x)
        squared = (row_norms(columns.flatten(0, 2)) * row_norms(gradients.flatten(1))).square()
        return Term(squared.view(batch, groups).sum(1), partial(_add_by_columns, layer, axes), (columns, g))
    wide = gradients.double()
    products = window_gram(source.unflatten(1, (groups, -1)).flatten(0, 1), axes)
    squared = products.mul_(torch.bmm(wide.transpose(1, 2), wide)).sum((1, 2)).view(batch, groups).sum(1)
    add = _add_by_library if x.device.type == "cpu" else _add_by_windows
    return Term(squared, partial(add, layer, axes), (x, g))


def _zero_padded(layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, list[WindowAxis]]:
    """The input and its spatial dimensions; padding other than equal zeros on both sides is added to the input."""
    sides = _ints(layer._reversed_padding_repeated_twice)
    before, after = sides[-2::-2], sides[::-2]
    if layer.padding_mode != "zeros" or before != after:
        x, before = padded_input(layer, x), [0] * len(before)
    sizes = (x.shape[2:], g.shape[2:], layer.kernel_size, layer.stride, layer.dilation, before)
    return x, [WindowAxis(*map(int, of_axis)) for of_axis in zip(*sizes, strict=True)]


def _offsets_with_data(axes: Sequence[WindowAxis]) -> tuple[Any, ...]:
    """Kernel offsets at which some window holds data, if there are few; else all offsets."""
    found = [axis.offsets_with_data() for axis in axes]
    share = math.prod((seen.stop - seen.start) / axis.kernel for seen, axis in zip(found, axes, strict=True))
    return (Ellipsis, *(found if share <= FEW_OFFSETS else [slice(None)] * len(axes)))


def _columns_with_data(layer: Any, axes: Sequence[WindowAxis], x: Tensor) -> Tensor:
    """Windows (B, groups, T, C / groups * kernel), without the offsets at which all windows see only padding."""
    spatial, positions = len(axes), [axis.positions for axis in axes]
    windows = _windows(padded_input(layer, x), layer, positions)
    windows = windows[_offsets_with_data(axes) + (slice(None),) * spatial]
    order = (0, 1, *range(3 + spatial, 3 + 2 * spatial), *range(2, 3 + spatial))
    grouped: Tensor = windows.unflatten(1, (layer.groups, -1)).permute(order)
    return grouped.reshape(len(x), layer.groups, math.prod(positions), -1)


def _add_by_columns(
    layer: Any, axes: Sequence[WindowAxis], out: Tensor, factors: Tensor, columns: Tensor, g: Tensor
) -> None:
    """One product of weighted output gradients and windows for each group."""
    weighted = (_per_group(g, layer.groups) * factors.view(-1, 1, 1, 1)).transpose(2, 3)
    for group, part in enumerate(out.view(layer.groups, -1, *layer.weight.shape[1:])):
        left, right = weighted[:, group].flatten(0, 1).t(), columns[:, group].flatten(0, 1)
        target = part[_offsets_with_data(axes)]
        if target.is_contiguous():
            target.flatten(1).addmm_(left, right)
        else:
            target += (left @ right).view(target.shape)


def _add_by_windows(layer: Any, axes: Sequence[WindowAxis], out: Tensor, factors: Tensor, x: Tensor, g: Tensor) -> None:
    _add_by_columns(layer, axes, out, factors, _columns_with_data(layer, axes, x), g)


def _add_by_library(layer: Any, axes: Sequence[WindowAxis], out: Tensor, factors: Tensor, x: Tensor, g: Tensor) -> None:
    """The weight gradient of plain training for weighted output gradients, without a copy of all windows.

    For CPUs only: on a GPU, the library may round more than sums of clipped gradients allow.
    """
    summed = torch.ops.aten.convolution_backward(
        g * factors.view(-1, *[1] * (g.dim() - 1)),
        _zero_padded(layer, x, g)[0],
        layer.weight.detach().to(x.dtype),
        None,
        _ints(layer.stride),
        [axis.padding for axis in axes],
        _ints(layer.dilation),
        False,
        [0] * len(axes),
        layer.groups,
        [False, True, False],
    )[1]
    out.view(layer.weight.shape).add_(summed)
