import pytest

from dpmodel.compare import load_comparison, make_comparison
from monitors.errors import ConfigError


def refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make_comparison(values)


def test_every_variant_gets_the_base_its_own_settings_and_the_one_target(tiny):
    fixed, decayed = make_comparison(tiny).variants
    assert fixed.config.privacy.noise.name == "Gaussian"
    assert decayed.config.privacy.noise.options == {"decay_policy": "Exp", "noise_decay_rate": 0.2}
    for variant in (fixed, decayed):
        assert variant.config.privacy.target_epsilon == 3.0
        assert variant.config.privacy.noise_multiplier is None
        assert variant.config.training.epochs == 1


def test_a_base_file_is_found_relative_to_the_comparison(tiny, write):
    base = write(tiny["base"], "base.yaml")
    comparison = load_comparison(write({**tiny, "base": base.name}))
    assert comparison.variants[0].config.network.name == "linear"
    assert comparison.directory.as_posix() == "runs/tiny"


def test_overrides_change_the_base_of_all_variants_and_changes_the_comparison(tiny, write):
    comparison = load_comparison(write(tiny), ["training.epochs=3"], seeds=[7], target={"epsilon": 1.0})
    assert {variant.config.training.epochs for variant in comparison.variants} == {3}
    assert comparison.definition.seeds == (7,)
    assert {variant.config.privacy.target_epsilon for variant in comparison.variants} == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 2, 1]}, "seeds: 1 is given twice"),
        ({"seeds": []}, "seeds must be a list of at least one entry"),
        ({"baseline": "fixd"}, "there is no variant 'fixd'; did you mean 'fixed'"),
        ({"metric": "acuracy"}, "'acuracy' is not among training.metrics of the base; did you mean 'accuracy'"),
        ({"variants": [{"name": "one"}]}, "variants"),
        ({"variants": [{"name": "A b"}, {"name": "a-B"}]}, "'a-B' is already the name of a variant"),
        ({"variants": [{"name": "../up"}, {"name": "b"}]}, "letters, digits, spaces"),
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"target": {"epsilon": -1.0}}, "target.epsilon must be a positive finite number, got -1.0"),
        ({"target": {"epsilon": 1.0, "accountant": "pdl"}}, "did you mean 'pld'"),
        ({"base": "nowhere.yaml"}, "there is no file nowhere.yaml"),
    ],
)
def test_a_faulty_comparison_is_refused_by_name(tiny, change, message):
    refused({**tiny, **change}, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"privacy.norm_bund": 0.1}, "did you mean 'norm_bound'"),
        ({"privacy.target_epsilon": 1.0}, "set once for all variants, by target.epsilon"),
        ({"privacy.noise_multiplier": 1.0}, "set once for all variants"),
        ({"training.seed": 3}, "set once for all variants, by seeds"),
        ({"privacy": {"norm_bound": 1.0}}, "use section.key"),
        ({"privacy.noise": None}, "its epsilon is infinite"),
        ({"privacy.clip.name": "Fixd"}, "did you mean 'Fixed'"),
    ],
)
def test_a_faulty_variant_is_refused_by_name(tiny, settings, message):
    tiny["variants"][1]["set"] = settings
    refused(tiny, message)


def test_a_fault_is_reported_with_its_file_and_line(tiny, write):
    tiny["variants"][1]["set"] = {"privacy.norm_bound": -1.0}
    path = write(tiny)
    line = path.read_text().splitlines().index("    privacy.norm_bound: -1.0") + 1
    with pytest.raises(ConfigError, match=rf"tiny\.yaml:{line}: privacy\.norm_bound must be a positive"):
        load_comparison(path)


def test_a_fault_of_the_base_is_reported_with_the_file_of_the_base(tiny, write):
    base = write({**tiny["base"], "epoch": 3}, "base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml:\d+: unknown key 'epoch'"):
        load_comparison(write({**tiny, "base": base.name}))


@pytest.mark.parametrize("override", ["privacy.delta=1e-6", "privacy.target_epsilon=1", "training.seed=3"])
def test_common_settings_cannot_be_overridden_in_the_base(tiny, write, override):
    with pytest.raises(ConfigError, match=r"the comparison sets .* once for all variants"):
        load_comparison(write(tiny), [override])
