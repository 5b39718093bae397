"""The words of a text, also where no white space parts them."""

from __future__ import annotations

import re

# Han, kana, their iteration marks and the halfwidth forms. Hangul has white space between its words.
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_WORD = re.compile(rf"\s*(?:[{_CJK}]|[^\s{_CJK}]+)")


def split_words(text: str) -> list[str]:
    """Each with the white space before it: what white space parts; of Chinese and Japanese, every character.

    >>> split_words("the cat,  猫が sat。")
    ['the', ' cat,', '  猫', 'が', ' sat。']
    """
    return _WORD.findall(text)
