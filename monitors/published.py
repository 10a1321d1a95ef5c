"""The true cost of the noise multipliers of Tramèr and Boneh (2021): ``python -m monitors.published``.

Their five settings target epsilon 3 at delta 1e-5 with the conversion of that time. The classic conversion reproduces
the printed multipliers; the best conversion and the privacy-loss accountant state what they really spend.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitors.calibration import calibrate_noise_multiplier
from monitors.events import GaussianEvent, PoissonSampledEvent
from monitors.ledger import Ledger
from monitors.pld import PLDAccountant
from monitors.rdp import RDPAccountant

TARGET_EPSILON, DELTA = 3.0, 1e-5


@dataclass(frozen=True)
class PublishedSetting:
    """One row of the published table.

    Args:
        name: Data set and model.
        examples: Size of the training set.
        batch: Expected batch size.
        epochs: Number of epochs, of ``examples // batch`` steps each.
        multiplier: The printed noise multiplier.
        statistics: Multipliers of the private feature statistics released before training.
    """

    name: str
    examples: int
    batch: int
    epochs: int
    multiplier: float
    statistics: tuple[float, ...] = ()

    def ledger(self, multiplier: float) -> Ledger:
        """The ledger of this setting at the given multiplier."""
        ledger = Ledger()
        for statistic in self.statistics:
            ledger.record(GaussianEvent(statistic))
        steps = self.epochs * (self.examples // self.batch)
        return ledger.record(PoissonSampledEvent(self.batch / self.examples, GaussianEvent(multiplier)), steps)


SETTINGS = (
    PublishedSetting("MNIST, CNN", 60000, 512, 40, 1.23),
    PublishedSetting("Fashion-MNIST, CNN", 60000, 2048, 40, 2.15),
    PublishedSetting("CIFAR-10, CNN", 50000, 1024, 30, 1.54),
    PublishedSetting("MNIST, ScatterNet + linear", 60000, 4096, 40, 3.04, (8.0, 8.0)),
    PublishedSetting("Fashion-MNIST, ScatterNet + linear", 60000, 8192, 40, 4.05),
)


def table() -> list[tuple[str, float, float, float, float, float]]:
    """Per setting: name, printed multiplier, multiplier by the classic conversion, epsilon by classic, RDP and PLD."""
    classic, improved, tight = RDPAccountant(conversion="classic"), RDPAccountant(), PLDAccountant()
    rows = []
    for setting in SETTINGS:
        ledger = setting.ledger(setting.multiplier)
        asked = calibrate_noise_multiplier(TARGET_EPSILON, DELTA, setting.ledger, classic)
        figures = [accountant.epsilon(ledger, DELTA) for accountant in (classic, improved, tight)]
        rows.append((setting.name, setting.multiplier, asked, figures[0], figures[1], figures[2]))
    return rows


def main() -> None:
    """Print the table."""
    print(f"epsilon at delta {DELTA:g}; add or remove one example; Poisson sampling")
    print(f"{'setting':36}{'printed':>9}{'classic asks':>14}{'classic':>9}{'RDP':>8}{'PLD':>8}")
    for name, multiplier, asked, *figures in table():
        epsilons = f"{figures[0]:9.3f}{figures[1]:8.3f}{figures[2]:8.3f}"
        print(f"{name:36}{multiplier:9.2f}{asked:14.3f}{epsilons}")


if __name__ == "__main__":
    main()
