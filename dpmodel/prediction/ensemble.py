"""Private answers of an ensemble of teachers that were trained on disjoint parts of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from dpmodel.claims.held import held_by, place_of
from dpmodel.data.inference import INFERENCE_BATCH, joined_inputs
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.answer_cache import NetworkDigests
from dpmodel.prediction.clipped_logits import clipped_logits, device_of, logits_of
from dpmodel.prediction.logits import SEEDED
from dpmodel.prediction.partition import require_disjoint
from dpmodel.prediction.query_ledger import QueryLedger
from mechanisms.gaussian_answers import GaussianAnswers
from mechanisms.sums.vector_sum import grid_for
from monitors import checks
from monitors.errors import DataError

MODES = ("votes", "logits")

CLAIMED_DISJOINT = "that the teachers were trained on disjoint parts of the data is claimed by the user, not verified"

SHARED = "what several teachers share, frozen parameters or buffers, is taken for public, not verified"

#: A sum of charges whose number was random has no exact epsilon; the limit that it could not pass has one.
CONFIDENT = (
    "which queries were answered depended on noisy comparisons, so the guarantee is the budget of the queries, epsilon "
    "{:g} at delta {:g}, and not the epsilon of what was charged"
)

#: Fewest teachers; one teacher alone decides every answer of two.
FEWEST = 2


@dataclass(frozen=True)
class Confidence:
    """Answers only queries on which many teachers agree (the first step of Confident-GNMax).

    The largest count of votes gets Gaussian noise and is compared with the threshold; adding or removing one example
    moves that count by at most 1. The comparison is charged for every query, the answer only for those that pass. How
    much is charged is then random, so the guarantee is the budget of the ledger, as a note on it says; epsilon of what
    was charged (``spent``) is below it.

    Args:
        threshold: Number of votes, positive.
        noise_multiplier: Standard deviation of the noise of the comparison, positive.

    References:
        Papernot et al. 2018, "Scalable Private Learning with PATE", algorithm 1.
    """

    threshold: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        checks.positive(threshold=self.threshold, noise_multiplier=self.noise_multiplier)


class EnsembleLogits:
    """Answers queries with the noisy votes, or the noisy mean logits, of teachers on disjoint parts of the data.

    One example belongs to one teacher, so adding or removing it changes the scores of one teacher alone:

    - ``"votes"``: each teacher votes for its best class. One vote moves from a class to another: L2 sensitivity
      ``sqrt(2)``. The class with the most votes after noise is the answer (GNMax, Papernot et al. 2018).
    - ``"logits"``: the centred logits of each teacher are clipped to ``norm_bound`` and averaged: sensitivity
      ``2 norm_bound / teachers``.

    The scores of the teachers never leave this object without noise.

    Args:
        networks: The teachers, at least 2; each returns logits (B, classes).
        noise_multiplier: Standard deviation of the noise over the sensitivity, positive.
        mode: ``"votes"`` or ``"logits"``.
        norm_bound: L2 norm to which centred logits are clipped, positive; only for ``"logits"``.
        confidence: Answer only queries on which many teachers agree; only for ``"votes"``. None: answer all.
        ledger: The budget of the queries.
        rows: The rows on which each teacher was trained, which are checked to be disjoint. None: that they are is your
            claim, and the ledger says so.
        cache: Keep answers in the folder of the ledger: an identical query gets the same answer again, and costs
            nothing. False: each query is charged, and gets fresh noise.
        device: Where to run the networks. Default: where each is.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Raises:
        ValueError: An argument is out of range, arguments contradict each other, or teachers share parameters that can
            be trained. Frozen parameters and buffers that they share must be public; the ledger says so.
        DataError: Teachers share rows.

    Example:
        >>> import tempfile
        >>> teachers = [nn.Linear(4, 3) for _ in range(50)]
        >>> ledger = QueryLedger(tempfile.mkdtemp(), epsilon=2.0, delta=1e-5)
        >>> ensemble = EnsembleLogits(teachers, noise_multiplier=20.0, ledger=ledger)
        >>> ensemble.query(torch.randn(6, 4)).labels.shape
        torch.Size([6])
        >>> ledger.close()

    References:
        Papernot et al. 2018, "Scalable Private Learning with PATE".
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        noise_multiplier: float,
        ledger: QueryLedger,
        mode: str = "votes",
        norm_bound: float = 1.0,
        confidence: Confidence | None = None,
        rows: Sequence[ArrayLike] | None = None,
        cache: bool = False,
        device: str | torch.device | None = None,
        seed: int | None = 0,
    ) -> None:
        checks.positive(noise_multiplier=noise_multiplier, norm_bound=norm_bound)
        checks.one_of(MODES, mode=mode)
        self.networks, self.ledger, self.mode = list(networks), ledger, mode
        _require_teachers(self.networks, rows)
        shared = _require_own_parameters(self.networks)
        if not isinstance(ledger, QueryLedger):
            raise ValueError(f"ledger must be a QueryLedger(folder, epsilon=..., delta=...), got {ledger!r}")
        if confidence is not None and mode != "votes":
            raise ValueError("confidence counts votes; use mode='votes', or leave it out")
        self.device = None if device is None else torch.device(device)
        self.norm_bound, self.confidence = float(norm_bound), confidence
        moves = math.sqrt(2.0) if mode == "votes" else 2.0 * self.norm_bound / len(self.networks)
        self.noise = GaussianAnswers(noise_multiplier, moves, seed)
        self.noise.require_grid(self._grid)
        self._check = None if confidence is None else GaussianAnswers(confidence.noise_multiplier, 1.0, seed)
        if self._check is not None:
            self._check.require_grid(self._grid)
        self._digests = NetworkDigests(self.networks) if cache else None
        if rows is None:
            ledger.note(CLAIMED_DISJOINT)
        if shared:
            ledger.note(SHARED)
        if confidence is not None:
            ledger.note(CONFIDENT.format(ledger.epsilon, ledger.delta))
        if self.noise.generator.reproducible:
            ledger.note(SEEDED)

    def query(self, inputs: Any, batch_size: int = INFERENCE_BATCH) -> Answer:
        """Noisy scores of each row of ``inputs``, charged as one query per row.

        Args:
            inputs: As for ``DPModel.predict``.
            batch_size: Rows per pass.

        Returns:
            The answer; with ``confidence``, rows on which too few teachers agree have none.

        Raises:
            BudgetExhausted: The rows do not fit the rest of the budget. Nothing was charged.
            DataError: A teacher does not return logits, or teachers have different classes. Nothing was charged.
        """
        x = joined_inputs(inputs, self.networks[0], batch_size)  # a loader may read them only once, or in any order
        if self._digests is None:
            return self._fresh(x, batch_size)
        settings = f"EnsembleLogits {self._digests.current()} {self.mode} {self.noise.settings} {self.norm_bound!r} "
        settings += repr(self.confidence)
        scores = self.ledger.answers.answer(x, settings, lambda rows: self._fresh(rows, batch_size).scores)
        return Answer(scores, self.mode == "votes")

    def _fresh(self, inputs: Any, batch_size: int) -> Answer:
        """Noisy scores with fresh noise, charged."""
        multiples = self._summed(inputs, batch_size)
        if not len(multiples):
            return Answer(torch.from_numpy(multiples * self._grid), self.mode == "votes")
        scores = np.full(multiples.shape, np.nan)
        with self.ledger.alone():  # nobody takes the room of the answers between the comparison and them
            answered = self._agreed(multiples)
            if answered.any():
                self.ledger.charge(self.noise.event, int(answered.sum()))
        scores[answered] = self.noise.noisy(multiples[answered], self._grid)
        return Answer(torch.from_numpy(scores), self.mode == "votes")

    def predict(self, inputs: Any, batch_size: int = INFERENCE_BATCH) -> torch.Tensor:
        """Labels (B,) of the noisy scores, -1 without an answer; see ``query``."""
        return self.query(inputs, batch_size).labels

    def explain(self) -> str:
        """What the answers claim, in words."""
        what = "votes" if self.mode == "votes" else "mean logits"
        words = (
            f"noisy {what} of {len(self.networks)} teachers: each answer is a Gaussian release of multiplier "
            f"{self.noise.noise_multiplier:g} at sensitivity {self.noise.sensitivity:.4g}"
        )
        if self.confidence is None:
            return words
        return (
            f"{words}; only if about {self.confidence.threshold:g} teachers agree, which is compared at multiplier "
            f"{self.confidence.noise_multiplier:g}"
        )

    def _agreed(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows with an answer; charged as one comparison per row, if they are compared."""
        if self.confidence is None or self._check is None:
            return np.ones(len(counts), dtype=np.bool_)
        self.ledger.charge(self._check.event, len(counts), room=[(self.noise.event, len(counts))])
        agreed: NDArray[np.bool_] = self._check.noisy(counts.max(axis=1), self._grid) >= self.confidence.threshold
        return agreed

    @property
    def _grid(self) -> float:
        """What ``_summed`` counts in."""
        teachers = len(self.networks)
        return grid_for(1.0, teachers) if self.mode == "votes" else grid_for(self.norm_bound, teachers) / teachers

    def _summed(self, inputs: Any, batch_size: int) -> NDArray[np.int64]:
        """Votes, or the mean of clipped logits, shape (B, classes), in multiples of the grid; private."""
        teachers = len(self.networks)
        total: NDArray[np.int64] | None = None
        for index, network in enumerate(self.networks):
            device = self.device or device_of([network])
            logits = logits_of(network, inputs, device, batch_size)
            if self.mode == "votes":
                scores = _votes(logits) * round(1.0 / self._grid)
            else:
                scores = clipped_logits(logits, self.norm_bound, grid_for(self.norm_bound, teachers))
            if total is not None and scores.shape != total.shape:
                raise DataError(f"teacher {index} returns scores of shape {scores.shape}, teacher 0 {total.shape}")
            total = scores if total is None else total + scores
        assert total is not None
        return total


def _require_teachers(networks: Sequence[nn.Module], rows: Sequence[ArrayLike] | None) -> None:
    if len(networks) < FEWEST:
        raise ValueError(f"an ensemble needs at least {FEWEST} teachers, got {len(networks)}")
    if len(set(map(id, networks))) < len(networks):
        raise ValueError("a network is listed twice, so one example could change two votes; list each teacher once")
    if rows is not None:
        if len(rows) != len(networks):
            raise ValueError(f"rows must have one entry per teacher, {len(networks)}, got {len(rows)}")
        require_disjoint(rows)


def _require_own_parameters(networks: Sequence[nn.Module]) -> bool:
    """Refuse parameters of several teachers; whether they share anything else."""
    owners: dict[int | None, int] = {}
    shared = False
    for index, network in enumerate(networks):
        for tensor in held_by(network):
            place = place_of(tensor)
            owner = owners.setdefault(place, index)
            if owner == index or place is None:
                continue
            if tensor.requires_grad:
                raise ValueError(
                    f"teachers {owner} and {index} share parameters, so one example could change both; train each "
                    "teacher's own network, or freeze what is public: requires_grad_(False)"
                )
            shared = True
    return shared


def _votes(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """One vote per row for the best class; a teacher whose scores are not finite votes for none."""
    finite = np.isfinite(logits).all(axis=1)
    votes = np.zeros(logits.shape, dtype=np.int64)
    rows = np.flatnonzero(finite)
    votes[rows, logits[rows].argmax(axis=1)] = 1
    return votes
