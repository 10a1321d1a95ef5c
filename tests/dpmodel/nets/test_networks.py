import pytest
import torch
from torch import nn

from dpmodel.nets import (
    ACTIVATIONS,
    INITIALIZERS,
    NETWORKS,
    LeNet5,
    SmallCNN,
    TemperedSigmoid,
    build_activation,
    build_network,
)

DEFAULTS = {"num_classes": 10, "in_channels": 1, "in_features": 1024, "image_size": 32}


class Own(nn.Module):
    def __init__(self, width, num_classes=2):
        super().__init__()
        self.layer = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.layer(x)


def not_a_network(**options):
    return options


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_lenet5_is_that_of_the_tutorial():
    network = LeNet5()
    assert count(network) == 61_684
    assert {name: tuple(item.shape) for name, item in network.named_parameters()} == {
        "conv1.weight": (6, 1, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }


def test_lenet5_computes_what_a_plain_reading_of_the_tutorial_computes():
    network = LeNet5(seed=3)
    x = torch.rand(4, 1, 32, 32)
    relu, pool = torch.relu, nn.MaxPool2d(2)
    features = pool(relu(nn.functional.conv2d(x, network.conv1.weight)))
    features = pool(relu(nn.functional.conv2d(features, network.conv2.weight))).reshape(4, 400)
    hidden = relu(features @ network.fc1.weight.T + network.fc1.bias)
    hidden = relu(hidden @ network.fc2.weight.T + network.fc2.bias)
    torch.testing.assert_close(network(x), hidden @ network.fc3.weight.T + network.fc3.bias)


def test_truncated_normal_has_mindspores_spread_and_cut_in_weights_and_biases():
    network = LeNet5(seed=0)
    assert all(bool((parameter.abs() <= 0.1).all()) for parameter in network.parameters())
    weights = network.fc1.weight.detach().flatten()
    # A standard normal cut at two deviations has the deviation 0.87963.
    assert float(weights.std()) == pytest.approx(0.05 * 0.87963, rel=0.02)
    assert float(weights.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(network.fc1.bias.detach().std()) == pytest.approx(0.05 * 0.87963, rel=0.25)


@pytest.mark.parametrize("init", INITIALIZERS.names())
@pytest.mark.parametrize("name", NETWORKS.names())
def test_one_seed_gives_one_network_and_leaves_the_global_generator_alone(name, init):
    before = torch.get_rng_state()
    first, second, other = (build_network(name, seed=seed, defaults=DEFAULTS, init=init) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    parameters = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in parameters)
    assert not all(torch.equal(a, c) for a, _, c in parameters)


def test_the_seed_of_the_class_and_of_the_builder_mean_the_same():
    assert torch.equal(LeNet5(seed=5).fc1.weight, build_network("lenet5", seed=5).fc1.weight)


@pytest.mark.parametrize("activation", ACTIVATIONS.names())
@pytest.mark.parametrize("name", ["lenet5", "small_cnn", "mlp"])
def test_every_activation_works_with_every_network(name, activation):
    network = build_network(name, defaults=DEFAULTS, activation=activation)
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_the_small_cnn_has_the_papers_size():
    assert count(SmallCNN()) == 26_010
    assert SmallCNN()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("image_size", [20, 28, 32, 64])
def test_the_small_cnn_fits_its_image_size(image_size):
    assert SmallCNN(image_size=image_size)(torch.rand(1, 1, image_size, image_size)).shape == (1, 10)


def test_networks_take_an_empty_batch():
    for name in NETWORKS.names():
        assert build_network(name, defaults=DEFAULTS)(torch.zeros(0, 1, 32, 32)).shape == (0, 10)


def test_tempered_sigmoid_with_its_defaults_is_tanh():
    x = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(TemperedSigmoid()(x), torch.tanh(x))


@pytest.mark.parametrize("network", ["lenet5", "small_cnn", "mlp"])
def test_an_activation_takes_its_arguments_by_name(network):
    paper = {"name": "tempered_sigmoid", "scale": 1.58, "temperature": 3.0, "offset": 0.71}
    built = build_network(network, defaults=DEFAULTS, activation=paper, **({"hidden": [4]} if network == "mlp" else {}))
    (found, *_) = [module for module in built.modules() if isinstance(module, TemperedSigmoid)]
    x = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(found(x), 1.58 / (1 + torch.exp(-3.0 * x)) - 0.71)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ({"name": "tempered_sigmoid", "scal": 2.0}, "no argument 'scal'; did you mean 'scale'"),
        ({"name": "tempered_sigmoid", "temperature": 0.0}, "temperature must be a positive"),
        ({"name": "tanh", "scale": 2.0}, "activation 'tanh' cannot be built from .* argument 'scale'"),
        ({"scale": 2.0}, "the key 'name'"),
        ("tahn", "did you mean 'tanh'"),
    ],
)
def test_a_wrong_activation_is_refused(activation, message):
    with pytest.raises(ValueError, match=message):
        build_activation(activation)


def test_defaults_fill_in_only_what_is_taken_and_not_given():
    assert build_network("mlp", defaults=DEFAULTS, num_classes=3)(torch.zeros(1, 1024)).shape == (1, 3)
    own = build_network(module=f"{__name__}:Own", width=4, defaults=DEFAULTS)
    assert own(torch.zeros(1, 4)).shape == (1, 10)


def test_a_users_class_is_found_in_the_folder_of_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\n"
        "class Wide(nn.Linear):\n"
        "    def __init__(self, width=3):\n"
        "        super().__init__(width, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert build_network(module="my_own_nets:Wide", width=7).in_features == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either the name of a network or module="),
        ({"name": "lenet5", "module": "a:B"}, "give either the name of a network or module="),
        ({"name": "lenet"}, "did you mean 'lenet5'"),
        ({"name": "lenet5", "activatoin": "tanh"}, "did you mean 'activation'"),
        ({"name": "lenet5", "activation": "tanhh"}, "did you mean 'tanh'"),
        ({"name": "lenet5", "init": "truncated"}, "did you mean 'truncated_normal'"),
        ({"name": "lenet5", "num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"name": "small_cnn", "image_size": 10}, "image_size must be at least 20"),
        ({"name": "mlp"}, "network 'mlp' needs the argument 'in_features'"),
        ({"module": "nn.Linear"}, "must have the form 'package.module:Class', got 'nn.Linear'"),
        ({"module": "torch.nn.moduless:Linear"}, "there is no module 'torch.nn.moduless'"),
        (
            {"module": "no_such_package.nets:Net"},
            r"there is no module 'no_such_package'. Run the command in the folder of no_such_package.py",
        ),
        ({"module": "torch.nn:Liner"}, "no attribute 'Liner'; did you mean 'Linear'"),
        ({"module": "torch.nn:Linear", "in_features": 3}, "needs the argument 'out_features'"),
        ({"module": "torch.nn:Linear", "in_features": 3, "out_feature": 2}, "did you mean 'out_features'"),
        ({"module": "torch.nn:Parameter"}, "is not a torch.nn.Module"),
        ({"module": "numpy:pi"}, "not a class or function"),
        ({"module": f"{__name__}:not_a_network"}, "built dict, which is not a torch.nn.Module"),
    ],
)
def test_wrong_networks_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_network(**arguments)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "importing 'broken_.*' failed: it needs 'no_such_dependency'"),
        ("1 / 0", "failed: ZeroDivisionError"),
        ("def f(:", "failed: SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch, source, message):
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        build_network(module=f"{name}:Net")


def test_images_of_the_wrong_size_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"32 x 32.*image_size to 32"):
        LeNet5()(torch.zeros(1, 1, 28, 28))
