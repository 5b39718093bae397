import dataclasses
import re

import pytest

from glm_ext.train.config import DataConfig, ModelConfig, ObjectivesConfig, OptimConfig, TrainConfig
from glm_ext.train.settings import ConfigError

UNUSUAL = TrainConfig(
    steps=7,
    threads=1,
    step_tokens=1000,
    precision="bf16",
    checkpoint_activations=True,
    backend="eager",
    workers=2,
    model=ModelConfig(
        preset="base", overrides={"num_layers": 3, "hidden_dropout": 0.25, "approximate": "none"}
    ),
    data=DataConfig(
        path="texts/größe", held_out=0.5, objectives=ObjectivesConfig(token=0.5, document=2.0, per_batch=True)
    ),
    optim=OptimConfig(lr=3e-5, betas=(0.5, 0.75), clip=float("inf"), schedule="wsd", decay=0.25),
)


def test_yaml_round_trip(tmp_path):
    for config in (TrainConfig(), UNUSUAL):
        config.to_yaml(tmp_path / "config.yaml")
        assert TrainConfig.from_yaml(tmp_path / "config.yaml") == config


def test_dict_round_trip():
    assert TrainConfig.from_dict(UNUSUAL.to_dict()) == UNUSUAL


def test_missing_keys_take_their_defaults_and_1e_3_is_a_number(tmp_path):
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1e-3\n  betas: [0.8, 0.9]\nsteps: 5\n")
    expected = TrainConfig(steps=5, optim=OptimConfig(lr=1e-3, betas=(0.8, 0.9)))
    assert TrainConfig.from_yaml(tmp_path / "c.yaml") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", r"there is no setting 'stepz'; did you mean 'steps'\?"),
        ("optim: {lrr: 3}", r"there is no setting 'optim.lrr'; did you mean 'optim.lr'\?"),
        ("lr: 3", r"there is no setting 'lr'; did you mean 'optim.lr'\?"),
        ("steps: many", "steps: expected int, got many"),
        ("steps: 1.5", "steps: expected int, got 1.5"),
        ("steps: null", "steps: expected int, got null"),
        ("threads: many", "threads: expected int or null, got many"),
        ("compile: maybe", "compile: expected bool, got maybe"),
        ("steps: [", "not YAML: while parsing"),
        ("- steps", r"settings: expected keys and values, got \['steps'\]"),
        ("optim: 3", "optim: expected keys and values, got 3"),
        ("data: {objectives: text}", "data.objectives: expected keys and values, got 'text'"),
        ("model: {overrides: 3}", "model.overrides: expected dict, got 3"),
        ("optim: {betas: [1, 2, 3]}", "optim.betas: expected tuple with 2 elements"),
        ("optim: {lr: -1}", "optim.lr: expected more than 0, and finite, got -1"),
        ("optim: {lr: .inf}", "optim.lr: expected more than 0, and finite, got inf"),
        ("steps: \xff", "not UTF-8 at byte 7"),
    ],
)
def test_bad_yaml_is_refused_in_one_line_with_the_file(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(file))}: .*{message}") as raised:
        TrainConfig.from_yaml(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "# steps: 3", "optim:", "optim:\n  # lr: 1\n", "data:\n  objectives:\nmodel:\n  overrides:"]
)
def test_a_group_whose_lines_are_commented_out_takes_its_defaults(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert TrainConfig.from_yaml(tmp_path / "c.yaml") == TrainConfig()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(batch_size=0), "batch_size: expected at least 1, got 0"),
        (lambda: TrainConfig(seed=-1), "seed"),
        (lambda: TrainConfig(threads=0), "threads"),
        (lambda: TrainConfig(device="tpu"), "device: expected cpu or cuda, got 'tpu'"),
        (lambda: DataConfig(held_out=1.0), "data.held_out"),
        (lambda: DataConfig(seq_length=7), "data.seq_length"),
        (lambda: ObjectivesConfig(sentence=-1.0), "data.objectives.sentence: expected 0 or more, got -1.0"),
        (lambda: ObjectivesConfig(token=0.0), "data.objectives: expected a weight above 0"),
        (lambda: ObjectivesConfig(infill=1.5), "data.objectives.infill: expected a probability"),
        (lambda: ModelConfig(preset="tony"), "model.preset: expected one of tiny, .*got 'tony'"),
        (
            lambda: ModelConfig(overrides={"num_layer": 3}),
            r"no field 'num_layer'; did you mean 'num_layers'\?",
        ),
        (
            lambda: ModelConfig(overrides={"num_layers": "x"}),
            "model.overrides.num_layers: expected int, got 'x'",
        ),
        (lambda: ModelConfig(overrides={"num_heads": 3}).build(256), "model.overrides: hidden_size"),
        (lambda: ModelConfig(overrides={"vocab_size": 128}).build(256), "vocab_size: expected at least 256"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "optim.betas"),
        (lambda: OptimConfig(warmup=1.0), "optim.warmup"),
        (lambda: OptimConfig(clip=0.0), "optim.clip"),
        (lambda: OptimConfig(schedule="step"), "optim.schedule: expected cosine, linear or wsd, got 'step'"),
        (lambda: OptimConfig(decay=0.0), "optim.decay: expected a part in"),
        (
            lambda: OptimConfig(schedule="wsd", warmup=0.5, decay=0.75),
            "optim.decay: expected at most the 0.5",
        ),
        (lambda: TrainConfig(precision="int8"), "precision: expected float32, bf16 or fp16, got 'int8'"),
        (lambda: TrainConfig(backend="torch"), "backend: expected auto, fused or eager, got 'torch'"),
        (lambda: TrainConfig(step_tokens=0), "step_tokens: expected at least 1, or null, got 0"),
        (lambda: TrainConfig(workers=-1), "workers: expected 0 or more, got -1"),
        (lambda: OptimConfig(lr=float("nan")), "optim.lr"),
        (lambda: OptimConfig(eps=float("inf")), "optim.eps: expected more than 0, and finite"),
        (lambda: OptimConfig(weight_decay=float("inf")), "optim.weight_decay: expected 0 or more, and"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_model_is_built_for_the_tokenizer():
    config = ModelConfig(overrides={"num_layers": 2, "hidden_dropout": 0}).build(384)
    assert (config.vocab_size, config.num_layers, config.hidden_size) == (384, 2, 256)


def test_settings_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3


def test_documents_share_an_example_only_where_nothing_is_packed_or_it_is_asked_for():
    assert DataConfig().joins and not DataConfig(packing=True).joins
    for asked in (False, True):
        assert DataConfig(join_documents=asked).joins is asked
        assert DataConfig(packing=True, join_documents=asked).joins is asked


def test_the_budget_of_a_packed_batch():
    assert DataConfig(seq_length=64).budget(8) is None
    assert DataConfig(seq_length=64, packing=True).budget(8) == 512
    assert DataConfig(seq_length=64, packing=True, token_budget=100).budget(8) == 100


def test_the_mixture_has_the_settings():
    built = ObjectivesConfig(
        token=0.5, sentence=1.0, per_batch=True, infill=0.25, short=0.1, block_mask=0.2
    ).build([])
    assert built.active == ("token", "sentence")
    assert (built.per_batch, built.short, built.block_mask) == (True, 0.1, 0.2)
    assert built.objectives["document"].keywords["settings"].infill == 0.25
    assert ObjectivesConfig().build([]).active == ("token",)
