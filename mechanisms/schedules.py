"""Noise schedules (step to value): see ``monitors.schedules``, where the one copy of every decay stands."""

from __future__ import annotations

from monitors.schedules import DECAYS, Schedule, constant, decayed, exp_decay, step_decay, time_decay

__all__ = ["DECAYS", "Schedule", "constant", "decayed", "exp_decay", "step_decay", "time_decay"]
