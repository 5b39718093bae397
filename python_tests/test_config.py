import json

import pytest

from glm_ext import GLM, GLMConfig

SMALL = {"vocab_size": 32, "num_layers": 1, "hidden_size": 8, "num_heads": 2, "max_positions": 4}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("base", 109_338_624),
        ("large", 334_688_256),
        ("410m", 410_265_600),
        ("515m", 514_632_960),
        ("roberta-large", 354_873_344),
        ("large-chinese", 355_659_776),
        ("2b", 1_920_122_880),
        ("10b", 9_880_682_496),
        ("10b-chinese", 9_879_633_920),
        ("tiny", 4096 * 256 + 2 * 257 * 256 + 4 * (12 * 256**2 + 13 * 256) + 2 * 256),
    ],
)
def test_presets_have_the_published_parameter_counts(name, parameters):
    assert GLM(GLMConfig.preset(name), device="meta").num_parameters() == parameters


def test_overrides_replace_fields_and_the_hidden_width_follows():
    config = GLMConfig.preset("base", hidden_size=96, attention_dropout=0.0)
    assert (config.hidden_size, config.ffn_hidden_size, config.attention_dropout) == (96, 384, 0.0)
    assert (config.num_layers, config.hidden_dropout) == (12, 0.1)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of tiny, base, .*10b-chinese, got 'huge'"):
        GLMConfig.preset("huge")


def test_dict_round_trip_through_json():
    config = GLMConfig(**SMALL, ffn_hidden_size=20, approximate="none")
    assert GLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match=r"no field heads, width; it has approximate, "):
        GLMConfig.from_dict({**SMALL, "width": 8, "heads": 2})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 0, "vocab_size: expected at least 1, got 0"),
        ("num_layers", -1, "num_layers: expected at least 1, got -1"),
        ("num_heads", 3, "hidden_size: expected a multiple of num_heads = 3, got 8"),
        ("ffn_hidden_size", -4, "ffn_hidden_size: expected 0"),
        ("hidden_dropout", 1.0, "hidden_dropout: expected 0 <= p < 1, got 1.0"),
        ("attention_dropout", -0.1, "attention_dropout: expected 0 <= p < 1"),
        ("layer_norm_eps", 0.0, "layer_norm_eps: expected more than 0"),
        ("init_std", -1.0, "init_std: expected 0 or more"),
        ("approximate", "relu", 'approximate: expected "tanh" or "none"'),
    ],
)
def test_fields_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        GLMConfig(**{**SMALL, field: value})
