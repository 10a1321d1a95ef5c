"""The documentation: every setting is described, every snippet runs, every link has a target."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from dpmodel.compare.comparison import make_comparison
from dpmodel.config import Config, make_config
from dpmodel.config.faults import _model_in
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.tuning.search import make_tuning
from monitors import GaussianEvent, Ledger, PoissonSampledEvent, RDPAccountant, max_steps

ROOT = Path(__file__).parents[1]
BESIDE_THE_CONFIGS = str(ROOT / "configs" / "snippet.yaml")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages whose blocks run one after the other in one session, as a reader would type them.
SESSIONS = [
    ROOT / "docs" / name
    for name in (
        "index.md",
        "quickstart.md",
        "concepts.md",
        "from_opacus.md",
        "correlated_noise.md",
        "features.md",
        "private_prediction.md",
        "audit.md",
        "attack.md",
        "card.md",
        "fine_tuning.md",
        "troubleshooting.md",
    )
]
SESSIONS += [page for page in sorted((ROOT / "docs" / "howto").glob("*.md")) if "```python" in page.read_text()]
#: MNIST, worker processes, or several trainings.
_SLOW = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "quickstart",
        "howto/compare",
        "concepts",
        "correlated_noise",
        "attack",
        "from_opacus",
        "howto/target_epsilon",
        "howto/private_prediction_serving",
        "howto/yaml",
        "howto/statistics",
    )
]
SESSIONS = [pytest.param(page, marks=pytest.mark.slow) if page in _SLOW else page for page in SESSIONS]


#: Pages whose blocks use names that the reader already has; each runs in a separate process (``page_session.py``).
LONG = [ROOT / "docs" / f"{name}.md" for name in ("guide", "accounting", "comparing", "extending", "performance")]


def _place(page):
    return str(page.relative_to(ROOT))


def _settings(model: type[BaseModel]):
    for name, field in model.model_fields.items():
        yield name
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _settings(inner)


@pytest.mark.parametrize("setting", sorted(set(_settings(Config))))
def test_every_setting_is_in_the_reference(setting):
    assert re.search(rf"\b{setting}\b", (ROOT / "docs" / "config.md").read_text())


def _snippets(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=_place)
def test_configurations_in_the_documentation_are_valid(page):
    for snippet in _snippets(page, "yaml"):
        values = read_yaml(snippet, page.name).values
        if "variants" in values:
            make_comparison(values, BESIDE_THE_CONFIGS)
        elif "search" in values:
            make_tuning(values, BESIDE_THE_CONFIGS)
        else:
            make_config(values)


@pytest.mark.parametrize("page", PAGES, ids=_place)
def test_python_in_the_documentation_compiles_and_its_imports_exist(page):
    for snippet in _snippets(page, "python"):
        compile(snippet, page.name, "exec")
        for statement in re.findall(r"^from .+ import .+$|^import .+$", snippet, flags=re.MULTILINE):
            exec(statement, {})


def _stated_output(snippet):
    """The output that a block states: comments after its ``print`` calls, or the comments at its end."""
    lines = snippet.rstrip().splitlines()
    start = next((number for number in range(len(lines), 0, -1) if not lines[number - 1].startswith("# ")), 0)
    return [line[2:] for line in lines[start:]] or re.findall(r"^print\(.*\)  # (.+)$", snippet, flags=re.MULTILINE)


@pytest.mark.parametrize("page", SESSIONS, ids=_place)
def test_python_on_a_page_runs_in_order_and_prints_the_stated_output(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": __name__}
    for snippet in _snippets(page, "python"):
        exec(compile(snippet, page.name, "exec"), names)
        printed, stated = capsys.readouterr().out.splitlines(), _stated_output(snippet)
        assert [line for line in printed if line in stated] == stated


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG, ids=_place)
def test_python_on_a_long_page_runs_with_names_that_the_reader_has(page, tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "page_session.py"), str(page)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{len(_snippets(page, 'python'))} blocks ran\n")


def test_all_python_in_the_documentation_is_run():
    run = {*LONG, ROOT / "README.md", *(getattr(page, "values", (page,))[0] for page in SESSIONS)}
    assert not {_place(page) for page in PAGES if _snippets(page, "python")} - {_place(page) for page in run}


@pytest.mark.slow
def test_the_training_of_the_readme_runs(capsys):
    exec(_python("README.md", "max_eps").replace("epochs=10", "epochs=1"), {})
    assert float(re.findall(r"^epsilon ([\d.]+) at delta 1e-05", capsys.readouterr().out, flags=re.MULTILINE)[-1]) < 3.0


def _python(page, phrase):
    (found,) = [snippet for snippet in _snippets(ROOT / page, "python") if phrase in snippet]
    return found


def test_the_guide_prints_the_multipliers_that_are_solved_for(capsys):
    snippet = _python("docs/guide.md", "multiplier_for")
    exec(snippet, {})
    assert capsys.readouterr().out.split() == re.findall(r"# ([\d.]+)$", snippet, flags=re.MULTILINE)


def test_the_monitor_of_the_readme_stops_at_the_stated_step():
    snippet, text = _python("README.md", "max_eps"), (ROOT / "README.md").read_text()
    multiplier, max_eps = (float(re.search(rf"{name}=([\d.]+)", snippet)[1]) for name in ("multiplier", "max_eps"))
    batch_size, epochs = (int(re.search(rf"{name}=(\d+)", snippet)[1]) for name in ("batch_size", "epochs"))
    event = PoissonSampledEvent(batch_size / 60_000, GaussianEvent(multiplier))
    steps = max_steps(max_eps, 1e-5, lambda count: Ledger().record(event, count))
    assert f"after {steps} of {epochs * (60_000 // batch_size):,} steps" in text
    last, next_one = (RDPAccountant().epsilon(Ledger().record(event, count), 1e-5) for count in (steps, steps + 1))
    assert all(f"{epsilon:.4f}" in text for epsilon in (last, next_one))


def test_the_arrays_in_the_guide_can_be_read(tmp_path, monkeypatch):
    from dpmodel.data import load_dataset

    monkeypatch.chdir(tmp_path)
    exec(_python("docs/guide.md", "savez"), {})
    data = load_dataset("npz", root="data.npz")
    assert (len(data.train), len(data.test), data.num_classes) == (300, 100, 2)


def test_the_training_on_the_opacus_page_spends_its_target(capsys):
    exec(_python("docs/from_opacus.md", "model.fit("), {})
    epsilon = float(re.search(r"epsilon ([\d.]+) at delta", capsys.readouterr().out)[1])
    assert 2.99 < epsilon <= 3.0


def test_the_regression_in_the_guide_trains(capsys):
    exec(_python("docs/guide.md", "MSELoss"), {})
    assert "torch.Size([400, 1])" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guard_counts_both_models_and_callbacks_match_their_description():
    import torch
    from torch.utils.data import TensorDataset

    from dpmodel import Callback, DPModel, NoiseMechanismsFactory, poisson_loader
    from dpmodel.callbacks.base import HOOKS

    def model():
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=20.0)
        return DPModel(network, torch.nn.CrossEntropyLoss(), optimizer, noise_mech=noise)

    class Seen(Callback):
        def on_train_begin(self, run):
            self.run = run

    one, other, seen = model(), model(), Seen()
    loader = poisson_loader(TensorDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64)), batch_size=5)
    names = {"model": one, "other_model": other, "loader": loader}
    exec(_python("docs/accounting.md", "BudgetGuard"), names)
    assert names["guard"].filter.ledger.total == one.ledger.total + other.ledger.total == 60

    one.fit(loader, callbacks=[seen])
    hooks, fields = (ROOT / "docs" / "guide.md").read_text().split("The hooks, in the order")[1].split("Each hook gets")
    assert set(re.findall(r"`(on_\w+)`", hooks)) == set(HOOKS)
    named = [row.split("|")[1] for row in fields.splitlines() if row.startswith("| `")]
    assert all(hasattr(seen.run, name) for row in named for name in re.findall(r"`(\w+)", row))


def test_the_documented_reader_makes_a_regression():
    import torch

    from dpmodel.data import DATASETS
    from dpmodel.data.splits import finish_splits
    from dpmodel.nets import build_network

    names = {"__name__": __name__}
    exec(_python("docs/extending.md", "RawSplits"), names)
    DATASETS._builders.pop("sums")
    data = finish_splits("sums", names["sums"]())
    x, y = data.train.batch(torch.arange(5))
    assert build_network("mlp", defaults=data.network_defaults())(x).shape == y.shape == (5, 1)


@pytest.fixture
def own_names():
    """Restores the registries that the page on extending changes."""
    from dpmodel.losses import LOSSES
    from dpmodel.metrics import METRICS
    from dpmodel.optimizers import OPTIMIZERS
    from mechanisms.sampling import SAMPLERS

    added = ((LOSSES, "focal"), (METRICS, "top2"), (METRICS, "rarest_recall"), (OPTIMIZERS, "SignSGD"))
    for phrase in ("Focal", "RarestRecall", "SignSGD", "WarmUpSampler"):
        exec(_python("docs/extending.md", phrase), {"__name__": __name__})
    yield
    for registry, name in (*added, (SAMPLERS, "warm_up")):
        del registry._builders[name]


def _small_training(**settings):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from dpmodel import DPModel, NoiseMechanismsFactory

    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    make_optimizer = settings.pop("make_optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    model = DPModel(
        network,
        settings.pop("loss_fn", torch.nn.CrossEntropyLoss()),
        make_optimizer(network.parameters()),
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        **settings,
    )
    x, y = torch.randn(80, 4), torch.arange(80) % 3
    return model, DataLoader(TensorDataset(x[:60], y[:60]), batch_size=10), TensorDataset(x[60:], y[60:])


@pytest.mark.slow
def test_the_custom_loop_spends_its_target_and_the_report_covers_it(capsys):
    import torch

    model, loader, held_out = _small_training()
    names = {"network": model.network, "loss_fn": model.loss_fn, "loader": loader, "held_out": held_out}
    names["optimizer"] = torch.optim.SGD(model.network.parameters(), lr=0.1)
    exec(_python("docs/guide.md", "CosineAnnealingLR"), names)
    report = names["model"].report(1e-5)
    assert report.steps == names["rounds"] * 6
    assert 2.99 < report.spent.epsilon <= 3.0
    assert "# Privacy report" in capsys.readouterr().out
    exec(_python("docs/guide.md", "WeightAveraging("), names)
    assert any("moving average" in note for note in names["model"].ledger.notes)


def test_queries_on_the_accounting_page_are_on_the_ledger():
    names = {}
    exec(_python("docs/accounting.md", "CountingQuery"), names)
    assert names["ledger"].total == 3
    assert names["decades"].shape == (12,)


def test_custom_losses_metrics_optimizers_and_samplers_train_as_documented(own_names):
    from dpmodel.losses import build_loss
    from dpmodel.optimizers import build_optimizer

    model, loader, held_out = _small_training(
        loss_fn=build_loss("focal", gamma=1.0),
        make_optimizer=lambda parameters: build_optimizer("SignSGD", parameters, lr=0.01),
        sampling="warm_up",
        metrics=["accuracy", "top2", "rarest_recall"],
    )
    history = model.fit(loader, epochs=5, valid_loader=held_out)
    assert history[-1].metrics["top2"] >= history[-1].metrics["accuracy"]
    assert 0 <= history[-1].metrics["rarest_recall"] <= 1
    rates = [event.sampling_rate for event, count in model.ledger for _ in range(count)]
    assert rates == pytest.approx([min(1.0, (step + 1) / 20) / 6 for step in range(30)])


def test_the_page_on_extending_shows_how_to_register_each_kind():
    text = (ROOT / "docs" / "extending.md").read_text()
    announced = re.search(r"is a registry: (.+?)\.", text, flags=re.DOTALL)[1].replace("\n", " ").split(", ")
    kinds = dict.fromkeys(" and ".join(announced).replace("noise and clip mechanisms", "noise and clip").split(" and "))
    assert set(kinds) == set(_REGISTERED_BY)
    assert all(f"{call}.register(" in text for call in _REGISTERED_BY.values())


_REGISTERED_BY = {
    "noise": "NoiseMechanismsFactory",
    "clip": "ClipMechanismsFactory",
    "samplers": "SAMPLERS",
    "engines": "ENGINES",
    "accountants": "ACCOUNTANTS",
    "monitors": "PrivacyMonitorFactory",
    "data sets": "DATASETS",
    "features": "FEATURES",
    "networks": "NETWORKS",
    "losses": "LOSSES",
    "optimizers": "OPTIMIZERS",
    "metrics": "METRICS",
    "callbacks": "CALLBACKS",
}


def test_the_history_is_read_as_the_guide_says(tmp_path, monkeypatch):
    from dpmodel import History

    model, loader, held_out = _small_training(metrics="accuracy")
    monkeypatch.chdir(tmp_path)
    exec(_python("docs/guide.md", "history.to_csv"), {"model": model, "loader": loader, "held_out": held_out})
    assert len(History.from_csv("history.csv")["accuracy"]) == 3
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_every_callback_is_in_the_reference():
    from dpmodel.callbacks.registry import CALLBACKS

    listed = (ROOT / "docs" / "config.md").read_text().split("## callbacks")[1].split("##")[0]
    own = (name for name in CALLBACKS.names() if CALLBACKS.get(name).__module__.startswith("dpmodel."))
    assert all(f"`{name}`" in listed for name in own)


@pytest.mark.parametrize("page", PAGES, ids=_place)
def test_links_to_files_and_headings_have_a_target(page):
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if not target.startswith("http"):
            assert not target or (page.parent / target).exists(), target
            assert not heading or heading in _headings(page.parent / target if target else page), heading


def _headings(page):
    text = page.read_text()
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    named = re.findall(r'<a id="([\w-]+)"></a>', text)  # keeps links to a former heading working
    return {*named, *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)}


@functools.cache
def _options():
    from typer.main import get_command

    from dpmodel.cli.application import app

    commands = get_command(app).commands
    return {
        name: {"--help", *itertools.chain(*(one.opts + one.secondary_opts for one in command.params))}
        for name, command in commands.items()
    }


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci" / "run"], ids=_place)
def test_options_of_commands_in_the_documentation_exist(page):
    known = _options()
    for name, rest in re.findall(rf"dpmodel ({'|'.join(known)})\b([^\n#`]*)", page.read_text()):
        for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest):
            assert option in known[name], f"dpmodel {name} {option}"


def test_the_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install -e . && dpmodel train configs/lenet5_mnist.yaml" in text
    assert 'pip install -e ".[dev]" && pytest' in text
