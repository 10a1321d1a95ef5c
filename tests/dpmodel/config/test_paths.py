from pathlib import Path

import pytest

from dpmodel.config import load_config, make_config
from dpmodel.config.identity import settings_by_path
from dpmodel.config.paths import locate_data

TRAINING = """\
network: linear
optimizer: SGD
privacy: {noise_multiplier: 1.5}
training: {epochs: 1, batch_size: 8}
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A configuration in a folder that is not the current one."""
    for name in ("beside", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "beside" / "run.yaml").write_text("data: {name: npz, root: data.npz}\n" + TRAINING)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def root_of(folders, *overrides):
    return load_config(folders / "beside" / "run.yaml", overrides).data.options["root"]


@pytest.mark.parametrize("existing", [["beside"], ["beside", "here"], []])
def test_a_relative_root_is_relative_to_the_configuration(folders, existing):
    for name in existing:
        (folders / name / "data.npz").touch()
    assert root_of(folders) == str(folders / "beside" / "data.npz")


def test_a_path_that_exists_only_in_the_current_folder_is_found_there_and_recorded_in_full(folders):
    (folders / "here" / "data.npz").touch()
    assert root_of(folders) == str(folders / "here" / "data.npz")


@pytest.mark.parametrize(
    "override", ["data.root=data.npz", "data={name: npz, root: data.npz}", (("data", "root"), "data.npz")]
)
def test_a_root_on_the_command_line_is_relative_to_the_current_folder(folders, override):
    (folders / "beside" / "data.npz").touch()
    assert root_of(folders, override) == str(folders / "here" / "data.npz")


def test_a_root_with_a_line_number_in_it_on_the_command_line_is_still_in_the_current_folder(folders):
    assert root_of(folders, "data.root=there:3") == str(folders / "here" / "there:3")


def test_a_root_in_python_is_relative_to_the_current_folder(folders):
    values = {"network": "linear", "optimizer": "SGD", "privacy": {"noise_multiplier": 1}}
    values |= {"training": {"epochs": 1, "batch_size": 8}, "data": {"name": "npz", "root": "../data.npz"}}
    assert make_config(values).data.options["root"] == str(folders / "data.npz")


def test_the_home_folder_full_paths_and_addresses_are_kept(folders):
    assert root_of(folders, "data.root=~/data.npz") == str(Path.home() / "data.npz")
    assert root_of(folders, "data.root=/data/data.npz") == "/data/data.npz"
    assert root_of(folders, "data.root=s3://bucket/data.npz") == "s3://bucket/data.npz"
    assert root_of(folders, "data.root=null") is None


def test_a_cache_of_images_is_relative_to_the_configuration_and_no_part_of_the_result(folders):
    def configured(*overrides):
        return load_config(folders / "beside" / "run.yaml", ["data.name=image_folder", *overrides])

    (folders / "beside" / "run.yaml").write_text("data: {name: image_folder, root: p, cache: kept}\n" + TRAINING)
    options = configured().data.options
    assert options == {"root": str(folders / "beside" / "p"), "cache": str(folders / "beside" / "kept")}
    assert configured("data.cache=kept").data.options["cache"] == str(folders / "here" / "kept")
    for value in (None, True, False, ""):
        assert configured((("data", "cache"), value)).data.options["cache"] == value
        assert settings_by_path(configured((("data", "cache"), value))) == settings_by_path(configured())
    assert settings_by_path(configured("data.root=q")) != settings_by_path(configured())


def test_the_resolved_form_means_the_same_in_every_folder(folders, monkeypatch):
    resolved = folders / "config.resolved.yaml"
    resolved.write_text(load_config(folders / "beside" / "run.yaml").to_yaml())
    monkeypatch.chdir(folders)
    assert load_config(resolved).data.options["root"] == str(folders / "beside" / "data.npz")


def test_a_link_is_not_resolved(folders):
    (folders / "beside" / "v3.npz").touch()
    (folders / "beside" / "data.npz").symlink_to("v3.npz")
    assert locate_data("data.npz", f"{folders}/beside/run.yaml:1") == str(folders / "beside" / "data.npz")
