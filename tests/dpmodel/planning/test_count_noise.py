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


@pytest.mark.parametrize("target", [0.3, 3.0])
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_value_that_is_named_is_enough(target, accountant):
    settings = {**SETTINGS, "privacy": {**SETTINGS["privacy"], "target_epsilon": target, "accountant": accountant}}
    with pytest.raises(ConfigError, match="no noise multiplier meets epsilon") as caught:
        plan_training(make_config(settings), 300)
    message = str(caught.value)
    assert "privacy.clip 'Gaussian', whose fraction_stddev is 0.01" in message
    named = message.partition("(--fraction-stddev) to ")[2].partition(",")[0]
    plan = plan_training(make_config(settings, [f"privacy.clip.fraction_stddev={named}"]), 300)
    assert plan.privacy_spent().epsilon <= target
    assert plan.noise_multiplier < 100


def test_where_no_count_is_noised_there_is_nothing_to_say():
    config = make_config({**SETTINGS, "privacy": {"target_epsilon": 3.0}})
    assert count_remedy(config, 300) == ""


def test_a_count_that_no_doubling_saves_is_left_unnamed():
    config = make_config(SETTINGS, ["privacy.target_epsilon=1e-7"])
    assert count_remedy(config, 300) == ""
