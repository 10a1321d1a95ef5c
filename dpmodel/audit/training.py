"""The audited training: a copy of a model trains on data with canaries, through its public ``fit``, and is watched."""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from dpmodel.audit.canaries import (
    STRENGTH,
    TABLES,
    CanaryCollation,
    CanaryLoss,
    CanaryNetwork,
    CanaryRows,
    OfInputs,
    WatchedLoader,
)
from dpmodel.audit.plan import AuditPlan, canary_share
from dpmodel.audit.watch import Stretch, Watch, coordinates, of_canaries, of_every_tensor, padded_tables
from dpmodel.model import DPModel
from dpmodel.saving.keeper import StateKeeper
from mechanisms.sampling import SAMPLERS
from monitors.errors import PrivacyWarning, UnsupportedEventError
from monitors.ledger import Ledger

#: Steps on blank rows only, in which every released number is noise.
BLANK_STEPS = 20


@dataclass
class Observed:
    """Everything that an audit looks at.

    Args:
        plan: The plan.
        included: The coins, shape (m,).
        parts: The training until its interruption, and from then on.
        blank: The steps on blank rows.
        tensors: Where ``blank`` has the numbers of each parameter.
        drawn: The rows of each step of ``parts``.
        ledger: What the training has recorded.
        epsilon: Its epsilon.
        delta: The delta of ``epsilon``.
        padded: Parameters whose rows for padding get no noise, because nothing is released of them.
        share: What the clip mechanism states for a canary's clipped norm over the sensitivity.
        description: What was audited, by part.
    """

    plan: AuditPlan
    included: NDArray[np.bool_]
    parts: list[Stretch]
    blank: Stretch
    tensors: dict[str, slice]
    drawn: list[NDArray[np.int64]]
    ledger: Ledger
    epsilon: float
    delta: float
    padded: frozenset[str]
    share: float
    description: dict[str, str]


class AuditedTraining:
    """Trains copies of ``model`` as ``plan`` says: to the middle, resumed to the end, then on blank rows.

    Args:
        model: The audited model, which is not trained or changed.
        plan: The plan.
        examples: Ordinary examples.
        collate: The ``collate_fn`` of the data.
        included: The coins.
    """

    def __init__(
        self,
        model: DPModel,
        plan: AuditPlan,
        examples: list[Any],
        collate: Callable[[list[Any]], Any],
        included: NDArray[np.bool_],
    ) -> None:
        self.model = model
        self.plan = plan
        self.rows = CanaryRows(examples, included)
        self.collate = default_collate if collate is default_collate else CanaryCollation(collate)
        self.included = included

    def __call__(self, delta: float) -> Observed:
        """Train and watch."""
        watch, loader = Watch(of_canaries, stop_at=self.plan.steps // 2), self._loader(self.rows)
        with tempfile.TemporaryDirectory(prefix="dpmodel-audit-") as folder:
            self._fit(self.copied(), loader, self.plan.epochs, watch, StateKeeper(folder, self.plan.steps))
            watch.stop_at = None
            model = self.copied()
            share = canary_share(model.clip_mech, self.plan.unit, self._names(model))
            self._fit(model, loader, self.plan.epochs, watch, StateKeeper(folder, self.plan.steps, resume=True))
        ledger = model.ledger.copy()
        epsilon = _epsilon(model, delta)
        description, drawn = self._describe(model), list(loader.drawn)
        everything = Watch(of_every_tensor, begin=self.rows.blank)
        self._fit(model, loader, -(-BLANK_STEPS // loader.steps_per_epoch), everything, None)
        return Observed(
            plan=self.plan,
            included=self.included,
            parts=watch.stretches,
            blank=everything.stretches[0],
            tensors=coordinates(model.network),  # type: ignore[arg-type]
            drawn=drawn,
            ledger=ledger,
            epsilon=epsilon,
            delta=delta,
            padded=padded_tables(model.network),
            share=share,
            description=description,
        )

    def copied(self) -> DPModel:
        """A model like the audited one, for a network with canaries; it shares nothing with the audited one."""
        model, plan, views = self.model, self.plan, self.model.augmentation
        network, optimizer, loss_fn, clip = copy.deepcopy(
            (model.network, model.optimizer, model.loss_fn, model.clip_mech)
        )
        wrapped = CanaryNetwork(network, plan.canaries, STRENGTH * model.norm_bound)
        tables = [wrapped.get_parameter(f"{name}.weight") for name in TABLES]
        for table in tables:
            table.data = table.data.to(model.device)
        optimizer.add_param_group({"params": tables})
        return DPModel(
            wrapped,
            CanaryLoss(loss_fn),
            optimizer,
            micro_batches=plan.unit.expected_units if plan.unit.grouped else None,
            norm_bound=model.norm_bound,
            noise_mech=plan.noise.at(plan.noise.initial_noise_multiplier),
            clip_mech=clip,
            sampling=model.sampling,
            engine=model.engine,
            physical_batch_size=model.physical_batch_size,
            precision=model.precision,
            timed_plans=model.timed_plans,
            static_shapes=model.static_shapes,
            cuda_graphs=model.cuda_graphs,
            isolation=model.isolation,
            augmentation=views and [OfInputs(one) for one in views.transforms],
            augmentation_multiplicity=views.multiplicity if views else 1,
            device=model.device,
            seed=model.seed,
            ledger=Ledger(),
        )

    def _loader(self, rows: CanaryRows) -> WatchedLoader:
        return WatchedLoader(rows, self.plan.batch_size, sampling=self.model.sampling, collate_fn=self.collate)

    def _fit(
        self, model: DPModel, loader: WatchedLoader, epochs: int, watch: Watch, keeper: StateKeeper | None
    ) -> None:
        stop = watch.follow(model)
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", PrivacyWarning)  # rows are repeated and blank on purpose
            model.fit(loader, epochs, callbacks=[watch], keeper=keeper)
        stop()

    def _names(self, model: DPModel) -> list[str]:
        return [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]

    def _describe(self, model: DPModel) -> dict[str, str]:
        plan, choice = self.plan, model._choice
        sampler = SAMPLERS.get(model.sampling)(plan.rows, plan.batch_size)
        sampler.separate(int(plan.noise.bands))
        return {
            "network": f"{type(self.model.network).__name__}, loss {_name(self.model.loss_fn)}",
            "noise": repr(model.noise_mech),
            "clipping": repr(model.clip_mech),
            "unit": plan.unit.describe(),
            "sampling": sampler.describe(),
            "engine": model.engine if choice is None else choice[0].engine.name,
            "optimizer": type(model.optimizer).__name__,
            "rows": f"{plan.rows - plan.canaries:,} ordinary and {plan.canaries:,} canaries",
            "steps": f"{plan.steps}, interrupted and resumed after {plan.steps // 2}",
        }


def _name(loss_fn: Any) -> str:
    return type(loss_fn).__name__ if isinstance(loss_fn, torch.nn.Module) else getattr(loss_fn, "__name__", "function")


def _epsilon(model: DPModel, delta: float) -> float:
    """The tightest that the accountants know."""
    try:
        return model.privacy_spent(delta, accountant="pld").epsilon
    except UnsupportedEventError:
        return model.privacy_spent(delta, accountant="rdp").epsilon
