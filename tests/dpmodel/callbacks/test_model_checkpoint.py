import pytest
import torch

from dpmodel.callbacks import CheckpointConfig, ModelCheckpoint
from dpmodel.saving.checkpoint import read_checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_named_as_in_mindspore_and_the_oldest_are_deleted(tmp_path, fake_run):
    config = CheckpointConfig(save_checkpoint_steps=2, keep_checkpoint_max=2)
    fake_run(epochs=2, steps_per_epoch=4).train([ModelCheckpoint("lenet", tmp_path / "new", config)])
    assert names(tmp_path / "new") == ["lenet-2_2.ckpt", "lenet-2_4.ckpt"]


def test_without_a_number_of_steps_each_epoch_is_saved(tmp_path, fake_run):
    fake_run(epochs=3, steps_per_epoch=2).train([ModelCheckpoint(directory=tmp_path)])
    assert names(tmp_path) == ["CKP-1_2.ckpt", "CKP-2_2.ckpt", "CKP-3_2.ckpt"]


def test_the_last_state_is_saved_if_training_ends_between_two_checkpoints(tmp_path, fake_run):
    checkpoint = ModelCheckpoint(directory=tmp_path, every_n_steps=4)
    fake_run(epochs=2, steps_per_epoch=3).train([checkpoint])
    assert names(tmp_path) == ["CKP-2_1.ckpt", "CKP-2_3.ckpt"]
    assert checkpoint.latest == tmp_path / "CKP-2_3.ckpt"


def test_a_second_training_continues_to_count_and_overwrites_nothing(tmp_path, fake_run):
    checkpoint = ModelCheckpoint(directory=tmp_path)
    fake_run(epochs=1, steps_per_epoch=2).train([checkpoint])
    fake_run(epochs=1, steps_per_epoch=2, first_step=2).train([checkpoint])
    assert names(tmp_path) == ["CKP-1_2.ckpt", "CKP-2_2.ckpt"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("same_object", [True, False])
def test_files_of_a_different_training_are_kept_and_the_suffix_is_announced(tmp_path, fake_run, same_object):
    first = ModelCheckpoint(directory=tmp_path)
    quiet = fake_run(epochs=2, steps_per_epoch=2).train([first])
    before = contents(tmp_path)
    runs = [
        fake_run(epochs=2, steps_per_epoch=2).train([first if same_object else ModelCheckpoint(directory=tmp_path)])
        for _ in range(2)
    ]
    assert contents(tmp_path).items() >= before.items()
    assert [run.lines for run in (quiet, *runs)] == [
        [],
        *[
            [
                f"{tmp_path} already contains checkpoints CKP-*.ckpt of a different training; this one saves "
                f"CKP_{number}-*.ckpt"
            ]
            for number in (1, 2)
        ],
    ]
    assert names(tmp_path) == sorted(f"CKP{suffix}-{epoch}_2.ckpt" for suffix in ("", "_1", "_2") for epoch in (1, 2))


def test_longer_epochs_that_would_use_names_again_get_a_suffix(tmp_path, fake_run):
    checkpoint = ModelCheckpoint(directory=tmp_path)
    fake_run(epochs=2, steps_per_epoch=2).train([checkpoint])
    before = contents(tmp_path)
    fake_run(epochs=1, steps_per_epoch=3, first_step=4).train([checkpoint])
    assert contents(tmp_path).items() >= before.items()
    assert "CKP_1-3_1.ckpt" in names(tmp_path)


def test_a_resumed_training_keeps_its_prefix(tmp_path, fake_run):
    first = ModelCheckpoint(directory=tmp_path, keep_checkpoint_max=2)
    fake_run(epochs=2, steps_per_epoch=2).train([first])
    state, resumed = first.state_dict(), ModelCheckpoint(directory=tmp_path, keep_checkpoint_max=2)

    class Resume:
        def on_train_epoch_begin(self, run):
            resumed.load_state_dict(state)

    run = fake_run(epochs=1, steps_per_epoch=2, first_step=4).train([Resume(), resumed])
    assert names(tmp_path) == ["CKP-2_2.ckpt", "CKP-3_2.ckpt"]
    assert run.lines == []


def test_only_names_of_checkpoints_count_as_a_different_training(tmp_path, fake_run):
    for name in ("CKP-best.ckpt", "CKP_9-1_2.ckpt", "CKPT-1_2.ckpt", "CKP-1_2.ckpt.bak"):
        (tmp_path / name).write_text("not mine")
    fake_run(epochs=1, steps_per_epoch=2).train([ModelCheckpoint(directory=tmp_path)])
    assert "CKP-1_2.ckpt" in names(tmp_path)


def test_zero_keeps_all(tmp_path, fake_run):
    fake_run(epochs=4, steps_per_epoch=2).train(
        [ModelCheckpoint(directory=tmp_path, every_n_steps=1, keep_checkpoint_max=0)]
    )
    assert len(names(tmp_path)) == 8


def test_files_that_it_did_not_write_are_never_deleted(tmp_path, fake_run):
    (tmp_path / "CKP-0_1.ckpt").write_text("not mine")
    fake_run().train([ModelCheckpoint(directory=tmp_path, every_n_steps=1, keep_checkpoint_max=1)])
    assert names(tmp_path) == ["CKP-0_1.ckpt", "CKP_1-2_3.ckpt"]


def test_the_checkpoint_holds_the_state_of_that_step(tmp_path, fake_run):
    checkpoint = ModelCheckpoint(directory=tmp_path)
    run = fake_run().train([checkpoint])
    saved = read_checkpoint(checkpoint.latest)
    assert (saved.info.step, saved.info.epoch, saved.info.norm_bound) == (6, 2, 1.5)
    assert saved.info.ledger_digest == run.ledger.digest()
    assert torch.equal(saved.weights["weight"], run.network.weight)


def test_an_interrupted_training_leaves_its_last_state(tmp_path, fake_run):
    class Interrupt:
        def on_train_step_end(self, run):
            if run.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_run().train([ModelCheckpoint(directory=tmp_path), Interrupt()])
    assert names(tmp_path) == ["CKP-1_2.ckpt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prefix": "a/b"}, "give the folder as directory="),
        ({"prefix": ""}, "prefix must be a file name"),
        ({"every_n_steps": 0}, "every_n_steps must be an integer"),
        ({"keep_checkpoint_max": -1}, "keep_checkpoint_max must be an integer"),
        ({"config": CheckpointConfig(), "every_n_steps": 2}, "not both"),
        ({"config": {"save_checkpoint_steps": 1}}, "must be a CheckpointConfig"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(**wrong)


def test_the_configuration_checks_its_numbers():
    with pytest.raises(ValueError, match="save_checkpoint_steps must be an integer of at least 1, got 0"):
        CheckpointConfig(save_checkpoint_steps=0)
