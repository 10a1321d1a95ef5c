import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from dpmodel.config import load_config, locating_errors, make_config
from dpmodel.config.privacy import NoiseSection
from monitors.errors import ConfigError

GOOD = """\
network: lenet5
optimizer: {name: SGD, lr: 1.0}
privacy:
  noise_multiplier: 1.5
  delta: 1e-5
training: {epochs: 2, batch_size: 64}
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return make


def test_a_good_file_is_read_and_frozen(write):
    config = load_config(write(GOOD))
    assert config.privacy.delta == 1e-5
    assert config.loss.name == "cross_entropy"
    with pytest.raises(ValidationError, match="frozen"):
        config.privacy.delta = 0.5


def test_the_resolved_form_reads_back_equal(write):
    config = load_config(write(GOOD))
    assert make_config(yaml.safe_load(config.to_yaml())).model_dump() == config.model_dump()


# Each row: an override, and what the message must contain (path, value, remedy).
FAULTS = [
    ("privacy.norm_bund=1", ["unknown key 'privacy.norm_bund'", "did you mean 'norm_bound'"]),
    ("privcy.delta=1", ["unknown key 'privcy'", "did you mean 'privacy'"]),
    ("performance.enigne=loop", ["unknown key 'performance.enigne'", "did you mean 'engine'"]),
    ("privacy.noise_multiplier=0", ["privacy.noise_multiplier must be a positive finite number, got 0"]),
    ("privacy.noise_multiplier=-1", ["privacy.noise_multiplier must be a positive finite number, got -1"]),
    ("privacy.noise_multiplier=.nan", ["privacy.noise_multiplier must be a positive finite number, got nan"]),
    ("privacy.noise_multiplier=.inf", ["privacy.noise_multiplier must be a positive finite number, got inf"]),
    ("privacy.noise_multiplier=many", ["privacy.noise_multiplier must be a number, got 'many'"]),
    ("privacy.noise_multiplier=true", ["privacy.noise_multiplier must be a number, got True"]),
    ("privacy.noise_multiplier=null", ["give exactly one of noise_multiplier", "got neither"]),
    ("privacy.target_epsilon=3", ["give exactly one of noise_multiplier", "noise_multiplier=1.5 and target_epsilon=3"]),
    ("privacy.noise=null", ["noise is null (no privacy), but noise_multiplier=1.5 is given"]),
    ("privacy.norm_bound=0", ["privacy.norm_bound must be a positive finite number, got 0"]),
    ("privacy.norm_bound=.nan", ["privacy.norm_bound must be a positive finite number, got nan"]),
    ("privacy.delta=0", ["privacy.delta must be strictly between 0 and 1, got 0"]),
    ("privacy.delta=1", ["privacy.delta must be strictly between 0 and 1, got 1"]),
    ("privacy.delta=1.5", ["privacy.delta must be strictly between 0 and 1, got 1.5"]),
    ("privacy.delta=.nan", ["privacy.delta must be strictly between 0 and 1, got nan"]),
    ("privacy.micro_batches=0", ["privacy.micro_batches must be an integer of at least 1, got 0"]),
    ("privacy.accountant=rpd", ["privacy.accountant", "'rpd'", "did you mean 'rdp'"]),
    ("privacy.sampling=poison", ["privacy.sampling", "'poison'", "did you mean 'poisson'"]),
    ("privacy.noise.name=Gausian", ["privacy.noise.name", "did you mean 'Gaussian'"]),
    ("privacy.clip.name=Fixd", ["privacy.clip.name", "did you mean 'Fixed'"]),
    ("privacy.noise.initial_noise_multiplier=2", ["does not belong here; set privacy.noise_multiplier"]),
    ("privacy.clip.norm_bound=2", ["does not belong here; set privacy.norm_bound"]),
    ("privacy.monitor.max_eps=-1", ["privacy.monitor.max_eps must be a positive finite number, got -1"]),
    ("training.batch_size=0", ["training.batch_size must be an integer of at least 1, got 0"]),
    ("training.batch_size=2.5", ["training.batch_size must be an integer, got 2.5"]),
    ("training.epochs=[1]", ["training.epochs must be an integer, got [1]"]),
    ("training.epochs=null", ["training.epochs must be an integer, got None"]),
    ("training.metrics=[]", ["training.metrics must be a list of at least one entry"]),
    ("training=5", ["training must be a mapping of keys to values, got 5"]),
    ("network.module=a:b", ["give either name or module"]),
    ("network.seed=3", ["does not belong here; set training.seed"]),
    ("performance.workers=2", ["workers=2", "set in_memory: false, or workers: 0"]),
    ("performance.in_memory=maybe", ["performance.in_memory must be true or false, got 'maybe'"]),
    ("plugins=[no_such_module_at_all]", ["no module 'no_such_module_at_all'"]),
    ("plugins=[nothing.py]", ["nothing.py", "does not exist", "relative to the configuration file"]),
]


@pytest.mark.parametrize(("override", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_wrong_setting_is_refused_with_field_value_and_remedy(write, override, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(GOOD), [override])
    for text in words:
        assert text in str(caught.value)


def test_a_fault_in_the_file_is_named_with_its_line(write):
    with pytest.raises(ConfigError, match=r"run\.yaml:5: privacy\.delta must be strictly between 0 and 1, got 2"):
        load_config(write(GOOD.replace("1e-5", "2")))


def test_an_optimizer_that_is_missing_is_shown_by_example(write):
    with pytest.raises(ConfigError, match=r"is missing; add it, for example optimizer: \{name: SGD, lr: 0.5\}"):
        load_config(write("\n".join(line for line in GOOD.splitlines() if not line.startswith("optimizer"))))


def test_all_faults_are_named_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(GOOD.replace("1e-5", "2").replace("epochs: 2", "epochs: 0").replace("network: lenet5\n", "")))
    message = str(caught.value)
    assert message.startswith("3 faults")
    assert "network is missing; add it" in message
    assert "training.epochs must be" in message


def test_of_very_many_faults_the_first_are_listed_and_the_rest_counted(tmp_path):
    path = tmp_path / ("run" * 60) / "run.yaml"
    path.parent.mkdir()
    path.write_text("".join(f"unknown_{number}: 1\n" for number in range(2000)))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, *listed, last = str(caught.value).splitlines()
    total = int(first.split()[0].replace(",", ""))
    assert total >= 2000
    assert 1 <= len(listed) < 20
    assert last == f"  ... and {total - len(listed):,} more"
    assert len(str(caught.value)) < 4000


def test_a_limit_below_the_target_is_a_contradiction(write):
    overrides = ["privacy.noise_multiplier=null", "privacy.target_epsilon=3", "privacy.monitor.max_eps=2"]
    with pytest.raises(ConfigError, match="use target_epsilon: 2"):
        load_config(write(GOOD), overrides)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_that_is_not_a_mapping_is_refused(write, text):
    with pytest.raises(ConfigError, match="a configuration is a mapping of sections"):
        load_config(write(text))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load_config(tmp_path / "run.yaml")


def test_a_baseline_without_noise_needs_no_multiplier(write):
    config = load_config(write(GOOD), ["privacy.noise=null", "privacy.noise_multiplier=null"])
    assert config.privacy.noise is None


def test_a_plugin_file_beside_the_configuration_is_imported(write, tmp_path):
    (tmp_path / "my_noise_plugin.py").write_text(
        "from mechanisms import NoiseMechanismsFactory\n"
        "from mechanisms.noise import Gaussian\n"
        "@NoiseMechanismsFactory.register('PluginNoise')\n"
        "class PluginNoise(Gaussian):\n    pass\n"
    )
    path = write(GOOD)
    overrides = ["plugins=[my_noise_plugin.py]", "privacy.noise.name=PluginNoise"]
    config = load_config(path, overrides)
    assert config.plugins == (str(tmp_path / "my_noise_plugin.py"),)
    assert load_config(path, overrides).plugins == config.plugins


def test_a_plugin_that_fails_says_why(write, tmp_path):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"broken_plugin\.py' failed to import: ZeroDivisionError"):
        load_config(write(GOOD), ["plugins=[broken_plugin.py]"])
    assert "broken_plugin" not in sys.modules


def test_a_plugin_may_not_take_the_name_of_a_loaded_module(write, tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="has the same name as the loaded module 'json'"):
        load_config(write(GOOD), ["plugins=[json.py]"])


def test_reading_a_configuration_loads_no_torch(write):
    code = (
        "import sys; from dpmodel.config import load_config; "
        f"load_config({str(write(GOOD))!r}); print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("override", "section", "message", "place"),
    [
        ("optimizer.lr=2.0", "optimizer", "unknown optimizer 'SGD'", "{file}:2 (with --set optimizer.lr=2.0)"),
        ("optimizer.name=SDG", "optimizer", "unknown optimizer 'SDG'", "--set optimizer.name=SDG"),
        ("optimizer.lrr=1", "optimizer", "no argument 'lrr'", "--set optimizer.lrr=1"),
        ("privacy.delta=1e-6", "optimizer", "unknown optimizer 'SGD'", "{file}:2"),
        ("data.name=minst", "data", "unknown data set 'minst'", "--set data.name=minst"),
    ],
)
def test_a_fault_names_the_override_that_it_mentions(write, override, section, message, place):
    path = write(GOOD)
    with pytest.raises(ConfigError) as found, locating_errors(load_config(path, [override]), section):
        raise ValueError(message)
    assert str(found.value) == f"{place.format(file=path)}: {section}: {message}"


def test_a_fault_in_a_section_that_a_copy_replaced_is_still_reported(write):
    config = load_config(
        write(GOOD.replace("privacy:", "privacy:\n  noise: {name: AdaGaussian}")),
        ["privacy.noise.noise_decay_rate=1e-4"],
    )
    plain = config.privacy.model_copy(update={"noise": NoiseSection()})
    with (
        pytest.raises(ConfigError, match="wrong"),
        locating_errors(config.model_copy(update={"privacy": plain}), "privacy.noise"),
    ):
        raise ValueError("wrong")
