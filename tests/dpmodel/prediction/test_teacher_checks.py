"""Settings with which one row would change several teachers are refused."""

import numpy as np
import pytest

from dpmodel.config import make_config
from dpmodel.prediction import train_teachers
from monitors.errors import ConfigError

X, Y = np.zeros((30, 4), np.float32), np.arange(30) % 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"limit": 20},
            "data.limit=20 chooses rows by a permutation of all rows.*rows of many teachers; remove data.lim",
        ),
        ({"validation": 5}, "data.validation=5 chooses rows by a permutation of all rows"),
        ({"num_classes": None}, "counted in the training labels.*outputs of every teacher. State data.num_classes"),
    ],
)
def test_what_depends_on_all_rows_is_refused(changes, message, tmp_path):
    np.savez(tmp_path / "own.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    config = make_config(
        {
            "data": {"name": "npz", "root": str(tmp_path / "own.npz"), "num_classes": 3, **changes},
            "network": "linear",
            "optimizer": {"name": "SGD", "lr": 0.1},
            "privacy": {"noise_multiplier": 1.0},
            "training": {"epochs": 1, "batch_size": 5},
        }
    )
    with pytest.raises(ConfigError, match=message):
        train_teachers(config, tmp_path / "t", 3, jobs=1)
    assert not (tmp_path / "t").exists()
