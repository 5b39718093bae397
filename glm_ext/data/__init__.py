"""From text to batches.

Reads in this order: sources, tokenizer, prepare, store, sampling, objectives, spans, blocks, collate.

Imports nothing of the model: the two meet in glm_ext.batch.Batch.
"""

from .blocks import Example, make_blocks, make_prefix, part_b_spans, restore
from .cloze import Cloze, Prompt, encode_continuation, encode_prompt, held_out_cloze
from .collate import collate, collate_packed
from .corpus import Split, load_documents, split_documents
from .documents import TokenDocuments, TokenSplit, encode_documents, split_token_documents
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
from .prepare import PrepareSettings, prepare
from .sampling import ExampleBatches, Text, sample_text
from .sources import Document, Piece, Problem, find_files, read_documents
from .special import MASK_TOKENS, SPECIAL_TOKENS, SpecialIds
from .store import TokenStore, is_store, open_store
from .tokenizer import GLMTokenizer
from .unigram import target_counts, unigram_loss

__all__ = [
    "MASK_TOKENS",
    "SPECIAL_TOKENS",
    "Cloze",
    "Document",
    "DocumentSettings",
    "Example",
    "ExampleBatches",
    "GLMTokenizer",
    "Mixture",
    "Objective",
    "Piece",
    "PrepareSettings",
    "Problem",
    "Prompt",
    "SentenceSettings",
    "SpecialIds",
    "Split",
    "Text",
    "TokenDocuments",
    "TokenSpanSettings",
    "TokenSplit",
    "TokenStore",
    "block_mask",
    "collate",
    "collate_packed",
    "crop",
    "document_span",
    "encode_continuation",
    "encode_documents",
    "encode_prompt",
    "find_files",
    "find_sentences",
    "held_out_cloze",
    "is_store",
    "load_documents",
    "make_blocks",
    "make_prefix",
    "open_store",
    "part_b_spans",
    "prepare",
    "read_documents",
    "restore",
    "sample_text",
    "sentence_spans",
    "split_documents",
    "split_token_documents",
    "standard_objectives",
    "target_counts",
    "token_spans",
    "unigram_loss",
]
