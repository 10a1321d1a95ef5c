"""What the ranks of the tests do; each function runs in a separate process (see ``launched``)."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import Callback, ClipMechanismsFactory, DPModel, NoiseMechanismsFactory
from dpmodel.training import loop
from mechanisms import CountingQuery
from monitors import DistributedError


def data(n=60, features=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def gaussian(seed=0):
    return NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=seed)


def model(noise="Gaussian", weights_seed=0, lr=0.5, **options):
    made = network(weights_seed)
    noise = gaussian() if noise == "Gaussian" else noise
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(made.parameters(), lr=lr, momentum=0.9)
    return DPModel(made, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)


def weights(trained):
    return torch.cat([value.detach().flatten() for value in trained.network.parameters()])


def digest(trained):
    return hashlib.sha256(weights(trained).numpy().tobytes()).hexdigest()


def loader(n=60, batch_size=12):
    return DataLoader(data(n), batch_size=batch_size)


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_step_end(self, run):
        self.seen.append(run.loss)


def trained(epochs=2, n=60, batch_size=12, callbacks=(), **options):
    losses = Losses()
    made = model(**options)
    history = made.fit(loader(n, batch_size), epochs, valid_loader=data(20, seed=2), callbacks=[losses, *callbacks])
    return {
        "weights": weights(made).tolist(),
        "digest": digest(made),
        "ledger": made.ledger.digest(),
        "epsilon": made.privacy_spent(1e-5).epsilon,
        "losses": losses.seen,
        "bound": made.clip_mech.norm_bound,
        "notes": list(made.ledger.notes),
        "history": [[row.loss, row.epsilon, sorted(row.metrics.items())] for row in history],
    }


class Shifts:
    """Views that are shifted by 0, 1, 2, ... tenths; nothing is drawn."""

    numbers = 0

    def __call__(self, images, numbers):
        return images + torch.arange(len(images)).unsqueeze(1) / 10


CASES = {
    "plain": {},
    "views": {"augmentation": Shifts(), "augmentation_multiplicity": 3},
    "groups of views": {"augmentation": Shifts(), "augmentation_multiplicity": 2, "micro_batches": 4},
    "groups": {"micro_batches": 4},
    "shuffle": {"sampling": "shuffle"},
    "empty batches": {"batch_size": 1, "epochs": 1, "n": 30},
}


def compared(name):
    """A training without noise, with the coins of a test seed: equal for any number of ranks."""
    return trained(noise=None, seed=5, **CASES[name])


class Failing(Callback):
    """Calls ``action`` at one step, at the beginning or at the end of one rank."""

    def __init__(self, rank, action, step=3):
        self.rank, self.action, self.step = rank, action, step

    def _call(self, run, place):
        if run.ranks.rank == self.rank and place == self.step:
            self.action(run)

    def on_train_begin(self, run):
        self._call(run, "begin")

    def on_train_step_end(self, run):
        self._call(run, run.step)

    def on_train_end(self, run):
        self._call(run, "end")


def broken(run):
    raise RuntimeError("the disk of this rank is full")


def tampered(run):
    with torch.no_grad():
        next(run.network.parameters()).add_(1.0)


def queried(run):
    CountingQuery(epsilon=0.1).count(np.ones(60, dtype=bool), run.ledger)


def louder(run):
    run.plan.noise.schedule = lambda step: 100.0


def stopped(run):
    run.stop("enough")


def attempt(action=None, rank=1, step=3, **options):
    """What a training that is disturbed on one rank ends with, on this rank."""
    made = model(**options)
    callbacks = [] if action is None else [Failing(rank, action, step)]
    try:
        history = made.fit(loader(), 2, callbacks=callbacks)
    except Exception as error:
        found = [type(error).__name__, str(error)]
    else:
        found = ["finished", str(len(history))]
    return [*found, made.steps_done, made.ledger.total, list(made.ledger.violations), list(made.ledger.notes)]


def refused(rank):
    """Ranks that differ, and wrappers."""
    found = {
        "sampling seed": attempt(seed=1 + rank),
        "learning rate": attempt(lr=0.5 + rank),
        "bound": attempt(norm_bound=1.0 + rank),
    }
    others, plain = model(), loader()
    try:
        others.fit(DataLoader(data(seed=rank), batch_size=12), 1)
    except DistributedError as error:
        found["data"] = [type(error).__name__, str(error), others.steps_done, others.ledger.total]
    wrapped = model()
    wrapped.network = nn.parallel.DistributedDataParallel(wrapped.network)
    try:
        wrapped.fit(plain, 1)
    except Exception as error:
        found["DDP"] = [type(error).__name__, str(error), wrapped.steps_done, wrapped.ledger.total]
    return found


#: Standard deviation of the noise over the norm bound, and the bound.
SIGMA, BOUND, WIDTH = 1.3, 0.7, 20_000


def noise_alone(rank):
    """Standard deviation of the noise in the first update, over ``SIGMA * BOUND``, for gradients that are tiny."""
    x = torch.full((40, WIDTH // 2), 1e-9)
    made = nn.Linear(WIDTH // 2, 2, bias=False)
    before = made.weight.detach().clone()
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=SIGMA)
    trained_on = DPModel(
        made, nn.CrossEntropyLoss(), torch.optim.SGD(made.parameters(), lr=1.0), noise_mech=noise, norm_bound=BOUND
    )
    trained_on.fit(DataLoader(TensorDataset(x, torch.arange(40) % 2), batch_size=40), 1)
    return float((made.weight.detach() - before).std() * 40 / (SIGMA * BOUND)), digest(trained_on)


def quick(rank, folder):
    """Everything that a single launch can show quickly."""
    # Rank 1 begins with different weights: it gets those of rank 0.
    found = {"secret": trained(weights_seed=rank), **{name: compared(name) for name in CASES}}
    found["adaptive"] = trained(clip_mech=ClipMechanismsFactory.create("Gaussian", fraction_stddev=0.1))
    found["noise"] = noise_alone(rank)
    return found


def twice():
    """Two calls of ``fit`` with a seed for the noise, which rank 0 alone draws."""
    made = model(noise=gaussian(seed=3))
    for _ in range(2):
        made.fit(loader(), 1)
    return made.ledger.total


def disturbed(rank, folder):
    """Failures of one rank."""
    return {
        "broken": attempt(broken),
        "tampered": attempt(tampered),
        "stopped": attempt(stopped),
        "louder": attempt(louder),
        "queried": {f"{place} {one}": attempt(queried, one, place) for place in ("begin", 3, "end") for one in (0, 1)},
        "twice": twice(),
        "refused": refused(rank),
        "afterwards": trained()["digest"],
    }


def engines(rank, folder):
    """Every engine, in chunks, some of them of constant size."""
    names = ("loop", "vmap", "bookkeeping")
    found = {name: trained(noise=None, seed=5, engine=name, physical_batch_size=3) for name in names}
    found["groups"] = trained(noise=None, seed=5, engine="loop", micro_batches=1)
    for groups in (None, 4):
        found[f"static, {groups}"] = trained(noise=None, seed=5, static_shapes=True, micro_batches=groups)
    return found


def workers(rank, folder):
    """Worker processes draw batches ahead; then an interruption ends those of rank 1."""
    made, ended = model(noise=None, seed=5), model()
    prefetched = DataLoader(data(), batch_size=12, num_workers=2)
    made.fit(prefetched, 2)
    read = loop.read_with_workers

    def interrupted(run, action, what):
        if rank == 1 and run.step == 3:
            run.stop("interrupted (SIGTERM)")
            return None
        return read(run, action, what)

    loop.read_with_workers = interrupted
    history = ended.fit(prefetched, 2)
    loop.read_with_workers = read
    return weights(made).tolist(), [ended.steps_done, ended.ledger.total, len(history), digest(ended)]


def save_at(folder, *, cut=None, resume=False):
    """A seeded training whose state is saved, interrupted by a power cut, or resumed."""
    from dpmodel.saving.keeper import StateKeeper

    made = model(noise=gaussian(seed=3), seed=5)
    keeper = StateKeeper(f"{folder}/run", every_n_steps=3, resume=resume)
    callbacks = [] if cut is None else [Failing(0, power_cut, cut)]
    try:
        made.fit(loader(), 3, callbacks=callbacks, keeper=keeper)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return {"weights": weights(made).tolist(), "ledger": made.ledger.digest(), "lost": made.ledger.lost.total}


def power_cut(run):
    raise RuntimeError("power cut")


def interrupted(rank, folder):
    return save_at(folder, cut=8)


def resumed(rank, folder):
    return save_at(folder, resume=True)


class Slow(Callback):
    """Lets the test kill a rank in the middle of a training."""

    def on_train_step_end(self, run):
        Path(f"{self.folder}/steps-{run.ranks.rank}").write_text(str(run.step))
        time.sleep(0.05)


def long(rank, folder):
    from dpmodel.saving.keeper import StateKeeper

    slow = Slow()
    slow.folder = folder
    made = model()
    keeper = StateKeeper(f"{folder}/run", every_n_steps=4)
    try:
        made.fit(loader(), 200, callbacks=[slow], keeper=keeper)
    except DistributedError as error:
        return ["DistributedError", str(error), made.steps_done, made.ledger.total]
    return ["finished"]


def continued(rank, folder):
    """The training of ``long`` goes on for a moment."""
    from dpmodel.saving.keeper import StateKeeper

    made = model()
    stop = Failing(0, stopped, step=0)
    stop.on_train_step_end = lambda run: run.stop("enough")
    made.fit(loader(), 200, callbacks=[stop], keeper=StateKeeper(f"{folder}/run", every_n_steps=4, resume=True))
    return [made.steps_done, made.ledger.total, made.ledger.lost.total]
