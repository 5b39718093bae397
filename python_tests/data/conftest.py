"""One corpus and one tokenizer for all data tests."""

import pytest

from glm_ext.data import (
    GLMTokenizer,
    Split,
    TokenDocuments,
    encode_documents,
    load_documents,
    split_documents,
)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return load_documents()


@pytest.fixture(scope="session")
def split(corpus: list[str]) -> Split:
    return split_documents(corpus)


@pytest.fixture(scope="session")
def tokenizer(split: Split) -> GLMTokenizer:
    return GLMTokenizer.train(split.train, vocab_size=4096)


@pytest.fixture(scope="session")
def train_documents(tokenizer: GLMTokenizer, split: Split) -> TokenDocuments:
    return encode_documents(tokenizer, split.train)
