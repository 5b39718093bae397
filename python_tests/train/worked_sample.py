"""A training example worked out by hand: what is to be seen of it, in the picture and in the terminal.

    the old cat saw a dog ‹eos›, without "cat" and "a dog", the second first; "dog" is predicted without loss

What it is made of is written out, not computed, so that no error is in both the code and the expectation.
"""

import numpy as np

from glm_ext.data import Example
from glm_ext.train.plot_sample import SampleView, view_sample

# Ids 0 .. 9.
LABELS = ["[MASK]", "‹sop›", "‹eop›", "the", "old", "cat", "saw", "a", "dog", "‹eos›"]
SOP, EOP = 1, 2

INPUTS = ["the", "old", "[MASK]", "saw", "[MASK]", "‹eos›", "‹sop›", "a", "dog", "‹sop›", "cat"]
TARGETS = ["the", "old", "[MASK]", "saw", "[MASK]", "‹eos›", "a", "dog", "‹eop›", "cat", "‹eop›"]
PLACES = [0, 1, 2, 3, 4, 5, 4, 4, 4, 2, 2]
IN_SPAN = [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
COUNTED = [False] * 6 + [True, False, True, True, True]
SPANS = [-1, -1, 1, -1, 0, -1, 0, 0, 0, 1, 1]
SEES = [
    "■■■■■■·····",
    "■■■■■■·····",
    "■■■■■■·····",
    "■■■■■■·····",
    "■■■■■■·····",
    "■■■■■■·····",
    "■■■■■■■····",
    "■■■■■■■■···",
    "■■■■■■■■■··",
    "■■■■■■■■■■·",
    "■■■■■■■■■■■",
]
TEXT = ["the", "old", "cat", "saw", "a", "dog", "‹eos›"]
TEXT_SPANS = [-1, -1, 1, -1, 0, 0, -1]


def worked_view() -> SampleView:
    example = Example(
        tokens=np.array([LABELS.index(word) for word in INPUTS]),
        targets=np.array([LABELS.index(word) for word in TARGETS]),
        positions=np.array([PLACES, IN_SPAN]),
        loss_mask=np.array(COUNTED, dtype=np.float32),
        prefix_len=6,
    )
    return view_sample(example, LABELS, sop=SOP, eop=EOP)
