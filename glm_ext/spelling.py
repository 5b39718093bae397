"""The nearest of the names that there are, for the message about one that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the nearest known word, by the whole or by the part after the last dot.

    >>> did_you_mean("optm.lr", ["seed", "optim.lr"]), did_you_mean("xyz", ["seed"])
    ("; did you mean 'optim.lr'?", '')
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1) or [
        name
        for last in difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], n=1)
        for name in known
        if name.split(".")[-1] == last
    ]
    return f"; did you mean {near[0]!r}?" if near else ""
