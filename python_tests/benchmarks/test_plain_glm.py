"""The peers of the end-to-end benchmark compute what GLM computes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.plain_glm import plain_twin
from benchmarks.train_step import make_batch
from glm_ext import GLM, GLMConfig


@pytest.mark.parametrize("as_published", [False, True])
def test_loss_and_gradients_are_those_of_the_model(as_published: bool) -> None:
    torch.manual_seed(0)
    config = GLMConfig(
        vocab_size=97,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        max_positions=512,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    model = GLM(config)
    twin = plain_twin(model, as_published)
    batch = make_batch(config)
    batch.prefix_len.copy_(torch.tensor([410, 300, 7, 512]))
    batch.loss_mask[1, 450:] = 0.0

    losses = [loss(batch) for loss in (model.loss, twin.loss)]
    torch.testing.assert_close(*losses)
    pairs = [(model.word_embeddings.weight, twin.words.weight)]
    for block, plain in zip(model.transformer.layers, twin.blocks, strict=True):
        pairs += [
            (block.attention.query_key_value.weight, plain.qkv.weight),
            (block.attention.dense.bias, plain.dense.bias),
            (block.input_layernorm.weight, plain.norm1.weight),
            (block.post_attention_layernorm.bias, plain.norm2.bias),
            (block.mlp.dense_h_to_4h.weight, plain.up.weight),
            (block.mlp.dense_4h_to_h.weight, plain.down.weight),
        ]
    ours = torch.autograd.grad(losses[0], [pair[0] for pair in pairs])
    theirs = torch.autograd.grad(losses[1], [pair[1] for pair in pairs])
    torch.testing.assert_close(ours, theirs)
