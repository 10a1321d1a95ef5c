import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import dpmodel
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

#: Smaller forms of large networks.
SMALLER = {"wide_resnet": {"depth": 10, "width": 1}}


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


def seeded_cases():
    for name in NETWORKS.names():
        for init in INITIALIZERS.names():
            large = name == "resnet18" and init != "torch"  # it has no smaller form
            yield pytest.param(name, init, marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize(("name", "init"), [*seeded_cases()])
def test_one_seed_gives_one_network_and_leaves_the_global_generator_alone(name, init):
    before = torch.get_rng_state()
    options = {**SMALLER.get(name, {}), "init": init}
    first, second, other = (build_network(name, seed=seed, defaults=DEFAULTS, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    parameters = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in parameters)
    assert not all(torch.equal(a, c) for a, _, c in parameters)


def test_the_seed_of_the_class_and_of_the_builder_mean_the_same():
    assert torch.equal(LeNet5(seed=5).fc1.weight, build_network("lenet5", seed=5).fc1.weight)


@pytest.mark.parametrize("activation", ACTIVATIONS.names())
@pytest.mark.parametrize("name", ["lenet5", "small_cnn", "cifar_cnn", "wide_resnet", "scattering_cnn", "mlp"])
def test_every_activation_works_with_every_network(name, activation):
    network = build_network(name, defaults=DEFAULTS, activation=activation, **SMALLER.get(name, {}))
    assert any(type(layer) is ACTIVATIONS.get(activation) for layer in network.modules())
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 10)


#: Parameters of each network as published, or counted by hand layer by layer from the publication.
PARAMETERS = [
    # Tramer and Boneh 2021: convolutions and dense layers with their biases
    ("small_cnn", {"image_size": 28}, (16 * 64 + 16) + (16 * 32 * 16 + 32) + (512 * 32 + 32) + (32 * 10 + 10), (1, 28)),
    (
        "cifar_cnn",
        {},
        sum(9 * left * right + right for left, right in [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)])
        + (128 * 16 * 128 + 128)
        + (128 * 10 + 10),
        (3, 32),
    ),
    (
        "scattering_cnn",
        {"in_channels": 81, "image_size": 7},
        (9 * 81 * 16 + 16) + (9 * 16 * 32 + 32) + (32 * 16 * 32 + 32) + (32 * 10 + 10),
        (81, 7),
    ),
    (
        "scattering_cnn",
        {"in_channels": 243, "image_size": 8, "size": "large"},
        (9 * 243 * 64 + 64) + (9 * 64 * 64 + 64) + (64 * 16 * 10 + 10),
        (243, 8),
    ),
    # torchvision states 11,689,512 for 1,000 classes, as many as with BatchNorm
    ("resnet18", {"num_classes": 1000}, 11_689_512, (3, 32)),
    ("resnet18", {}, 11_689_512 - 990 * 513, (3, 32)),
    # Zagoruyko's WRN-16-4 has 2,748,890 (2.7 million in the paper). De et al. add the normalisation of three shortcuts
    # (208 channels), and to 2,256 channels of convolutions a bias and, with weight standardisation, a gain.
    ("wide_resnet", {"weight_standardisation": False}, 2_748_890 + 2 * 208 + 2256, (3, 32)),
    ("wide_resnet", {}, 2_748_890 + 2 * 208 + 2 * 2256, (3, 32)),
    ("wide_resnet", {"in_channels": 1}, 2_748_890 + 2 * 208 + 2 * 2256 - 2 * 9 * 16, (1, 28)),
]


@pytest.mark.parametrize(("name", "options", "parameters", "image"), PARAMETERS)
def test_networks_have_the_published_number_of_parameters(name, options, parameters, image):
    network = build_network(name, **options)
    assert count(network) == parameters
    assert network(torch.rand(2, image[0], image[1], image[1])).shape == (2, options.get("num_classes", 10))


def test_the_table_of_networks_is_complete_and_states_their_parameters():
    page = (Path(__file__).parents[3] / "docs" / "config.md").read_text()
    table = page.partition("### Networks by name")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]+) \((\d+)x(\d+)x(\d+)\) \|", table, flags=re.MULTILINE)
    assert tuple(sorted(row[0] for row in rows)) == NETWORKS.names()
    for name, stated, *sides in rows:
        shape = tuple(map(int, sides))
        facts = {"num_classes": 10, "in_channels": shape[0], "in_features": math.prod(shape), "image_size": shape[2]}
        assert count(build_network(name, defaults=facts)) == int(stated.replace(",", "")), name
    listed = {name for line in table.splitlines() if not line.startswith("|") for name in re.findall(r"`(\w+)`", line)}
    assert {*ACTIVATIONS.names(), *INITIALIZERS.names()} <= listed


def test_resnet18_is_that_of_torchvision_after_fix():
    import torchvision

    torch.manual_seed(3)
    expected, found = dpmodel.fix(torchvision.models.resnet18(num_classes=10)), build_network("resnet18", seed=3)
    assert repr(found) == repr(expected)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))


def test_resnet18_takes_grey_images():
    assert build_network("resnet18", in_channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_the_wide_resnet_computes_what_a_plain_reading_of_the_paper_computes():
    network = build_network("wide_resnet", depth=10, width=1, num_groups=4, weight_standardisation=False).double()
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)

    def ahead(h):
        h = nn.functional.group_norm(torch.relu(h), 4)  # its scale is 1 and its shift 0 at first
        layer = convolutions.pop(0)
        return nn.functional.conv2d(h, layer.weight, layer.bias, layer.stride, layer.weight.shape[2] // 2)

    first = convolutions.pop(0)
    h = nn.functional.conv2d(x, first.weight, first.bias, padding=1)
    for stage in range(3):
        residual = ahead(ahead(h))
        h = residual + (ahead(h) if stage else h)
    h = nn.functional.group_norm(torch.relu(h), 4).mean((2, 3))
    torch.testing.assert_close(network(x), h @ network.classifier.weight.T + network.classifier.bias)
    assert not convolutions
    assert len(norms) == 6 + 2 + 1


def test_weight_standardisation_makes_the_wide_resnet_independent_of_the_scale_of_its_convolutions():
    network = build_network("wide_resnet", depth=10, width=1)
    x = torch.rand(2, 3, 16, 16)
    before = network(x)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.mul_(5).add_(1)
    torch.testing.assert_close(network(x), before, rtol=1e-3, atol=1e-4)


def test_features_that_are_normalised_already_can_be_left_alone():
    for name in ("scattering_linear", "scattering_cnn"):
        facts = {"in_channels": 9, "image_size": 2, "in_features": 36}
        network = build_network(name, defaults=facts, num_groups=0)
        assert isinstance(network.norm, nn.Identity)


@pytest.mark.sample(9)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet18" else []) for name in NETWORKS.names()],
)
def test_every_network_trains_privately_with_the_fast_engine(name):
    network = build_network(name, defaults={**DEFAULTS, "image_size": 32}, **SMALLER.get(name, {}))
    data = torch.utils.data.TensorDataset(torch.rand(6, 1, 32, 32), torch.arange(6))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    noise = dpmodel.NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    model = dpmodel.DPModel(
        network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1), noise_mech=noise
    )
    model.fit(dpmodel.poisson_loader(data, batch_size=6), epochs=1)
    assert model.ledger.total == 1
    assert "engine 'bookkeeping': the fastest exact engine" in model.explain_engine()
    assert not any(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize("image_size", [20, 28, 32, 64])
def test_the_small_cnn_fits_its_image_size(image_size):
    assert SmallCNN(image_size=image_size)(torch.rand(1, 1, image_size, image_size)).shape == (1, 10)


def test_networks_take_an_empty_batch():
    for name in NETWORKS.names():
        assert build_network(name, defaults=DEFAULTS, **SMALLER.get(name, {}))(torch.zeros(0, 1, 32, 32)).shape == (
            0,
            10,
        )


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
        ({"name": "cifar_cnn", "image_size": 7}, "image_size must be at least 8 for the CIFAR CNN, got 7"),
        ({"name": "resnet18", "num_groups": 10}, "num_groups must divide the 64 channels of the first layers, got 10"),
        ({"name": "wide_resnet", "depth": 18}, r"depth must be 6 n \+ 4 for some n \(10, 16, .*\), got 18"),
        ({"name": "wide_resnet", "num_groups": 32}, "num_groups must divide the 16 channels of the first layer"),
        ({"name": "wide_resnet", "weight_standardisation": "maybe"}, "weight_standardisation must be"),
        ({"name": "scattering_cnn", "in_channels": 9, "image_size": 1}, "image_size must be at least 2"),
        ({"name": "scattering_cnn", "in_channels": 9, "image_size": 7, "size": "smal"}, "did you mean 'small'"),
        ({"name": "scattering_cnn", "in_channels": 9, "image_size": 7, "num_groups": 2}, "must divide the 9 channels"),
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
