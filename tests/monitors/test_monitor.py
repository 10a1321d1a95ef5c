"""Monitors read the run's ledger, count exactly, and stop before the step that would exceed the limit."""

import math

import pytest

from monitors import (
    DisjointEvent,
    GaussianEvent,
    Ledger,
    MonitorMismatchError,
    PLDAccountant,
    PoissonSampledEvent,
    PrivacyMonitor,
    PrivacyMonitorFactory,
    RDPAccountant,
    UnsupportedEventError,
    ViolationEvent,
    ZCDPAccountant,
)
from monitors.factory import MONITORS
from monitors.schedules import decayed

HOOKS = [f"on_{what}_{when}" for what in ("train", "train_epoch", "train_step", "eval") for when in ("begin", "end")]


class Run:
    """A minimal run: each step records the event that ``event`` announces."""

    def __init__(self, planned=100, sigma=1.2, mode=None, rate=0.0, num_samples=1000, batch_size=20, shuffled=False):
        self.ledger = Ledger(["seen by a test"])
        self.step, self.planned_steps = 0, planned
        self.steps_per_epoch = num_samples // batch_size
        self.facts = {
            "num_samples": num_samples,
            "batch_size": batch_size,
            "initial_noise_multiplier": sigma,
            "noise_decay_mode": mode,
            "noise_decay_rate": rate,
        }
        self.statement = {"unit": "example", "relation": "add or remove one example", "sampling": "Poisson, rate 0.02"}
        self.said, self.reasons = [], []
        self._schedule, self._shuffled = decayed(sigma, mode, rate), shuffled
        self._rate = batch_size / num_samples

    def event(self, step):
        inner = GaussianEvent(self._schedule(step))
        return (
            DisjointEvent(step // self.steps_per_epoch, inner)
            if self._shuffled
            else PoissonSampledEvent(self._rate, inner)
        )

    def stop(self, reason):
        self.reasons.append(reason)

    def say(self, text):
        self.said.append(text)

    def train(self, monitor):
        monitor.on_train_begin(self)
        while self.step < self.planned_steps and not self.reasons:
            monitor.on_train_step_begin(self)
            if self.reasons:
                break
            self.ledger.record(self.event(self.step))
            self.step += 1
            monitor.on_train_step_end(self)
        monitor.on_train_end(self)
        return self


ACCOUNTANT_OF = {"rdp": RDPAccountant(), "pld": PLDAccountant(), "zcdp": ZCDPAccountant()}


@pytest.mark.parametrize("policy", ["rdp", "pld", "zcdp"])
@pytest.mark.parametrize(("mode", "rate"), [(None, 0.0), ("Exp", 5e-3)])
@pytest.mark.sample(3)
def test_training_stops_before_the_step_that_would_exceed_max_eps(policy, mode, rate):
    accountant = ACCOUNTANT_OF[policy]
    shuffled = policy == "zcdp"
    sigma, limit = (9.0, 0.9) if shuffled else (1.2, 1.1)
    monitor = PrivacyMonitorFactory.create(policy, max_eps=limit)
    run = Run(planned=400, sigma=sigma, mode=mode, rate=rate, shuffled=shuffled).train(monitor)
    assert 0 < run.step < 400
    assert accountant.epsilon(run.ledger, 1e-5) <= limit
    one_more = run.ledger.copy().record(run.event(run.step))
    assert accountant.epsilon(one_more, 1e-5) > limit
    assert f"{run.step} of 400 steps are done" in run.reasons[0]
    assert f"max_eps={limit:g}" in run.reasons[0]


@pytest.mark.parametrize("policy", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])
def test_a_training_planned_to_the_limit_runs_to_its_end(policy):
    run = Run(planned=150, mode="Time", rate=1e-3)
    planned = Ledger()
    for step in range(150):
        planned.record(run.event(step))
    limit = ACCOUNTANT_OF[policy].epsilon(planned, 1e-5) * (1 + 1e-6)
    run.train(PrivacyMonitorFactory.create(policy, max_eps=limit))
    assert run.step == 150
    assert run.reasons == []


def test_the_delta_limit_stops_too():
    run = Run(planned=400).train(PrivacyMonitorFactory.create("rdp", target_eps=1.0, max_delta=1e-4))
    assert 0 < run.step < 400
    assert RDPAccountant().delta(run.ledger, 1.0) <= 1e-4
    assert RDPAccountant().delta(run.ledger.copy().record(run.event(run.step)), 1.0) > 1e-4
    assert "max_delta=0.0001 at epsilon 1" in run.reasons[0]


def test_no_step_is_taken_if_the_first_one_exceeds_the_limit():
    run = Run().train(PrivacyMonitorFactory.create("rdp", max_eps=1e-3))
    assert run.step == 0
    assert run.ledger.total == 0
    assert "0 of 100 steps are done" in run.reasons[0]


def test_the_printed_count_is_the_number_of_completed_steps():
    run = Run(planned=125).train(PrivacyMonitorFactory.create("rdp", per_print_times=50))
    assert [line.split(":")[0] for line in run.said] == ["step 50", "step 100", "step 125"]
    first = RDPAccountant().epsilon(Ledger().record(run.event(0), 50), 1e-5)
    assert float(run.said[0].split("epsilon ")[1].split()[0]) == pytest.approx(first, rel=1.1e-3)


def test_the_monitor_counts_existing_rows_of_the_ledger():
    run = Run(planned=10)
    run.ledger.record(GaussianEvent(8.0), 2)
    monitor = PrivacyMonitorFactory.create("rdp")
    run.train(monitor)
    assert monitor.epsilon() == pytest.approx(RDPAccountant().epsilon(run.ledger, 1e-5), rel=1.1e-3)


def test_the_privacy_spent_includes_the_statement_of_the_run():
    monitor = PrivacyMonitorFactory.create("rdp", target_eps=1.0)
    run = Run(planned=10).train(monitor)
    spent = monitor.privacy_spent()
    assert (spent.unit, spent.relation) == ("example", "add or remove one example")
    assert spent.sampling == "Poisson, rate 0.02"
    assert spent.notes == ("seen by a test",)
    assert monitor.delta() == pytest.approx(RDPAccountant().delta(run.ledger, 1.0), rel=0.05)
    assert "delta" in run.said[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"initial_noise_multiplier": 1.5}, r"_multiplier: the monitor was given 1\.5, but the run uses 1\.2"),
        ({"batch_size": 32}, "batch_size: the monitor was given 32, but the run uses 20"),
        ({"num_samples": 60000}, "num_samples"),
        ({"noise_decay_mode": "Exp"}, "noise_decay_mode: the monitor was given 'Exp', but the run uses 'Time'"),
        ({"noise_decay_rate": 0.5}, "noise_decay_rate"),
    ],
)
def test_a_contradiction_names_both_values_before_anything_is_spent(given, words):
    run = Run(mode="Time", rate=1e-3)
    with pytest.raises(MonitorMismatchError, match=words):
        run.train(PrivacyMonitorFactory.create("rdp", **given))
    assert run.ledger.total == 0


def test_numbers_that_agree_with_the_run_are_accepted():
    run = Run(mode="Time", rate=1e-3, planned=5)
    given = dict(run.facts)
    run.train(PrivacyMonitorFactory.create("rdp", **given))
    assert run.step == 5


def test_planning_from_numbers_equals_planning_from_the_run_equals_training():
    numbers = {"num_samples": 1000, "batch_size": 20, "initial_noise_multiplier": 1.2}
    decay = {"noise_decay_mode": "Exp", "noise_decay_rate": 2e-3}
    by_numbers = PrivacyMonitorFactory.create("rdp", max_eps=1.5, **numbers, **decay)
    run = Run(planned=1000, mode="Exp", rate=2e-3)
    by_run = PrivacyMonitorFactory.create("rdp", max_eps=1.5)
    by_run.attach(run)
    planned = by_numbers.max_steps()
    assert by_run.max_steps() == planned
    assert by_numbers.max_epoch_suggest() == by_run.max_epoch_suggest() == planned // 50
    run.train(PrivacyMonitorFactory.create("rdp", max_eps=1.5))
    assert run.step == planned


def test_shuffled_epochs_are_planned_for_zcdp():
    monitor = PrivacyMonitorFactory.create("zcdp", 1000, 100, 10.0, max_eps=1.0)
    epochs = monitor.max_epoch_suggest()
    ledger = Ledger().record(GaussianEvent(10.0), epochs)
    assert (
        ZCDPAccountant().epsilon(ledger, 1e-5)
        <= 1.0
        < ZCDPAccountant().epsilon(ledger.record(GaussianEvent(10.0)), 1e-5)
    )


def test_zcdp_refuses_a_sampled_run_by_name():
    with pytest.raises(UnsupportedEventError, match="PoissonSampledEvent"):
        Run().train(PrivacyMonitorFactory.create("zcdp", max_eps=1.0))


def test_planning_names_what_is_missing():
    with pytest.raises(ValueError, match="num_samples, batch_size"):
        PrivacyMonitorFactory.create("rdp", initial_noise_multiplier=1.0, max_eps=1.0).max_steps()
    with pytest.raises(ValueError, match="noise_decay_rate"):
        PrivacyMonitorFactory.create("rdp", 100, 10, 1.0, max_eps=1.0, noise_decay_mode="Exp").max_steps()
    with pytest.raises(ValueError, match="max_eps"):
        PrivacyMonitorFactory.create("rdp", 100, 10, 1.0).max_steps()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_eps": -1.0}, "max_eps"),
        ({"max_eps": math.nan}, "max_eps"),
        ({"target_delta": 0.0}, "target_delta"),
        ({"max_delta": 1e-5}, "target_eps"),
        ({"per_print_times": 0}, "per_print_times"),
        ({"batch_size": 200, "num_samples": 100}, "batch_size"),
        ({"noise_decay_mode": "Tmie"}, "did you mean 'Time'"),
        ({"initial_noise_multiplier": 0.0}, "initial_noise_multiplier"),
        ({"orders": [1.0]}, "orders"),
    ],
)
def test_invalid_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        PrivacyMonitorFactory.create("rdp", **arguments)


def test_the_factory_works_as_class_and_as_instance_and_lists_its_names():
    assert isinstance(PrivacyMonitorFactory().create("zcdp"), PrivacyMonitor)
    assert {"pld", "rdp", "zcdp"} <= set(PrivacyMonitorFactory.names())
    with pytest.raises(ValueError, match="did you mean 'zcdp'"):
        PrivacyMonitorFactory.create("zdp")
    with pytest.raises(ValueError, match="orders"):
        PrivacyMonitorFactory.create("pld", orders=[2.0])


def test_a_custom_monitor_is_registered():
    @PrivacyMonitorFactory.register("test-classic")
    def build(claims, orders, **limits):
        return PrivacyMonitor(RDPAccountant(orders, conversion="classic"), claims, **limits)

    try:
        run = Run(planned=5).train(PrivacyMonitorFactory.create("test-classic"))
    finally:
        del MONITORS._builders["test-classic"]
    assert "(rdp)" in run.said[-1]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_accepts_the_run(hook):
    monitor, run = PrivacyMonitorFactory.create("rdp"), Run(planned=0)
    monitor.attach(run)
    getattr(monitor, hook)(run)


def test_a_monitor_without_a_run_raises_an_error():
    with pytest.raises(ValueError, match="not attached to a run"):
        PrivacyMonitorFactory.create("rdp").epsilon()


def test_a_monitor_prints_why_the_guarantee_is_void_and_stops():
    run, monitor = Run(), PrivacyMonitor(RDPAccountant(), max_eps=5.0, per_print_times=1)
    monitor.on_train_begin(run)
    run.ledger.record(run.event(0))
    run.step = 1
    monitor.on_train_step_end(run)
    assert "void" not in run.said[-1]
    run.ledger.record(ViolationEvent("the weights were overwritten"))
    monitor.on_train_step_end(run)
    assert run.said[-1].endswith("the guarantee is void: the weights were overwritten")
    assert "epsilon infinite" in run.said[-1]
    assert "the weights were overwritten" in str(monitor.privacy_spent())
    monitor.on_train_step_begin(run)
    assert "infinity" in run.reasons[0]
