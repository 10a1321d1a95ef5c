"""Optimizers and schedules of torch train to the end with finite weights, or are refused before the first release."""

import inspect

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from dpmodel import DPModel, LearningRateScheduler, NoiseMechanismsFactory
from dpmodel.callbacks import Silence
from dpmodel.data.loader import PrivateLoader
from dpmodel.optimizers import build_optimizer
from monitors.errors import NonFiniteGradientsError

NAN, INF = float("nan"), float("inf")

#: Values of each option, most of them wrong.
OPTIONS = {
    "lr": [NAN, INF, -1.0, 0.0, 1e300, 1e38, None, "0.1", torch.tensor(0.1), torch.tensor(NAN), True, 10**400],
    "weight_decay": [NAN, INF, -1.0, 1e300, None, "x"],
    "betas": [(1.0, 1.0), (NAN, 0.9), (0.9, NAN), (2.0, 0.9), (0.9,), (0, 0), None],
    "eps": [0, NAN, -1, INF, None, 1e-300, (NAN, 1e-3), (0, 0)],
    "momentum": [1.0, 1.5, NAN, -1, INF, None],
    "dampening": [NAN, INF, 2.0, -5.0],
    "nesterov": [True],
    "maximize": [True, None],
    "foreach": [True],
    "fused": [True],
    "differentiable": [True],
    "capturable": [True],
    "amsgrad": [True],
    "rho": [NAN, 2.0, 1.0, -1],
    "alpha": [NAN, INF, 2.0, 1.0, -1],
    "centered": [True],
    "lambd": [NAN, INF, -1],
    "t0": [NAN, -1, 0],
    "lr_decay": [NAN, INF, -1],
    "initial_accumulator_value": [NAN, INF, -1, 0],
    "etas": [(NAN, 1.2), (0.5, NAN), (2, 3), (0.5, 1e300)],
    "step_sizes": [(NAN, 1), (1, NAN), (0, INF), (5, 1), (-1, 1)],
    "momentum_decay": [NAN, INF, -1],
    "d": [NAN, -1, 0],
    "ns_steps": [0, 100, -1, 1.5],
    "ns_coefficients": [(NAN, NAN, NAN), (1, 2)],
}


def optimizers():
    for name, kind in sorted(vars(optim).items()):
        if inspect.isclass(kind) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer:
            known = inspect.signature(kind).parameters
            for option, values in OPTIONS.items():
                for value in values if option in known else []:
                    yield pytest.param(kind, {option: value}, id=f"{name}-{option}-{value}")


class Late:
    """A function of the step that fails late."""

    def __init__(self, result=None):
        self.result = result

    def __call__(self, step):
        if step >= 3 and self.result is None:
            raise RuntimeError("late")
        return 1.0 if step < 3 else self.result


S = lr_scheduler
SCHEDULES = [
    lambda o: S.LambdaLR(o, Late()),
    lambda o: S.LambdaLR(o, Late(NAN)),
    lambda o: S.LambdaLR(o, Late("0.5")),
    lambda o: S.LambdaLR(o, Late(torch.tensor(NAN))),
    lambda o: S.LambdaLR(o, Late(-1.0)),
    lambda o: S.LambdaLR(o, Late(1j)),
    lambda o: S.LambdaLR(o, lambda step: [1.0, 1.0, 1.0][step]),
    lambda o: S.LambdaLR(o, lambda step: {0: 1.0, 1: 1.0, 9: 1.0}[step]),
    lambda o: S.LambdaLR(o, lambda step: (1 - step / 4) ** 0.9),
    lambda o: (lambda rates: S.LambdaLR(o, lambda step: next(rates)))(iter([1.0] * 4)),
    lambda o: S.MultiplicativeLR(o, Late(NAN)),
    lambda o: S.MultiplicativeLR(o, Late()),
    lambda o: S.MultiplicativeLR(o, lambda step: 1e200),
    lambda o: S.SequentialLR(o, [S.ConstantLR(o), S.OneCycleLR(o, 1.0, total_steps=3)], [2]),
    lambda o: S.SequentialLR(o, [S.ConstantLR(o), S.LambdaLR(o, Late())], [1]),
    lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, NAN)]),
    lambda o: S.ReduceLROnPlateau(o),
]
NAMED = {
    "StepLR": [
        *({"step_size": value} for value in (0, -1, NAN, None, "3", 1.5)),
        *({"step_size": 1, "gamma": value} for value in (NAN, INF, -1.0, 1e300)),
    ],
    "MultiStepLR": [{"milestones": []}, {"milestones": [3], "gamma": NAN}, {"milestones": 3}, {"milestones": ["a"]}],
    "ConstantLR": [{"factor": NAN}, {"factor": 2.0}, {"total_iters": -1}, {"factor": 0.0}, {"factor": None}],
    "LinearLR": [
        *({"start_factor": value} for value in (NAN, 0, 1e-300)),
        *({"end_factor": value} for value in (NAN, INF)),
        *({"total_iters": value} for value in (0, -3, None)),
    ],
    "ExponentialLR": [{"gamma": value} for value in (NAN, INF, -1.0, 0, 1e300, None, "x", 10.0)],
    "PolynomialLR": [{"power": NAN}, {"power": -1.0}, {"total_iters": 0}, {"power": "a"}, {"total_iters": -1}],
    "CosineAnnealingLR": [
        *({"T_max": value} for value in (0, -1, NAN, 1, None)),
        *({"eta_min": value} for value in (NAN, -1.0, INF)),
    ],
    "CosineAnnealingWarmRestarts": [{"T_0": 0}, {"T_mult": 0}, {"eta_min": NAN}, {"T_0": 2.5}, {"T_0": 1, "T_mult": 2}],
    "CyclicLR": [
        {"base_lr": 0.1, "max_lr": 1.0} | more
        for more in (
            {},
            {"base_lr": NAN},
            {"max_lr": NAN},
            {"step_size_up": 0},
            {"mode": "exp_range", "gamma": NAN},
            {"cycle_momentum": False},
            {"base_momentum": NAN},
            {"step_size_up": 2, "max_lr": -5.0},
        )
    ],
    "OneCycleLR": [
        {"max_lr": 1.0} | more
        for more in (
            {},
            {"max_lr": NAN},
            {"max_lr": -1.0},
            {"total_steps": 3},
            {"pct_start": 0},
            {"pct_start": 1},
            {"div_factor": 0},
            {"div_factor": NAN},
            {"final_div_factor": -1},
            {"max_momentum": NAN},
            {"max_lr": [1.0, 2.0]},
        )
    ],
}


def require_trained_or_refused(build, schedule=None, epochs=3):
    network = nn.Linear(3, 2, bias=False)  # Muon takes matrices only
    model = None
    try:
        optimizer = build(network.parameters())
        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
        model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, engine="vmap")
        callbacks = [Silence()] + ([] if schedule is None else [schedule(optimizer)])
        loader = PrivateLoader(TensorDataset(torch.randn(12, 3), torch.arange(12) % 2), 4)
        model.fit(loader, epochs, callbacks=callbacks)
    except NonFiniteGradientsError:
        # Whether the largest finite rate breaks the weights depends on the gradients: an error after the epoch.
        assert optimizer.param_groups[0]["lr"] == 1e38
    except Exception:
        assert model is None or model.ledger.total == 0
    else:
        assert model.ledger.total == 3 * epochs
        assert bool(network.weight.isfinite().all())


@pytest.mark.sample(521)
@pytest.mark.parametrize(("kind", "options"), [*optimizers()])
def test_optimizers_with_hostile_options(kind, options):
    if kind is optim.SGD:
        options = {"lr": 0.1} | options
    require_trained_or_refused(lambda parameters: kind(parameters, **options), epochs=1)


@pytest.mark.sample(68)
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("schedule", range(len(SCHEDULES)))
@pytest.mark.parametrize("name", ["Momentum", "Adam"])
def test_schedules_with_hostile_functions_and_parts(name, schedule, interval):
    require_trained_or_refused(
        lambda parameters: build_optimizer(name, parameters, lr=0.1),
        lambda optimizer: LearningRateScheduler(SCHEDULES[schedule](optimizer), interval),
    )


@pytest.mark.sample(288)
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(("schedule", "options"), [(name, options) for name in NAMED for options in NAMED[name]])
@pytest.mark.parametrize("name", ["Momentum", "Adam"])
def test_schedules_by_name_with_hostile_options(name, schedule, options, interval):
    require_trained_or_refused(
        lambda parameters: build_optimizer(name, parameters, lr=0.1),
        lambda optimizer: LearningRateScheduler(schedule, interval, **options),
    )
