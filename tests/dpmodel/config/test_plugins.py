import sys

import pytest

from dpmodel.config import load_config
from dpmodel.config.plugins import import_plugin, locate_plugin
from monitors.errors import ConfigError

SETTINGS = """\
plugins:
  - {plugin}
network: linear
optimizer: SGD
privacy: {{noise_multiplier: 1.0}}
training: {{epochs: 1, batch_size: 8}}
"""


@pytest.fixture
def read(tmp_path):
    """Reads a configuration with one plugin."""

    def load(plugin):
        (tmp_path / "run.yaml").write_text(SETTINGS.format(plugin=plugin))
        return load_config(tmp_path / "run.yaml")

    return load


@pytest.mark.parametrize(
    "plugin", ["antigravity", "this", "sched", "os", "os.path", "idlelib.idle", "lib2to3", "__main__", "test.regrtest"]
)
def test_the_standard_library_is_not_imported_as_a_plugin(read, plugin):
    loaded = set(sys.modules)
    with pytest.raises(ConfigError, match=rf"run\.yaml:2: plugins\.0: plugin '{plugin}'") as refused:
        read(plugin)
    assert "\n" not in str(refused.value)
    assert not {name for name in set(sys.modules) - loaded if name.split(".")[0] == plugin.split(".")[0]}


@pytest.mark.parametrize("plugin", ["pip.__main__", "a b", "'../evil'", "./evil", "'.evil'", "a..b", "a/b"])
def test_a_malformed_name_of_a_plugin_is_refused(read, plugin):
    with pytest.raises(ConfigError, match="is not the name of a module"):
        read(plugin)


@pytest.mark.parametrize("name", ["sched", "antigravity", "wave"])
def test_a_plugin_file_may_not_shadow_the_standard_library(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')\n")
    with pytest.raises(ValueError, match="A file of your own must have a different name"):
        import_plugin(locate_plugin(f"{name}.py", tmp_path))
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; sys.exit(0)", "failed to import: SystemExit: 0"),
        ("import missing_package_of_a_plugin", "failed to import: it needs 'missing_package_of_a_plugin'"),
        ("raise ValueError('odd')", "failed to import: ValueError: odd"),
    ],
)
def test_a_plugin_that_fails_names_its_line_in_the_configuration(read, tmp_path, source, words):
    (tmp_path / "plugin_that_fails.py").write_text(source)
    with pytest.raises(ConfigError, match=rf"run\.yaml:2: plugins\.0: plugin '.*plugin_that_fails\.py' {words}"):
        read("plugin_that_fails.py")
    assert "plugin_that_fails" not in sys.modules


def test_a_configuration_can_be_read_without_its_plugins(tmp_path):
    (tmp_path / "never_imported.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "run.yaml").write_text(SETTINGS.format(plugin="never_imported.py"))
    config = load_config(tmp_path / "run.yaml", import_plugins=False)
    assert config.plugins == (str(tmp_path / "never_imported.py"),)
    assert "never_imported" not in sys.modules
