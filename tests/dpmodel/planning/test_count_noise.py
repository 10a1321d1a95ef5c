import pytest

from dpmodel.config import make_config
from dpmodel.planning.count_noise import count_remedy
from dpmodel.planning.training_plan import plan_training
from monitors.errors import ConfigError

SETTINGS = {
    "network": "linear",
    "optimizer": "SGD",
    "privacy": {"target_epsilon": 3.0, "clip": {"name": "Gaussian"}},
    "training": {"epochs": 2, "batch_size": 30},
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("target", [0.3, 3.0])
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_named_value_is_enough(target, accountant):
    settings = {**SETTINGS, "privacy": {**SETTINGS["privacy"], "target_epsilon": target, "accountant": accountant}}
    with pytest.raises(ConfigError, match="no noise multiplier meets epsilon") as caught:
        plan_training(make_config(settings), 300)
    message = str(caught.value)
    assert "privacy.clip 'Gaussian', whose fraction_stddev is 0.01" in message
    named = message.partition("(--fraction-stddev) to ")[2].partition(",")[0]
    plan = plan_training(make_config(settings, [f"privacy.clip.fraction_stddev={named}"]), 300)
    assert plan.privacy_spent().epsilon <= target
    assert plan.noise_multiplier < 100


def test_a_clip_mechanism_without_a_noisy_count_needs_no_remedy():
    config = make_config({**SETTINGS, "privacy": {"target_epsilon": 3.0}})
    assert count_remedy(plan_training(config, 300), 3.0) == ""


def test_no_remedy_is_named_if_no_doubling_is_enough():
    config = make_config(SETTINGS, ["privacy.noise_multiplier=1", "privacy.target_epsilon=null"])
    assert count_remedy(plan_training(config, 300), 1e-7) == ""


def test_a_count_that_costs_more_than_the_gradients_is_mentioned_with_a_value_at_which_it_does_not():
    config = make_config(SETTINGS, ["privacy.noise_multiplier=1.5", "privacy.target_epsilon=null"])
    warning = plan_training(config, 300).release.count_warning
    assert "its noise multiplier is 0.6, theirs 1.5. Raise fraction_stddev to 0.05," in warning
    changed = make_config(config.model_dump(exclude_unset=True), ["privacy.clip.fraction_stddev=0.05"])
    assert plan_training(changed, 300).release.count_warning == ""


@pytest.mark.parametrize(
    "changes",
    [
        ["privacy.clip={name: Fixed}"],
        ["privacy.noise=null", "privacy.noise_multiplier=null"],
        ["training.batch_size=100"],
    ],
    ids=lambda changes: changes[0],
)
def test_any_other_training_has_no_such_warning(changes):
    config = make_config(SETTINGS, ["privacy.noise_multiplier=1.5", "privacy.target_epsilon=null", *changes])
    assert plan_training(config, 300).release.count_warning == ""
