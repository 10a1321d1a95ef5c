"""Shadows: fair complementary halves, a folder that is reused and never mixed up, and trainings that write nothing."""

import json

import numpy as np
import pytest

from dpmodel.attack import shadows as module
from dpmodel.attack.pool import Pool
from dpmodel.attack.shadows import Shadows, shadow_config, shadow_training, train_shadows
from dpmodel.compare.runner import NullWatcher
from dpmodel.config import make_config
from dpmodel.runs.build import build_task
from dpmodel.saving.lock import FolderLock
from monitors.errors import CheckpointError, ConfigError

SETTINGS = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 40, "num_test": 50, "num_classes": 3},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 1.0},
    "training": {"epochs": 1, "batch_size": 20},
}


def prepared(**changes):
    config = make_config({**SETTINGS, **changes})
    pool = Pool.of(build_task(config).data)
    return shadow_config(config, pool.size), pool


def trained(folder, count=2, **changes):
    config, pool = prepared(**changes)
    return train_shadows(config, pool, count, folder, processes=1, watcher=NullWatcher())


def test_halves_are_complementary_and_differ_between_pairs(tmp_path):
    shadows = Shadows(tmp_path, "ab" * 32, 4000)
    first, second, third = (shadows.included(number) for number in (0, 1, 2))
    assert (first == ~second).all()
    assert abs(first.mean() - 0.5) < 0.05
    assert abs((first == third).mean() - 0.5) < 0.05
    assert (shadows.included(2) == third).all()
    assert (Shadows(tmp_path, "cd" * 32, 4000).included(0) != first).any()


def test_the_pool_holds_members_others_and_a_population_apart():
    config, pool = prepared()
    task = build_task(config)
    assert (pool.train, pool.held_out, pool.population) == (40, 40, 10)
    rows = {tuple(row.flatten().tolist()) for row in pool.data.x[pool.train :]}
    assert rows == {tuple(row.flatten().tolist()) for row in task.data.test.x}
    included = np.zeros(80, bool)
    included[[0, 41]] = True
    splits = pool.splits(included)
    assert (splits.train.x == pool.data.x[[0, 41]]).all()
    assert (splits.test.x == pool.data.x[80:]).all()
    few = Pool.of(task.data, 25)
    assert (few.train, few.held_out, len(few.names())) == (25, 25, 50)
    for place, part in ((3, task.data.train), (30, task.data.test)):
        assert (few.data.x[place] == part.x[int(few.names()[place].split()[-1])]).all()
    with pytest.raises(ConfigError, match="at least 20 training examples, got 5"):
        Pool.of(task.data, 5)


def test_finished_shadows_are_reused_and_damaged_ones_trained_again(tmp_path, monkeypatch):
    folder = tmp_path / "shadows"
    shadows, outcomes = trained(folder)
    assert [outcome.finished for outcome in outcomes] == [True, True]
    loaded = shadows.load(1)
    assert (loaded.reference.included == ~shadows.load(0).reference.included).all()
    assert loaded.reference.outputs.shape == (90, 3)
    assert loaded.ledger.rows[0][0].sampling_rate == 0.5  # of 40, whatever the size of this half
    assert (folder / "shadows.json").stat().st_mode & 0o777 == 0o600
    assert shadows.file(0).stat().st_mode & 0o777 == 0o600

    shadows.file(1).write_bytes(b"x")
    calls, right = [], module.fit_shadow
    monkeypatch.setattr(module, "fit_shadow", lambda *args: calls.append(1) or right(*args))
    again, outcomes = trained(folder, count=3)
    assert [outcome.job.number for outcome in outcomes] == [1, 2]
    assert len(calls) == 2
    assert again.key == shadows.key


def test_an_interrupted_shadow_is_not_kept(tmp_path):
    config, pool = prepared()
    included = np.arange(pool.size) % 2 == 0
    steps = []
    training = shadow_training(config, pool, included)
    assert module.fit_shadow(training, steps.append, lambda: "stop" if steps else None) is False
    assert steps == [1]


def test_a_folder_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "shadows"
    shadows, _ = trained(folder, count=1)
    with pytest.raises(ConfigError, match=r"another attack: optimizer\.lr is 0.7 here and 0.5 there"):
        trained(folder, optimizer={"name": "SGD", "lr": 0.7})
    with pytest.raises(ConfigError, match="another attack: attacked held-out examples"):
        trained(folder, data={**SETTINGS["data"], "num_test": 60})
    manifest = folder / "shadows.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "data": "0" * 64}))
    with pytest.raises(ConfigError, match="shadows of other data"):
        trained(folder)
    manifest.write_text(json.dumps({**values, "format": "dpmodel-shadows/9"}))
    with pytest.raises(CheckpointError, match="written by a different version"):
        trained(folder)
    manifest.unlink()
    with pytest.raises(ConfigError, match=r"holds files but no shadows.json"):
        trained(folder)
    with pytest.raises(CheckpointError, match="belongs to other shadows"):
        Shadows(folder, "ab" * 32, shadows.size).load(0)


def test_a_folder_in_use_is_refused(tmp_path):
    with FolderLock(tmp_path / "shadows"), pytest.raises(ConfigError, match="is in use"):
        trained(tmp_path / "shadows")


def test_a_shadow_keeps_what_changes_the_weights_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    callbacks = [{"name": "WeightAveraging"}, {"name": "ModelCheckpoint"}, {"name": "LossMonitor"}]
    config, pool = prepared(callbacks=callbacks)
    assert [callback.name for callback in config.callbacks] == ["WeightAveraging"]
    training = shadow_training(config, pool, np.arange(pool.size) % 2 == 0)
    assert module.fit_shadow(training, lambda step: None, lambda: None)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_shadow_without_noise_clips_as_before():
    config = make_config({**SETTINGS, "privacy": {"target_epsilon": 3.0, "norm_bound": 0.2, "monitor": {"max_eps": 4}}})
    free = shadow_config(config, 80, noise=False).privacy
    assert (free.noise, free.target_epsilon, free.monitor.max_eps, free.norm_bound) == (None, None, None, 0.2)
    pool = Pool.of(build_task(config).data)
    model = shadow_training(shadow_config(config, pool.size, noise=False), pool, np.arange(pool.size) % 2 == 0).model
    assert (model.noise_mech.private, model.norm_bound) == (False, 0.2)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_only_poisson_sampling_leaves_the_size_of_a_half_out_of_the_ledger(sampling):
    config, pool = prepared(
        privacy={"noise_multiplier": 1.0, "sampling": sampling}, training={"epochs": 2, "batch_size": 4}
    )
    ledgers = []
    for size in (30, 50):
        training = shadow_training(config, pool, np.arange(pool.size) < size)
        ledgers.append(training.plan.ledger().digest())
    assert (ledgers[0] == ledgers[1]) is (sampling == "poisson")


def test_a_stated_number_of_the_user_is_kept():
    config, _ = prepared(privacy={"noise_multiplier": 1.0, "num_examples_public": 50})
    assert config.privacy.num_examples_public == 50
    config, _ = prepared(data={**SETTINGS["data"], "num_examples": 40})
    assert (config.privacy.num_examples_public, config.data.num_examples) == (40, None)


def test_a_process_reads_the_pool_of_a_limited_data_set_and_states_its_size_again():
    config, pool = prepared(
        data={**SETTINGS["data"], "num_train": 80, "limit": 40, "validation": 30},
        training={"epochs": 1, "batch_size": 10},
    )
    read, again = module._prepared(module._to_read_pool(config).to_yaml(), None)
    assert read.privacy == config.privacy
    assert read.privacy.num_examples_public == pool.size // 2
    assert (again.data.x == pool.data.x).all()


def test_a_batch_larger_than_a_half_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training.batch_size is 60, but a random half of 80"):
        trained(tmp_path / "shadows", training={"epochs": 1, "batch_size": 60})
