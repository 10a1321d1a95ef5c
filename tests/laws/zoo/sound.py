"""Common code that treats examples independently: none of it may be refused, whatever it keeps or draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from torchvision.ops import StochasticDepth

from ..neighbours import CLASSES, FEATURES, Apply, Neighbours, Training, body, layered, one_replaced, under
from .collation import of_series, one_long_series, sorted_by_length
from .sequences import (
    LENGTH,
    VOCABULARY,
    AsksFirst,
    Attended,
    Attention,
    Biased,
    ByHand,
    ClassToken,
    FrozenAttention,
    Fused,
    LastPlace,
    Padded,
    Recurrent,
    Rotary,
    TableOfPositions,
    Tied,
    written_part_by_part,
)

SIDE = 8


@dataclass(frozen=True)
class Sound:
    """A training that must be accepted without changes.

    Args:
        name: What is unusual about it.
        make: Makes the training.
        pair: The neighbouring data sets.
        engine: The engine that ``"auto"`` chooses; None for any.
    """

    name: str
    make: Callable[[], Training]
    pair: Callable[[], Neighbours] = one_replaced
    engine: str | None = None

    def __str__(self) -> str:
        return self.name


def labels(count: int = 24) -> Tensor:
    return torch.arange(count) % CLASSES


def texts() -> Neighbours:
    """Token numbers; 0 is padding, at the end of some rows."""
    x = torch.randint(1, VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(1))
    x[::3, -2:] = 0
    others = x.clone()
    others[7] = torch.tensor([5, 5, 5, 0, 0, 0])
    return Neighbours((x, labels()), (others, labels()), moves=2.0)


def pictures() -> Neighbours:
    x = torch.randn(24, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    others = x.clone()
    others[7] *= 100
    return Neighbours((x, labels()), (others, labels()), moves=2.0)


def two_inputs() -> Neighbours:
    first, second = one_replaced(), pictures()
    (x, y), (x_other, _) = first.rows, first.others
    return Neighbours((x, second.rows[0], y), (x_other, second.others[0], y), moves=2.0)


def of_texts(layers: Callable[[], nn.Module], width: int = 8) -> Callable[[], Training]:
    """A token table, ``layers``, and a dense layer over the mean of all positions."""
    return lambda: Training(
        nn.Sequential(nn.Embedding(VOCABULARY, width), layers(), Apply(lambda h: h.mean(1)), nn.Linear(width, CLASSES))
    )


def of_pictures(*layers: Callable[[], nn.Module]) -> Callable[[], Training]:
    """A convolution to 4 channels, ``layers``, and a dense layer over the mean of all positions."""
    return lambda: Training(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            *(layer() for layer in layers),
            Apply(lambda h: h.mean((2, 3))),
            nn.Linear(4, CLASSES),
        )
    )


def hidden(*layers: Callable[[], nn.Module]) -> Callable[[], Training]:
    """The dense network with ``layers`` after its hidden layer."""
    return lambda: Training(body(after=[layer() for layer in layers]))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Frozen(nn.Module):
    """Frozen layers that stay in evaluation mode, under ``torch.no_grad``."""

    def __init__(self):
        super().__init__()
        self.back = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Dropout(0.5)).requires_grad_(False)
        self.head = nn.Linear(FEATURES, CLASSES)

    def train(self, mode=True):
        super().train(mode)
        self.back.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            features = self.back(x)
        return self.head(features)


class SpectralInEvaluation(nn.Module):
    """A layer with spectral normalisation whose norm estimate is no longer updated."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.spectral_norm(nn.Linear(FEATURES, FEATURES))
        self.head = nn.Linear(FEATURES, CLASSES)

    def train(self, mode=True):
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, x):
        return self.head(self.layer(x))


class Standardised(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-3), self.bias)


class Returns(nn.Module):
    """Outputs in a dict, a tuple or a named tuple, together with features."""

    def __init__(self, wrap):
        super().__init__()
        self.features, self.head, self.wrap = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES), wrap

    def forward(self, x):
        features = self.features(x).relu()
        return self.wrap(self.head(features), features)


class Out(NamedTuple):
    logits: Tensor
    features: Tensor


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.images, self.head = nn.Linear(FEATURES, 8), nn.Conv2d(2, 4, 3), nn.Linear(12, CLASSES)

    def forward(self, x, image):
        return self.head(torch.cat([self.dense(x), self.images(image).mean((2, 3))], 1).relu())


class Variational(nn.Module):
    """A sample from a normal distribution that the network parametrises, and its divergence."""

    def __init__(self):
        super().__init__()
        self.mean, self.spread, self.head = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        mean, spread = self.mean(x), self.spread(x).clamp(-3, 3)
        sample = mean + torch.randn_like(spread) * (spread / 2).exp()
        return self.head(sample), (mean.square() + spread.exp() - spread - 1).sum(1) / 2


class Weights(nn.Module):
    """Plain parameters and ``einsum``, without a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.randn(FEATURES, 16) / 4),
            nn.Parameter(torch.randn(16, CLASSES) / 4),
        )

    def forward(self, x):
        assert x.dim() == 2
        assert x.shape[1] == FEATURES, f"expected {FEATURES} features, got {x.shape}"
        return torch.einsum("bi,ij->bj", torch.einsum("bi,ij->bj", x, self.first).relu_(), self.second)


class Self(nn.Module):
    """Learns from its own detached outputs."""

    reduction = "mean"

    def forward(self, outputs, targets):
        soft = (outputs.detach() / 2).softmax(1)
        losses = F.cross_entropy(outputs, targets, reduction="none") - (soft * outputs.log_softmax(1)).sum(1)
        return losses if self.reduction == "none" else losses.mean()


def of_dict(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets) + 0.01 * outputs["features"].square().mean()


def of_tuple(outputs, targets):
    return F.cross_entropy(outputs[0], targets) + 0.01 * outputs[1].mean()


def one_hot_targets(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(targets, CLASSES).float())


def dropouts():
    return [
        Sound("nn.Dropout", hidden(lambda: nn.Dropout(0.5)), engine="bookkeeping"),
        Sound("nn.AlphaDropout", hidden(lambda: nn.AlphaDropout(0.2))),
        Sound("nn.Dropout2d", of_pictures(lambda: nn.Dropout2d(0.5)), pictures, "bookkeeping"),
        Sound("nn.FeatureAlphaDropout", of_pictures(lambda: nn.FeatureAlphaDropout(0.2)), pictures),
        Sound("functional dropout", hidden(lambda: Apply(lambda h: F.dropout(h, 0.3)))),
        Sound("Gumbel softmax", hidden(lambda: Apply(lambda h: F.gumbel_softmax(h, dim=1)))),
        Sound("stochastic depth of rows", of_pictures(lambda: StochasticDepth(0.3, "row")), pictures, "bookkeeping"),
        Sound(
            "stochastic depth of a batch", of_pictures(lambda: StochasticDepth(0.3, "batch")), pictures, "bookkeeping"
        ),
        Sound("a sample of a normal distribution", lambda: Training(Variational(), of_tuple)),
    ]


def sequences():
    layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)  # noqa: E731
    return [
        Sound("an attention map is kept", of_texts(Attention), texts),
        Sound("weights of torch's attention are kept", of_texts(Attended), texts),
        Sound("fused causal attention", of_texts(Fused), texts),
        Sound("a table of positions is shared", of_texts(TableOfPositions), texts),
        Sound("rotary positions grow", of_texts(Rotary), texts),
        Sound("a class token and positions", of_texts(ClassToken), texts),
        Sound("a transformer layer", of_texts(layer), texts),
        Sound("a frozen transformer layer in evaluation mode", of_texts(FrozenAttention), texts),
        Sound("a padding mask", lambda: Training(Padded()), texts, "bookkeeping"),
        Sound("a learnt bias of attention", of_texts(Biased), texts, "bookkeeping"),
        Sound("a bias of attention from the data", of_texts(lambda: Biased(from_data=True)), texts, "bookkeeping"),
        Sound("a mask that is read unless in a graph", lambda: Training(AsksFirst()), texts, "bookkeeping"),
        Sound("outputs written into new memory", of_texts(lambda: Apply(written_part_by_part)), texts, "bookkeeping"),
        Sound("the last position that is not padding", lambda: Training(LastPlace()), texts),
        Sound("LSTM", of_texts(lambda: Recurrent(nn.LSTM)), texts),
        Sound("GRU of two layers with dropout", of_texts(lambda: Recurrent(nn.GRU, num_layers=2, dropout=0.2)), texts),
        Sound("a recurrent cell by hand", of_texts(ByHand), texts),
        Sound("tied weights", lambda: Training(Tied()), texts),
        Sound("Fourier transform of tokens", of_texts(lambda: Apply(lambda h: torch.fft.fft2(h).real)), texts),
        Sound(
            "a bag of tokens",
            lambda: Training(nn.Sequential(nn.EmbeddingBag(VOCABULARY, 8), nn.Linear(8, CLASSES))),
            texts,
        ),
    ]


def images():
    return [
        Sound("GroupNorm", of_pictures(lambda: nn.GroupNorm(2, 4)), pictures, "bookkeeping"),
        Sound("InstanceNorm2d", of_pictures(lambda: nn.InstanceNorm2d(4, affine=True)), pictures, "bookkeeping"),
        Sound("LocalResponseNorm", of_pictures(lambda: nn.LocalResponseNorm(2)), pictures),
        Sound(
            "ReLU in place",
            of_pictures(lambda: nn.ReLU(inplace=True), lambda: nn.Conv2d(4, 4, 3)),
            pictures,
            "bookkeeping",
        ),
        Sound(
            "pooling and upsampling",
            of_pictures(lambda: nn.MaxPool2d(2), lambda: nn.Upsample(scale_factor=2)),
            pictures,
        ),
        Sound("standardised weights", of_pictures(lambda: Standardised(4, 4, 3)), pictures),
        Sound("a transposed convolution", of_pictures(lambda: nn.ConvTranspose2d(4, 4, 2, stride=2)), pictures),
    ]


def others():
    return [
        Sound("checkpointed layers with dropout", hidden(Checkpointed)),
        Sound("spectral normalisation in evaluation", lambda: Training(SpectralInEvaluation())),
        Sound("weight normalisation", hidden(lambda: parametrizations.weight_norm(nn.Linear(16, 16)))),
        Sound("a frozen part without gradients", lambda: Training(Frozen())),
        Sound("plain parameters and einsum", lambda: Training(Weights())),
        Sound("two inputs", lambda: Training(TwoInputs()), two_inputs, "bookkeeping"),
        Sound("outputs in a dict", lambda: Training(Returns(lambda a, b: {"logits": a, "features": b}), of_dict)),
        Sound("outputs in a tuple", lambda: Training(Returns(lambda a, b: (a, b)), of_tuple)),
        Sound("outputs in a named tuple", lambda: Training(Returns(Out), of_tuple)),
        Sound("LayerNorm and GELU", hidden(lambda: nn.LayerNorm(16), nn.GELU), engine="bookkeeping"),
        Sound("RMSNorm", hidden(lambda: nn.RMSNorm(16))),
        Sound("a fixed random projection", layered(lambda: Apply(lambda x: x @ torch.eye(FEATURES).flip(0)))),
        Sound("a loss on its own detached outputs", under(Self)),
        Sound(
            "class weights and smoothing",
            under(lambda: nn.CrossEntropyLoss(torch.arange(1.0, 5.0), label_smoothing=0.1)),
        ),
        Sound("one-hot targets in the loss", under(lambda: one_hot_targets)),
        Sound("batches sorted by length, of one length", of_series(sorted_by_length), one_long_series),
        Sound(
            "a tensor data set with a subclass", lambda: Training(body(), dataset=type("Mine", (TensorDataset,), {}))
        ),
    ]


SOUND = [*dropouts(), *sequences(), *images(), *others()]
