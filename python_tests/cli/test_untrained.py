"""The warning of a mask that a run was never trained on."""

import json
import shutil

import pytest

from glm_ext.cli import main
from glm_ext.train.finetune_config import FinetuneConfig

DOCUMENT = "never trained on [gMASK], which needs data.objectives.document above 0"
SENTENCE = "never trained on [sMASK], which needs data.objectives.sentence above 0"
TOKEN = "never trained on [MASK], which needs data.objectives.token or data.objectives.single above 0"

GENERATE = ["generate", "RUN", "The cat", "--max_length", "2"]
PERPLEXITY = ["evaluate", "RUN", "--task", "perplexity", "--data", "DATA"]
SEQ2SEQ = ["evaluate", "RUN", "--task", "seq2seq", "--data", "DATA", "--options.max_target", "2"]


@pytest.fixture
def complaint(finished, tmp_path, capsys):
    """complaint(arguments, **weights) -> what the command says of the run as if it had these objectives."""
    run, data = tmp_path / "run", tmp_path / "data.jsonl"
    shutil.copytree(finished, run)
    text = "The cat sees another dog near the old house."
    data.write_text(json.dumps({"text": text, "source": text, "target": "dog"}))

    def call(arguments, **weights):
        settings = (run / "config.yaml").read_text().replace("device: cpu", "device: cuda")
        for name, weight in weights.items():
            line = f"    {name}: {1.0 if name == 'token' else 0.0}\n"
            assert line in settings
            settings = settings.replace(line, f"    {name}: {weight}\n")
        (run / "config.yaml").write_text(settings)
        return said(arguments)

    def said(arguments):
        capsys.readouterr()
        places = {"RUN": str(run), "CHECKPOINT": str(run / "step-12"), "DATA": str(data)}
        assert main([places.get(argument, argument) for argument in arguments]) == 0
        return capsys.readouterr().err

    call.run, call.said = run, said
    return call


@pytest.mark.parametrize(
    ("arguments", "weights", "message"),
    [
        (GENERATE, {}, DOCUMENT),
        (["generate", "CHECKPOINT", "--num_beams", "2", "--max_length", "2"], {}, DOCUMENT),
        ([*GENERATE, "--mask", "[sMASK]"], {"document": 1.0}, SENTENCE),
        ([*GENERATE, "--mask", "[MASK]"], {"document": 1.0, "token": 0.0}, TOKEN),
        (PERPLEXITY, {}, DOCUMENT),
        (SEQ2SEQ, {}, SENTENCE),
        ([*SEQ2SEQ, "--options.pattern", "[gMASK] {source}"], {}, DOCUMENT),
        (["evaluate", "RUN", "--task", "infill", "--data", "DATA"], {"document": 1.0, "token": 0.0}, TOKEN),
    ],
)
def test_a_mask_that_was_never_trained_is_one_line(complaint, arguments, weights, message):
    assert complaint(arguments, **weights) == f"glm-ext: warning: {complaint.run}: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        (GENERATE, {"document": 0.5}),
        ([*GENERATE, "--mask", "[MASK]"], {}),
        ([*GENERATE, "--mask", "[MASK]"], {"single": 1.0, "token": 0.0}),
        ([*PERPLEXITY, "--options.mask", "[MASK]"], {}),
        (SEQ2SEQ, {"sentence": 0.1}),
    ],
)
def test_of_what_was_trained_nothing_is_said(complaint, arguments, weights):
    assert complaint(arguments, **weights) == ""


@pytest.mark.parametrize("arguments", [GENERATE, SEQ2SEQ])
def test_nor_of_a_finetuned_run_or_one_without_settings(complaint, arguments):
    config = complaint.run / "config.yaml"
    FinetuneConfig(source="a", task="seq2seq", train="b", valid="c").to_yaml(config)
    assert complaint.said(arguments) == ""
    config.write_text("data: 3")
    assert complaint.said(arguments) == ""
    config.unlink()
    assert complaint.said(arguments) == ""
