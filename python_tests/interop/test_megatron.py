import random
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.interop import load_megatron

CONFIG = GLMConfig(
    vocab_size=50, num_layers=2, hidden_size=32, num_heads=4, max_positions=16, ffn_hidden_size=40
)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return GLM(CONFIG).state_dict()


def assert_holds(model, state):
    assert model.config == CONFIG
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_public_implementations_weights_give_its_logits():
    golden = np.load(Path(__file__).parents[1] / "golden" / "reference_tiny.npz")
    state = {n.removeprefix("param/"): torch.from_numpy(golden[n]) for n in golden if n.startswith("param/")}
    model = load_megatron(state, num_heads=4).eval()
    tokens, positions, sep = (torch.from_numpy(golden[n]) for n in ("input_ids", "position_ids", "sep"))
    torch.testing.assert_close(
        model(tokens, positions, sep), torch.from_numpy(golden["logits"]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "glm.", "module.model."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_prefixes_and_the_module_wrapper(state, prefix, wrapped):
    named = {prefix + name: value for name, value in state.items()}
    assert_holds(load_megatron({"module": named, "iteration": 7} if wrapped else named, num_heads=4), state)


def test_the_model_owns_its_weights(state):
    model = load_megatron(state, num_heads=4)
    state["word_embeddings.weight"].zero_()
    assert torch.all(model.word_embeddings.weight != 0.0)


def test_the_dtype_is_kept(state):
    model = load_megatron({name: value.half() for name, value in state.items()}, num_heads=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "pytorch_model.bin", "model.safetensors"])
def test_files(state, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save({"module": state}, path)
    assert_holds(load_megatron(path, num_heads=4), state)
    assert_holds(load_megatron(str(path), num_heads=4), state)


def test_a_folder_of_one_part(state, tmp_path):
    torch.save({"module": state}, tmp_path / "mp_rank_00_model_states.pt")
    assert_holds(load_megatron(tmp_path, num_heads=4), state)
    torch.save({"module": state}, tmp_path / "mp_rank_01_model_states.pt")
    with pytest.raises(ValueError, match="expected one part, got 2"):
        load_megatron(tmp_path, num_heads=4)


def test_states_of_random_generators_are_skipped(state, tmp_path):
    rng = {"np_rng_state": np.random.get_state(), "random_rng_state": random.getstate()}  # noqa: NPY002
    torch.save({"module": state, **rng, "torch_rng_state": torch.get_rng_state()}, tmp_path / "model.pt")
    assert_holds(load_megatron(tmp_path / "model.pt", num_heads=4), state)


def test_a_broken_file_and_one_with_code_are_refused(state, tmp_path):
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no checkpoint")
    torch.save({"module": state, "args": Path}, tmp_path / "code.pt")
    for name in ("broken.pt", "broken.safetensors", "code.pt"):
        with pytest.raises(ValueError, match=rf"{name}: not a checkpoint that can be read safely"):
            load_megatron(tmp_path / name)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mp_rank_00_model_states\.pt: no such checkpoint"):
        load_megatron(tmp_path)


def test_task_heads_are_left_out_with_a_warning(state):
    tuned = {f"model.{name}": value for name, value in state.items()}
    tuned["pool_layer.weight"] = torch.zeros(32, 32)
    tuned["model.prompt_spell.spell_embeddings.weight"] = torch.zeros(3, 32)
    with pytest.warns(
        UserWarning, match=r"not loaded: pool_layer\.weight, prompt_spell\.spell_embeddings\.weight"
    ):
        assert_holds(load_megatron(tuned, num_heads=4), state)


def test_head_counts():
    state = GLM(
        GLMConfig(vocab_size=8, num_layers=1, hidden_size=128, num_heads=1, max_positions=4)
    ).state_dict()
    assert load_megatron(state).config.num_heads == 2  # 128 / 64
    with pytest.raises(ValueError, match="num_heads: expected a divisor of the width 128, got 3"):
        load_megatron(state, num_heads=3)
    with pytest.raises(ValueError, match="num_heads: expected a divisor of the width 128, got 0"):
        load_megatron(state, num_heads=0)
    with pytest.raises(TypeError, match=r"num_heads: expected an int or None, got 2\.0"):
        load_megatron(state, num_heads=2.0)
    with pytest.raises(TypeError, match="expected a state dict or the path of a checkpoint, got NoneType"):
        load_megatron(None)


def test_a_width_that_does_not_tell_the_heads(state):
    with pytest.raises(
        ValueError, match="num_heads: expected a number, as the width 32 is no multiple of 64"
    ):
        load_megatron(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_embeddings.weight": None}, "expected one word_embeddings.weight, got 0 among 28 names"),
        ({"transformer.position_embeddings.weight": None}, "missing transformer.position_embeddings.weight"),
        ({"transformer.final_layernorm.bias": None}, "missing transformer.final_layernorm.bias"),
        ({"transformer.layers.0.attention.rotary.inv_freq": torch.zeros(4)}, "unexpected .*rotary.inv_freq"),
        (
            {"word_embeddings.weight": torch.zeros(50)},
            r"word_embeddings.weight: expected a matrix, got \[50\]",
        ),
        (
            {"transformer.layers.1.attention.query_key_value.weight": torch.zeros(48, 32)},
            r"layers.1.attention.query_key_value.weight: expected \[96, 32\], got \[48, 32\]",
        ),
        (
            {"transformer.layers.3.input_layernorm.bias": torch.zeros(32)},
            "; and 18 more",
        ),  # 23 of layers 2 and 3
    ],
)
def test_names_and_shapes(state, change, message):
    for name, value in change.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    with pytest.raises(ValueError, match=message):
        load_megatron(state, num_heads=4)
