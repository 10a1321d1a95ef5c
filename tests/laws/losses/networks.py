"""Small deterministic networks in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import CLASSES, FEATURES, WIDTH


def dense(outputs: int = CLASSES, last: Callable[[], nn.Module] = nn.Identity) -> Callable[[], nn.Module]:
    """A network of two dense layers."""
    return lambda: nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, outputs), last()).double()


class Heads(nn.Module):
    """A tuple of outputs, or a dict of them if they have names."""

    def __init__(self, *widths: int, names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, width) for width in widths)
        self.names = names

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        found = tuple(head(hidden) for head in self.heads)
        return found if self.names is None else dict(zip(self.names, found, strict=True))


def heads(*widths: int, names: tuple[str, ...] | None = None) -> Callable[[], nn.Module]:
    return lambda: Heads(*widths, names=names).double()


class Tokens(nn.Module):
    """Scores of shape (N, T, V), or (N, V, T) as torch's losses expect."""

    def __init__(self, *, classes_first: bool = False) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(12, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head, self.classes_first = nn.Linear(WIDTH, 12), classes_first

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.cell(self.table(x))[0])
        return scores.transpose(1, 2) if self.classes_first else scores


def pixels(channels: int = 1) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.Tanh(), nn.Conv2d(WIDTH, channels, 1)).double()


class Autoencoder(nn.Module):
    """Reconstruction, mean and log variance; the noise of the latent variable is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(FEATURES, 2 * 3), nn.Linear(3, FEATURES)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


class DictOfLosses(nn.Module):
    """Computes its losses itself, from inputs and labels, like detection models."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)

    def forward(self, image: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        hidden = self.body(image).tanh()
        return {
            "classifier": F.cross_entropy(self.classes(hidden), labels),
            "boxes": F.smooth_l1_loss(self.boxes(hidden), boxes),
        }


class Penalised(nn.Module):
    """A critic and the norm of its gradient with respect to the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = dense(1)()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        value = self.critic(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value, slope.norm(dim=1)


class Physics(nn.Module):
    """The solution of ``u'' = -u`` and its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.detach().requires_grad_(True)
        u = self.u(t)
        (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
        return u, second + u


class Solution(nn.Module):
    """``u`` and its times, with respect to which the loss differentiates it."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.detach().requires_grad_(True)
        return self.u(t), t


class AdaptiveSoftmax(nn.Module):
    """Returns the scores of the targets and the loss, like its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.softmax = nn.Linear(FEATURES, WIDTH), nn.AdaptiveLogSoftmaxWithLoss(WIDTH, CLASSES, [1, 2])

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.softmax(self.body(x).tanh(), y)


class Weighing(nn.Module):
    """Two tasks, weighted by trained log variances."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks, self.log_variances = Heads(CLASSES, 1), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.tasks(x), self.log_variances.expand(len(x), 2))


class Views(nn.Module):
    """Two projections of an example onto the sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(FEATURES, WIDTH), nn.Linear(FEATURES, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.one(x), dim=1), F.normalize(self.two(x), dim=1)
