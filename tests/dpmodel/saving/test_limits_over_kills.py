"""A limit on epsilon holds over any number of kills, and costs an uninterrupted training no step."""

import random

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, ClipMechanismsFactory, DPModel, NoiseMechanismsFactory, PrivacyMonitorFactory, StateKeeper
from dpmodel.callbacks import Silence
from dpmodel.data.loader import PrivateLoader
from dpmodel.runs.folder import RunFolder
from monitors import BudgetGuard, PrivacyFilter
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..power_cut import PowerCut
from .test_record import killed_at, witnessed

DELTA, BLOCK, EPOCHS = 1e-5, 16, 6


def monitor(accountant, **limits):
    return lambda: [PrivacyMonitorFactory.create(accountant, per_print_times=1000, **limits)]


#: sampling, clip mechanism, limiting callbacks, accountant, largest epsilon, its delta
CASES = {
    "rdp": ("poisson", "Fixed", monitor("rdp", max_eps=4.0, target_delta=DELTA), "rdp", 4.0, DELTA),
    "pld": ("poisson", "Fixed", monitor("pld", max_eps=3.4, target_delta=DELTA), "pld", 3.4, DELTA),
    "delta": ("poisson", "Fixed", monitor("rdp", max_delta=1e-4, target_eps=3.0), "rdp", 3.0, 1e-4),
    "adaptive clipping": ("poisson", "Gaussian", monitor("rdp", max_eps=5.0, target_delta=DELTA), "rdp", 5.0, DELTA),
    "rdp shuffle": ("shuffle", "Fixed", monitor("rdp", max_eps=9.0, target_delta=DELTA), "rdp", 9.0, DELTA),
    "zcdp shuffle": ("shuffle", "Fixed", monitor("zcdp", max_eps=9.0, target_delta=DELTA), "zcdp", 9.0, DELTA),
    "pld shuffle": ("shuffle", "Fixed", monitor("pld", max_eps=8.0, target_delta=DELTA), "pld", 8.0, DELTA),
    "filter": ("poisson", "Fixed", lambda: [BudgetGuard(PrivacyFilter(6.0, DELTA))], "rdp", 6.0, DELTA),
    "two limits": (
        "poisson",
        "Fixed",
        lambda: [*CASES["delta"][2](), *CASES["pld"][2](), PrivacyMonitorFactory.create("rdp")],
        "pld",
        3.4,
        DELTA,
    ),
}
_FIXED_ONLY = {"name": "Fixed"}
_ADAPTIVE = {"name": "Gaussian", "fraction_stddev": 0.3}


def train(case, folder=None, *callbacks, resume=False, block=BLOCK):
    """A training of 48 steps with decaying noise, which its limits end early."""
    sampling, clip, limits, *_ = CASES[case]
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    noise = NoiseMechanismsFactory.create(
        "AdaGaussian", initial_noise_multiplier=1.5, decay_policy="Exp", noise_decay_rate=0.01
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    clip_mech = ClipMechanismsFactory.create(**(_FIXED_ONLY if clip == "Fixed" else _ADAPTIVE))
    model = DPModel(
        network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, clip_mech=clip_mech, sampling=sampling,
        engine="vmap",
    )  # fmt: skip
    data = TensorDataset(torch.randn(32, 3), torch.arange(32) % 2)
    keeper = None if folder is None else StateKeeper(folder, block, resume=resume)
    callbacks = [Silence(), *limits(), *callbacks]
    model.fit(PrivateLoader(data, 4, sampling=sampling), EPOCHS, callbacks=callbacks, keeper=keeper)
    return model


def epsilon(case, ledger):
    """Epsilon as the limit of the case measures it."""
    *_, accountant, _, delta = CASES[case]
    return privacy_spent(ledger, delta, accountant).epsilon


def require_within(case, folder, witness):
    if not folder.ledger.exists():
        assert witnessed(witness).total == 0
        return
    stated = Ledger.load(folder.ledger)
    assert epsilon(case, stated) <= CASES[case][4]
    assert stated.covers(witnessed(witness))


def train_over_kills(case, path, draw, kills):
    """Kill and resume a training at random moments, and check the ledger on disk after each kill."""
    folder, witness = RunFolder(path / "run"), path / "released"
    path.mkdir()
    for _ in range(kills):
        resume = folder.state.exists()
        if killed_at(draw.randrange(1, 60), witness, lambda resume=resume: train(case, folder.path, resume=resume)):
            break
        require_within(case, folder, witness)
        if not folder.state.exists():
            return  # killed before the first release: there is nothing to resume
    else:
        train(case, folder.path, resume=True)
    require_within(case, folder, witness)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Import the modules of a training once, rather than in each child."""
    train("pld", tmp_path_factory.mktemp("warm"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_limits_hold_after_kills_at_random_moments(case, tmp_path):
    train_over_kills(case, tmp_path / "kills", random.Random(case), kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES)
def test_limits_hold_after_many_kills(case, seed, tmp_path):
    draw = random.Random(f"{case} {seed}")
    train_over_kills(case, tmp_path / "kills", draw, kills=draw.randint(1, 10))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.sample(9)
def test_an_uninterrupted_training_takes_as_many_steps_with_a_record(case, tmp_path):
    plain, recorded = train(case), train(case, tmp_path, block=1000)
    assert 1 < plain.ledger.total < 8 * EPOCHS
    assert recorded.ledger.total == plain.ledger.total


@pytest.mark.slow
def test_blocks_get_smaller_near_the_limit(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train("rdp", tmp_path, PowerCut(steps := train("rdp").ledger.total))
    lines = (tmp_path / "releases.jsonl").read_text().splitlines()
    blocks = [line for line in lines if '"block"' in line]
    assert len(blocks) < steps / 2
    resumed = train("rdp", tmp_path, resume=True)
    assert resumed.ledger.lost.total <= 1
    assert resumed.ledger.total == steps


def test_an_epoch_that_cannot_be_repeated_within_the_limit_is_not_continued(tmp_path):
    class Reason(Callback):
        def on_train_end(self, run):
            self.reason = run.stop_reason

    total, reason = train("zcdp shuffle").ledger.total, Reason()
    with pytest.raises(KeyboardInterrupt):
        train("zcdp shuffle", tmp_path, PowerCut(total - 1), block=6)
    folder = RunFolder(tmp_path)
    before = Ledger.load(folder.ledger)
    resumed = train("zcdp shuffle", tmp_path, reason, resume=True, block=6)
    assert "would repeat steps that were lost" in reason.reason
    assert epsilon("zcdp shuffle", resumed.ledger) <= CASES["zcdp shuffle"][4]
    assert resumed.ledger.total == before.total
    assert resumed.ledger.lost.total > 0
    assert Ledger.load(folder.ledger) == resumed.ledger
