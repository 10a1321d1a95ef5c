"""The networks and batches of the benchmarks. Each is created from a seed and needs no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dpmodel.nets.cifar_cnn import CifarCNN
from dpmodel.nets.dense import Linear
from dpmodel.nets.lenet5 import LeNet5
from dpmodel.nets.resnet import resnet18
from dpmodel.nets.small_cnn import SmallCNN
from dpmodel.nets.wide_resnet import WideResNet

VOCABULARY = 5000


@dataclass(frozen=True)
class Workload:
    """A network, its inputs, and the batch sizes at which it is measured."""

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    batch_sizes: tuple[int, ...] = ()
    classes: int = 10
    gpu_batch_sizes: tuple[int, ...] = ()
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss

    def batch(self, size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Inputs and labels from a fixed seed; the labels of a language model are its inputs."""
        torch.manual_seed(0)
        inputs = self.inputs(size)
        labels = inputs if self.loss is TokenLoss else torch.randint(0, self.classes, (size,))
        return inputs.to(device), labels.to(device)


class TokenLoss(nn.Module):
    """Cross entropy of each token, averaged over the tokens of an example; ``reduction`` applies to the examples."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """The loss of scores (B, tokens, vocabulary)."""
        losses = F.cross_entropy(scores.flatten(0, 1), tokens.flatten(), reduction="none")
        examples = losses.view(tokens.shape).mean(1)
        return examples if self.reduction == "none" else examples.mean()


class TextEncoder(nn.Module):
    """Token and position tables, a Transformer encoder of two layers, mean pooling, a linear layer."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = 128, length: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of each class."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        scores: Tensor = self.head(self.encoder(self.tokens(tokens) + self.positions(positions)).mean(1))
        return scores


class CausalLM(nn.Module):
    """A decoder like GPT-2: pre-normalisation, a causal mask, scores of the next token; no tied weights."""

    def __init__(
        self, vocabulary: int = 50257, width: int = 768, layers: int = 12, heads: int = 12, length: int = 256
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (B, tokens, vocabulary)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()
        embedded = self.tokens(tokens) + self.positions(positions)
        scores: Tensor = self.head(self.norm(self.decoder(embedded, mask=self.mask, is_causal=True)))
        return scores


class WideCNN(nn.Module):
    """The tanh MNIST network (``SmallCNN``) with ``factor`` times its channels and hidden units."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        first, second, hidden = 16 * factor, 32 * factor, 32 * factor
        self.features = nn.Sequential(
            *(nn.Conv2d(1, first, 8, stride=2, padding=2), nn.Tanh(), nn.MaxPool2d(2, stride=1)),
            *(nn.Conv2d(first, second, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, stride=1)),
        )
        self.classifier = nn.Sequential(nn.Linear(second * 4 * 4, hidden), nn.Tanh(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


class DeepCNN(nn.Module):
    """``depth`` tanh convolutions with 16 channels on 16 x 16 positions, then a linear layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Conv2d(16 if index else 1, 16, 3, padding=1), nn.Tanh()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        scores: Tensor = self.head(self.features(x).mean((2, 3)))
        return scores


def vit_b_16() -> nn.Module:
    """ViT-B/16 for 224 x 224 images."""
    network: nn.Module = torchvision.models.vit_b_16(num_classes=10)
    return network


def images(*shape: int) -> Callable[[int], Tensor]:
    return lambda size: torch.randn(size, *shape)


def tokens(length: int, vocabulary: int = VOCABULARY) -> Callable[[int], Tensor]:
    return lambda size: torch.randint(0, vocabulary, (size, length))


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("lenet5", lambda: LeNet5(init="torch"), images(1, 32, 32), (256, 1024), gpu_batch_sizes=(512, 4096)),
        Workload("mnist-cnn", SmallCNN, images(1, 28, 28), (512,)),
        Workload("linear", lambda: Linear(3969), images(3969), (4096,)),
        Workload("cifar-cnn", CifarCNN, images(3, 32, 32), (256,), gpu_batch_sizes=(1024,)),
        Workload("resnet18-gn", resnet18, images(3, 32, 32), (32,), gpu_batch_sizes=(256,)),
        Workload("wide-resnet-16-4", WideResNet, images(3, 32, 32), (16,)),
        Workload("text-encoder", TextEncoder, tokens(64), (64,), classes=2, gpu_batch_sizes=(512,)),
        Workload("vit-b16", vit_b_16, images(3, 224, 224), gpu_batch_sizes=(32,)),
        Workload("gpt2-small", CausalLM, tokens(256, 50257), gpu_batch_sizes=(8,), loss=TokenLoss),
    )
}
