"""MindArmour's differential privacy tutorial (lenet5_dp.py), ported line by line to dpmodel.

    python examples/lenet5_mnist.py

The settings are those of the tutorial. The epsilon that they actually spend is printed at the end. It is far larger
than the tutorial's monitor reports: clipping the mean of several examples doubles the sensitivity, shuffled batches
have no amplification, and the adaptive clip count is also a release. For settings that protect the data, use
`configs/lenet5_mnist.yaml`.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from torch.utils.data import DataLoader

from dpmodel import (
    Accuracy,
    CheckpointConfig,
    ClipMechanismsFactory,
    DPModel,
    LossMonitor,
    ModelCheckpoint,
    Momentum,
    NoiseMechanismsFactory,
    PrivacyMonitorFactory,
    build_network,
    load_checkpoint,
    load_dataset,
    load_param_into_net,
)
from dpmodel.losses import SoftmaxCrossEntropyWithLogits

# Parameters
cfg = SimpleNamespace(
    num_classes=10,  # number of classes of the model's output
    lr=0.01,  # learning rate of the optimizer
    momentum=0.9,  # momentum of the optimizer
    epoch_size=10,  # number of training epochs
    batch_size=256,  # training batch size
    image_size=32,  # height and width of the images
    save_checkpoint_steps=234,  # steps between two checkpoints
    keep_checkpoint_max=10,  # maximum number of checkpoint files to keep
    checkpoint_directory="trained_ckpt_file",
    data_path=None,  # None: the copy of MNIST in this repository
    micro_batches=32,  # number of micro-batches per batch
    norm_bound=1.0,  # norm bound of the clipped gradients
    initial_noise_multiplier=0.05,  # noise multiplier of the first step
    noise_mechanisms="Gaussian",  # noise mechanism
    clip_mechanisms="Gaussian",  # clip mechanism; Gaussian is the adaptive one
    clip_decay_policy="Linear",  # update rule of adaptive clipping
    clip_learning_rate=0.001,  # learning rate of the norm bound
    target_unclipped_quantile=0.9,  # fraction of gradients that should stay unclipped
    fraction_stddev=0.01,  # standard deviation of the noise on the unclipped fraction
)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and test the model, and return the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=cfg.epoch_size)
    parser.add_argument("--limit", type=int, help="train on this many examples only")
    parser.add_argument("--checkpoints", default=cfg.checkpoint_directory, help="folder for the checkpoints")
    options = parser.parse_args(arguments)

    # Data: images are resized to 32 x 32 with bilinear interpolation and scaled to [0, 1].
    data = load_dataset("mnist", root=cfg.data_path, image_size=cfg.image_size, limit=options.limit)
    ds_train = DataLoader(data.train, batch_size=cfg.batch_size, shuffle=True, drop_last=True)
    ds_eval = DataLoader(data.test, batch_size=cfg.batch_size)

    # Model
    network = build_network("lenet5", num_classes=cfg.num_classes)
    net_loss = SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    config_ck = CheckpointConfig(
        save_checkpoint_steps=cfg.save_checkpoint_steps, keep_checkpoint_max=cfg.keep_checkpoint_max
    )
    ckpoint_cb = ModelCheckpoint(prefix="checkpoint_lenet", directory=options.checkpoints, config=config_ck)

    # Differential privacy
    noise_mech = NoiseMechanismsFactory().create(
        cfg.noise_mechanisms,
        norm_bound=cfg.norm_bound,
        initial_noise_multiplier=cfg.initial_noise_multiplier,
        decay_policy=None,
    )
    clip_mech = ClipMechanismsFactory().create(
        cfg.clip_mechanisms,
        decay_policy=cfg.clip_decay_policy,
        learning_rate=cfg.clip_learning_rate,
        target_unclipped_quantile=cfg.target_unclipped_quantile,
        fraction_stddev=cfg.fraction_stddev,
    )
    net_opt = Momentum(params=network.parameters(), learning_rate=cfg.lr, momentum=cfg.momentum)

    # MindArmour's monitor needs the same numbers a second time. Here they are optional and checked against the run: a
    # contradiction is an error. The zcdp monitor is exact for shuffled batches.
    zcdp_monitor = PrivacyMonitorFactory.create(
        "zcdp",
        num_samples=len(data.train),
        batch_size=cfg.batch_size,
        initial_noise_multiplier=cfg.initial_noise_multiplier,
        per_print_times=234,
        noise_decay_mode=None,
    )

    # The private model
    model = DPModel(
        micro_batches=cfg.micro_batches,
        norm_bound=cfg.norm_bound,
        noise_mech=noise_mech,
        clip_mech=clip_mech,
        network=network,
        loss_fn=net_loss,
        optimizer=net_opt,
        metrics={"Accuracy": Accuracy()},
        sampling="shuffle",  # as in the tutorial; the default of dpmodel is Poisson sampling
    )

    # Training and test
    print("============== Training ==============")
    model.train(options.epochs, ds_train, callbacks=[ckpoint_cb, LossMonitor(234), zcdp_monitor])

    print("============== Testing ==============")
    assert ckpoint_cb.latest is not None
    param_dict = load_checkpoint(ckpoint_cb.latest)
    load_param_into_net(network, param_dict)
    acc = model.eval(ds_eval)
    print(f"============== Accuracy: {acc} ==============")
    print(model.privacy_spent(delta=1e-5, accountant="zcdp"))
    return acc


if __name__ == "__main__":
    main()
