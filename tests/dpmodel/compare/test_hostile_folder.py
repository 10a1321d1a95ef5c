"""Changed files in the folder of a comparison or search: one-line errors, and never a smaller epsilon."""

import copy
import json
import math
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpmodel.compare import run_comparison
from dpmodel.compare.equal_epsilon import calibrate_variants
from dpmodel.compare.folder import ComparisonFolder
from dpmodel.compare.output import write_outputs
from dpmodel.compare.pictures import curves_of
from dpmodel.compare.results import collect
from dpmodel.tuning import make_tuning, run_tuning
from dpmodel.tuning.drawn import _digest
from monitors import Ledger, RDPAccountant
from monitors.errors import ConfigError, DataError, DPModelError

pytestmark = pytest.mark.slow

SEARCH = {
    "base": {
        "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
        "network": {"name": "linear"},
        "optimizer": {"name": "SGD", "lr": 0.5},
        "privacy": {"target_epsilon": 8.0, "accountant": "rdp"},
        "training": {"epochs": 1, "batch_size": 20},
        "output": {"curve": False},
    },
    "search": {"optimizer.lr": {"low": 0.01, "high": 1.0, "scale": "log"}},
    "runs": 3,
    "charge": "all",
}
FUZZ = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

#: Values that a JSON file of this library never holds in that place.
ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    "",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": 1},
    10**60,
]


def places(value, path=()):
    """Every path in a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in entries:
        yield from places(inside, (*path, key))


def changed(draw, value):
    """A JSON value with one entry removed or replaced."""
    path = draw(st.sampled_from(list(places(value))))
    new = copy.deepcopy(value)
    if not path:
        return draw(st.sampled_from(ODD))
    parent = new
    for key in path[:-1]:
        parent = parent[key]
    if draw(st.booleans()):
        del parent[path[-1]]
    else:
        parent[path[-1]] = draw(st.sampled_from(ODD))
    return new


def mutate(draw, root):
    """Change one file or folder below ``root``, and say how."""
    files = sorted(path for path in root.rglob("*") if path.suffix in {".json", ".jsonl", ".yaml", ".csv"})
    path = draw(st.sampled_from(files))
    kinds = ["truncate", "empty", "nest", "binary", "swap", "rename", "folder", "link"]
    kind = draw(st.sampled_from(kinds + ["change"] * 6 if path.suffix == ".json" else kinds))
    if kind == "change":
        with suppress(ValueError):
            path.write_text(json.dumps(changed(draw, json.loads(path.read_text()))))
    elif kind == "truncate":
        content = path.read_bytes()
        path.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif kind == "empty":
        path.write_text("")
    elif kind == "nest":
        path.write_text("[" * 100_000)
    elif kind == "binary":
        path.write_bytes(b"\xff\x00\xfe" * 50)
    elif kind == "swap":
        other = draw(st.sampled_from([one for one in files if one.name == path.name]))
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    elif kind == "rename":
        folders = sorted({one.parent for one in files} - {root})
        folder = draw(st.sampled_from(folders))
        folder.rename(folder.with_name(draw(st.sampled_from(["other", "seed-9", "x.previous-1", "deadbeef"]))))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "link":
        path.unlink()
        path.symlink_to("/dev/zero" if path.parent == root else "/dev/null")
    return f"{kind} {path.relative_to(root)}"


@pytest.fixture(scope="module")
def compared(carried_out):
    """A finished comparison of two variants, to be copied; its total epsilon."""
    write_outputs(carried_out.result, carried_out.folder)
    return carried_out


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return run_tuning(make_tuning(SEARCH), tmp_path_factory.mktemp("search"), jobs=1)


def require_harmless(root, draw, again, before):
    """After a change, ``again`` refuses in one line or states at least ``before``, and writes nowhere else."""
    with tempfile.TemporaryDirectory() as around:
        copied = Path(around) / "a" / "b" / "folder"
        shutil.copytree(root, copied)
        what = mutate(draw, copied)
        try:
            epsilon = again(copied)
        except (DPModelError, OSError) as error:
            said, epsilon = str(error), before
        else:
            said = ""
        assert "\n" not in said, what
        assert len(said) < 2000, what
        assert epsilon >= before * (1 - 1e-9), what
        assert [path for path in Path(around).rglob("*") if copied not in (path, *path.parents)] == [
            copied.parent.parent,
            copied.parent,
        ], what


def compare_again(compared, folder):
    found = run_comparison(compared.result.comparison, folder, jobs=1)
    if found.result is None:
        return math.inf
    curves_of(found.result, found.folder.curves)
    return found.result.composed.epsilon


def test_a_changed_file_of_a_comparison_is_refused_or_harmless(compared):
    @FUZZ
    @given(st.data())
    def check(data):
        again = lambda folder: compare_again(compared, folder)  # noqa: E731
        require_harmless(compared.folder.path, data.draw, again, compared.result.composed.epsilon)

    check()


def test_a_changed_file_of_a_search_is_refused_or_harmless(searched):
    @FUZZ
    @given(st.data())
    def check(data):
        again = lambda folder: run_tuning(make_tuning(SEARCH), folder, jobs=1).spent.epsilon  # noqa: E731
        require_harmless(searched.folder, data.draw, again, searched.spent.epsilon)

    check()


@pytest.fixture
def comparison_folder(compared, tmp_path):
    return Path(shutil.copytree(compared.folder.path, tmp_path / "copy"))


@pytest.fixture
def search_folder(searched, tmp_path):
    return Path(shutil.copytree(searched.folder, tmp_path / "copy"))


def rewritten(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


class TestComparison:
    def test_epsilon_is_computed_from_the_ledger_and_a_report_that_disagrees_is_named(
        self, compared, comparison_folder
    ):
        report = comparison_folder / "runs/fixed/seed-1/privacy_report.json"
        rewritten(report, lambda values: values.update(epsilon=0.1, epsilon_without_lost_steps=0.1))
        result = run_comparison(compared.result.comparison, comparison_folder, jobs=1).result
        assert result.variants[0].runs[0].epsilon == pytest.approx(compared.result.variants[0].runs[0].epsilon)
        note = f"{report} states epsilon 0.1, but its ledger gives 2.999"
        assert any(text.startswith(note) and "which counts" in text for text in result.caveats)

    def test_a_report_that_says_finished_over_a_shorter_ledger_is_refused(self, compared, comparison_folder):
        run = comparison_folder / "runs/fixed/seed-1"
        ledger = Ledger.load(run / "ledger.json").head(4)
        ledger.save(run / "ledger.json")
        rewritten(run / "privacy_report.json", lambda values: values.update(ledger_digest=ledger.digest(), journals=[]))
        with pytest.raises(DataError, match=r"not written by the training of releases\.jsonl beside it"):
            run_comparison(compared.result.comparison, comparison_folder, jobs=1)
        for name in ("releases.jsonl", "checkpoint.safetensors"):  # all that contradicts the shorter ledger
            (run / name).unlink(missing_ok=True)
        with pytest.raises(DataError, match=r"says that the training is finished, but ledger\.json holds 4 of 6 steps"):
            run_comparison(compared.result.comparison, comparison_folder, jobs=1)

    @pytest.mark.parametrize("value", [0.5, 1e6, -1.0, 0, "1", None, [1.0], True])
    def test_a_wrong_multiplier_in_the_cache_is_solved_again(self, compared, comparison_folder, value):
        cache = comparison_folder / "multipliers.json"
        right = json.loads(cache.read_text())
        cache.write_text(json.dumps(dict.fromkeys(right, value)))
        found = run_comparison(compared.result.comparison, comparison_folder, jobs=1)
        assert found.reused == 6
        assert json.loads(cache.read_text()) == right

    def test_a_curve_in_the_cache_that_was_changed_is_computed_again(self, compared, comparison_folder):
        cache = comparison_folder / "privacy_curves.json"
        right = [curve.privacy for curve in curves_of(compared.result, cache)]
        rewritten(cache, lambda values: [entry[1].__setitem__(2, 0.001) for entry in values.values()])
        assert [curve.privacy for curve in curves_of(compared.result, cache)] == right

    def test_a_missing_ledger_is_refused_before_more_is_trained(self, compared, comparison_folder):
        (comparison_folder / "runs/fixed/seed-1/ledger.json").unlink()
        with pytest.raises(DataError, match=r"fixed/seed-1/ledger\.json is missing beside a training that began"):
            run_comparison(compared.result.comparison, comparison_folder, jobs=1)

    @pytest.mark.parametrize("place", ["runs/elsewhere", "runs/a/b/c/d"])
    def test_a_moved_run_folder_still_counts(self, compared, comparison_folder, place):
        (comparison_folder / place).parent.mkdir(parents=True, exist_ok=True)
        (comparison_folder / "runs/fixed/seed-1").rename(comparison_folder / place)
        result = run_comparison(compared.result.comparison, comparison_folder, jobs=1).result
        assert result.trainings == 7
        assert result.composed.epsilon > compared.result.composed.epsilon

    def test_a_linked_run_folder_counts_once_and_a_loop_ends(self, compared, comparison_folder, tmp_path):
        run = comparison_folder / "runs/fixed/seed-1"
        run.rename(tmp_path / "far")
        run.symlink_to(tmp_path / "far")
        (comparison_folder / "runs/fixed/loop").symlink_to(comparison_folder)
        result = run_comparison(compared.result.comparison, comparison_folder, jobs=1).result
        assert result.trainings == 6

    def test_a_deleted_run_folder_is_charged_and_named(self, compared, comparison_folder):
        run = comparison_folder / "runs/fixed/seed-1"
        shutil.rmtree(run)
        # without training it again
        found = compared.result
        result = collect(
            found.comparison, calibrate_variants(found.comparison, None), ComparisonFolder(comparison_folder)
        )
        assert result.composed.epsilon == pytest.approx(found.composed.epsilon)
        assert f"an earlier training in {run} has vanished: it is charged in full" in result.caveats

    def test_each_deletion_of_a_run_folder_stays_charged_after_it_was_trained_again(self, compared, comparison_folder):
        epsilons = [compared.result.composed.epsilon]
        for deleted, trainings in (("runs/fixed/seed-1", 7), ("runs/fixed/seed-1", 8), ("runs", 14)):
            shutil.rmtree(comparison_folder / deleted)
            result = run_comparison(compared.result.comparison, comparison_folder, jobs=1).result
            assert result.trainings == trainings
            epsilons.append(result.composed.epsilon)
        assert epsilons == sorted(set(epsilons))

    def test_a_run_folder_that_is_deleted_beside_one_that_was_moved_aside_is_charged(self, compared, comparison_folder):
        run = comparison_folder / "runs/fixed/seed-1"
        run.rename(run.with_name("seed-1.previous-1"))
        run_comparison(compared.result.comparison, comparison_folder, jobs=1)
        shutil.rmtree(run)
        assert run_comparison(compared.result.comparison, comparison_folder, jobs=1).result.trainings == 8

    def test_one_training_does_not_stand_for_two_runs(self, compared, comparison_folder):
        runs = comparison_folder / "runs/fixed"
        shutil.rmtree(runs / "seed-2")
        shutil.copytree(runs / "seed-1", runs / "seed-2")
        with pytest.raises(DataError, match="fixed/seed-1 hold the same training"):
            run_comparison(compared.result.comparison, comparison_folder, jobs=1)

    def test_a_changed_configuration_runs_no_plugin(self, compared, comparison_folder, tmp_path):
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        for config in comparison_folder.rglob("config.resolved.yaml"):
            config.write_text(config.read_text().replace("plugins: []", f"plugins: [{tmp_path / 'evil.py'}]"))
            assert "evil" in config.read_text()
        run_comparison(compared.result.comparison, comparison_folder, jobs=1)
        assert not (tmp_path / "ran").exists()

    def test_leftovers_of_killed_writes_are_removed(self, compared, comparison_folder):
        left = comparison_folder / ".comparison.json.0123456789abcdef.tmp"
        left.write_text("{")
        run_comparison(compared.result.comparison, comparison_folder, jobs=1)
        assert not left.exists()


class TestSearch:
    def again(self, folder):
        return run_tuning(make_tuning(SEARCH), folder, jobs=1)

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: (values["runs"].pop(), values["names"].pop()),
            lambda values: values["runs"].reverse(),
            lambda values: values["names"].__setitem__(0, "../../x"),
            lambda values: values["names"].__setitem__(0, "/tmp/x"),
            lambda values: values["names"].__setitem__(0, "a\0b"),
            lambda values: values["names"].__setitem__(0, "x" * 5000),
            lambda values: values["names"].__setitem__(1, values["names"][0]),
            lambda values: values["runs"].__setitem__(0, {"optimizer.lr": 0.2}),
        ],
    )
    def test_a_changed_list_of_runs_is_refused(self, search_folder, change):
        rewritten(search_folder / "search.json", change)
        with pytest.raises(ConfigError, match=r"search\.json was changed after it was written"):
            self.again(search_folder)

    @pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a\0b", "x" * 5000, 7, None, "", "."])
    def test_a_name_that_leaves_the_folder_is_refused_even_if_it_is_sealed(self, search_folder, name):
        def change(values):
            del values["seal"]
            values["names"][0] = name
            values["seal"] = _digest(values)

        rewritten(search_folder / "search.json", change)
        with pytest.raises(ConfigError, match=r"search\.json"):
            self.again(search_folder)

    def test_a_run_that_the_list_does_not_name_counts(self, searched, search_folder):
        def change(values):
            del values["seal"], values["runs"][0], values["names"][0]
            values["seal"] = _digest(values)

        rewritten(search_folder / "search.json", change)
        assert self.again(search_folder).spent.epsilon >= searched.spent.epsilon

    def test_a_run_that_was_removed_from_the_list_and_the_disk_keeps_its_charge(self, searched, search_folder):
        name = json.loads((search_folder / "search.json").read_text())["names"][0]

        def change(values):
            del values["seal"], values["runs"][0], values["names"][0]
            values["seal"] = _digest(values)

        rewritten(search_folder / "search.json", change)
        shutil.rmtree(search_folder / "trials" / name)
        (search_folder / "begun" / name).unlink()
        assert self.again(search_folder).spent.epsilon >= searched.spent.epsilon * (1 - 1e-3)

    def test_a_run_whose_folder_vanished_is_charged_again(self, searched, search_folder):
        run = search_folder / "trials" / searched.best.folder.path.name
        one = Ledger.load(run / "ledger.json")
        together = Ledger.load(searched.folder / "ledger.json")
        for _ in range(2):
            shutil.rmtree(run)
            found = self.again(search_folder)
            assert found.ok
            together = together.merge(one)
            assert found.spent.epsilon == pytest.approx(RDPAccountant().epsilon(together, 1e-5))
        assert f"an earlier training in {run} has vanished: it is charged in full" in found.spent.notes

    def test_an_unchanged_search_states_the_same_again(self, searched, search_folder):
        for _ in range(2):
            assert self.again(search_folder).spent == searched.spent
