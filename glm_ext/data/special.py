"""The special tokens of GLM: their names, their order, their ids."""

from __future__ import annotations

from typing import NamedTuple


class SpecialIds(NamedTuple):
    """Ids of the special tokens; the defaults are those that GLMTokenizer.train gives them.

    >>> SpecialIds().mask
    4
    """

    pad: int = 0
    unk: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    gmask: int = 5
    smask: int = 6
    dblock: int = 7
    eos: int = 8
    sop: int = 9
    eop: int = 10


# What each field of SpecialIds is called in a text.
SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "gmask": "[gMASK]",
    "smask": "[sMASK]",
    "dblock": "[dBLOCK]",
    "eos": "<|endoftext|>",
    "sop": "<|startofpiece|>",
    "eop": "<|endofpiece|>",
}

# The three blanks that a text may hold: a short span, a long continuation, whole sentences.
MASK_TOKENS = (SPECIAL_TOKENS["mask"], SPECIAL_TOKENS["gmask"], SPECIAL_TOKENS["smask"])
