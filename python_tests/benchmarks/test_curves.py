"""What benchmarks.curves reads out of a run, written out by hand for a short one."""

import json

from benchmarks.curves import curve
from glm_ext.train.config import TrainConfig


def test_a_curve_is_the_runs_losses_over_steps_and_seconds_of_training(tmp_path):
    TrainConfig(precision="bf16").to_yaml(tmp_path / "config.yaml")
    rows = [
        {"step": 0, "unigram_loss": 6.5},
        {"step": 1, "loss": 6.0, "tokens": 100, "tokens_per_second": 10},
        {"step": 2, "skipped": "loss nan"},
        {"step": 2, "held_out_loss": 5.0, "held_out_loss/token": 4.0},
        {"step": 3, "loss": 5.5, "tokens": 300, "tokens_per_second": 20},
        {"step": 3, "held_out_loss": 4.5, "held_out_loss/token": 3.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = curve(tmp_path)
    assert (found["steps"], found["tokens"], found["seconds"], found["unigram"]) == (3, 300, 20, 6.5)
    assert (found["precision"], found["losses"], found["tokens_per_second"]) == ("bf16", [6.0, 5.5], 15)
    assert found["held_out"] == [
        {"step": 2, "seconds": 10, "held_out_loss": 5.0, "held_out_loss/token": 4.0},
        {"step": 3, "seconds": 20, "held_out_loss": 4.5, "held_out_loss/token": 3.5},
    ]
