import json
import sys
import warnings

import pytest
import torch
from torch import nn

from dpmodel import build_network, load_config, save_checkpoint, train_from_config
from dpmodel.compare.equal_epsilon import _same_task
from dpmodel.config import make_config
from dpmodel.config.identity import settings_by_path
from dpmodel.features import FEATURES, build_features
from dpmodel.features.digest import network_digest
from dpmodel.nets import ScatteringLinear
from dpmodel.preflight.configured import require_known_names
from dpmodel.runs.build import build_task
from dpmodel.runs.evaluate import evaluate_run
from monitors.errors import CheckpointError, ConfigError, DataError

IMAGES = {"name": "synthetic", "shape": [1, 12, 12], "num_train": 60, "num_test": 30, "num_classes": 3}
FACTS = {"example_shape": (1, 12, 12), "in_channels": 1, "in_features": 144, "image_size": 12, "num_classes": 3}

TINY = """\
data: {name: synthetic, shape: [1, 12, 12], num_train: 60, num_test: 30, num_classes: 3}
features: {name: scattering, J: 1, L: 4}
network: {name: scattering_linear, num_groups: 5}
optimizer: {name: SGD, lr: 0.5}
privacy: {noise_multiplier: 1.5, delta: 1e-4}
training: {epochs: 2, batch_size: 20}
output: {curve: false}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def configured(features, **sections):
    settings = {
        "data": IMAGES,
        "features": features,
        "network": "linear",
        "optimizer": "SGD",
        "privacy": {"noise_multiplier": 1.5, "delta": 1e-4},
        "training": {"epochs": 1, "batch_size": 20},
    }
    return make_config({**settings, **sections})


def test_scattering_gives_images_of_more_channels():
    found = build_features("scattering", {"example_shape": (3, 32, 32)}, J=2, L=8)
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, 243, 8, 8)


def test_mirrored_features_are_those_of_both_images():
    facts, image = {"example_shape": (3, 32, 32)}, torch.rand(2, 3, 32, 32)
    plain, mirrored = (build_features("scattering", facts, mirrored=chosen) for chosen in (False, True))
    assert torch.allclose(mirrored(image), (plain(image) + plain(image.flip(-1))) / 2)
    assert torch.equal(mirrored(image), mirrored(image.flip(-1)))
    assert not torch.allclose(plain(image), plain(image.flip(-1)))
    assert network_digest(plain) != network_digest(mirrored)


def test_features_are_normalised_in_groups_as_the_network_does():
    facts, image = {"example_shape": (3, 32, 32)}, torch.rand(2, 3, 32, 32)
    plain, grouped = (build_features("scattering", facts, num_groups=groups) for groups in (0, 27))
    assert torch.equal(grouped(image), ScatteringLinear(243, 243 * 64).norm(plain(image)))
    assert network_digest(plain) != network_digest(grouped)


def test_a_network_has_the_stated_weights(tmp_path):
    wanted = build_network("mlp", hidden=[5], defaults=FACTS, seed=7)
    save_checkpoint(tmp_path / "weights.safetensors", wanted)
    x = torch.rand(4, 1, 12, 12)
    loaded = build_features("network", FACTS, network="mlp", weights=str(tmp_path / "weights.safetensors"), hidden=[5])
    assert torch.equal(loaded(x), wanted(x))
    assert torch.equal(build_features("network", FACTS, network="mlp", hidden=[5], seed=7)(x), wanted(x))
    assert isinstance(build_features("network", {}, module="torch.nn:Flatten"), nn.Flatten)
    with pytest.raises(CheckpointError, match=r"layers\.0"):
        build_features("network", FACTS, network="mlp", weights=str(tmp_path / "weights.safetensors"), hidden=[6])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"name": "scatering"}, "features: unknown features 'scatering'; did you mean 'scattering'"),
        ({"name": "scattering", "K": 2}, "features 'scattering' has no argument 'K'"),
        ({"name": "scattering", "data": 2}, "features 'scattering' has no argument 'data'"),
        ({"name": "network"}, "needs either network .* or module"),
        ({"name": "network", "network": "lenet"}, "unknown network 'lenet'; did you mean 'lenet5'"),
        ({"name": "network", "network": "mlp", "widths": [3]}, "network 'mlp' has no argument 'widths'"),
        ({"name": "network", "module": "os:system"}, "standard library"),
    ],
)
def test_unknown_names_and_arguments_are_refused_before_anything_is_read(features, message):
    with pytest.raises(ConfigError, match=message):
        require_known_names(configured(features))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"name": "scattering", "mirrored": "left"}, "mirrored must be one of"),
        ({"name": "scattering", "J": 1, "num_groups": 2}, "features: num_groups must divide the 9 channels"),
        ({"name": "scattering", "J": 4}, "features: images of 12 x 12 are too small for J=4"),
        ({"name": "network", "network": "mlp", "weights": "none.safetensors"}, "none.safetensors cannot be read"),
        ({"name": "network", "module": "torch.nn:Softmax", "dim": 0}, "features: Softmax gives an example different"),
        ({"name": "network", "module": "torch.nn:Conv2d", "in_channels": 2, "out_channels": 2, "kernel_size": 3},
         "features: Conv2d does not take inputs of shape"),
    ],
)  # fmt: skip
def test_features_that_do_not_fit_the_data_are_refused_with_their_place(features, message):
    with pytest.raises((ConfigError, DataError, CheckpointError), match=message):
        build_task(configured(features))


def test_scattering_of_anything_but_images_is_refused():
    with pytest.raises(DataError, match=r"scattering needs images .* have shape \(16,\)"):
        build_features("scattering", {"example_shape": (16,)})


def test_privately_trained_weights_are_refused(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    train_from_config(load_config(tmp_path / "tiny.yaml"), tmp_path / "run")
    features = {"name": "network", "network": "scattering_linear", "num_groups": 5, "in_channels": 25,
                "in_features": 900, "weights": str(tmp_path / "run" / "checkpoint.safetensors")}  # fmt: skip
    with pytest.raises(ConfigError, match="come from a private training of 6 releases"):
        build_task(configured(features))


def test_a_configured_training_computes_its_features_once(tmp_path, cache):
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = train_from_config(load_config(tmp_path / "tiny.yaml"), tmp_path / "run")
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_run(tmp_path / "run")
    assert found.metrics == result.metrics
    assert found.test_data.same
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files


def test_without_a_cache_nothing_is_written_and_the_figures_are_those_of_the_raw_data(tmp_path, cache):
    task = build_task(configured({"name": "scattering", "J": 1, "cache": False}))
    assert not cache.exists()
    assert task.data.example_shape == (9, 6, 6)
    raw = build_task(configured(None))
    assert task.data.test_fingerprint == raw.data.test_fingerprint
    assert len(task.data.train) == 60


def test_where_features_are_kept_is_no_part_of_the_result():
    one, other = (
        settings_by_path(configured({"name": "scattering", **options}))
        for options in ({}, {"cache": False, "batch_size": 3})
    )
    assert one == other
    assert settings_by_path(configured({"name": "scattering", "J": 3})) != one
    assert not any(path.startswith("features") for path in settings_by_path(configured(None)))


def test_variants_with_different_features_do_not_share_their_data():
    plain, fixed, coarser = configured(None), configured("scattering"), configured({"name": "scattering", "J": 1})
    assert _same_task(fixed, configured("scattering"))
    assert not any(_same_task(one, other) for one, other in ((plain, fixed), (fixed, coarser)))


def test_weights_are_found_beside_the_configuration(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "trunk.safetensors", build_network("mlp", hidden=[5], defaults=FACTS))
    features = "{name: network, network: mlp, hidden: [5], weights: trunk.safetensors}"
    lines = TINY.replace("{name: scattering, J: 1, L: 4}", features).replace(
        "{name: scattering_linear, num_groups: 5}", "linear"
    )
    (tmp_path / "tiny.yaml").write_text(lines)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(tmp_path / "tiny.yaml")
    assert config.features.options["weights"] == str(tmp_path / "trunk.safetensors")
    assert build_task(config).data.example_shape == (3,)


def test_a_report_says_that_the_features_are_treated_as_public(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    own = "features={name: network, network: mlp, hidden: [5]}"
    for name, overrides in (("fixed", []), ("own", [own, "network=linear"])):
        train_from_config(load_config(tmp_path / "tiny.yaml", overrides), tmp_path / name)
        told = json.loads((tmp_path / name / "privacy_report.json").read_text())["not_accounted"]
        assert any(text.startswith("features of the configuration") for text in told) == (name == "own")


def test_registered_features_are_known_by_name():
    @FEATURES.register("halves")
    def halves(data, keep=2):
        return nn.AvgPool2d(keep)

    try:
        assert build_task(configured({"name": "halves", "keep": 3})).data.example_shape == (1, 4, 4)
    finally:
        del FEATURES._builders["halves"]


def test_code_of_features_in_a_foreign_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_MARKS", "off")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "foreign_features.py").write_text("from torch import nn\nclass Trunk(nn.Flatten):\n    pass\n")
    lines = TINY.replace("{name: scattering, J: 1, L: 4}", "{name: network, module: 'foreign_features:Trunk'}")
    (tmp_path / "tiny.yaml").write_text(lines.replace("{name: scattering_linear, num_groups: 5}", "linear"))
    train_from_config(load_config(tmp_path / "tiny.yaml"), tmp_path / "run")
    monkeypatch.delitem(sys.modules, "foreign_features")
    with pytest.raises(ConfigError, match=r"features\.module 'foreign_features:Trunk'"):
        evaluate_run(tmp_path / "run")
    assert "foreign_features" not in sys.modules
    assert evaluate_run(tmp_path / "run", trust_code=True).metrics
    monkeypatch.delitem(sys.modules, "foreign_features")
