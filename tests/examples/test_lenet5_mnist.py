"""The tutorial's script in our spelling."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "lenet5_mnist.py"


def test_the_tutorials_script_runs_and_states_an_honest_epsilon(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("lenet5_mnist_example", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    metrics = script.main(["--epochs", "1", "--limit", "512", "--checkpoints", str(tmp_path)])
    text = capsys.readouterr().out
    assert 0 <= metrics["Accuracy"] <= 1
    assert list(tmp_path.glob("checkpoint_lenet-*.ckpt"))
    assert "sensitivity 2 x norm bound" in text
    assert "no amplification claimed" in text
