"""From text to batches. Reads in this order: corpus, tokenizer, sampling, objectives, spans, blocks, collate.

Imports nothing of the model: the two meet in glm_ext.batch.Batch.
"""

from .blocks import Example, make_blocks, make_prefix
from .cloze import Cloze, Prompt, encode_prompt, held_out_cloze
from .collate import collate
from .corpus import Split, load_documents, split_documents
from .objectives import TokenSpanSettings, token_spans
from .sampling import TokenDocuments, TokenSpanBatches, encode_documents, sample_text
from .special import MASK_TOKENS, SPECIAL_TOKENS, SpecialIds
from .tokenizer import GLMTokenizer
from .unigram import target_counts, unigram_loss

__all__ = [
    "MASK_TOKENS",
    "SPECIAL_TOKENS",
    "Cloze",
    "Example",
    "GLMTokenizer",
    "Prompt",
    "SpecialIds",
    "Split",
    "TokenDocuments",
    "TokenSpanBatches",
    "TokenSpanSettings",
    "collate",
    "encode_documents",
    "encode_prompt",
    "held_out_cloze",
    "load_documents",
    "make_blocks",
    "make_prefix",
    "sample_text",
    "split_documents",
    "target_counts",
    "token_spans",
    "unigram_loss",
]
