"""Opacus' CIFAR-10 tutorial (building_image_classifier.ipynb), ported line by line to dpmodel.

    python examples/cifar10_resnet18.py
    python examples/cifar10_resnet18.py --images FOLDER     # FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg

ResNet18 with group normalisation and RMSprop, at epsilon 50 and delta 1e-5. The settings are those of the tutorial, but
the noise is solved for with the accountant `pld`, which is exact up to its grid: the same epsilon needs 5 % less noise.
`configs/cifar10_resnet18.yaml` is the same training as a configuration.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torchvision import models

from dpmodel import (
    Accuracy,
    DPModel,
    LossMonitor,
    PrivacyMonitorFactory,
    fix,
    load_dataset,
    noise_for_epsilon,
    poisson_loader,
    validate,
)

MAX_GRAD_NORM = 1.2  # norm bound of the gradient of each example
EPSILON = 50.0
DELTA = 1e-5
ACCOUNTANT = "pld"
EPOCHS = 20
LR = 1e-3
BATCH_SIZE = 512  # expected examples per step
MAX_PHYSICAL_BATCH_SIZE = 128  # examples in memory at once

# Public constants of CIFAR-10
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD_DEV = (0.2023, 0.1994, 0.2010)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and test the model, and return the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of images, in place of the CIFAR-10 that torchvision downloads")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="train on this many examples only")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--physical-batch-size", type=int, default=MAX_PHYSICAL_BATCH_SIZE)
    parser.add_argument("--print-every", type=int, default=50, metavar="STEPS")
    options = parser.parse_args(arguments)

    # Data: scaled to [0, 1], then normalised; no augmentation
    source = {"name": "cifar10"} if options.images is None else {"name": "image_folder", "root": options.images}
    data = load_dataset(**source, mean=CIFAR10_MEAN, std=CIFAR10_STD_DEV, limit=options.limit)
    train_loader = poisson_loader(data.train, batch_size=options.batch_size)
    test_loader = torch.utils.data.DataLoader(data.test, batch_size=MAX_PHYSICAL_BATCH_SIZE)

    # Model: 20 layers of batch normalisation mix the examples of a batch; group normalisation replaces them
    network = models.resnet18(num_classes=data.num_classes)
    print(f"layers to replace: {len(validate(network))}")
    network = fix(network)
    print(f"layers to replace: {len(validate(network))}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.RMSprop(network.parameters(), lr=LR)

    # Differential privacy
    noise = noise_for_epsilon(
        EPSILON, DELTA, train_loader, options.epochs, norm_bound=MAX_GRAD_NORM, accountant=ACCOUNTANT
    )
    print(f"Using sigma={noise.noise_multiplier(0):.4f} and C={MAX_GRAD_NORM}")
    model = DPModel(
        network,
        criterion,
        optimizer,
        norm_bound=MAX_GRAD_NORM,
        noise_mech=noise,
        metrics={"accuracy": Accuracy()},
        physical_batch_size=options.physical_batch_size,
        device=device,
    )

    # Training and test; epsilon is printed every few steps
    monitor = PrivacyMonitorFactory.create(ACCOUNTANT, target_delta=DELTA, per_print_times=options.print_every)
    model.fit(train_loader, options.epochs, callbacks=[LossMonitor(options.print_every), monitor])
    metrics = model.evaluate(test_loader)
    print(f"Test set: {metrics}")
    print(model.privacy_spent(DELTA, ACCOUNTANT))
    return metrics


if __name__ == "__main__":
    main()
