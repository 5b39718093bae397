import pytest
import torch

from glm_ext import GLM, Batch, GLMConfig
from glm_ext.train.activations import checkpoint_blocks

CONFIG = GLMConfig(vocab_size=50, num_layers=3, hidden_size=32, num_heads=4, max_positions=16)


def batch():
    torch.manual_seed(1)
    return Batch(
        tokens=torch.randint(50, (2, 9)),
        positions=torch.randint(16, (2, 2, 9)),
        targets=torch.randint(50, (2, 9)),
        loss_mask=torch.ones(2, 9),
        prefix_len=torch.tensor([3, 5]),
        seq_len=torch.tensor([9, 7]),
    )


def gradients(model, precision):
    torch.manual_seed(2)
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        loss = model.loss(batch())
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return loss, found, torch.get_rng_state()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits_with_dropout(precision):
    torch.manual_seed(0)
    model = GLM(CONFIG)
    assert CONFIG.hidden_dropout > 0 and CONFIG.attention_dropout > 0
    loss, kept, state = gradients(model, precision)
    checkpoint_blocks(model)
    again, computed_again, state_again = gradients(model, precision)
    assert torch.equal(loss, again) and torch.equal(state, state_again)
    for name in kept:
        assert torch.equal(kept[name], computed_again[name]), name


def test_less_is_kept():
    def bytes_kept(model):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            model.loss(batch())
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in parameters)

    model = GLM(CONFIG)
    before = bytes_kept(model)
    checkpoint_blocks(model)
    checkpoint_blocks(model)  # once is enough, twice is the same
    assert bytes_kept(model) < before / 2


def test_nothing_changes_without_gradients():
    model = GLM(CONFIG).eval()
    tokens = torch.tensor([[5, 6, 7]])
    positions = torch.zeros(1, 2, 3, dtype=torch.int64)
    with torch.no_grad():
        before = model(tokens, positions, 2)
        checkpoint_blocks(model)
        assert torch.equal(model(tokens, positions, 2, cache=model.new_cache(1, 3)), before)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="expected a model with GLMBlocks, got Linear"):
        checkpoint_blocks(torch.nn.Linear(2, 3))
