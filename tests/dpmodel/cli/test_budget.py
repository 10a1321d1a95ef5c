import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MNIST = ["-n", "60000", "-b", "256"]


def test_epsilon_follows_from_a_multiplier(command):
    code, text, _ = command("budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5", "--json")
    assert code == 0
    answer = json.loads(text)
    assert answer["asked"] == "epsilon"
    assert answer["steps"] == 2340
    assert answer["epsilon"] == pytest.approx(0.628, abs=5e-4)


def test_the_multiplier_follows_from_a_target(command):
    code, text, _ = command("budget", "-n", "60000", "-b", "512", "-e", "40", "--target-epsilon", "2.579", "--json")
    assert code == 0
    answer = json.loads(text)
    assert answer["asked"] == "noise_multiplier"
    assert answer["noise_multiplier"] == pytest.approx(1.23, abs=1e-3)
    assert answer["epsilon"] <= 2.579


def test_the_most_epochs_fit_and_one_more_does_not(command):
    question = ["budget", *MNIST, "--noise-multiplier", "1.5", "--json"]
    epochs = json.loads(command(*question, "--max-epsilon", "0.8")[1])["epochs"]
    assert json.loads(command(*question, "-e", epochs)[1])["epsilon"] <= 0.8
    assert json.loads(command(*question, "-e", epochs + 1)[1])["epsilon"] > 0.8


def test_if_no_epoch_fits_the_cost_of_one_is_shown(command):
    code, _, error = command("budget", *MNIST, "--noise-multiplier", "0.5", "--max-epsilon", "0.5")
    assert code == 1
    assert "not even one epoch fits into epsilon 0.5" in error
    assert "one epoch spends" in error


def test_figures_of_other_rules_are_shown_side_by_side(command):
    code, text, _ = command("budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(text)["side_by_side"]}
    assert rows["Poisson, per example"]["configured"]
    assert rows["shuffle, zero out one"]["epsilon"]["zcdp"] == pytest.approx(10.67, abs=5e-3)
    assert rows["shuffle, replace one"]["epsilon"]["zcdp"] == pytest.approx(26.18, abs=5e-3)
    assert all(row["assumes"] for row in rows.values())
    # a group of two counts with half the multiplier
    half = json.loads(command("budget", *MNIST, "-e", "10", "--noise-multiplier", "0.75", "--json")[1])
    assert rows["Poisson, micro-batches of 2"]["epsilon"]["rdp"] == pytest.approx(half["epsilon"], rel=1e-9)


def test_the_poisson_figure_is_not_a_guarantee_for_shuffled_batches(command):
    question = ["budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5", "--sampling", "shuffle", "--json"]
    answer = json.loads(command(*question)[1])
    rows = {row["name"]: row for row in answer["side_by_side"]}
    assert rows["shuffle, zero out one"]["configured"]
    assert "optimistic, NOT a guarantee" in rows["Poisson, per example"]["assumes"]
    assert answer["epsilon"] > rows["Poisson, per example"]["epsilon"]["rdp"]


def test_micro_batches_and_adaptive_clipping_cost(command):
    question = ["budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5", "--json"]
    plain = json.loads(command(*question)[1])["epsilon"]
    assert json.loads(command(*question, "--micro-batches", "32")[1])["epsilon"] > 2 * plain
    counted = json.loads(command(*question, "--fraction-stddev", "0.004")[1])["epsilon"]
    assert counted > 1.05 * plain


def test_decays_are_planned_with_their_own_steps(command):
    question = ["budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5", "--json"]
    answer = json.loads(command(*question, "--decay-policy", "Exp", "--decay-rate", "1e-4")[1])
    assert answer["last_noise_multiplier"] == pytest.approx(1.5 * 2.718281828 ** (-0.2339), rel=1e-4)
    assert answer["epsilon"] > 0.629


def test_every_accountant_gives_a_figure_or_a_reason(command):
    code, text, _ = command("budget", *MNIST, "-e", "1", "--noise-multiplier", "1.5", "--accountant", "all", "--json")
    assert code == 0
    figures = json.loads(text)["epsilon_by_accountant"]
    assert "no statement" in figures["zcdp"]
    assert figures["rdp"] > 0


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_accountant_without_a_rule_is_refused_with_the_remedy(command, form):
    code, text, error = command("budget", *MNIST, "-e", "1", "--noise-multiplier", "1.5", "--accountant", "zcdp", *form)
    assert (code, text) == (2, "")
    assert "zCDP has no amplification by sampling. Use the 'rdp' or 'pld' accountant" in error


def test_the_tutorial_of_mindarmour_is_shown_under_each_rule(command):
    code, text, _ = command("budget", ROOT / "configs" / "lenet5_mindarmour.yaml", "--json")
    assert code == 0
    rows = {row["name"]: row["epsilon"] for row in json.loads(text)["side_by_side"]}
    assert rows["Poisson, per example"]["rdp"] < rows["Poisson, micro-batches of 8"]["rdp"]
    assert rows["shuffle, zero out one"]["zcdp"] > rows["Poisson, per example"]["rdp"]


def test_a_rising_multiplier_is_described_as_rising(command):
    rising = "privacy.noise={name: ShapedGaussian, path: Linear, final_ratio: 1.5, last_step: 10}"
    _, text, _ = command("budget", *MNIST, "-e", "1", "--noise-multiplier", "1", "--set", rising)
    assert "noise multiplier  1 rising to 1.5" in text


def test_a_figure_of_an_unknown_format_is_refused(command, tmp_path):
    question = ["budget", *MNIST, "-e", "1", "--noise-multiplier", "1.5", "--plot", tmp_path / "epsilon.foo"]
    code, _, error = command(*question)
    assert code == 2
    assert "--plot: figures are saved as .png, .svg, .pdf, got" in error
    assert "bug in dpmodel" not in error


@pytest.mark.slow
def test_options_change_what_a_configuration_says(command):
    path = ROOT / "configs" / "lenet5_mnist.yaml"
    answer = json.loads(command("budget", path, "--noise-multiplier", "1.1", "--set", "training.epochs=3", "--json")[1])
    assert answer["asked"] == "epsilon"
    assert answer["noise_multiplier"] == 1.1
    assert answer["epochs"] == 3
    assert answer["num_examples"] == 60000


def test_the_table_says_what_each_figure_assumes(command):
    code, text, _ = command("budget", *MNIST, "-e", "10", "--noise-multiplier", "1.5")
    assert code == 0
    for words in ("0.629 (rdp)", "10.670 (zcdp)", "(configured)", "no amplification is claimed", "2,340 steps"):
        assert words in " ".join(text.split())


@pytest.mark.slow
def test_a_figure_of_epsilon_against_the_step_is_drawn(command, tmp_path):
    path = tmp_path / "epsilon.png"
    code, _, error = command("budget", "-n", "1000", "-b", "50", "-e", "2", "--noise-multiplier", "1.5", "--plot", path)
    assert code == 0, error
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_style_and_size_reach_the_figure(command, tmp_path):
    path = tmp_path / "epsilon.svg"
    question = ["budget", "-n", "1000", "-b", "50", "-e", "2", "--noise-multiplier", "1.5"]
    code, _, error = command(*question, "--plot", path, "--style", "dark", "--size", "3.5")
    assert code == 0, error
    assert 'width="252pt"' in path.read_text()
    assert "#0d1117" in path.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "epsilon.png", "--style", "drak"], "did you mean 'dark'"),
        (["--plot", "epsilon.png", "--size", "340"], "from 2.5 to 40, got 340"),
        (["--size", "3.4"], "apply to the figure of --plot; add --plot epsilon.png"),
        (["--style", "dark"], "apply to the figure of --plot; add --plot epsilon.png"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_with_the_reason(command, options, words):
    code, _, error = command("budget", *MNIST, "-e", "1", "--noise-multiplier", "1.5", *options)
    assert code == 2
    assert words in " ".join(error.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-b", "256"], "--epochs"),
        ([*MNIST, "-e", "10"], "--noise-multiplier or --target-epsilon"),
        ([*MNIST, "-e", "10", "--noise-multiplier", "0"], "noise_multiplier must be a positive finite number, got 0"),
        (
            [*MNIST, "-e", "10", "--noise-multiplier", "nan"],
            "noise_multiplier must be a positive finite number, got nan",
        ),
        ([*MNIST, "-e", "0", "--noise-multiplier", "1"], "training.epochs must be an integer of at least 1, got 0"),
        (
            [*MNIST, "-e", "1", "--noise-multiplier", "1", "--delta", "1"],
            "delta must be strictly between 0 and 1, got 1",
        ),
        ([*MNIST, "-e", "1", "--noise-multiplier", "1", "--target-epsilon", "3"], "give exactly one of"),
        (
            ["-n", "100", "-b", "256", "-e", "1", "--noise-multiplier", "1"],
            "batch_size=256 is larger than the data set of 100",
        ),
        (["-n", "0", "-b", "256", "-e", "1", "--noise-multiplier", "1"], "num_examples"),
        (["-b", "256", "-e", "1", "--noise-multiplier", "1"], "options are required: --num-examples (-n); see"),
        (
            [],
            "required: --num-examples (-n), --batch-size, --epochs, --noise-multiplier or --target-epsilon; see",
        ),
        ([*MNIST, "-e", "1", "--noise-multiplier", "1", "--accountant", "rpd"], "did you mean 'rdp'"),
        (
            [*MNIST, "-e", "1", "--noise-multiplier", "1", "--micro-batches", "7"],
            "must be a multiple of micro_batches=7",
        ),
        ([*MNIST, "--target-epsilon", "1", "--max-epsilon", "3"], "give privacy.noise_multiplier"),
        (
            [*MNIST, "--noise-multiplier", "1", "--max-epsilon", "-3"],
            "max_epsilon must be a positive finite number, got -3",
        ),
        ([*MNIST, "-e", "1", "--noise-multiplier", "1", "--decay-policy", "Sine"], "Sine"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_usage_is_refused_with_the_reason(command, arguments, words):
    code, _, error = command("budget", *arguments)
    assert code == 2
    assert words in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error


def test_the_budget_command_loads_nothing_heavy():
    code = (
        "import sys\nfrom dpmodel.cli.application import run\n"
        "run(['budget', '-n', '60000', '-b', '256', '-e', '10', '--noise-multiplier', '1.5'])\n"
        "loaded = {'torch', 'matplotlib', 'torchmetrics', 'scipy', 'torchvision'} & set(sys.modules)\n"
        "print('loaded:', sorted(loaded))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "loaded: []" in found.stdout
    assert "0.629" in found.stdout


def test_the_size_may_be_a_setting_too(command):
    question = ["budget", "-b", "256", "-e", "1", "--noise-multiplier", "1", "--json"]
    code, text, _ = command(*question, "--set", "data.num_examples=60000")
    assert code == 0
    assert json.loads(text) == json.loads(command(*question, "-n", "60000")[1])


def test_a_delta_that_is_too_large_has_a_note(command):
    question = ["budget", "-n", "300", "-b", "30", "-e", "1", "--noise-multiplier", "1", "--delta"]
    assert "delta 0.01 is not below 1 / 300 examples" in command(*question, "0.01")[1]
    assert "is not below" not in command(*question, "0.003")[1]


def test_help_shows_examples(command):
    for name in ("train", "eval", "budget"):
        code, text, _ = command(name, "--help")
        assert code == 0
        assert "Examples" in text
        assert f"dpmodel {name}" in text


def test_the_version_is_printed(command):
    import dpmodel

    assert command("--version")[1].strip() == f"dpmodel {dpmodel.__version__}"


def test_the_cost_of_a_search_is_shown_with_that_of_one_training(command):
    code, text, _ = command(
        "budget", *MNIST, "-e", 10, "--noise-multiplier", 2, "--tuning-runs", 10, "--accountant", "rdp", "--json"
    )
    assert code == 0
    rows = {row["name"]: row["epsilon"] for row in json.loads(text)["side_by_side"]}
    one, composed, stopped = (
        rows[name]["rdp"] for name in ("Poisson, per example", "best of 10 trainings", "best of about 10 trainings")
    )
    assert one < stopped < composed < 10 * one


def test_a_search_without_trainings_is_refused(command):
    code, _, errors = command("budget", *MNIST, "-e", 10, "--noise-multiplier", 2, "--tuning-runs", 0)
    assert code == 2
    assert "--tuning-runs" in errors


@pytest.mark.parametrize("rate", ["0.01", "3"])
@pytest.mark.parametrize("asked", [["--noise-multiplier", "1"], ["--target-epsilon", "3"]])
def test_a_decay_to_zero_noise_is_refused_before_accounting_and_names_the_rate(command, monkeypatch, rate, asked):
    monkeypatch.setattr("monitors.rdp.RDPAccountant.epsilon", lambda *_: pytest.fail("it was accounted for"))
    code, _, error = command("budget", *MNIST, "-e", "10", *asked, "--decay-policy", "Exp", "--decay-rate", rate)
    assert code == 2
    assert "privacy.noise.noise_decay_rate: the noise multiplier falls to" in error
    assert "of 2,340" in error
    assert f"lower the decay rate, {rate} (noise_decay_rate)" in error


def test_a_low_constant_multiplier_gets_an_answer(command):
    code, text, _ = command("budget", *MNIST, "-e", "1", "--noise-multiplier", "0.009", "--json")
    assert code == 0
    assert json.loads(text)["epsilon"] > 1000


def test_the_epochs_that_fit_a_steep_decay_end_when_the_noise_vanishes(command):
    decay = ["--decay-policy", "Exp", "--decay-rate", "0.008"]
    answer = json.loads(
        command("budget", *MNIST, "--noise-multiplier", "1", "--max-epsilon", "1e4", *decay, "--json")[1]
    )
    assert answer["epochs"] == 2
    assert answer["last_noise_multiplier"] > 0.01


def test_two_options_for_the_length_are_refused(command):
    code, _, error = command("budget", *MNIST, "-e", "3", "--noise-multiplier", "1", "--max-epsilon", "3")
    assert code == 2
    words = " ".join(error.replace("│", " ").split())
    assert "--max-epsilon 3 asks for the number of epochs, but --epochs 3 already sets it" in words


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_an_excessive_length_is_refused_before_its_steps_are_computed(command, monkeypatch, sampling):
    from dpmodel.planning.training_plan import TrainingPlan

    monkeypatch.setattr(TrainingPlan, "ledger", lambda *_: pytest.fail("steps were written down"))
    code, _, error = command(
        "budget", *MNIST, "--noise-multiplier", "100", "--max-epsilon", "100", "--sampling", sampling
    )
    assert code == 2
    for words in ("more than 8,547 epochs", "epsilon 100", "noise_multiplier=100", "Lower the noise multiplier"):
        assert words in error


def test_a_search_that_ends_at_its_smallest_multiplier_says_so(command):
    question = ["budget", *MNIST, "-e", "1", "--target-epsilon", "1e9"]
    words = "the search ends at a noise multiplier of 0.01, which stays below the target epsilon of 1e+09"
    assert words in command(*question)[1]
    assert words in json.loads(command(*question, "--json")[1])["notes"][0]


@pytest.mark.parametrize(
    ("name", "words"), [("gone/epsilon.png", "does not exist; create it first"), ("", "is a folder; give a file in it")]
)
def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_computed(
    command, monkeypatch, tmp_path, name, words
):
    monkeypatch.setattr("dpmodel.budget.answer.answer_budget", lambda *_, **__: pytest.fail("it was computed"))
    question = ["budget", *MNIST, "-e", "1", "--noise-multiplier", "1.5", "--plot", tmp_path / name]
    code, _, error = command(*question)
    assert code == 2
    assert f"--plot: {tmp_path / name}" in error
    assert words in error


@pytest.mark.sample(3)
@pytest.mark.parametrize("columns", [24, 40, 60])
def test_a_narrow_terminal_breaks_no_word_and_hides_no_figure(command, monkeypatch, columns):
    question = ["budget", *MNIST, "-e", "1", "--noise-multiplier", "1", "--accountant", "all"]
    monkeypatch.setenv("COLUMNS", "200")
    words = set(command(*question)[1].split())
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = {word.strip("(),") for word in command(*question)[1].split()}
    heading = {"rule", "and", "what", "it", "assumes"}
    assert {word.strip("(),") for word in words if word[0].isalnum()} - heading <= narrow


def test_a_missing_argument_of_a_mechanism_is_named(command):
    plugin = f"plugins=[{ROOT / 'examples' / 'custom_mechanism.py'}]"
    question = ["budget", *MNIST, "-e", "1", "--noise-multiplier", "1", "--set", plugin]
    code, _, error = command(*question, "--set", "privacy.noise=CosineGaussian")
    assert code == 2
    assert "privacy.noise: noise mechanism 'CosineGaussian' needs decay_steps" in error
    assert "__init__" not in error


def test_the_epochs_of_a_configuration_do_not_matter_if_none_fits(command):
    path = ROOT / "configs" / "lenet5_mnist_gaussian.yaml"
    decay = ["--noise-multiplier", "1", "--decay-policy", "Exp", "--decay-rate", "0.01", "--set", "training.epochs=500"]
    code, _, error = command("budget", path, *decay, "--max-epsilon", "0.01")
    assert code == 1
    assert "not even one epoch fits" in error
