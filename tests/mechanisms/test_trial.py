import numpy as np
import pytest
import torch

from mechanisms import Gaussian, QuantileClip
from mechanisms.noise import AdaGaussian
from mechanisms.trial import PublicGenerators, once, trial_copy
from monitors.errors import UnprotectedUpdateError


@pytest.fixture
def attempts():
    """Counts how often the trial of a plugin actually runs."""
    count = [0]

    def attempt():
        count[0] += 1
        return ("a note",)

    def run(plugin, settings="test"):
        before = count[0]
        assert once(plugin, (settings, id(count)), attempt) == ("a note",)
        return count[0] - before

    return run


def test_a_mechanism_with_the_same_settings_is_tried_once(attempts):
    assert attempts(AdaGaussian(noise_decay_rate=0.1)) == 1
    assert attempts(AdaGaussian(noise_decay_rate=0.1)) == 0
    assert attempts(AdaGaussian(noise_decay_rate=0.2)) == 1
    assert attempts(AdaGaussian(noise_decay_rate=0.1, decay_policy="Time")) == 1
    assert attempts(AdaGaussian(noise_decay_rate=0.1, seed=1)) == 1
    assert attempts(AdaGaussian(noise_decay_rate=0.1), "other settings") == 1


def test_a_different_closure_makes_a_different_mechanism(attempts):
    def scheduled(last):
        noise = Gaussian()
        noise.schedule = lambda step: 1.0 if step < 10 else last
        return noise

    assert [attempts(scheduled(last)) for last in (1.0, 0.5, 0.5)] == [1, 1, 0]


def test_a_changed_class_or_object_is_a_different_mechanism(attempts):
    class Plugin(Gaussian):
        factor = 1.0

    assert [attempts(Plugin()), attempts(Plugin())] == [1, 0]
    Plugin.factor = 0.5
    assert attempts(Plugin()) == 1
    Plugin.sample = lambda self, size, step: torch.zeros(size)
    assert attempts(Plugin()) == 1
    changed = Plugin()
    changed.add = lambda summed, step: summed.flat_grad
    assert attempts(changed) == 1

    class Plugin(Gaussian):
        factor = 0.5

    assert attempts(Plugin()) == 1


def test_state_is_part_of_the_content(attempts):
    clip = QuantileClip()
    clip.start(1.0)
    assert [attempts(clip), attempts(clip)] == [1, 0]
    clip.load_state_dict({"norm_bound": 2.0})
    assert attempts(clip) == 1
    clip.table = np.arange(3.0)
    assert attempts(clip) == 1
    clip.table[1] = 7.0
    assert attempts(clip) == 1


@pytest.mark.parametrize("value", [np.random.default_rng(0), torch.Generator(), iter([1]), {1, 2}])
def test_a_plugin_with_unknown_content_is_tried_each_time(attempts, value):
    noise = Gaussian()
    noise.own = value
    assert [attempts(noise), attempts(noise)] == [1, 1]


def test_an_object_that_contains_itself_is_tried_each_time(attempts):
    noise = Gaussian()
    noise.me = noise
    assert [attempts(noise), attempts(noise)] == [1, 1]


def test_a_refusal_is_not_cached():
    def refuse():
        raise UnprotectedUpdateError("wrong")

    for _ in range(2):
        with pytest.raises(UnprotectedUpdateError):
            once(Gaussian(), "refused", refuse)


def test_a_copy_shares_only_what_cannot_be_copied():
    noise = Gaussian(seed=3)
    noise.table = [1, 2]
    noise.source = (number for number in range(3))
    twin = trial_copy(noise)
    assert twin.source is noise.source
    assert twin.table is not noise.table
    assert twin.table == noise.table
    assert torch.equal(twin.generator.normal(5), noise.generator.normal(5))


def test_a_copied_secret_stream_is_a_different_stream():
    noise = Gaussian()
    assert not torch.equal(trial_copy(noise).generator.normal(5), noise.generator.normal(5))


def test_public_generators_that_were_used_are_named_and_restored():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with PublicGenerators() as public:
        assert public.moved() == []
        np.random.seed(3)
        torch.manual_seed(3)
        assert public.moved() == ["torch", "NumPy"]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
