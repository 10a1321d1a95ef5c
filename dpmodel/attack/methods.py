"""Membership attacks by name: from what an attacker sees of a network to a score of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from dpmodel.attack.evidence import Evidence, require_classes
from dpmodel.attack.pool import Pool
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.repeated_queries import RepeatedQueries
from mechanisms.engines.probing import inference
from monitors import checks
from monitors.errors import DataError
from monitors.registry import Registry

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: References from which on each example has variances of its own: of fewer, one for all is better.
PER_EXAMPLE = 64

#: Examples that are queried together.
_QUERIED = 128


class Attack(ABC):
    """A membership attack. ``ATTACKS.register(name)`` makes a subclass available by name.

    Attributes:
        references: Fewest reference networks that it needs.
        needs_classes: Whether the targets must be classes.
        knows: What its attacker knows, in words.
    """

    references: ClassVar[int] = 0
    needs_classes: ClassVar[bool] = True
    knows: ClassVar[str]

    def require_fits(self, pool: Pool, outputs: Any) -> None:
        """Refuse a task that this attack cannot be made on, before anything is trained.

        Args:
            pool: The examples.
            outputs: Outputs of the network for some of them.

        Raises:
            DataError: Says why.
        """
        if self.needs_classes:
            require_classes(outputs, pool.targets)

    @abstractmethod
    def scores(self, evidence: Evidence) -> Floats:
        """A finite score of each attacked example, shape (attacked,); higher means "member"."""


ATTACKS: Registry[type[Attack]] = Registry("attack")


@ATTACKS.register("loss_threshold")
class LossThreshold(Attack):
    """Takes examples of small loss for members; no further network.

    References:
        Yeom et al. 2018, "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting".
    """

    needs_classes = False
    knows = "the loss of each example"

    def require_fits(self, pool: Pool, outputs: Any) -> None:
        """Needs targets that the network has scores for, if they are classes."""
        targets = pool.targets
        scores = isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] >= 2
        if scores and targets.dim() == 1 and not targets.is_floating_point():
            require_classes(outputs, targets)

    def scores(self, evidence: Evidence) -> Floats:
        """Minus the losses."""
        return -evidence.losses


@ATTACKS.register("lira")
class LiRA(Attack):
    """Likelihood ratio of a confidence between references with the example and references without it.

    The logit of the probability of an example's class is taken as normal, with means of its own for each example. The
    variances are common to all examples below ``PER_EXAMPLE`` references.

    References:
        Carlini et al. 2022, "Membership Inference Attacks From First Principles" (arXiv 2112.03570), algorithm 1.
    """

    references = 2
    knows = "the confidences; data, configuration and computing time to train reference networks with and without"

    def scores(self, evidence: Evidence) -> Floats:
        """The log-likelihood ratios."""
        found, known, included = evidence.confidences, evidence.reference_confidences, evidence.included
        inside, outside = (normals(known, chosen) for chosen in (included, ~included))
        ratios = stats.norm.logpdf(found, *inside) - stats.norm.logpdf(found, *outside)
        return np.asarray(ratios, dtype=np.float64)


@ATTACKS.register("lira_offline")
class OfflineLiRA(Attack):
    """How far a confidence lies above those of references without the example, in standard deviations.

    References:
        Carlini et al. 2022, section VI-C.
    """

    references = 2
    knows = "the confidences; data, configuration and computing time to train reference networks without the example"

    def scores(self, evidence: Evidence) -> Floats:
        """The standardised confidences, which order examples as the paper's probabilities do."""
        means, deviations = normals(evidence.reference_confidences, ~evidence.included)
        standardised: Floats = (evidence.confidences - means) / deviations
        return standardised


@ATTACKS.register("rmia")
class RMIA(Attack):
    """How often the likelihood ratio of an example exceeds that of the population; few references suffice.

    Args:
        gamma: Factor by which it must exceed it, positive.

    References:
        Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference Attacks" (arXiv 2312.03262).
    """

    references = 1
    knows = "the probabilities; other examples of the population, and a few reference networks"

    def __init__(self, gamma: float = 1.0) -> None:
        checks.positive(gamma=gamma)
        self.gamma = float(gamma)

    def require_fits(self, pool: Pool, outputs: Any) -> None:
        """Also needs a population."""
        super().require_fits(pool, outputs)
        if not pool.population:
            raise DataError("rmia compares with a population, but no held-out examples are set aside")

    def scores(self, evidence: Evidence) -> Floats:
        """Shares of the population; equal shares are ordered by the ratio, which changes no share."""
        size = evidence.pool.size
        found, known = evidence.probabilities()
        ratios = found[:size] / np.maximum(_even_mean(known[:, :size], evidence.included), _SMALLEST)
        population = found[size:] / np.maximum(known[:, size:].mean(axis=0), _SMALLEST)
        shares = dominated(ratios, population, self.gamma)
        order: Floats = stats.rankdata(ratios) / (2.0 * len(ratios) * len(population))
        return shares + order


@ATTACKS.register("label_only_sampling")
class LabelOnlySampling(Attack):
    """Repeats queries of a randomly perturbed example, and counts the labels: the sampling attack on labels alone.

    An example far from the decision boundary keeps its label longer; networks keep training examples farther away.

    Args:
        queries: Queries for each example.
        noise: Largest standard deviation of the perturbation over that of the inputs.

    References:
        Rahimian, Orekondy and Fritz 2020, "Sampling Attacks"; Choquette-Choo et al. 2021, "Label-Only Membership
        Inference Attacks" (arXiv 2007.14321).
    """

    knows = "the label of each of many queries, and the true class"

    def __init__(self, queries: int = 32, noise: float = 1.0) -> None:
        checks.positive_int(queries=queries)
        checks.positive(noise=noise)
        self.queries, self.noise = queries, float(noise)

    def require_fits(self, pool: Pool, outputs: Any) -> None:
        """Also needs inputs to which noise can be added."""
        super().require_fits(pool, outputs)
        x = pool.data.batch(torch.arange(1))[0]
        if not x.is_floating_point():
            raise DataError(f"label_only_sampling adds noise to the inputs, which inputs of {x.dtype} do not take")

    def scores(self, evidence: Evidence) -> Floats:
        """Votes for the true class over those for the best other one, as shares of the queries."""
        pool, network = evidence.pool, evidence.network()
        first = pool.data.batch(torch.arange(min(pool.size, 1000)))[0]
        query = LabelQuery(network, self.noise * float(first.std()), evidence.outputs.shape[1])
        margins = []
        for rows in torch.arange(pool.size).split(_QUERIED):
            x, y = pool.data.batch(rows)
            asked = RepeatedQueries(query, x.to(query.device))
            asked.up_to(self.queries)
            margins.append(asked.margins(y.cpu()))
        return np.concatenate(margins)


class LabelQuery:
    """A query interface that perturbs each input, and answers with the label alone.

    Args:
        network: The network, in evaluation mode.
        noise: Largest standard deviation of the perturbation; each query draws its own below it.
        classes: Number of classes.
    """

    def __init__(self, network: nn.Module, noise: float, classes: int) -> None:
        self.network, self.noise, self.classes = network, noise, classes
        self.device = next((value.device for value in network.parameters()), torch.device("cpu"))

    def __call__(self, x: Tensor) -> Answer:
        """One vote for the label of each row."""
        sizes = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device)
        with inference(self.network):
            outputs: Any = self.network(x + self.noise * sizes * torch.randn_like(x))
        votes = nn.functional.one_hot(outputs.argmax(dim=1), self.classes)
        return Answer(votes.cpu().double(), votes=True)


#: Smallest probability by which another one is divided.
_SMALLEST = 1e-30


def normals(values: Floats, chosen: Bools) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the ``chosen`` values of each column.

    Args:
        values: Shape (references, examples).
        chosen: Which count, same shape; at least one in each column.

    Returns:
        Means and standard deviations, shape (examples,). The latter are equal unless each column has at least half of
        ``PER_EXAMPLE`` values: pooled over the columns, or of all values if no column has two.
    """
    counts = chosen.sum(axis=0)
    means: Floats = np.where(chosen, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(chosen, np.square(values - means), 0.0).sum(axis=0)
    if counts.min() >= PER_EXAMPLE // 2 - 1:
        variances = squares / (counts - 1)
    else:
        freedom = int(np.maximum(counts - 1, 0).sum())
        common = squares.sum() / freedom if freedom else values[chosen].var()
        variances = np.full(means.shape, common)
    return means, np.sqrt(np.maximum(variances, 1e-12))


def dominated(ratios: Floats, population: Floats, gamma: float) -> Floats:
    """Part of the population whose ratio, times ``gamma``, is at most that of each example.

    Example:
        >>> dominated(np.array([1.0, 2.5]), np.array([1.0, 2.0, 3.0, 4.0]), 1.0).tolist()
        [0.25, 0.5]
    """
    shares: Floats = np.searchsorted(np.sort(gamma * population), ratios, side="right") / len(population)
    return shares


def _even_mean(values: Floats, included: Bools) -> Floats:
    """Mean over references with and without each example, which count alike if there are both."""
    sums = [np.where(chosen, values, 0.0).sum(axis=0) for chosen in (included, ~included)]
    counts = [chosen.sum(axis=0) for chosen in (included, ~included)]
    means = np.array([total / np.maximum(count, 1) for total, count in zip(sums, counts, strict=True)])
    present = np.array(counts) > 0
    found: Floats = means.sum(axis=0, where=present) / present.sum(axis=0)
    return found
