"""The values and the words of a privacy card."""

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import yaml

from dpmodel.config import make_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.report import make_report, report_in_words
from dpmodel.runs.report.document import to_html
from dpmodel.runs.report.fields import MISSING, SECTIONS, card_blocks
from dpmodel.runs.report.formats import (
    FORMATS,
    REGISTRY_FIELDS,
    card_formats,
    huggingface_card,
    registry_csv,
    registry_entry,
    registry_line,
)
from dpmodel.runs.report.pictures import card_figure
from dpmodel.runs.report.privacy_figures import DELTAS, NO_GUARANTEE, ORDERS
from dpmodel.runs.report.stored import report_from_json
from monitors import PLDAccountant, TradeOffCurve, group_epsilon
from monitors.errors import ConfigError
from monitors.events import ViolationEvent
from monitors.renyi import total_curve
from monitors.terms import gather

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"noise_multiplier": 1.5},
    "training": {"epochs": 2, "batch_size": 50},
}
#: What no figure may stand beside.
NOT_HELD = {
    "no noise": ["privacy.noise=null", "privacy.noise_multiplier=null"],
    "known noise": ["privacy.noise.seed=3"],
    "known sampling": ["privacy.sampling_seed=3"],
}
FIGURES = ("profile", "mu", "regret", "rho", "rdp", "true_positive_rates", "posteriors", "advantage", "correct_guesses")


def plan(*overrides):
    return plan_training(make_config(BASE, overrides), 1000)


def report(*overrides, **given):
    made = plan(*overrides)
    return make_report(made.subject, made.ledger(), made.steps, **given)


def words(*overrides, **given):
    return report_in_words(report(*overrides, **given))


@pytest.fixture(scope="module")
def plain():
    return report()


def test_every_field_of_the_description_has_a_value(plain):
    assert {section.key for section in SECTIONS} == set(plain.card)
    for section in SECTIONS:
        assert {field.key for field in section.fields} <= set(plain.card[section.key])
        for label, text in section.rows(plain.card):
            assert text
            assert text != MISSING
            assert "not readable" not in text
            assert f"| {label} | " in report_in_words(plain)


def test_the_figures_are_those_of_the_ledger(plain):
    ledger = plan().ledger()
    curve, values = TradeOffCurve.of(ledger), plain.to_dict()["card"]
    assert values["curve"]["mu"] == curve.gaussian_fit()[0]
    assert values["attacker"]["advantage"] == curve.advantage
    assert values["attacker"]["correct_guesses"] == (1 + curve.advantage) / 2
    assert values["attacker"]["true_positive_rates"][1] == [0.01, curve.true_positive_rate(0.01)]
    reached = curve.true_positive_rate(0.001)
    assert values["attacker"]["posteriors"][0] == [0.001, reached / (reached + 0.001)]
    assert [delta for delta, _ in values["curve"]["profile"]] == list(DELTAS)
    for delta, epsilon in values["curve"]["profile"]:
        assert epsilon == pytest.approx(PLDAccountant().epsilon(ledger, delta), rel=3e-3)
    assert values["curve"]["rdp"]["values"] == total_curve(gather(ledger), np.array(ORDERS)).tolist()


def test_the_profile_of_a_weak_guarantee_is_that_of_the_accountant():
    weak = report("privacy.noise_multiplier=0.3", "privacy.accountant=pld")
    assert weak.spent.epsilon > 40
    assert dict(weak.card["curve"]["profile"])[1e-5] == pytest.approx(weak.spent.epsilon)
    assert "inf" not in str(weak.card["curve"]["profile"])


def test_rho_is_stated_where_it_is_zcdp():
    shuffled = report("privacy.sampling=shuffle", "privacy.noise_multiplier=2")
    assert shuffled.card["curve"]["rho"] == pytest.approx(2 / (2 * 2.0**2))
    assert "not zCDP" in report().card["curve"]["rho"]


@pytest.mark.parametrize("overrides", NOT_HELD.values(), ids=NOT_HELD)
def test_no_figure_stands_on_a_card_without_a_guarantee(overrides):
    made = report(*overrides, "card.contributions_per_person=3")
    values = {**made.card["curve"], **made.card["attacker"]}
    assert {name: values[name] for name in FIGURES} == dict.fromkeys(FIGURES, NO_GUARANTEE)
    assert made.card["unit"]["person_epsilon"] == NO_GUARANTEE
    assert made.losses_json() is None
    assert card_figure(made, plan(*overrides).ledger()) is None
    assert registry_entry(made)["epsilon"] == NO_GUARANTEE
    assert registry_entry(made)["mu"] is None
    assert "epsilon: no guarantee" in huggingface_card(made)
    assert f"| Advantage (true- minus false-positive rate) | {NO_GUARANTEE} |" in report_in_words(made)


def test_a_violation_takes_every_figure_from_the_card():
    made, ledger = plan(), plan().ledger().record(ViolationEvent("found"))
    void = make_report(made.subject, ledger, made.steps)
    assert set(void.card["attacker"].values()) == {NO_GUARANTEE}
    assert registry_entry(void)["guarantee"] == "void"


def test_a_bound_on_contributions_gives_the_epsilon_of_a_person():
    made = report("card.contributions_per_person=3")
    assert made.card["unit"]["person_epsilon"] == group_epsilon(plan().ledger(), 1e-5, 3)
    assert "at most 3 examples per person, as declared by the user" in report_in_words(made)
    assert "no bound is declared" in words()
    assert report("card.contributions_per_person=1").card["unit"]["person_epsilon"] == made.spent.epsilon


def test_a_public_number_of_examples_replaces_the_true_one():
    texts = []
    for rows in (900, 1000):
        config = make_config(BASE, ["privacy.num_examples_public=1000"])
        made = plan_training(config, rows)
        texts.append(make_report(made.subject, made.ledger(), made.steps).to_json())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["epsilon"] == report().spent.epsilon
    assert "stated as 1,000, which sets the sampling rate" in words("privacy.num_examples_public=1000")
    assert "The true number of training examples changes no rate" in words("privacy.num_examples_public=1000")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy.num_examples_public=1000", "data.num_examples=900"], "data.num_examples=900 states the true number"),
        (["privacy.num_examples_public=1000", "privacy.sampling=shuffle"], "does not go together with sampling"),
        (["privacy.num_examples_public=1000", "data.limit=900"], "data.limit=900 chooses rows by a permutation of all"),
        (["privacy.num_examples_public=1000", "data.validation=9"], "data.validation=9 chooses rows by a permutation"),
        (["privacy.num_examples_public=40"], "smaller than batch_size=50"),
        (["privacy.num_examples_public=499"], "less than half the number of rows"),
        (
            [
                "privacy.num_examples_public=1000",
                "normalise={name: private, noise_multiplier: 9, norm_bound: 1, square_bound: 1}",
            ],
            "normalise divides its private mean and variance by the true number",
        ),
    ],
)
def test_what_a_public_number_cannot_cover_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan(*overrides)


def test_a_choice_of_rows_by_position_states_its_neighbours():
    assert "one of them is left blank" not in words()
    assert "data.limit chooses rows by their position among all rows" in words("data.limit=400")
    both = words("data.limit=400", "data.validation=9")
    assert "data.limit and data.validation choose rows by their position" in both
    assert "one of them is left blank" in both


def test_a_plan_without_data_uses_the_public_number():
    config = make_config(BASE, ["data.name=npz", "data.root=x.npz", "privacy.num_examples_public=1000"])
    assert plan_training(config).ledger().digest() == plan().ledger().digest()


def test_metrics_on_private_data_are_omitted():
    metrics = {"accuracy": 0.912345}
    hidden, shown = report(metrics=metrics), report("card.evaluation_data=public", metrics=metrics)
    for kind in FORMATS.names():
        assert "0.9123" not in FORMATS.get(kind).text(hidden)
    assert "omitted: the evaluation data are not declared public" in report_in_words(hidden)
    assert "accuracy 0.9123 (one run: no spread)" in report_in_words(shown)


def test_what_the_user_declares_is_on_the_card_as_a_declaration():
    text = words(
        "card.accesses=[{kind: tuning, description: 20 runs on public data, privacy: public}]",
        "card.utility=[{metric: accuracy, value: 0.9, spread: 0.01, runs: 5, baseline: 0.95, data: the test set}]",
        "card.release=weights on the Hub",
        "card.threat_model=a curious customer",
        "card.governance={owner: ACME, contact: privacy@acme.example}",
    )
    for phrase in (
        "| Tuning | 20 runs on public data (public; source: declared) |",
        "accuracy 0.9 ± 0.01 over 5 runs, without privacy 0.95, on the test set",
        "| What is released | weights on the Hub |",
        "a curious customer",
        "owner: ACME; contact: privacy@acme.example",
    ):
        assert phrase in text


def test_accesses_that_the_configuration_names_are_found():
    text = words(
        "data.validation=100",
        "data.mean=0.1",
        "callbacks=[EarlyStopping]",
        "features={name: network, network: lenet5, weights: a.ckpt}",
    )
    for phrase in (
        "accuracy, loss of 100 examples held back from the training data after each epoch",
        "| Early stopping and choice of a checkpoint | EarlyStopping, by metrics of 100 examples held back",
        "data.mean, stated as public constants (public; source: dpmodel)",
        "features by 'network', which must not have been trained on the private data",
    ):
        assert phrase in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("card.contributions_per_person=0", "contributions_per_person must be an integer of at least 1"),
        ("card.accesses=[{kind: guesses, description: x}]", "kind"),
        ("card.utility=[{metric: accuracy, value: 0.9, spread: 0.1, data: x}]", "state runs, at least 2"),
        ("card.utility=[{metric: accuracy, value: .nan, data: x}]", "value must be a finite number"),
        ("card.subgroups={file: g.csv, column: g}", "evaluation_data: public"),
        ("card.evaluation=public", "did you mean 'evaluation_data'"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_place(override, message):
    with pytest.raises(ConfigError, match=message):
        make_config(BASE, [override])


def test_the_card_changes_no_setting_of_the_training():
    from dpmodel.config.identity import settings_by_path

    one, other = make_config(BASE), make_config(BASE, ["card.governance.owner=ACME"])
    assert settings_by_path(one) == settings_by_path(other)
    assert not any(path.startswith("card") for path in settings_by_path(one))


def test_no_percentage_is_rounded_down(plain):
    shown = dict(next(section for section in SECTIONS if section.key == "attacker").rows(plain.card))
    number = float(shown["Advantage (true- minus false-positive rate)"].removeprefix("at most ").removesuffix(" %"))
    exact = 100 * plain.card["attacker"]["advantage"]
    assert exact <= number <= exact + 0.011


def test_any_text_survives_each_form():
    strange = 'a | b\n# c <script>alert("x")</script> `d` **e**\n---\nz: 1'
    made = dataclasses.replace(report(), card={**report().card, "governance": {"statements": {"owner": strange}}})
    page = made.to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    rows = [line for line in report_in_words(made).splitlines() if line.startswith("|")]
    assert any("a \\| b # c" in row for row in rows)
    assert registry_line(made).count("\n") == 1
    (entry,) = csv.DictReader(io.StringIO(registry_csv(made)))
    assert entry["organisation"] == strange
    head = huggingface_card(
        dataclasses.replace(made, card={**made.card, "governance": {"statements": {"license": strange}}})
    )
    assert yaml.safe_load(head.split("---\n")[1])["license"].startswith("a | b # c")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_of_a_csv_file_is_a_formula(first):
    formula = f"{first}HYPERLINK(1)"
    made = dataclasses.replace(report(), card={**report().card, "governance": {"statements": {"owner": formula}}})
    (entry,) = csv.DictReader(io.StringIO(registry_csv(made), newline=""))
    assert entry["organisation"] == f"'{formula}"
    assert json.loads(registry_line(made))["organisation"] == formula


def test_a_text_of_the_user_is_neither_markup_nor_the_claim():
    strange = "**The training satisfies (0.1, 0)-DP**\n# Certified\n<img src=x onerror=alert(1)>"
    statements = {"title": f"# a\\{strange}", "purpose": strange, "owner": "a\\|b \\<i>", "license": "none"}
    made = dataclasses.replace(report(), card={**report().card, "governance": {"statements": statements}})
    for text in (str(made), huggingface_card(made)):
        body = text.split("---\n\n", 1)[-1]
        assert not re.search(r"(?<!\\)(\\\\)*<", body)
        assert "\n# Certified" not in body
    blocks = huggingface_card(made).split("---\n\n", 1)[1].split("\n\n")
    assert blocks[1].startswith("**The training satisfies (1.286, 1e-05)")
    assert blocks[2].startswith("Purpose, as stated by the user: ")
    (row,) = (line for line in str(made).splitlines() if line.startswith("| Statements of the user"))
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


def test_a_text_of_a_file_begins_no_block():
    values = report().to_dict()
    values |= {"unit": "example\n\n# Certified", "not_accounted": ["a\n\n# b", "# c"], "status": "ended\n\n# d"}
    text = str(report_from_json(values, plan().ledger(), "x.json"))
    assert [line for line in text.splitlines() if line.startswith(("# ", "- #"))] == ["# Privacy report"]


@pytest.mark.parametrize("overrides", NOT_HELD.values(), ids=NOT_HELD)
def test_a_model_without_a_guarantee_is_not_called_private(overrides):
    made = report(*overrides)
    head, body = huggingface_card(made).split("---\n\n", 1)
    assert "differential-privacy" not in head
    assert body.startswith("# Model trained without a privacy guarantee")
    assert registry_entry(made)["definition"] == "none"
    assert "# Model trained with differential privacy" in huggingface_card(report())


def test_the_json_form_holds_plain_values_and_all_sections(plain):
    values = json.loads(plain.to_json(), parse_constant=pytest.fail)
    assert values["format"] == "dpmodel-privacy-report/1"
    assert list(values["card"]) == list(plain.card)


def test_a_registry_entry_is_flat_and_complete(plain):
    entry = registry_entry(plain)
    assert list(entry) == list(REGISTRY_FIELDS)
    assert all(value is None or isinstance(value, str | int | float | bool) for value in entry.values())
    assert (entry["epsilon"], entry["privacy_unit"], entry["trust_model"]) == (
        plain.spent.epsilon,
        "example",
        "central",
    )
    assert json.loads(registry_line(plain)) == entry


def test_an_unknown_form_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'markdown'"):
        card_formats(["markdwn"])


def test_a_report_without_a_card_renders_and_says_what_is_missing(plain):
    values = plain.to_dict()
    del values["card"]
    old = report_from_json(values, plan().ledger(), "old.json")
    text = report_in_words(old)
    assert f"| Randomness | {MISSING} |" in text
    assert f"| Tuning | {MISSING} |" in text
    assert old.card["curve"]["mu"] == plain.card["curve"]["mu"]
    assert (old.spent, old.steps, old.verified) == (plain.spent, plain.steps, plain.verified)
    for name in FORMATS.names():
        assert FORMATS.get(name).text(old)


def test_stored_figures_are_never_trusted(plain):
    values = plain.to_dict()
    values["epsilon"], values["card"]["attacker"]["advantage"], values["card"]["curve"]["mu"] = 0.01, 0.0, 0.0
    values["card"]["audit"] = {"result": {"counts": True, "words": "perfect", "file": "x"}}
    read = report_from_json(values, plan().ledger(), "x.json")
    assert read.spent.epsilon == plain.spent.epsilon
    assert read.card["attacker"] == plain.card["attacker"]
    assert "perfect" not in report_in_words(read)


@pytest.mark.parametrize(
    "change",
    [
        {"delta": "none"},
        {"delta": 2},
        {"accountant": "nope"},
        {"steps": -1},
        {"mechanism": []},
        {"mechanism": {}},
        {"not_accounted": None},
        {"card": []},
        {"card": {"unit": {"contributions_per_person": "many"}}},
        {"card": {"governance": {"statements": [1]}}},
        {"card": {"utility": {"declared": [{"metric": "accuracy"}]}}},
        {"card": {"utility": {"declared": 7}}},
    ],
)
def test_a_damaged_report_is_refused(change, plain):
    with pytest.raises(ConfigError, match=r"bad\.json is not a privacy report that can be read"):
        report_from_json({**plain.to_dict(), **change}, plan().ledger(), "bad.json")


def test_a_strange_value_in_a_stored_card_is_named_where_it_stands(plain):
    values = plain.to_dict()
    values["card"]["release"]["randomness"] = {"a": 1}
    values["card"]["accesses"]["accesses"] = 7
    text = report_in_words(report_from_json(values, plan().ledger(), "x.json"))
    assert "| Tuning | not readable: 7 |" in text


def test_statements_of_a_stored_card_are_texts_in_every_form(plain):
    values = plain.to_dict()
    values["card"]["governance"]["statements"] = {"title": 3, "license": None}
    read = report_from_json(values, plan().ledger(), "x.json")
    assert [FORMATS.get(name).text(read) for name in FORMATS.names()]
    assert registry_entry(read)["deployment"] == "3"


def test_the_figure_shows_both_curves(plain):
    figure = card_figure(plain, plan().ledger())
    left, right = figure.axes
    assert left.lines[0].get_ydata()[-1] == pytest.approx(plain.spent.epsilon)
    assert right.lines[0].get_label() == "this training"
    gaussian, curve = right.lines[1].get_ydata(), right.lines[0].get_ydata()
    assert np.all(gaussian <= curve + 1e-9)


def test_a_page_needs_nothing_else(plain):
    page = to_html(card_blocks(plain.card))
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<h2>") == len(SECTIONS)


@pytest.mark.parametrize(
    "override", ["privacy.noise_multiplier=1.5", "privacy.noise={name: AdaGaussian, noise_decay_rate: 0.001}"]
)
def test_a_card_is_made_in_a_second(override):
    import time

    made = plan(override)
    ledger, spent = made.ledger(), []
    for _ in range(3):  # the first one imports modules
        begun = time.process_time()
        card = make_report(made.subject, ledger, made.steps)
        assert all(FORMATS.get(name).text(card) for name in FORMATS.names())
        spent.append(time.process_time() - begun)
    assert min(spent) < 1.0
    assert math.isfinite(card.card["curve"]["mu"])
