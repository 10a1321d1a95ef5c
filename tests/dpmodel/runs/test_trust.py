import hashlib
import json
import os
import shutil
import sys

import pytest
import yaml

from dpmodel import load_config, train_from_config
from dpmodel.cli.application import run
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.figures.curve import curve_of_run
from dpmodel.runs import trust
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import TrainingMark
from monitors.errors import ConfigError

TINY = """\
data: {name: synthetic, shape: [1, 4, 4], num_train: 60, num_test: 30, num_classes: 3}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy: {noise_multiplier: 1.5, delta: 1e-4}
training: {epochs: 1, batch_size: 20}
output: {curve: false}
"""

#: Leaves a trace when it is imported; its network has the weights of the built-in one.
FOREIGN = """\
import os, pathlib
pathlib.Path(os.environ["TRACE"]).write_text("imported")
from dpmodel.nets import Linear
class Net(Linear):
    pass
"""

ID = "ab" * 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    train_from_config(load_config(folder / "tiny.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A file that exists once foreign code has run; modules imported by the test are forgotten after it."""
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    known = set(sys.modules)
    yield tmp_path / "trace"
    for name in set(sys.modules) - known:
        if "foreign" in name:
            del sys.modules[name]


@pytest.fixture
def foreign(trained, tmp_path, monkeypatch):
    """Makes a run folder of somebody else, whose configuration has these settings, and enters it."""

    def build(**settings):
        folder = tmp_path / "run"
        shutil.copytree(trained, folder)
        file = folder / "config.resolved.yaml"
        values = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**values, **settings}, sort_keys=False))
        (folder / "foreign_nets.py").write_text(FOREIGN)
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
        monkeypatch.chdir(folder)
        return folder

    return build


MODULE = {"network": {"module": "foreign_nets:Net"}}
CODE = [
    (MODULE, "network.module 'foreign_nets:Net' (from '{folder}/foreign_nets.py')"),
    ({"plugins": ["foreign_nets.py"]}, "plugins.0 '{folder}/foreign_nets.py'."),
    ({"plugins": ["foreign_nets"]}, "plugins.0 'foreign_nets' (from '{folder}/foreign_nets.py')"),
    ({"plugins": ["foreign_nowhere"]}, "plugins.0 'foreign_nowhere' (no file found)"),
    ({**MODULE, "plugins": ["foreign_nets.py"]}, "plugins.0 '{folder}/foreign_nets.py'."),
    ({"network": {"module": "torchvision.models:resnet18"}}, "network.module 'torchvision.models:resnet18' (from '"),
    ({"network": {"module": "torch.nn:Linear"}}, "network.module 'torch.nn:Linear' (from '"),
    # Python 3.11 and later have no file for os.
    ({"network": {"module": "os:system"}}, "network.module 'os:system' ("),
    ({"network": {"module": "dpmodelling:Net"}}, "network.module 'dpmodelling:Net' (no file found)"),
]


@pytest.mark.parametrize(("settings", "words"), CODE)
def test_code_that_a_foreign_folder_names_is_not_imported(foreign, trace, settings, words):
    folder = foreign(**settings)
    with pytest.raises(ConfigError, match="was not made here") as refused:
        evaluate_run(folder)
    text = str(refused.value)
    assert words.replace("{folder}", str(folder)) in text
    assert text.startswith(f"{folder}/config.resolved.yaml:")
    assert "pass --trust-code" in text
    assert "\n" not in text
    assert not trace.exists()


def test_the_line_of_the_setting_is_named(foreign, trace):
    folder = foreign(**MODULE)
    lines = (folder / "config.resolved.yaml").read_text().splitlines()
    number = next(index for index, line in enumerate(lines, start=1) if "foreign_nets:Net" in line)
    with pytest.raises(ConfigError, match=f"^{folder}/config.resolved.yaml:{number}: "):
        evaluate_run(folder)
    assert not trace.exists()


def test_the_command_refuses_it_as_bad_usage_and_runs_it_on_request(foreign, trace, capsys):
    folder = foreign(**MODULE)
    assert run(["eval", str(folder), "--json"]) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert not trace.exists()
    assert run(["eval", str(folder), "--json", "--trust-code"]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)["metrics"]
    assert trace.exists()


def test_code_of_a_foreign_folder_runs_on_request_in_python(foreign, trace):
    assert evaluate_run(foreign(**MODULE, plugins=["foreign_nets.py"]), trust_code=True).metrics
    assert trace.exists()


def test_trust_does_not_extend_to_what_is_not_a_network(foreign, trace):
    folder = foreign(network={"module": "os:system", "command": f"touch {trace}"})
    with pytest.raises(ConfigError, match="belongs to Python's standard library"):
        evaluate_run(folder, trust_code=True)
    assert not trace.exists()


def test_a_foreign_folder_with_built_in_names_is_evaluated(foreign):
    folder = foreign(network={"module": "dpmodel.nets:Linear"})
    assert evaluate_run(folder).metrics
    # A library that tries to import an optional package must not find a file of the folder.
    assert str(folder) not in sys.path


def test_code_that_the_user_names_on_the_command_line_is_his_own(foreign, trace):
    folder = foreign(network={"module": "foreign_missing:Net"}, plugins=["foreign_missing.py"])
    with pytest.raises(ConfigError, match=r"plugins\.0 '.*foreign_missing\.py' *\.? *If"):
        evaluate_run(folder, ["network.module=foreign_nets:Net"])
    assert not trace.exists()
    assert evaluate_run(folder, ["network.module=foreign_nets:Net", "plugins=[]"]).metrics
    assert trace.exists()
    assert evaluate_run(folder, ["network={module: 'foreign_nets:Net'}", "plugins=[]"]).metrics
    assert evaluate_run(folder, [(("network", "module"), "foreign_nets:Net"), (("plugins",), [])]).metrics


def test_plot_imports_nothing_that_a_foreign_folder_names(foreign, trace, tmp_path):
    folder = foreign(**MODULE, plugins=["foreign_nets.py"])
    assert run(["plot", str(folder), "-o", str(tmp_path / "figures"), "--format", "svg", "--json"]) == 0
    assert not trace.exists()


def test_without_plugins_plot_draws_what_the_ledger_states(foreign, trained, trace):
    known, folder = curve_of_run(trained), foreign(plugins=["foreign_nets.py"])
    found = curve_of_run(folder)
    assert not trace.exists()
    assert set(found.multipliers) == set(known.multipliers) == {1.5}
    assert found.privacy.epsilons == known.privacy.epsilons
    assert curve_of_run(folder, trust_code=True).multipliers == known.multipliers
    assert trace.exists()


def test_a_comparison_does_not_import_the_plugins_of_runs_in_its_folder(foreign, trace):
    from dpmodel.compare.jobs import is_finished

    folder = foreign(plugins=["foreign_nets.py"])
    assert not is_finished(RunFolder(folder), checked_config(read_yaml(TINY, "tiny.yaml"), "tiny.yaml"))
    assert not trace.exists()


def as_made_here(folder, config=None, training=ID):
    """Give a folder the first line of a journal, and this user the mark of its training."""
    digest = hashlib.sha256((folder / "config.resolved.yaml").read_bytes()).hexdigest()
    line = json.dumps({"kind": "begun", "step": 0, "id": training})
    (folder / "releases.jsonl").write_text(f"{'0' * 64} {line}\n")
    TrainingMark(ID, 1, "0" * 64, config or digest).save()


def test_a_folder_is_made_here_if_the_mark_has_its_configuration(foreign, monkeypatch, tmp_path):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "marks"))
    folder = foreign()
    assert not trust.made_here(RunFolder(folder))
    as_made_here(folder)
    assert trust.made_here(RunFolder(folder))
    with (folder / "config.resolved.yaml").open("a") as stream:
        stream.write("# changed\n")
    assert not trust.made_here(RunFolder(folder))


class Cut:
    def on_train_step_end(self, run):
        if run.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("whose", ["own", "changed", "foreign"])
@pytest.mark.sample(3)
def test_resuming_a_folder_gives_no_trust_to_a_configuration_that_was_not_written_here(
    monkeypatch, tmp_path, trace, whose
):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "marks"))
    (tmp_path / "foreign_own.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("linear", "{module: 'foreign_own:Net'}"))
    config, folder = load_config(tmp_path / "tiny.yaml"), RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, folder.path, callbacks=[Cut()])
    assert trust.made_here(folder)
    if whose != "own":
        folder.config.write_text(folder.config.read_text() + "# changed\n")
    if whose == "foreign":
        shutil.rmtree(tmp_path / "marks")
    folder = RunFolder(folder.path.rename(tmp_path / "moved"))
    assert train_from_config(config, folder.path, resume=True).report.status == "finished"
    assert trust.made_here(folder) == (whose == "own")
    if whose == "own":
        assert evaluate_run(folder.path, ["performance.device=cpu"]).metrics


@pytest.mark.parametrize("line", ["", "{}", "0 {}", "0 []", '0 {"id": 3}', "0 " + "[" * 10_000, "\0" * 100_000])
def test_a_journal_that_cannot_be_read_gives_no_trust(foreign, monkeypatch, tmp_path, line):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "marks"))
    folder = foreign()
    as_made_here(folder)
    (folder / "releases.jsonl").write_text(line)
    assert not trust.made_here(RunFolder(folder))


def test_a_different_mark_or_training_gives_no_trust(foreign, monkeypatch, tmp_path):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "marks"))
    folder = foreign()
    as_made_here(folder, config="0" * 64)
    assert not trust.made_here(RunFolder(folder))
    as_made_here(folder, training="cd" * 16)
    assert not trust.made_here(RunFolder(folder))
    as_made_here(folder)
    monkeypatch.setenv("DPMODEL_MARKS", "off")
    assert not trust.made_here(RunFolder(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_in_place_of_the_journal_gives_no_trust(foreign):
    folder = foreign()
    (folder / "releases.jsonl").unlink(missing_ok=True)
    os.mkfifo(folder / "releases.jsonl")
    assert not trust.made_here(RunFolder(folder))


def test_a_folder_that_was_made_here_runs_its_code_but_not_code_inside_it(foreign, trace, monkeypatch, tmp_path):
    monkeypatch.setattr(trust, "made_here", lambda folder: True)
    folder = foreign(**MODULE)
    with pytest.raises(ConfigError, match="--trust-code"):
        evaluate_run(folder)
    assert not trace.exists()
    (tmp_path / "project").mkdir()
    (folder / "foreign_nets.py").rename(tmp_path / "project" / "foreign_nets.py")
    monkeypatch.chdir(tmp_path / "project")
    assert evaluate_run(folder).metrics
    assert trace.exists()
