"""From text to batches. Reads in this order: corpus, tokenizer, sampling, objectives, spans, blocks, collate.

Imports nothing of the model: the two meet in glm_ext.batch.Batch.
"""

from .blocks import Example, make_blocks, make_prefix, part_b_spans, restore
from .cloze import Cloze, Prompt, encode_continuation, encode_prompt, held_out_cloze
from .collate import collate
from .corpus import Split, load_documents, split_documents
from .objectives import (
    DocumentSettings,
    Mixture,
    Objective,
    SentenceSettings,
    TokenSpanSettings,
    block_mask,
    crop,
    document_span,
    find_sentences,
    sentence_spans,
    standard_objectives,
    token_spans,
)
from .sampling import ExampleBatches, Text, TokenDocuments, encode_documents, sample_text
from .special import MASK_TOKENS, SPECIAL_TOKENS, SpecialIds
from .tokenizer import GLMTokenizer
from .unigram import target_counts, unigram_loss

__all__ = [
    "MASK_TOKENS",
    "SPECIAL_TOKENS",
    "Cloze",
    "DocumentSettings",
    "Example",
    "ExampleBatches",
    "GLMTokenizer",
    "Mixture",
    "Objective",
    "Prompt",
    "SentenceSettings",
    "SpecialIds",
    "Split",
    "Text",
    "TokenDocuments",
    "TokenSpanSettings",
    "block_mask",
    "collate",
    "crop",
    "document_span",
    "encode_continuation",
    "encode_documents",
    "encode_prompt",
    "find_sentences",
    "held_out_cloze",
    "load_documents",
    "make_blocks",
    "make_prefix",
    "part_b_spans",
    "restore",
    "sample_text",
    "sentence_spans",
    "split_documents",
    "standard_objectives",
    "target_counts",
    "token_spans",
    "unigram_loss",
]
