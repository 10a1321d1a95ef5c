"""A first configuration is valid and trains on every kind of data."""

import os
import shutil

import numpy as np
import pytest
from torch import nn

from dpmodel.cli.application import run
from dpmodel.config import load_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.train import train_from_config
from dpmodel.starter import starter_configuration, write_starter
from monitors.errors import ConfigError

N = 90
GENERATOR = np.random.default_rng(0)

#: Kind of data -> inputs, targets, texts of the configuration.
ARRAYS = {
    "vectors": (
        GENERATOR.random((N, 5), np.float32),
        GENERATOR.integers(0, 3, N),
        ["mlp", "# num_classes: 3"],
    ),
    "images": (GENERATOR.integers(0, 256, (N, 20, 20), np.uint8), GENERATOR.integers(0, 2, N), ["small_cnn"]),
    "small images": (GENERATOR.integers(0, 256, (N, 6, 6), np.uint8), GENERATOR.integers(0, 2, N), ["mlp"]),
    "numbers": (GENERATOR.random((N, 5), np.float32), GENERATOR.random((N, 2)), ["loss: mse", "[mae, mse]"]),
    "labels": (
        GENERATOR.random((N, 5), np.float32),
        GENERATOR.integers(0, 2, (N, 4)).astype(np.float32),
        ["bce_with_logits", "metrics: [loss]"],
    ),
}


class Tokens(nn.Module):
    """A user's network, with a layer that is replaced."""

    def __init__(self, num_classes):
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(10, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.last(self.norm(self.table(x).mean(1)))


def saved(folder, x, y):
    path = folder / "data.npz"
    np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.sample(5)
def test_the_written_configuration_trains(tmp_path, kind):
    x, y, expected = ARRAYS[kind]
    path = write_starter(tmp_path / "run.yaml", root=saved(tmp_path, x, y), target_epsilon=8)
    assert all(words in path.read_text() for words in expected)
    config = load_config(path, ["training.epochs=1", "output.curve=false"])
    result = train_from_config(config, tmp_path / "run")
    assert 0 < result.report.spent.epsilon <= 8


def test_tokens_need_your_own_network_and_train_with_it(tmp_path):
    root = saved(tmp_path, GENERATOR.integers(0, 10, (N, 7)), GENERATOR.integers(0, 2, N))
    with pytest.raises(ConfigError, match=r"--network package\.module:Class"):
        write_starter(tmp_path / "run.yaml", root=root)
    path = write_starter(tmp_path / "run.yaml", root=root, network=f"{__name__}:Tokens")
    config = load_config(path, ["training.epochs=1", "output.curve=false"])
    assert train_from_config(config, tmp_path / "run").report.guarantee == "holds"


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_public_data_sets_are_not_read(tmp_path, name):
    config = load_config(write_starter(tmp_path / "run.yaml", name, "nowhere"))
    plan = plan_training(config)
    assert plan.privacy_spent().epsilon <= 3
    assert plan.config.training.batch_size == 512


def test_a_relative_root_is_relative_to_the_folder_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, *ARRAYS["vectors"][:2])
    write_starter("configs/run.yaml", root="data.npz")
    monkeypatch.chdir(tmp_path / "configs")
    assert load_config("run.yaml").data.options["root"] == str(tmp_path / "data.npz")


def test_images_in_folders_are_recognised_and_resized_to_one_size(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for place, side in (("train/a", 24), ("train/b", 30), ("test/a", 24), ("test/b", 40)):
        (tmp_path / "pictures" / place).mkdir(parents=True)
        image.new("RGB", (side, side)).save(tmp_path / "pictures" / place / "1.png")
    shutil.make_archive(str(tmp_path / "pictures"), "zip", tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "a" / "2.png").write_bytes(b"never read")
    for root, examples in (("pictures", 3), ("pictures.zip", 2)):
        text = starter_configuration(root=tmp_path / root)
        assert f"for {examples} examples of shape 3 x 32 x 32 (2 classes)" in text
        assert "name: image_folder" in text
        assert "image_size: 32" in text


def test_nothing_is_overwritten_and_a_wrong_configuration_is_not_written(tmp_path):
    path = tmp_path / "run.yaml"
    with pytest.raises(ConfigError, match="did you mean 'lenet5'"):
        write_starter(path, "mnist", network="lenet")
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        write_starter(path, "mnist")
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="name a reader with --data"):
        starter_configuration(root=tmp_path)
    with pytest.raises(ValueError, match="target_epsilon must be a positive finite number, got 0"):
        starter_configuration(target_epsilon=0)


def test_the_command_writes_it_and_shows_the_next_commands(tmp_path, capsys):
    path = tmp_path / "first.yaml"
    assert run(["init", "--output", str(path)]) == 0
    assert f"dpmodel train {path}" in capsys.readouterr().out
    assert run(["init", "--output", str(path)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_shown_budget_command_can_be_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, *ARRAYS["vectors"][:2])
    assert run(["init", "data.npz"]) == 0
    text = capsys.readouterr().out
    assert "for 60 examples of shape 5 (3 classes)" in text
    shown = next(line.partition(":  dpmodel ")[2] for line in text.splitlines() if "dpmodel budget" in line)
    assert f"#   dpmodel {shown}  " in (tmp_path / "run.yaml").read_text()
    assert run(shown.split()) == 0
    assert "epsilon           3.000 (pld)" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["data.npz"], ["npz", "--root", "data.npz"], ["data.npz", "--data", "npz"]])
def test_the_command_takes_the_data_as_an_argument(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, *ARRAYS["vectors"][:2])
    assert run(["init", *options]) == 0
    assert load_config("run.yaml").data.options["root"] == str(tmp_path / "data.npz")


def test_the_command_takes_the_name_of_a_data_set_as_an_argument(tmp_path):
    assert run(["init", "cifar10", "--output", str(tmp_path / "run.yaml")]) == 0
    assert load_config(tmp_path / "run.yaml").data.name == "cifar10"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["mnits"], "no file, folder or data set is named 'mnits'; did you mean 'mnist'?"),
        (["--data", "mnits"], "unknown data set 'mnits'; did you mean 'mnist'?"),
        (["gone"], "gone does not exist; give an .npz file, a folder or .zip of images, or the name of a data set"),
        (["table.csv"], "table.csv is neither an .npz nor a .zip file. Save inputs and targets as arrays once"),
        (["flat"], "(it has the folders cat, dog). Move the images of each class into them"),
        (["flat/cat"], "(it has no folders)"),
        (["mnist", "--data", "cifar10"], "DATA 'mnist' and --data cifar10 both say what to read"),
        (["flat", "--root", "flat"], "DATA 'flat' and --root flat both say what to read"),
    ],
)
def test_data_that_no_reader_can_read_are_refused_with_the_remedy(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "flat" / name).mkdir(parents=True)
    (tmp_path / "table.csv").write_text("a,label\n1.0,0\n")
    assert run(["init", *options]) == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in error
    assert "bug in dpmodel" not in error
    assert not (tmp_path / "run.yaml").exists()


def test_the_configuration_has_the_mode_of_any_file_and_replaces_no_link(tmp_path):
    before = os.umask(0o027)
    try:
        write_starter(tmp_path / "run.yaml")
    finally:
        os.umask(before)
    assert (tmp_path / "run.yaml").stat().st_mode & 0o777 == 0o640
    (tmp_path / "link.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="already exists"):
        write_starter(tmp_path / "link.yaml")
    assert not (tmp_path / "other.yaml").exists()
