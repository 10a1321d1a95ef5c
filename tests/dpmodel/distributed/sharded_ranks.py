"""What the ranks of the tests of sharded networks do; each function runs in a separate process (see ``launched``)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import ClipMechanismsFactory, DPModel, Ledger, NoiseMechanismsFactory, ReleasePlan
from dpmodel.distributed.sharded import ShardedStep
from mechanisms import ClippedUnit, CyclicPoissonSampler, PoissonSampler
from mechanisms.engines.batch import Batch

BOUND, EXAMPLES, SIZE = 0.5, 40, 20_001
CLIPS = ("Fixed", "PerLayer", "Automatic")
#: So little noise that it changes nothing above 1e-9; the step refuses none.
SILENT = 1e-9


def network(dtype=torch.float32):
    """Shards of every kind: even, uneven, and empty on one rank."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.GroupNorm(2, 6), nn.Linear(6, 1))
    return body.to(dtype)


def sharded(whole):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in whole:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh)
    return fully_shard(whole, mesh=mesh)


def loss_fn(outputs, targets):
    return nn.functional.mse_loss(outputs, targets)


def data(dtype=torch.float32, broken=False):
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(EXAMPLES, 5, generator=generator, dtype=torch.float64)
    y = x.sum(dim=1, keepdim=True)
    if broken:
        x[2] = float("inf")
    return x.to(dtype), y.to(dtype)


def plan(
    clip="Fixed",
    noise_multiplier=1.0,
    sampling_seed=0,
    seed=0,
    unit=None,
    noise="Gaussian",
    sampler=PoissonSampler,
    **options,
):
    mechanism = ClipMechanismsFactory.create(clip)
    mechanism.start(BOUND)
    made = NoiseMechanismsFactory.create(noise, initial_noise_multiplier=noise_multiplier, seed=seed, **options)
    return ReleasePlan(made, mechanism, unit or ClippedUnit(1, 10), sampler(EXAMPLES, 10, seed=sampling_seed or None))


def gathered(local):
    """The coordinates of both ranks, in the order of the ranks."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, local.tolist())
    return found


def whole(step, flat):
    """A vector of shards as the vector of the whole network, in the order of its parameters."""
    step.shards.set_gradients(flat)
    parts = [parameter.grad.full_tensor().flatten() for parameter in step.network.parameters()]
    step.shards.clear()
    return torch.cat(parts).tolist()


def sums(rank, folder):
    """Clipped sums and norms without noise."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        x, y = (part[:10] for part in data(dtype, broken=True))
        for clip in CLIPS:
            step = ShardedStep(sharded(network(dtype)), loss_fn, plan(clip))
            summed = step.clipped_sum(Batch(x, y))
            leave_one_out = step.clipped_sum(Batch(x[1:], y[1:])).flat_grad
            empty = step.clipped_sum(Batch(x[:0], y[:0]))
            found[f"{clip} {dtype}"] = {
                "sum": whole(step, summed.flat_grad),
                "norms": summed.norms.tolist(),
                "loss": step.clipped_sum(Batch(x[3:], y[3:])).loss,
                "rejected": summed.rejected,
                "moved": float(torch.tensor(whole(step, summed.flat_grad - leave_one_out)).norm()),
                "empty": [float(empty.flat_grad.abs().sum()), list(empty.norms.shape)],
                "owned": summed.flat_grad.numel(),
            }
    return found


def training(rank, folder):
    """Ten steps, almost without noise, with the coins of a test seed."""
    net = sharded(network())
    x, y = data()
    path = Path(folder) / "training" / "ledger.json"
    step = ShardedStep(net, loss_fn, plan(noise_multiplier=SILENT, sampling_seed=7), path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    drawn = []
    for _ in range(10):
        rows = step.draw()
        step(x[rows], y[rows])
        optimizer.step()
        drawn.append(rows.tolist())
    weights = torch.cat([parameter.full_tensor().flatten() for parameter in net.parameters()]).tolist()
    return {"weights": weights, "rows": drawn, "ledger": step.ledger.digest(), "notes": list(step.ledger.notes)}


class NoGradient(nn.Module):
    """A network whose loss does not depend on its parameters, so that the release is noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.few = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + 0.0 * (self.weight.sum() + self.few.sum())


def noise(rank, folder):
    """What two steps release: each rank's coordinates, on rank 0 alone."""
    net = fully_shard(NoGradient())
    step = ShardedStep(net, loss_fn, plan(noise_multiplier=2.0))
    releases = []
    for _ in range(2):
        rows = step.draw()
        step(torch.zeros(len(rows), 1), torch.zeros(len(rows), 1))
        releases.append(gathered(torch.cat([value.grad.to_local() for value in net.parameters()])))
    rows = [None, None]
    dist.all_gather_object(rows, step.draw().tolist())
    return {"releases": releases if rank == 0 else [], "same rows": rows[0] == rows[1], "rows": rows[0]}


def write_ahead(rank, folder):
    """The ledger on the disk, when the noise is drawn, and after a rank failed before it."""
    path, net = Path(folder) / "ahead" / "ledger.json", sharded(network())
    x, y = data()
    made, seen = plan(), []
    step = ShardedStep(net, loss_fn, made, path)
    add = made.noise.add

    def adding(summed, number):
        seen.append(Ledger.load(path).total)
        return add(summed, number)

    made.noise.add = adding
    for _ in range(2):
        rows = step.draw()
        step(x[rows], y[rows])
    before = [parameter.grad.to_local().clone() for parameter in net.parameters()]
    again = ShardedStep(net, loss_fn, plan(), path)
    return {"seen": seen, "resumed": again.ledger.total, "finite": all(bool(v.isfinite().all()) for v in before)}


def lost(rank, folder):
    """Rank 1 ends in the middle of the second step."""
    path, net = Path(folder) / "lost" / "ledger.json", sharded(network())
    x, y = data()
    made = plan()
    step = ShardedStep(net, loss_fn, made, path)
    rows = step.draw()
    step(x[rows], y[rows])
    summing = step.clipped_sum

    def failing(batch):
        found = summing(batch)
        if rank == 1:
            os._exit(0)
        return found

    step.clipped_sum = failing
    rows = step.draw()
    try:
        step(x[rows], y[rows])
    except Exception as error:
        text, left = f"{type(error).__name__}: {error}", [p.grad is None for p in net.parameters()]
    return {"error": text, "cleared": all(left), "stated": Ledger.load(path).total, "ledger": step.ledger.total}


def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def _with(layer):
    return sharded(nn.Sequential(nn.Linear(5, 4), layer, nn.Linear(4, 1)))


class Counting(nn.Module):
    """Counts the examples in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.layer = nn.Linear(5, 1)

    def forward(self, x):
        self.count += x.sum().detach()
        return self.layer(x)


def _other_rows(rank):
    x, y = data()
    step = ShardedStep(sharded(network()), loss_fn, plan(sampling_seed=3))
    rows = step.draw()
    step(x[rows] + rank, y[rows])


def _counted():
    x, y = data()
    step = ShardedStep(fully_shard(Counting()), loss_fn, plan(sampling_seed=3))
    rows = step.draw()
    step(x[rows], y[rows])


def _partly():
    net = network()
    fully_shard(net, ignored_params={net[0].bias})
    ShardedStep(net, loss_fn, plan())


def _fit(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model = DPModel(net, loss_fn, optimizer, noise_mech=NoiseMechanismsFactory.create("Gaussian"))
    try:
        model.fit(DataLoader(TensorDataset(*data()), batch_size=10), epochs=1)
    finally:
        assert model.ledger.total == 0


def _distributed(net):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    net[0].weight = nn.Parameter(distribute_tensor(net[0].weight.detach(), mesh, [Shard(0)]))
    return net


def refusals(rank, folder):
    """The errors of steps and of ``DPModel``."""
    made = sharded(network())
    step = ShardedStep(made, loss_fn, plan())
    x, y = data()
    return {
        "plain": refused(lambda: ShardedStep(network(), loss_fn, plan())),
        "partly": refused(_partly),
        "batch norm": refused(lambda: ShardedStep(_with(nn.BatchNorm1d(4)), loss_fn, plan())),
        "seed": refused(lambda: ShardedStep(made, loss_fn, plan(seed=3))),
        "groups": refused(lambda: ShardedStep(made, loss_fn, plan(unit=ClippedUnit(2, 5)))),
        "correlated": refused(
            lambda: ShardedStep(made, loss_fn, plan(noise="BandedMF", bands=2, sampler=CyclicPoissonSampler))
        ),
        "adaptive": refused(lambda: ShardedStep(made, loss_fn, plan(clip="Gaussian"))),
        "differs": refused(lambda: ShardedStep(made, loss_fn, plan(noise_multiplier=1.0 + rank))),
        "no rows": refused(lambda: step(x, y)),
        "other examples": refused(lambda: _other_rows(rank)),
        "buffer": refused(_counted),
        "DPModel sharded": refused(lambda: _fit(made)),
        "DPModel DTensor": refused(lambda: _fit(_distributed(network()))),
    }


def quick(rank, folder):
    """All of it in one start of the processes."""
    return {test.__name__: test(rank, folder) for test in (sums, training, noise, write_ahead, refusals)}
