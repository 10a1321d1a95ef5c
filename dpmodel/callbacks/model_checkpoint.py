"""Saves the model during training."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.base import Callback
from dpmodel.callbacks.position import epoch_and_step_of_life
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run


@dataclass(frozen=True)
class CheckpointConfig:
    """How often ``ModelCheckpoint`` saves and how many files it keeps, under MindSpore's names.

    Args:
        save_checkpoint_steps: Steps between two checkpoints.
        keep_checkpoint_max: How many are kept; the oldest is deleted. 0 keeps all.
    """

    save_checkpoint_steps: int = 1
    keep_checkpoint_max: int = 5

    def __post_init__(self) -> None:
        checks.positive_int(save_checkpoint_steps=self.save_checkpoint_steps)
        checks.non_negative_int(keep_checkpoint_max=self.keep_checkpoint_max)


class ModelCheckpoint(Callback):
    """Save a checkpoint every few steps, and one when training ends.

    Files are called ``{prefix}-{epoch}_{step in epoch}.ckpt``, counted over the model's life. Only files that this
    object wrote in the same training are ever deleted. Files of other trainings are never replaced: if the folder
    already contains files with the prefix when training begins, the prefix gets a suffix, ``{prefix}_1``, as in
    MindSpore, and a line says so. A resumed training, and a second ``fit`` with the same object, keep their prefix.

    Args:
        prefix: Start of the file names, without a folder.
        directory: Folder; None is the current one.
        config: MindSpore's way to give the next two arguments.
        every_n_steps: Steps between two checkpoints; None saves at the end of each epoch.
        keep_checkpoint_max: How many are kept; 0 keeps all.

    Raises:
        ValueError: A setting is out of range, or both ``config`` and its parts are given.
    """

    first_rank_only = True

    def __init__(
        self,
        prefix: str = "CKP",
        directory: str | os.PathLike[str] | None = None,
        config: CheckpointConfig | None = None,
        *,
        every_n_steps: int | None = None,
        keep_checkpoint_max: int | None = None,
    ) -> None:
        if not isinstance(prefix, str) or not prefix or Path(prefix).name != prefix:
            raise ValueError(
                f"prefix must be a file name without a folder, got {prefix!r}; give the folder as directory="
            )
        if config is not None and (every_n_steps is not None or keep_checkpoint_max is not None):
            raise ValueError("give either config or every_n_steps and keep_checkpoint_max, not both")
        if config is not None and not isinstance(config, CheckpointConfig):
            raise ValueError(f"config must be a CheckpointConfig, got {config!r}")
        if every_n_steps is not None:
            checks.positive_int(every_n_steps=every_n_steps)
        kept = CheckpointConfig.keep_checkpoint_max if keep_checkpoint_max is None else keep_checkpoint_max
        checks.non_negative_int(keep_checkpoint_max=kept)
        self.prefix = prefix
        self.directory = Path(directory) if directory is not None else Path()
        self.every_n_steps = config.save_checkpoint_steps if config is not None else every_n_steps
        self.keep_checkpoint_max = config.keep_checkpoint_max if config is not None else kept
        self.saved: list[Path] = []
        self._prefix_in_force = prefix
        self._announced = prefix
        self._last_step: int | None = None
        self._steps_per_epoch: int | None = None

    @property
    def latest(self) -> Path | None:
        """The latest file; None before the first."""
        return self.saved[-1] if self.saved else None

    def on_train_begin(self, run: Run) -> None:
        """Create the folder, so that a wrong one fails before any budget is spent, and choose the prefix."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._goes_on(run):
            self._prefix_in_force = _free_prefix(self.directory, self.prefix)
            self._announced, self.saved = self.prefix, []
        self._last_step = run.first_step
        self._steps_per_epoch = run.steps_per_epoch

    def on_train_step_end(self, run: Run) -> None:
        """Save after every ``every_n_steps`` steps."""
        if self.every_n_steps is not None and (run.step - run.first_step) % self.every_n_steps == 0:
            self._save(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Save, if no number of steps was given."""
        if self.every_n_steps is None:
            self._save(run)

    def on_train_end(self, run: Run) -> None:
        """Save the last state, unless it was saved already."""
        if run.step != self._last_step:
            self._save(run)

    def state_dict(self) -> dict[str, Any]:
        """The prefix and the files that are kept, so that a resumed training continues to delete the oldest."""
        return {
            "saved": [str(path) for path in self.saved],
            "last_step": self._last_step,
            "prefix": self._prefix_in_force,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        prefix, saved = state.get("prefix", self.prefix), [Path(path) for path in state["saved"]]
        if not isinstance(prefix, str) or not re.fullmatch(rf"{re.escape(self.prefix)}(_\d+)?", prefix):
            raise ValueError(f"prefix must be {self.prefix!r} or start with it, got {checks.shown(prefix)}")
        # Old files are deleted: a list that names other files must not be believed.
        foreign = [path for path in saved if path.parent != self.directory or not _is_of(prefix, path.name)]
        if foreign:
            raise ValueError(f"{checks.shown(str(foreign[0]))} is not a checkpoint {prefix}-*.ckpt in {self.directory}")
        if state["last_step"] is not None:
            checks.non_negative_int(last_step=state["last_step"])
        self.saved, self._last_step = saved, state["last_step"]
        self._prefix_in_force = self._announced = prefix

    def _goes_on(self, run: Run) -> bool:
        """Whether names continue to count where the last training of this object ended."""
        return (
            self._last_step is not None
            and run.first_step >= self._last_step
            and run.steps_per_epoch == self._steps_per_epoch
        )

    def _announce_prefix(self, run: Run) -> None:
        # Not when training begins: a resumed training gets its prefix back after that.
        if self._announced != self._prefix_in_force:
            self._announced = self._prefix_in_force
            run.say(
                f"{self.directory} already contains checkpoints {self.prefix}-*.ckpt of a different training; this one "
                f"saves {self._prefix_in_force}-*.ckpt"
            )

    def _save(self, run: Run) -> None:
        from dpmodel.saving.checkpoint import save_checkpoint

        self._announce_prefix(run)
        epoch, step = epoch_and_step_of_life(run)
        path = self.directory / f"{self._prefix_in_force}-{epoch}_{step}.ckpt"
        save_checkpoint(path, run)
        self._last_step = run.step
        self.saved = [known for known in self.saved if known != path] + [path]
        while self.keep_checkpoint_max and len(self.saved) > self.keep_checkpoint_max:
            self.saved.pop(0).unlink(missing_ok=True)


def _free_prefix(directory: Path, prefix: str) -> str:
    """``prefix``, or the first of ``prefix_1``, ``prefix_2``, ... without a checkpoint."""
    names = [path.name for path in directory.iterdir()]
    candidates = (prefix if number == 0 else f"{prefix}_{number}" for number in count())
    return next(name for name in candidates if not any(_is_of(name, file) for file in names))


def _is_of(prefix: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(prefix)}-\d+_\d+\.ckpt", name) is not None
