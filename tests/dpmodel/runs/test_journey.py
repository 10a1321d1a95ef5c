"""The way of a configuration to its training stays short."""

import pytest

from ..journey import travel


@pytest.mark.slow
def test_a_configuration_reaches_the_training_in_few_calls_and_modules():
    calls = travel().calls
    assert calls.total() <= 40
    assert len({module for module, _ in calls}) <= 15
    assert calls["dpmodel.planning.from_config", "release_plan"] == 1
