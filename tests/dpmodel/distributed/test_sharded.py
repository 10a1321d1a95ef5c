"""Two ranks with a shard of the network each release what one process would, and no coordinate twice."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from dpmodel import Ledger, ReleasePlan, privacy_spent
from dpmodel.distributed.sharded import NOT_VERIFIED
from mechanisms.engines.batch import Batch
from mechanisms.engines.loop import LoopEngine

from . import sharded_ranks
from .launched import ROOT, finish, results, start

pytestmark = pytest.mark.slow  # each start of the processes takes several seconds
FILE = sharded_ranks.__file__


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two ranks finds in a function of ``sharded_ranks``."""
    both = results(FILE, "quick", tmp_path_factory.mktemp("quick"), 2)
    return lambda name: [one[name] for one in both]


def alone(clip, x, y):
    plan = sharded_ranks.plan(clip)
    engine = LoopEngine(plan.unit)
    return engine.clipped_sum(sharded_ranks.network(x.dtype), sharded_ranks.loss_fn, Batch(x, y), plan.clip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", sharded_ranks.CLIPS)
def test_two_shards_add_up_to_the_clipped_sum_of_one_process(found, clip, dtype):
    first, second = (one[f"{clip} {dtype}"] for one in found("sums"))
    x, y = (part[:10] for part in sharded_ranks.data(dtype, broken=True))
    expected = alone(clip, x, y)
    assert first["sum"] == second["sum"]
    assert torch.tensor(first["sum"], dtype=dtype) == pytest.approx(expected.flat_grad, abs=1e-6)
    # norms and factors are equal to the bit on both ranks
    assert repr(first["norms"]) == repr(second["norms"])
    good = torch.isfinite(expected.norms).all(dim=1)
    assert torch.tensor(first["norms"], dtype=dtype)[good] == pytest.approx(expected.norms[good], rel=1e-6)
    assert (expected.norms[good] > sharded_ranks.BOUND).any()
    assert first["rejected"] == expected.rejected == 1
    assert first["loss"] == pytest.approx(alone(clip, x[3:], y[3:]).loss, rel=1e-5)
    # of an empty batch
    blocks = expected.norms.shape[1]
    assert first["empty"] == [0.0, [0, blocks]]
    # uneven shards: each coordinate on one rank, without padding
    assert first["owned"] + second["owned"] == expected.flat_grad.numel()
    assert first["owned"] != second["owned"]


@pytest.mark.parametrize("clip", sharded_ranks.CLIPS)
def test_one_example_moves_the_sum_over_all_shards_by_the_bound_and_no_more(found, clip):
    moved = found("sums")[0][f"{clip} {torch.float64}"]["moved"]
    # if each shard were clipped for itself, it would move by up to 1.41 times the bound
    assert 0.9 * sharded_ranks.BOUND < moved <= sharded_ranks.BOUND


def test_a_training_without_noise_is_that_of_one_process(found):
    first, second = found("training")
    assert (first["weights"], first["rows"], first["ledger"]) == (second["weights"], second["rows"], second["ledger"])
    network, plan = sharded_ranks.network(), sharded_ranks.plan(sampling_seed=7)
    x, y = sharded_ranks.data()
    optimizer, engine = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), LoopEngine(plan.unit)
    for number in range(10):
        rows = plan.sampler.rows(number)
        assert rows.tolist() == first["rows"][number]
        summed = engine.clipped_sum(network, sharded_ranks.loss_fn, Batch(x[rows], y[rows]), plan.clip)
        parts = (summed.flat_grad / 10).split([value.numel() for value in network.parameters()])
        for parameter, part in zip(network.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    weights = torch.cat([value.detach().flatten() for value in network.parameters()])
    assert torch.tensor(first["weights"]) == pytest.approx(weights, abs=1e-6)


def test_the_ledger_is_that_of_the_plan_and_says_what_was_not_checked(found):
    first, _ = found("training")
    plan: ReleasePlan = sharded_ranks.plan(noise_multiplier=sharded_ranks.SILENT, sampling_seed=7)
    planned = plan.ledger(10)
    for note in first["notes"]:
        planned.add_note(note)
    assert first["ledger"] == planned.digest()
    assert first["notes"] == [*plan.caveats, NOT_VERIFIED]


def test_each_coordinate_has_noise_of_the_stated_scale_once(found):
    first, _ = found("noise")
    stated = 2.0 * sharded_ranks.BOUND / 10  # multiplier times bound, over the batch size
    for release in first["releases"]:
        shards = [np.asarray(shard) for shard in release]
        assert [len(shard) for shard in shards] == [10_002, 10_000]  # 20,001 and 1 coordinates; no padding
        for sample in (*shards, np.concatenate(shards)):
            assert accepts(sample, stated)
            for factor in (2 / 3, 1 / np.sqrt(2), np.sqrt(2), 3 / 2):
                assert not accepts(sample, stated * factor), factor
            assert 0.95 < np.std(sample) / stated < 1.05  # seven standard errors
    # the streams of the ranks, and of the steps, are independent
    (one, other), (later, _) = ([np.asarray(shard)[:10_000] for shard in release] for release in first["releases"])
    for pair in ((one, other), (one, later)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.06  # six standard errors


def accepts(sample, scale):
    return stats.kstest(sample, "norm", args=(0, scale)).pvalue > 1e-8


def test_all_ranks_draw_the_same_secret_rows(found):
    first, second = found("noise")
    assert first["same rows"]
    assert first["rows"] == second["rows"]


def test_the_ledger_is_on_the_disk_before_any_rank_draws_noise_and_stays_charged(found):
    for one in found("write_ahead"):
        assert one == {"seen": [1, 2], "resumed": 2, "finite": True}


@pytest.mark.slow
def test_a_lost_rank_is_an_error_and_its_step_is_not_released(tmp_path):
    outputs, codes = finish(start(FILE, "lost", tmp_path, 2, timeout=20))
    assert codes == [0, 0], outputs
    first = json.loads((tmp_path / "lost-2-0.json").read_text())
    assert first["error"].startswith("DistributedError: rank 0 of 2 has lost contact")
    assert (first["cleared"], first["stated"], first["ledger"]) == (True, 2, 2)
    assert Ledger.load(tmp_path / "lost/ledger.json").total == 2


REFUSED = {
    "plain": "UnsupportedModuleError: Sequential is not sharded: call torch.distributed.fsdp.fully_shard",
    "partly": "UnsupportedModuleError: parameter '0.bias' is not sharded",
    "batch norm": "mixes the examples of a batch",
    "seed": "ValueError: the noise has a seed, with which all ranks would add the same numbers",
    "groups": "ValueError: a sharded step clips single examples",
    "correlated": "BandedMF(initial_noise_multiplier=1, bands=2) cannot be drawn shard by shard",
    "adaptive": "releases a noisy count, which each rank would draw for itself",
    "differs": "DistributedError: rank 0 and other ranks differ in the noise",
    "no rows": "ValueError: the step has 40 examples, but no rows were drawn for it",
    "other examples": "DistributedError: rank 0 and other ranks differ in the examples",
    "buffer": "UnprotectedUpdateError: a forward pass has changed a buffer of the network",
    "DPModel sharded": "UnsupportedModuleError: the network is wrapped by FSDPModule",
    "DPModel DTensor": "UnsupportedModuleError: the parameter '0.weight' of the network is a DTensor",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_in_shards_is_refused(found, case):
    for one in found("refusals"):
        assert REFUSED[case] in one[case]


@pytest.mark.slow
def test_the_loop_of_the_documentation_runs_under_torchrun(tmp_path):
    page = (ROOT / "docs/howto/several_machines.md").read_text()
    script = next(text for text in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "ShardedStep" in text)
    (tmp_path / "train.py").write_text(script + "\nimport sys; sys.stdout.flush(); os._exit(0)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ledger = Ledger.load(tmp_path / "runs/sharded/ledger.json")
    assert ledger.total == 20
    assert ended.stdout.count(str(privacy_spent(ledger, 1e-5))) == 2, ended.stdout
