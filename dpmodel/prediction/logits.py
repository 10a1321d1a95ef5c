"""Noise on the logits of one network at prediction time."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from dpmodel.claims.held import parts_of
from dpmodel.claims.snapshot import Snapshot
from dpmodel.claims.weights import is_trained_privately
from dpmodel.data.inference import INFERENCE_BATCH, joined_inputs
from dpmodel.prediction.answer import Answer
from dpmodel.prediction.answer_cache import NetworkDigests
from dpmodel.prediction.clipped_logits import clipped_logits, device_of, logits_of
from dpmodel.prediction.convex import ConvexHead
from dpmodel.prediction.query_ledger import QueryLedger
from mechanisms.gaussian_answers import GaussianAnswers
from mechanisms.sums.vector_sum import grid_for
from monitors import checks
from monitors.errors import UnprotectedUpdateError
from monitors.gaussian import gaussian_epsilon

#: Free if the network was trained privately, else the worst case.
AUTO = "auto"

#: Most by which logits on the grid can differ from others beyond their distance, over the norm bound.
_ROUNDING = 2.0**-28

#: Sensitivities with a proof.
PROVEN = ("worst_case", "convex")

CLAIMED = "the sensitivity of the logits ({:g}) is claimed by the user, and was not verified"
SEEDED = "the noise of the answers is reproducible: no guarantee"
EMPIRICAL = "an empirical defence: the noise follows no sensitivity, so there is no epsilon"
POST_PROCESSING = (
    "the network was trained with differential privacy, so its answers are post-processing and cost nothing"
)
CHANGED = (
    "answers were free because the network was trained privately, but its weights have changed since this DPLogits was "
    "made. If they come from fit, make a new one; else pass a ledger and sensitivity='worst_case'"
)


class DPLogits:
    """Answers queries to a network with noise on its logits (private prediction).

    For each query the logits are centred, clipped to ``norm_bound``, and get Gaussian noise; labels, probabilities and
    top-k are computed from the noisy logits alone. Each query is charged to the ledger before its noise is drawn.

    ``sensitivity`` says by how much the clipped logits of one query may differ if one training example is added or
    removed and the network is trained again:

    - ``"auto"``: not at all beyond what its training has paid for, if private trainings in this process left all
      trainable parameters as they are: its answers are exact and free, and ``why_free`` says why. Else as
      ``"worst_case"``. If the weights of such a network change, it does not answer any more.
    - ``"worst_case"``: by twice the bound. This holds for any network, and is therefore large: for useful answers of a
      single network at a small epsilon, train it privately instead, or use ``EnsembleLogits``.
    - ``"convex"``: the network is a ``ConvexHead``, whose sensitivity follows from its regularisation.
    - a number: claimed by you and not verified. The ledger says so.
    - None: an empirical defence without a guarantee; there is no epsilon, and ``ledger`` must be None.

    Args:
        network: Returns logits (B, classes). It is called in evaluation mode.
        noise_multiplier: Standard deviation of the noise over the sensitivity, positive. For ``sensitivity=None``, over
            the norm bound.
        norm_bound: L2 norm to which centred logits are clipped, positive; chosen without the private data.
        sensitivity: See above.
        ledger: The budget of the queries; required if there is a guarantee.
        cache: Keep answers in the folder of the ledger: an identical query gets the same answer again, and costs
            nothing. False: each query is charged, and gets fresh noise.
        device: Where to run the network. Default: where it is.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Attributes:
        why_free: Why answers cost nothing; None if they cost something.
        noise: The mechanism; None if answers are exact.

    Raises:
        ValueError: An argument is out of range, or arguments contradict each other.
        UnprotectedUpdateError: The network is in training, or its training has voided its claim.

    Example:
        >>> import tempfile
        >>> ledger = QueryLedger(tempfile.mkdtemp(), epsilon=8.0, delta=1e-5)
        >>> private = DPLogits(nn.Linear(4, 3), noise_multiplier=10.0, ledger=ledger)
        >>> private.query(torch.randn(5, 4)).labels.shape
        torch.Size([5])
        >>> round(ledger.spent, 2)
        0.82
        >>> ledger.close()

    References:
        Dwork and Feldman 2018, "Privacy-preserving Prediction"; Rahimian, Orekondy and Fritz 2020, "Sampling Attacks:
        Amplification of Membership Inference Attacks by Repeated Queries" (DP-Logits).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        noise_multiplier: float = 10.0,
        norm_bound: float = 1.0,
        sensitivity: str | float | None = AUTO,
        ledger: QueryLedger | None = None,
        cache: bool = False,
        device: str | torch.device | None = None,
        seed: int | None = 0,
    ) -> None:
        checks.positive(noise_multiplier=noise_multiplier, norm_bound=norm_bound)
        self.network, self.norm_bound = network, float(norm_bound)
        self.device = device_of([network]) if device is None else torch.device(device)
        self.ledger = ledger
        self.why_free = POST_PROCESSING if sensitivity == AUTO and is_trained_privately(network) else None
        self.noise: GaussianAnswers | None = None
        self.sensitivity = "worst_case" if sensitivity == AUTO else sensitivity
        moves = self._moves()
        if self.why_free is None:
            self._require_matching_ledger(cache)
            self.noise = GaussianAnswers(noise_multiplier, moves, seed)
            self.noise.require_grid(self._grid)
        self._caches = cache and self.noise is not None
        self._digests = NetworkDigests([network])
        self._free = Snapshot(_tensors_of(network)) if self.why_free is not None else None
        if ledger is not None and self.noise is not None:
            if self.sensitivity not in PROVEN:
                ledger.note(CLAIMED.format(moves))
            if self.noise.generator.reproducible:
                ledger.note(SEEDED)

    @property
    def caches(self) -> bool:
        """Whether identical queries are answered again for free, from the folder of the ledger."""
        return self._caches

    def query(self, inputs: Any, batch_size: int = INFERENCE_BATCH) -> Answer:
        """Noisy logits of each row of ``inputs``, charged as one query per row.

        Args:
            inputs: As for ``DPModel.predict``.
            batch_size: Rows per pass.

        Raises:
            BudgetExhausted: The rows do not fit the rest of the budget. Nothing was charged.
            DataError: The network does not return logits. Nothing was charged.
            UnprotectedUpdateError: Answers were free, and the weights have changed since this object was made.
        """
        if self._free is not None and self._free.changed(_tensors_of(self.network)):
            raise UnprotectedUpdateError(CHANGED)
        if not self._caches or self.ledger is None or self.noise is None:
            return self._fresh(inputs, batch_size)
        settings = f"DPLogits {self._digests.current()} {self.noise.settings} {self.norm_bound!r}"
        x = joined_inputs(inputs, self.network, batch_size)
        return Answer(self.ledger.answers.answer(x, settings, lambda rows: self._fresh(rows, batch_size).scores))

    def _fresh(self, inputs: Any, batch_size: int) -> Answer:
        """Noisy logits with fresh noise, charged."""
        logits = logits_of(self.network, inputs, self.device, batch_size)
        if self.noise is None:
            return Answer(torch.from_numpy(logits))
        clipped = clipped_logits(logits, self.norm_bound, self._grid)
        if self.ledger is not None and len(clipped):
            self.ledger.charge(self.noise.event, len(clipped))
        return Answer(torch.from_numpy(self.noise.noisy(clipped, self._grid)))

    def predict(self, inputs: Any, batch_size: int = INFERENCE_BATCH) -> torch.Tensor:
        """Labels (B,) of noisy logits; see ``query``."""
        return self.query(inputs, batch_size).labels

    def epsilon(self, queries: int, delta: float) -> float | None:
        """Epsilon of a number of queries, at ``delta``; 0 if they are free, None if there is no guarantee."""
        checks.non_negative_int(queries=queries)
        if self.why_free is not None:
            return 0.0
        if self.sensitivity is None or self.noise is None:
            return None
        return gaussian_epsilon(queries**0.5 / self.noise.noise_multiplier, delta)

    def explain(self) -> str:
        """What the answers claim, in words."""
        if self.why_free is not None:
            return self.why_free
        if self.sensitivity is None:
            return EMPIRICAL
        assert self.noise is not None
        proof = f"proven ({self.sensitivity})" if self.sensitivity in PROVEN else "claimed by the user, not verified"
        return (
            f"each answer is a Gaussian release of multiplier {self.noise.noise_multiplier:g}; sensitivity of the "
            f"logits {self.noise.sensitivity:.4g}, {proof}"
        )

    @property
    def _grid(self) -> float:
        return grid_for(self.norm_bound, 1)

    def _moves(self) -> float:
        """L2 distance between the clipped logits of neighbouring data sets."""
        sensitivity = self.sensitivity
        if sensitivity == "worst_case":
            return 2.0 * self.norm_bound
        if sensitivity == "convex":
            if not isinstance(self.network, ConvexHead):
                raise ValueError(
                    f"sensitivity='convex' needs a ConvexHead, got {type(self.network).__name__}: the sensitivity of "
                    "other networks is not known. Use 'worst_case', or EnsembleLogits"
                )
            return self._rounded(self.network.logit_sensitivity)
        if sensitivity is None:
            return self.norm_bound
        if isinstance(sensitivity, str):
            checks.one_of((AUTO, *PROVEN), sensitivity=sensitivity)
        checks.positive(sensitivity=sensitivity)
        return self._rounded(float(sensitivity))

    def _rounded(self, sensitivity: float) -> float:
        """The sensitivity of clipped logits on the grid, given that of the logits; clipping is a projection."""
        return min(2.0 * self.norm_bound, sensitivity + _ROUNDING * self.norm_bound)

    def _require_matching_ledger(self, cache: bool) -> None:
        if self.sensitivity is None and self.ledger is not None:
            raise ValueError("sensitivity=None has no guarantee, so there is nothing to charge; leave ledger out")
        if cache and self.ledger is None:
            raise ValueError("cache=True keeps answers in the folder of a ledger, and there is none; leave cache out")
        if self.sensitivity is not None and self.ledger is None:
            raise ValueError(
                "answers about private data need a budget: pass ledger=QueryLedger(folder, epsilon=..., delta=...). "
                "They are free only if all parameters, frozen ones too, and all buffers are as fit left them. For "
                "noise without a guarantee, pass sensitivity=None"
            )


def _tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers, also of modules in lists; other tensors may be results that a network keeps."""
    modules = parts_of(network).modules
    parts = chain.from_iterable((*each.parameters(recurse=False), *each.buffers(recurse=False)) for each in modules)
    return {str(index): value for index, value in enumerate(parts)}
