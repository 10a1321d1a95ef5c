import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.callbacks import EarlyStopping


def accuracies(*values):
    return [{"accuracy": value} for value in values]


def test_training_stops_after_the_tolerated_validations_without_improvement(fake_run):
    run = fake_run(epochs=9, metrics=accuracies(0.5, 0.7, 0.6, 0.65, 0.69, 0.9)).train([EarlyStopping(patience=2)])
    assert run.epoch == 5
    assert "accuracy has not improved on 0.7" in run.stop_reason


def test_training_continues_while_the_metric_improves(fake_run):
    run = fake_run(epochs=4, metrics=accuracies(0.1, 0.2, 0.3, 0.4)).train([EarlyStopping(patience=0)])
    assert run.epoch == 4
    assert run.stop_reason is None


def test_a_small_change_is_not_an_improvement(fake_run):
    stopping = EarlyStopping(patience=0, min_delta=0.05)
    run = fake_run(epochs=3, metrics=accuracies(0.5, 0.54, 0.9)).train([stopping])
    assert run.epoch == 2


def test_lower_is_better_for_losses_by_default(fake_run):
    metrics = [{"valid_loss": value} for value in (1.0, 0.5, 0.6)]
    run = fake_run(epochs=3, metrics=metrics).train([EarlyStopping("valid_loss", patience=0)])
    assert run.epoch == 3
    assert run.stop_reason is not None


def test_mode_overrules_the_name(fake_run):
    run = fake_run(epochs=3, metrics=accuracies(0.5, 0.4, 0.3)).train([EarlyStopping(patience=0, mode="min")])
    assert run.stop_reason is None


def test_the_metric_is_found_in_any_case(fake_run):
    metrics = [{"Accuracy": 0.5}, {"Accuracy": 0.4}]
    assert fake_run(metrics=metrics).train([EarlyStopping("accuracy", patience=0)]).stop_reason


def test_the_validation_loss_may_be_called_as_in_the_history(fake_run):
    run, stopping = fake_run(), EarlyStopping("valid_loss", patience=0)
    for loss in (0.5, 0.6):
        run.metrics = {"loss": loss}
        stopping.on_eval_end(run)
    assert "has not improved on 0.5" in run.stop_reason


def test_nan_is_not_an_improvement(fake_run):
    run = fake_run(epochs=4, metrics=accuracies(math.nan, math.nan, math.nan)).train([EarlyStopping(patience=1)])
    assert run.epoch == 2


def test_a_second_training_forgets_the_first(fake_run):
    stopping = EarlyStopping(patience=0)
    fake_run(epochs=1, metrics=accuracies(0.9)).train([stopping])
    assert fake_run(epochs=2, metrics=accuracies(0.5, 0.6)).train([stopping]).stop_reason is None


def test_an_unknown_metric_is_refused_before_the_first_step(fake_run):
    run = fake_run(metrics=[{"accuracy": 0.5}])
    with pytest.raises(ValueError, match="'acuracy'; did you mean 'accuracy'"):
        run.train([EarlyStopping("acuracy")])
    assert run.ledger.total == 0


def test_a_training_without_validation_is_refused(fake_run):
    run = fake_run()
    run.model.metrics.names = ("accuracy",)
    with pytest.raises(ValueError, match="is valid_loader given to fit"):
        run.train([EarlyStopping()])
    assert run.step == 0


@pytest.mark.parametrize("wrong", [{"patience": -1}, {"min_delta": -0.1}, {"mode": "maximum"}, {"min_delta": math.nan}])
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EarlyStopping(**wrong)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_it_stops_exactly_when_a_plain_count_says(values, patience):
    class Run:
        stop_reason = None

        def stop(self, reason):
            self.stop_reason = reason

    stopping, run = EarlyStopping(patience=patience), Run()
    stopped_at = None
    for index, value in enumerate(values):
        run.metrics = {"accuracy": value}
        stopping.on_eval_end(run)
        if run.stop_reason is not None:
            stopped_at = index
            break
    expected = None
    for index in range(len(values)):
        seen = values[: index + 1]
        if index - seen.index(max(seen)) > patience:
            expected = index
            break
    assert stopped_at == expected
