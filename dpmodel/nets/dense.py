"""Networks of dense layers: a multilayer perceptron and a linear model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks


class MLP(nn.Module):
    """Dense layers with an activation between them; inputs of any shape are flattened.

    Args:
        in_features: Numbers per example (a 1 x 28 x 28 image has 784).
        hidden: Widths of the hidden layers; may be empty.
        num_classes: Width of the last layer.
        activation: Name of the activation, or a mapping with its name and arguments (``build_activation``).
        init: Name of the initialisation.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, ...) with ``in_features`` numbers per example -> scores (N, num_classes).

    Example:
        >>> MLP(4, hidden=[3], num_classes=2).layers
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Tanh()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (128,),
        num_classes: int = 10,
        activation: str | Mapping[str, Any] = "tanh",
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, num_classes]
        checks.positive_int(in_features=in_features, num_classes=num_classes)
        checks.positive_int(**{f"hidden[{index}]": width for index, width in enumerate(hidden)})
        layers: list[nn.Module] = []
        with seeded(seed):
            for left, right in pairwise(widths):
                layers += [nn.Linear(left, right), build_activation(activation)]
            self.layers = nn.Sequential(*layers[:-1])
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.layers(x.flatten(1)))


class Linear(MLP):
    """One dense layer: multinomial logistic regression. See ``MLP`` for the arguments.

    Example:
        >>> sum(parameter.numel() for parameter in Linear(784).parameters())
        7850
    """

    def __init__(self, in_features: int, num_classes: int = 10, init: str = "torch", seed: int | None = None) -> None:
        super().__init__(in_features, (), num_classes, init=init, seed=seed)
