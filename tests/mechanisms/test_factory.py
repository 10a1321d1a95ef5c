import pytest

from mechanisms import AdaGaussian, ClipMechanismsFactory, NoiseMechanismsFactory, QuantileClip
from mechanisms.clipping import CLIP
from mechanisms.noise import NOISE, Gaussian


@pytest.fixture
def two_phase():
    @NoiseMechanismsFactory.register("TwoPhase")
    class TwoPhase(Gaussian):
        def __init__(self, *, switch, **common):
            super().__init__(**common)
            self.switch = switch

    yield TwoPhase
    del NOISE._builders["TwoPhase"]


@pytest.mark.parametrize(
    ("factory", "name", "wrong", "message"),
    [
        (
            NoiseMechanismsFactory,
            "Gaussian",
            {"initial_noise_multiplyer": 1.0},
            "did you mean 'initial_noise_multiplier'",
        ),
        (NoiseMechanismsFactory, "Gaussian", {"decay_policy": "Exp"}, "no meaning for noise mechanism 'Gaussian'"),
        (ClipMechanismsFactory, "Gaussian", {"target_quantile": 0.5}, "did you mean 'target_unclipped_quantile'"),
        (ClipMechanismsFactory, "Fixed", {"learning_rate": 0.5}, "no meaning for clip mechanism 'Fixed'"),
    ],
)
def test_a_meaningless_argument_is_refused_with_the_nearest_name(factory, name, wrong, message):
    with pytest.raises(ValueError, match=message):
        factory.create(name, **wrong)


def test_a_mechanism_that_forwards_its_arguments_is_built_or_refused_with_a_reason(two_phase):
    built = NoiseMechanismsFactory.create("TwoPhase", switch=3, initial_noise_multiplier=2.0)
    assert (built.switch, built.noise_multiplier(0)) == (3, 2.0)
    with pytest.raises(ValueError, match=r"noise mechanism 'TwoPhase' needs switch; it takes switch, norm_bound"):
        NoiseMechanismsFactory.create("TwoPhase")
    with pytest.raises(ValueError, match=r"'TwoPhase' cannot be built: .*'swich'.*It takes switch, "):
        NoiseMechanismsFactory.create("TwoPhase", switch=3, swich=3)


def test_an_argument_counts_as_given_even_if_it_equals_a_default():
    for rate in (AdaGaussian().noise_decay_rate, 0.5):
        assert NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=rate).noise_decay_rate == rate
        with pytest.raises(ValueError, match=f"noise_decay_rate={rate} has no meaning for noise mechanism 'Gaussian'"):
            NoiseMechanismsFactory.create("Gaussian", noise_decay_rate=rate)


def test_arguments_that_are_not_given_take_the_defaults_of_the_mechanism():
    assert repr(NoiseMechanismsFactory.create("AdaGaussian")) == repr(AdaGaussian())
    assert repr(ClipMechanismsFactory.create("Gaussian")) == repr(QuantileClip())


@pytest.mark.parametrize("factory", [NoiseMechanismsFactory, ClipMechanismsFactory])
def test_an_unknown_name_is_refused_with_the_nearest(factory):
    with pytest.raises(ValueError, match="did you mean 'Gaussian'"):
        factory.create("Gausian")


def test_the_factories_list_the_names_of_the_registries():
    assert NoiseMechanismsFactory.names() == NOISE.names()
    assert ClipMechanismsFactory.names() == CLIP.names()
