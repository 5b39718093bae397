"""What the parsers of both commands make of the options of a task."""

import pytest

from glm_ext.cli import evaluate, finetune
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.settings import ConfigError


def by_finetune(*arguments):
    required = ["run", "--task", "t", "--train", "a", "--valid", "b", "--out", "no such folder"]
    return finetune.parse([*required, *arguments])[0].options


def by_evaluate(*arguments):
    return evaluate._parse(["run", "--task", "t", "--data", "a", *arguments]).options


@pytest.mark.parametrize("parse", [by_finetune, by_evaluate])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--options.mask", "[MASK]"], {"mask": "[MASK]"}),
        (["--options.mask=[gMASK]", "--options.stride=-3"], {"mask": "[gMASK]", "stride": -3}),
        (["--options", '{mask: "[MASK]"}'], {"mask": "[MASK]"}),
        (["--options", "{stride: 8, window: 9}", "--options.stride", "7"], {"stride": 7, "window": 9}),
        (["--options.pattern", "Question: {source} [MASK]"], {"pattern": "Question: {source} [MASK]"}),
        (["--options.pattern", "{source}"], {"pattern": "{source}"}),
        (["--options.pattern", "🐈 # [MASK]"], {"pattern": "🐈 # [MASK]"}),
        (
            ["--options.ratio", "0.5", "--options.unidirectional", "true"],
            {"ratio": 0.5, "unidirectional": True},
        ),
        (["--options.max_length", "null"], {"max_length": None}),
    ],
)
def test_values(parse, arguments, expected):
    found = parse(*arguments)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize("parse", [by_finetune, by_evaluate])
@pytest.mark.parametrize("arguments", [["--options.mask"], ["--options.mask", "--task", "t"]])
def test_a_value_that_is_missing(parse, arguments):
    with pytest.raises(ConfigError, match="--options: expected one argument"):
        parse(*arguments)


def test_a_file_of_settings(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text('options: {mask: "[MASK]", window: 9}\n')
    assert by_finetune("--config", str(file), "--options.window", "8") == {"mask": "[MASK]", "window": 8}


def test_what_a_run_keeps_it_reads_again(tmp_path):
    """So that --resume goes on with the same options."""
    options = {"mask": "[MASK]", "pattern": "Question: {source}", "max_length": None, "ratio": 0.5, "n": 3}
    config = FinetuneConfig(source="a", task="b", train="c", valid="d", options=options)
    config.to_yaml(tmp_path / "config.yaml")
    assert FinetuneConfig.from_yaml(tmp_path / "config.yaml") == config
