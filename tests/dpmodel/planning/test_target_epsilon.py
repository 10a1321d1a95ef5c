import pytest

from dpmodel import ClipMechanismsFactory, noise_for_epsilon
from monitors.errors import CalibrationError


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize(
    ("noise", "model"),
    [
        ({}, {}),
        ({"noise": "AdaGaussian", "decay_policy": "Time", "noise_decay_rate": 0.05}, {}),
        ({}, {"micro_batches": 4}),
        ({}, {"clip_mech": lambda: ClipMechanismsFactory.create("Gaussian", fraction_stddev=2.0)}),
    ],
    ids=["fixed", "decaying", "micro-batches", "adaptive clip"],
)
@pytest.mark.sample(8)
def test_the_training_spends_the_target_and_never_more(make_model, loader, noise, model, accountant):
    built = {name: value() if callable(value) else value for name, value in model.items()}
    mechanism = noise_for_epsilon(3.0, 1e-5, loader, epochs=2, accountant=accountant, **noise, **built)
    trained = make_model(noise_mech=mechanism, **built)
    trained.fit(loader, epochs=2)
    epsilon = trained.privacy_spent(1e-5, accountant).epsilon
    assert epsilon <= 3.0
    assert epsilon == pytest.approx(3.0, rel=2e-3)


def test_shuffled_batches_and_what_was_spent_before_count(make_model, loader):
    first = make_model(sampling="shuffle")
    first.fit(loader, epochs=1)
    mechanism = noise_for_epsilon(20.0, 1e-5, loader, epochs=2, sampling="shuffle", spent=first.ledger)
    second = make_model(sampling="shuffle", noise_mech=mechanism)
    second.ledger = first.ledger
    second.fit(loader, epochs=2)
    assert second.privacy_spent(1e-5).epsilon == pytest.approx(20.0, rel=2e-3)
    with pytest.raises(CalibrationError):
        noise_for_epsilon(0.1, 1e-5, loader, epochs=2, sampling="shuffle", spent=first.ledger)


def test_the_clip_mechanism_is_left_as_it_is(loader):
    clip = ClipMechanismsFactory.create("Fixed")
    noise_for_epsilon(3.0, 1e-5, loader, epochs=1, clip_mech=clip)
    assert not clip.started
    with pytest.raises(ValueError, match="epochs must be"):
        noise_for_epsilon(3.0, 1e-5, loader, epochs=0)


def test_the_multiplier_that_is_solved_for_cannot_be_given(loader):
    with pytest.raises(ValueError, match=r"initial_noise_multiplier=9\.0 is what noise_for_epsilon solves for"):
        noise_for_epsilon(1.0, 1e-5, loader, 2, initial_noise_multiplier=9.0)
