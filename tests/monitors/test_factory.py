import pytest

from monitors.factory import MONITORS, PrivacyMonitorFactory


@pytest.mark.parametrize("policy", ["rdp", "zcdp", "pld"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_epsilon": 3.0}, "'max_epsilon'; did you mean 'max_eps'"),
        ({"per_print_time": 10}, "'per_print_time'; did you mean 'per_print_times'"),
        (
            {"maxeps": 3.0, "xyz": 1},
            r"'maxeps'; did you mean 'max_eps'\?, 'xyz'. It takes: policy, num_samples, .*max_eps",
        ),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest(policy, wrong, message):
    with pytest.raises(ValueError, match=f"the privacy monitor {policy!r} has no argument {message}"):
        PrivacyMonitorFactory.create(policy, **wrong)


def test_an_argument_of_one_policy_is_listed_for_that_policy_only():
    with pytest.raises(ValueError, match=r"'convertion'; did you mean 'conversion'\? It takes: .*conversion"):
        PrivacyMonitorFactory.create("rdp", convertion="classic")
    with pytest.raises(ValueError, match="'pld' has no argument 'conversion'"):
        PrivacyMonitorFactory.create("pld", conversion="classic")


@pytest.fixture
def register():
    yield PrivacyMonitorFactory.register
    MONITORS._builders.pop("mine", None)


def test_a_registered_builder_may_take_any_argument(register):
    register("mine")(lambda claims, orders, **options: options)
    assert PrivacyMonitorFactory.create("mine", colour="red")["colour"] == "red"


def test_a_registered_builder_that_lacks_an_argument_says_so(register):
    @register("mine")
    def build(claims, orders, colour, **limits):
        return limits

    with pytest.raises(ValueError, match=r"monitor 'mine' cannot be built: .*missing .*'colour'\. It takes: .*colour"):
        PrivacyMonitorFactory.create("mine")


@pytest.mark.parametrize(("name", "words"), [("prv", "use 'pld'"), ("gdp", "use 'pld'"), ("moments", "use 'rdp'")])
def test_names_from_other_libraries_are_refused_with_the_accountant_to_use(name, words):
    with pytest.raises(ValueError, match=words):
        PrivacyMonitorFactory.create(name, max_eps=3.0)
