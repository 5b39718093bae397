"""Tiny models whose choices differ from step to step, and generation by its definition."""

import torch

from glm_ext import GLM, GLMConfig

SOP, EOP = 2, 3


def model(seed=0, vocab_size=12, **overrides):
    """Wide weights; in training mode, dropout on."""
    torch.manual_seed(seed)
    settings = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16, "init_std": 0.3}
    return GLM(GLMConfig(vocab_size=vocab_size, **(settings | overrides)))


def logits_by_definition(glm, part_a, written):
    """Logits [V] after the last of `written`, (place, tokens that were fed there) in order; no cache."""
    tokens, places, block_places = list(part_a), list(range(len(part_a))), [0] * len(part_a)
    for place, span in written:
        tokens += span
        places += [place] * len(span)
        block_places += range(1, len(span) + 1)
    was_training = glm.training
    glm.eval()
    with torch.no_grad():
        logits = glm(torch.tensor([tokens]), torch.tensor([[places, block_places]]), len(part_a))[0, -1]
    glm.train(was_training)
    return logits
