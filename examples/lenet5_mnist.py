"""MindArmour's differential privacy tutorial (lenet5_dp.py), line by line, with dpmodel.

    python examples/lenet5_mnist.py

The settings are the tutorial's. What they really spend is printed at the end: far more than the tutorial's own monitor
says, because clipping the mean of several examples counts double, because shuffled batches are not amplified, and
because the adaptive clip count is a release too. `configs/lenet5_mnist.yaml` has settings that protect.
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
    load_checkpoint,
    load_param_into_net,
)
from dpmodel.data import load_dataset
from dpmodel.losses import SoftmaxCrossEntropyWithLogits
from dpmodel.nets import build_network

# Configuring Parameters
cfg = SimpleNamespace(
    num_classes=10,  # the number of classes of model's output
    lr=0.01,  # the learning rate of model's optimizer
    momentum=0.9,  # the momentum value of model's optimizer
    epoch_size=10,  # training epochs
    batch_size=256,  # batch size for training
    image_size=32,  # the height and width of training samples
    save_checkpoint_steps=234,  # the interval steps for saving checkpoint file of the model
    keep_checkpoint_max=10,  # the maximum number of checkpoint files would be saved
    checkpoint_directory="trained_ckpt_file",
    data_path=None,  # the copy of MNIST in this repository
    micro_batches=32,  # the number of small batches split from an original batch
    norm_bound=1.0,  # the clip bound of the gradients of model's training parameters
    initial_noise_multiplier=0.05,  # the initial multiplication coefficient of the noise added to training
    noise_mechanisms="Gaussian",  # the method of adding noise in gradients while training
    clip_mechanisms="Gaussian",  # the method of adaptive clipping gradients while training
    clip_decay_policy="Linear",  # decay policy of adaptive clipping
    clip_learning_rate=0.001,  # learning rate of update norm clip
    target_unclipped_quantile=0.9,  # target quantile of norm clip
    fraction_stddev=0.01,  # the stddev of Gaussian normal which used in empirical_fraction
)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and test; returns the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=cfg.epoch_size)
    parser.add_argument("--limit", type=int, help="train on this many examples only")
    parser.add_argument("--checkpoints", default=cfg.checkpoint_directory, help="folder of the checkpoints")
    options = parser.parse_args(arguments)

    # Preprocessing the Dataset: resized to 32 x 32 with bilinear interpolation, scaled to [0, 1]
    data = load_dataset("mnist", root=cfg.data_path, image_size=cfg.image_size, limit=options.limit)
    ds_train = DataLoader(data.train, batch_size=cfg.batch_size, shuffle=True, drop_last=True)
    ds_eval = DataLoader(data.test, batch_size=cfg.batch_size)

    # Creating the Model
    network = build_network("lenet5", num_classes=cfg.num_classes)
    net_loss = SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    config_ck = CheckpointConfig(
        save_checkpoint_steps=cfg.save_checkpoint_steps, keep_checkpoint_max=cfg.keep_checkpoint_max
    )
    ckpoint_cb = ModelCheckpoint(prefix="checkpoint_lenet", directory=options.checkpoints, config=config_ck)

    # Introducing the Differential Privacy
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

    # MindArmour's monitor is told the same numbers a second time. Here they are checked against the run: a
    # contradiction is an error. Left out, they come from the run. The zcdp monitor is exact for shuffled batches.
    zcdp_monitor = PrivacyMonitorFactory.create(
        "zcdp",
        num_samples=len(data.train),
        batch_size=cfg.batch_size,
        initial_noise_multiplier=cfg.initial_noise_multiplier,
        per_print_times=234,
        noise_decay_mode=None,
    )

    # Pack the LeNet model as a differential privacy model
    model = DPModel(
        micro_batches=cfg.micro_batches,
        norm_bound=cfg.norm_bound,
        noise_mech=noise_mech,
        clip_mech=clip_mech,
        network=network,
        loss_fn=net_loss,
        optimizer=net_opt,
        metrics={"Accuracy": Accuracy()},
        sampling="shuffle",  # as the tutorial draws its batches; dpmodel's default is Poisson sampling
    )

    # Train and test the model
    print("============== Starting Training ==============")
    model.train(options.epochs, ds_train, callbacks=[ckpoint_cb, LossMonitor(234), zcdp_monitor])

    print("============== Starting Testing ==============")
    param_dict = load_checkpoint(ckpoint_cb.latest)
    load_param_into_net(network, param_dict)
    acc = model.eval(ds_eval)
    print(f"============== Accuracy: {acc} ==============")
    print(model.privacy_spent(delta=1e-5, accountant="zcdp"))
    return acc


if __name__ == "__main__":
    main()
