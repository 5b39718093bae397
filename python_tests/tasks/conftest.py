import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.data import GLMTokenizer

TEXT = """The cat sat on the mat. Yes, the dog ran to the house. No, it was not good, it was bad.
Maybe the man opened the door because he was late, so the woman closed it.
Question: is it true? Answer: Yes."""


@pytest.fixture(scope="session")
def tokenizer():
    return GLMTokenizer.train([TEXT] * 3, vocab_size=340)


@pytest.fixture
def glm(tokenizer):
    torch.manual_seed(0)
    config = GLMConfig(
        vocab_size=384, num_layers=2, hidden_size=32, num_heads=4, max_positions=128, init_std=0.1
    )
    return GLM(config)


@pytest.fixture
def write(tmp_path):
    """write(name, text) -> path."""

    def file(name, text):
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path / name

    return file
