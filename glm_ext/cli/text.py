"""The text of a run: from files, or from a token store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from glm_ext.data import (
    GLMTokenizer,
    TokenDocuments,
    encode_documents,
    is_store,
    load_documents,
    open_store,
    split_documents,
    split_token_documents,
)
from glm_ext.train.config import DataConfig

_TEXTS_SHOWN = 500  # held-out documents of a store that are decoded, to make a few blanks of


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """What a run learns from and what it is measured on, with the tokenizer that both were encoded by."""

    tokenizer: GLMTokenizer
    train: TokenDocuments
    held_out: TokenDocuments
    held_out_texts: list[str]
    sha256: str  # of the tokens


def load_text(data: DataConfig, tokenizer: GLMTokenizer | None) -> TrainingText:
    """The text that the settings name; tokenizer: that of a run to go on with, else the text's own.

    A store brings its tokenizer; for other text one is trained on the part that is not held out.
    """
    if data.path is not None and is_store(data.path):
        store = open_store(data.path)
        token_split = split_token_documents(store.documents, data.held_out)
        shown = min(len(token_split.held_out), _TEXTS_SHOWN)
        return TrainingText(
            tokenizer=store.tokenizer,
            train=token_split.train,
            held_out=token_split.held_out,
            held_out_texts=[store.tokenizer.decode(token_split.held_out[d].tolist()) for d in range(shown)],
            sha256=store.sha256,
        )
    split = split_documents(load_documents(data.path), data.held_out)
    tokenizer = tokenizer or GLMTokenizer.train(split.train, data.vocab_size)
    train = encode_documents(tokenizer, split.train)
    return TrainingText(
        tokenizer=tokenizer,
        train=train,
        held_out=encode_documents(tokenizer, split.held_out),
        held_out_texts=split.held_out,
        sha256=hashlib.sha256(train.tokens.tobytes()).hexdigest(),
    )
