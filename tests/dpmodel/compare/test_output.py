import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from dpmodel.compare.html_report import headline, to_html
from dpmodel.compare.output import write_outputs
from dpmodel.compare.pictures import SPREAD, curves_of, draw_comparison
from dpmodel.compare.tables import cells, compact, duration, headings, to_csv, to_markdown
from dpmodel.figures import FIGURES

VOID = {"meta", "link", "br", "img", "use", "input", "hr"}


class Page(HTMLParser):
    """Collects the contents of a page, and checks that its elements nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "data", "action") if values.get(name)]
        self.addresses += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in values.values()))
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(carried_out):
    write_outputs(carried_out.result, carried_out.folder)
    return carried_out.folder


@pytest.fixture
def page(written):
    page = Page()
    page.feed(written.html.read_text(encoding="utf-8"))
    return page


@pytest.mark.slow
def test_all_files_are_there_and_the_report_is_small(written):
    names = {path.name for path in written.figures.iterdir()}
    assert names == {f"{name}.{kind}" for name in (SPREAD, *FIGURES) for kind in ("png", "svg")}
    assert all(path.is_file() for path in (written.csv, written.markdown, written.json, written.html))
    assert written.html.stat().st_size < 5_000_000


def test_the_report_is_complete_and_well_formed(page, carried_out):
    assert page.open == []
    assert page.tags.count("svg") == page.tags.count("figure") == len(FIGURES) + 1
    assert page.tags.count("title") >= 1
    text = " ".join(page.text)
    for row in carried_out.result.variants:
        assert row.name in text
    assert "not accounted as one release" in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_fetches_nothing_and_runs_nothing(page, written):
    assert "script" not in page.tags
    own = {f"#{name}" for name in page.ids}
    assert page.addresses
    assert {address for address in page.addresses if address not in own} <= {"data:,"}
    text = written.html.read_text(encoding="utf-8")
    assert "http" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))


def test_figures_in_the_report_follow_the_colours_of_the_page(written):
    svg = "".join(re.findall(r"<svg.*?</svg>", written.html.read_text(encoding="utf-8"), flags=re.DOTALL))
    assert "var(--ink)" in svg
    assert "var(--series-0)" in svg
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)


def test_names_and_settings_cannot_break_the_page(carried_out):
    figures = draw_comparison(carried_out.result, carried_out.folder.curves)
    html = to_html(carried_out.result, figures)
    assert "<b>rdp</b>" in html
    assert "<script" not in html


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_the_report_without_errors(written, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    ran = subprocess.run(
        ["chromium", *flags.split(), f"--user-data-dir={tmp_path}", written.html.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0
    assert ran.stdout.count("<svg") == len(FIGURES) + 1
    assert "CONSOLE" not in ran.stderr


def test_every_line_of_the_epsilon_figure_ends_at_the_target(carried_out):
    for curve in curves_of(carried_out.result, carried_out.folder.curves):
        assert curve.privacy.epsilons[-1] == pytest.approx(3.0, rel=1e-3)
        assert curve.privacy.epsilons[-1] <= 3.0
        assert list(curve.privacy.epsilons) == sorted(curve.privacy.epsilons)


def test_csv_has_a_line_per_run_with_the_numbers_in_full(carried_out):
    rows = list(csv.DictReader(to_csv(carried_out.result).splitlines()))
    runs = [run for row in carried_out.result.variants for run in row.runs]
    assert [float(row["epsilon"]) for row in rows] == [run.epsilon for run in runs]
    assert [float(row["value"]) for row in rows] == [run.value for run in runs]


def test_json_and_markdown_state_the_same_comparison(written, carried_out):
    stated = json.loads(written.json.read_text())
    assert stated["equal_epsilon"] is True
    assert [row["name"] for row in stated["variants"]] == [row.name for row in carried_out.result.variants]
    assert stated["variants"][0]["difference"] is None
    assert stated["composed"]["epsilon"] > 3.0
    markdown = to_markdown(carried_out.result)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(carried_out.result.variants)
    assert {line.count("|") for line in table} == {len(headings(carried_out.result)) + 1}


def test_the_table_says_what_the_runs_say(carried_out):
    fixed, *_ = carried_out.result.variants
    row = cells(carried_out.result)[0]
    assert row[0] == "fixed"
    assert row[1] == f"{100 * sum(run.value for run in fixed.runs) / 2:.2f}"
    assert row[4] == "baseline"
    names, rows = compact(carried_out.result)
    assert {len(one) for one in rows} == {len(names)}


def test_the_headline_claims_no_difference_that_the_intervals_do_not_show(carried_out):
    shown = [row.difference for row in carried_out.result.variants if row.difference is not None]
    if all(one.low <= 0 <= one.high for one in shown):
        assert headline(carried_out.result).startswith("At equal epsilon, no variant is shown to differ from fixed")
    else:
        assert "than fixed" in headline(carried_out.result)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations_are_for_people(seconds, words):
    assert duration(seconds) == words
