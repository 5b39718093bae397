"""Sentences of random words, some of them about a Dr. Somebody, for Punkt to learn from."""

import numpy as np


def random_sentences(count: int, seed: int = 0) -> list[str]:
    """Every word ends a sentence at times and stands inside one at others; "Dr." never ends one."""
    rng = np.random.default_rng(seed)
    syllables = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti"]
    words = ["".join(rng.choice(syllables, size=3)) for _ in range(150)]
    made = []
    for _ in range(count):
        chosen = list(rng.choice(words, size=int(rng.integers(4, 10))))
        if rng.random() < 0.4:
            chosen[2:3] = ["Dr.", chosen[2].title()]
        made.append(f"{' '.join(chosen).capitalize().replace('dr. ', 'Dr. ')}.")
    return made
