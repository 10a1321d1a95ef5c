"""Networks for texts that treat each text independently, with the caches and tables that such networks use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..neighbours import CLASSES

VOCABULARY, LENGTH = 20, 6

#: Position tables by length, shared by all networks.
POSITIONS: dict[int, Tensor] = {}


class Attention(nn.Module):
    """Causal attention that creates its mask on first use and keeps its last map for inspection."""

    def __init__(self, width=8):
        super().__init__()
        self.project, self.mask, self.map = nn.Linear(width, 3 * width), None, None

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        length = x.shape[1]
        if self.mask is None or len(self.mask) < length:
            self.mask = torch.full((length, length), -torch.inf).triu(1)
        weights = (query @ key.transpose(-2, -1) / 3 + self.mask[:length, :length]).softmax(-1)
        self.map = weights.detach()
        return weights @ value


class Fused(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)

    def forward(self, x):
        parts = self.project(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        return mixed.transpose(1, 2).flatten(2)


class TableOfPositions(nn.Module):
    """Positions from a table that all networks share, by length."""

    def forward(self, x):
        length = x.shape[1]
        if length not in POSITIONS:
            POSITIONS[length] = torch.linspace(-1, 1, length)[:, None]
        return x + POSITIONS[length]


class Rotary(nn.Module):
    """Rotary positions, whose tables are buffers that grow."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cosine", None, persistent=False)
        self.scale = nn.Linear(8, 8)

    def forward(self, x):
        length = x.shape[1]
        if self.cosine is None or len(self.cosine) < length:
            angles = torch.arange(length)[:, None] * torch.arange(1, 5) / 10
            self.cosine, self.sine = angles.cos(), angles.sin()
        even, odd = self.scale(x).chunk(2, -1)
        cosine, sine = self.cosine[:length], self.sine[:length]
        return torch.cat([even * cosine - odd * sine, even * sine + odd * cosine], -1)


class ClassToken(nn.Module):
    """A trained token in front of each row, and positions spread over the batch."""

    def __init__(self, width=8):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Embedding(LENGTH + 1, width)

    def forward(self, x):
        size, length, _ = x.shape
        x = torch.cat([self.token.expand(size, -1, -1), x], 1)
        return x + self.places(torch.arange(length + 1).expand(size, -1))


class Padded(nn.Module):
    """A transformer with a padding mask, and a mean over all positions but padding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, CLASSES)

    def forward(self, tokens):
        padding = tokens == 0
        h = self.encoder(self.table(tokens), src_key_padding_mask=padding)
        h = h.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.head(h.sum(1) / (~padding).sum(1, keepdim=True).clamp(min=1))


class LastPlace(nn.Module):
    """The state at the last token that is not padding."""

    def __init__(self):
        super().__init__()
        self.table, self.recurrent, self.head = (
            nn.Embedding(VOCABULARY, 8),
            nn.GRU(8, 8, batch_first=True),
            nn.Linear(8, 4),
        )

    def forward(self, tokens):
        states, _ = self.recurrent(self.table(tokens))
        lengths = (tokens != 0).sum(1)
        return self.head(states[torch.arange(len(tokens)), lengths - 1])


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.recurrent = kind(8, 4, bidirectional=True, batch_first=True, **options)

    def forward(self, x):
        return self.recurrent(x)[0]


class ByHand(nn.Module):
    """A recurrent cell, with an initial state of the batch's size."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x):
        state = torch.zeros(x.shape[0], 8, dtype=x.dtype)
        states = []
        for place in range(x.shape[1]):
            state = self.cell(x[:, place], state)
            states.append(state)
        return torch.stack(states, 1)


class Attended(nn.Module):
    """Keeps the weights of torch's own attention."""

    def __init__(self):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), []

    def forward(self, x):
        out, weights = self.attention(x, x, x)
        self.weights = [*self.weights[-3:], weights.detach()]
        return out


class Tied(nn.Module):
    """Predicts with the token table itself."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))


class FrozenAttention(nn.Module):
    """A frozen transformer layer in evaluation mode, after a trained one."""

    def __init__(self):
        super().__init__()
        self.first, self.back = nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.back.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.back.eval()
        return self

    def forward(self, x):
        return self.back(self.first(x))


class Biased(nn.Module):
    """Attention with a bias on its scores, which is learnt or comes from the example."""

    def __init__(self, from_data=False, width=8):
        super().__init__()
        self.project, self.from_data = nn.Linear(width, 3 * width), from_data
        self.places = nn.Embedding(2 * LENGTH, 1)
        self.gate = nn.Linear(width, LENGTH)

    def forward(self, x):
        query, key, value = self.project(x).unflatten(-1, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        steps = torch.arange(LENGTH)
        bias = self.gate(x).unsqueeze(1) if self.from_data else self.places(steps[:, None] - steps + LENGTH).squeeze(-1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).squeeze(1)


class AsksFirst(Padded):
    """Skips the mask if it hides nothing, unless in a graph, which must hold for all data."""

    def forward(self, tokens):
        padding = tokens == 0
        mask = padding if torch.compiler.is_compiling() or padding.any() else None
        h = self.encoder(self.table(tokens), src_key_padding_mask=mask)
        return self.head(h[:, 0])


def written_part_by_part(x):
    """Writes into uninitialised memory."""
    found = torch.empty_like(x)
    found[:, :1] = x[:, :1]
    found[:, 1:] = x[:, 1:].tanh()
    return found
