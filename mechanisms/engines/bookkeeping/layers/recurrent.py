"""Recurrent layers and cells, unrolled into linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.rewrites import Tape, rewrite
from monitors.errors import UnsupportedModuleError

#: (input part of the gates, hidden part of the gates, hidden state, cell state) -> (hidden state, cell state).
Gate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _lstm_gate(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    del h
    i, f, g, o = (x + recurrent).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_gate(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = recurrent.chunk(3, dim=-1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return n + (x_z + h_z).sigmoid() * (h - n), c


def _plain_gate(nonlinearity: str) -> Gate:
    activate = torch.tanh if nonlinearity == "tanh" else torch.relu

    def gate(x: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        del h
        return activate(x + recurrent), c

    return gate


def _gate_of(module: Any) -> Gate:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return _lstm_gate
    return _gru_gate if isinstance(module, (nn.GRU, nn.GRUCell)) else _plain_gate(module.nonlinearity)


@rewrite(nn.RNN, nn.GRU, nn.LSTM)
def recurrent(module: nn.RNNBase, tape: Tape, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """The outputs of ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` for batched, padded inputs."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise UnsupportedModuleError(
            f"{type(module).__name__} needs a padded, batched input of 3 dimensions, got "
            f"{tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
        )
    x = x.transpose(0, 1) if module.batch_first else x
    lstm, directions = isinstance(module, nn.LSTM), 2 if module.bidirectional else 1
    width, cells = module.proj_size or module.hidden_size, module.num_layers * directions
    h0, c0 = hx if lstm and hx is not None else (hx, None)
    h0 = x.new_zeros(cells, x.shape[1], width) if h0 is None else h0
    c0 = x.new_zeros(cells, x.shape[1], module.hidden_size) if c0 is None else c0
    last_h, last_c = [], []
    for layer in range(module.num_layers):
        sides = []
        for side in range(directions):
            suffix, cell = f"_l{layer}{'_reverse' if side else ''}", layer * directions + side
            outputs, h, c = _direction(module, tape, suffix, x, h0[cell], c0[cell], backwards=bool(side))
            sides.append(outputs)
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(sides, dim=-1) if directions > 1 else sides[0]
        if module.dropout and layer + 1 < module.num_layers:
            x = F.dropout(x, module.dropout, module.training)
    x = x.transpose(0, 1) if module.batch_first else x
    return x, (torch.stack(last_h), torch.stack(last_c)) if lstm else torch.stack(last_h)


def _direction(
    module: Any, tape: Tape, suffix: str, x: Tensor, h: Tensor, c: Tensor, *, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one direction; returns the outputs (T, B, H) and the last states."""
    gate = _gate_of(module)
    bias_ih, bias_hh = (f"bias_{part}{suffix}" if module.bias else None for part in ("ih", "hh"))
    projected = tape.linear(x, f"weight_ih{suffix}", bias_ih)
    outputs: list[Tensor] = []
    for step in reversed(projected.unbind(0)) if backwards else projected.unbind(0):
        h, c = gate(step, tape.linear(h, f"weight_hh{suffix}", bias_hh), h, c)
        if module.proj_size:
            h = tape.linear(h, f"weight_hr{suffix}")
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), h, c


@rewrite(nn.RNNCell, nn.GRUCell, nn.LSTMCell)
def cell(module: Any, tape: Tape, x: Tensor, hx: Any = None) -> Any:
    """The outputs of ``nn.RNNCell``, ``nn.GRUCell`` and ``nn.LSTMCell`` for batched inputs."""
    if x.dim() != 2:
        raise UnsupportedModuleError(f"{type(module).__name__} needs a batched input of 2 dimensions, got {x.dim()}")
    lstm = isinstance(module, nn.LSTMCell)
    zeros = x.new_zeros(x.shape[0], module.hidden_size)
    h, c = hx if lstm and hx is not None else (zeros if hx is None else hx, zeros)
    bias_ih, bias_hh = ("bias_ih", "bias_hh") if module.bias else (None, None)
    gates = tape.linear(x, "weight_ih", bias_ih), tape.linear(h, "weight_hh", bias_hh)
    h, c = _gate_of(module)(*gates, h, c)
    return (h, c) if lstm else h
