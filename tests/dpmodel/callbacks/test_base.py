import pytest

from dpmodel.callbacks import HOOKS, Callback, CallbackList


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append(("begin", run))

    def on_train_step_end(self, run):
        self.calls.append(("step", run))


class DuckMonitor:
    """Like a privacy monitor: no base class, one hook."""

    def __init__(self):
        self.steps = 0

    def on_train_step_begin(self, run):
        self.steps += 1


def test_the_hooks_are_the_eight_of_mindspore():
    assert HOOKS == (
        "on_train_begin",
        "on_train_end",
        "on_train_epoch_begin",
        "on_train_epoch_end",
        "on_train_step_begin",
        "on_train_step_end",
        "on_eval_begin",
        "on_eval_end",
    )


def test_only_overridden_hooks_are_called_in_the_order_given():
    first, second = Recorder(), Recorder()
    second.calls = first.calls
    callbacks = CallbackList([first, second])
    for hook in HOOKS:
        callbacks.notify(hook, "run")
    assert first.calls == [("begin", "run"), ("begin", "run"), ("step", "run"), ("step", "run")]
    assert sum(len(listeners) for listeners in callbacks._listeners.values()) == 4


def test_an_object_without_the_base_class_is_called_for_the_hooks_that_it_has():
    monitor = DuckMonitor()
    callbacks = CallbackList([monitor])
    for hook in HOOKS:
        callbacks.notify(hook, None)
    assert monitor.steps == 1


def test_a_hook_set_on_the_object_itself_is_called():
    callback = Callback()
    seen = []
    callback.on_eval_end = seen.append
    CallbackList([callback]).notify("on_eval_end", "run")
    assert seen == ["run"]


def test_a_single_callback_may_be_given_without_a_list():
    assert len(CallbackList(Recorder())) == 1


def test_a_list_of_callbacks_can_be_wrapped_again():
    recorder = Recorder()
    assert list(CallbackList(CallbackList([recorder]))) == [recorder]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([None], "holds None"),
        ([Recorder], r"class Recorder instead of an object; write Recorder\(\.\.\.\)"),
        ([object()], "has none of the hooks on_train_begin"),
        ("LossMonitor", "has none of the hooks"),
    ],
)
def test_what_is_not_a_callback_is_refused_with_the_remedy(wrong, message):
    with pytest.raises(ValueError, match=message):
        CallbackList(wrong)


def test_the_same_object_twice_is_refused():
    recorder = Recorder()
    with pytest.raises(ValueError, match="same Recorder twice"):
        CallbackList([recorder, Recorder(), recorder])


def test_an_unknown_hook_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'on_train_step_end'"):
        CallbackList([]).notify("on_train_stepend", None)


def test_every_callback_sees_the_end_even_if_one_fails():
    class Failing(Callback):
        def on_train_end(self, run):
            raise RuntimeError("disk full")

    class Closing(Callback):
        closed = False

        def on_train_end(self, run):
            self.closed = True

    closing = Closing()
    with pytest.raises(RuntimeError, match="disk full"):
        CallbackList([Failing(), closing]).notify("on_train_end", None)
    assert closing.closed


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("step_end", "on_train_step_end"),
        ("on_epoch_end", "on_train_epoch_end"),
        ("on_train_step_ends", "on_train_step_end"),
    ],
)
def test_a_misspelt_hook_is_refused_with_the_right_name(name, meant):
    misnamed = type("Mine", (Callback,), {name: lambda self, run: None, "on_train_end": lambda self, run: None})
    with pytest.raises(
        ValueError, match=f"Mine.{name} is not a hook and would never be called; did you mean '{meant}'"
    ):
        CallbackList([misnamed()])


def test_callbacks_with_a_limit_are_called_last_before_a_step_and_in_order_otherwise():
    calls = []

    def listener(name, last):
        hooks = {
            hook: lambda self, run, hook=hook: calls.append((name, hook))
            for hook in ("on_train_step_begin", "on_train_step_end")
        }
        return type(name, (), {**hooks, "asked_last": last})()

    callbacks = CallbackList([listener("limit", True), listener("first", False), listener("second", False)])
    for hook in ("on_train_step_begin", "on_train_step_end"):
        callbacks.notify(hook, None)
    assert [name for name, hook in calls if hook == "on_train_step_begin"] == ["first", "second", "limit"]
    assert [name for name, hook in calls if hook == "on_train_step_end"] == ["limit", "first", "second"]


def test_other_methods_of_a_callback_are_accepted():
    class Mine(Callback):
        def on_train_step_end(self, run):
            self.on_improvement()

        def on_improvement(self):
            pass

    assert len(CallbackList([Mine()])) == 1


def test_callbacks_of_rank_0_are_called_on_that_rank_only():
    class Writer(Recorder):
        first_rank_only = True

    for first_rank, calls in ((True, 3), (False, 0)):
        writer, plain = Writer(), Recorder()
        callbacks = CallbackList([writer, plain], first_rank=first_rank)
        for hook in ("on_train_begin", "on_train_step_end", "on_train_step_end", "on_train_end"):
            callbacks.notify(hook, run=None)
        assert len(writer.calls) == calls
        assert len(plain.calls) == 3
