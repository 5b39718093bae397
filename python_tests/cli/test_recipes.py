"""The ready settings of glm-ext finetune: `--config NAME`."""

import json

import pytest

from glm_ext.cli import finetune, main
from glm_ext.config import GLMConfig
from glm_ext.data import GLMTokenizer
from glm_ext.tasks import SUPERGLUE, load_task
from glm_ext.train import load_checkpoint
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.settings import ConfigError

NAMES = sorted(file.stem for file in finetune.RECIPES.glob("*.yaml"))
OTHERS = {"summaries": "seq2seq", "last_word": "last_word", "perplexity": "perplexity", "infill": "infill"}


def parse(*arguments):
    return finetune.parse(["RUN", "--train", "a", "--valid", "b", "--out", "no such folder", *arguments])[0]


@pytest.fixture(scope="module")
def tokenizer():
    return GLMTokenizer.train(["the cat sat on the mat and the dog ran"] * 2, vocab_size=300)


def test_there_is_one_for_each_of_superglue_and_the_other_tasks():
    assert set(NAMES) == {*SUPERGLUE, "wsc", *OTHERS}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_command_and_a_base_model_take(name, tokenizer):
    config = parse("--config", name)
    assert config.task == OTHERS.get(name, name)
    load_task(config.task, tokenizer, model_config=GLMConfig.preset("base"), **config.options)


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_what_it_is_for(name):
    assert (finetune.RECIPES / f"{name}.yaml").read_text().startswith("# ")


def test_options_go_first():
    config = parse("--config", "summaries", "--epochs", "3", "--options.num_beams", "2")
    assert (config.epochs, config.options["num_beams"], config.options["min_length"]) == (3, 2, 55)


def test_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wic").mkdir()  # a folder, as of the task's data, is none
    (tmp_path / "rte").write_text("task: boolq\n")
    assert parse("--config", "rte").task == "boolq"
    assert parse("--config", "wic").task == "wic"


def test_an_unknown_name_is_told_those_that_there_are():
    with pytest.raises(ConfigError, match=r"config: expected a YAML file, or one of boolq, .*, got 'rta'"):
        parse("--config", "rta")


def test_one_of_them_from_the_command_line_to_a_better_model(finished, tmp_path, text_folder):
    data, run = tmp_path / "texts.jsonl", tmp_path / "run"
    texts = [file.read_text().splitlines()[0] for file in sorted(text_folder.iterdir())[:32]]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--config", "infill", "--train", str(data), "--valid", str(data), "--options.ratio", "0.3"]
    rest = ["--optim.lr", "1e-2", "--threads", "1", "--out", str(run)]
    assert main(["finetune", str(finished), *options, *rest]) == 0
    config = FinetuneConfig.from_yaml(run / "config.yaml")
    assert (config.task, config.epochs, config.options["ratio"]) == ("infill", 5, 0.3)
    scores = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    found = [score["valid/log_likelihood"] for score in scores if "valid/log_likelihood" in score]
    assert len(found) == 5 and found[-1] > found[0]
    assert load_checkpoint(run / "best")[0].state["best"]["metrics"]["log_likelihood"] == max(found)
