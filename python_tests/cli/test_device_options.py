"""--device and --threads of the commands that use a trained model."""

import json

import pytest
import torch

from glm_ext.cli import main
from glm_ext.model import GLM


@pytest.fixture
def commands(finished, tmp_path):
    """The arguments of each command that uses a model, by name."""
    data = tmp_path / "text.jsonl"
    data.write_text(json.dumps({"text": "The cat sees another dog near the old house."}))
    return {
        "fill": ["fill", str(finished), "The [MASK].", "--max_length", "2"],
        "generate": ["generate", str(finished), "The cat", "--max_length", "2"],
        "evaluate": ["evaluate", str(finished), "--task", "perplexity", "--data", str(data)],
    }


@pytest.mark.parametrize("command", ["fill", "generate", "evaluate"])
def test_the_model_goes_where_it_is_asked_for(commands, command, monkeypatch):
    """Where there is no GPU one is pretended, up to the move to it."""
    asked, threads = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(GLM, "to", lambda self, device: asked.append(device) or self)
    assert main([*commands[command], "--device", "cuda", "--threads", "1"]) == 0
    assert (asked, threads) == (["cuda"], [1])
    assert main([*commands[command], "--device", "cpu"]) == 0
    assert main(commands[command]) == 0
    assert (asked, threads) == (["cuda", "cpu", "cpu"], [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "device: expected a GPU that torch can use, but it finds none; choose cpu"),
        (["--device", "tpu"], "device: expected cpu or cuda, got 'tpu'"),
        (["--threads", "0"], "threads: expected at least 1, or null, got 0"),
        (["--threads", "x"], "threads: expected int or null, got x"),
    ],
)
@pytest.mark.parametrize("command", ["fill", "generate", "evaluate"])
def test_mistakes_are_those_of_training(commands, command, options, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capsys.readouterr()
    assert main([*commands[command], *options]) == 2
    assert capsys.readouterr().err == f"glm-ext: {message}\n"
