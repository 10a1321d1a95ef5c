"""Trainings that end at a step: without writing anything, or after they have saved."""

from dpmodel import Callback
from dpmodel.training.interrupt import INTERRUPTED


class PowerCut(Callback):
    """Interrupts the training at a step, as a second Ctrl-C does: nothing more is written."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            raise KeyboardInterrupt


class Interrupt(Callback):
    """Stops after a step, as a first Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            run.stop(f"{INTERRUPTED} (test)")
