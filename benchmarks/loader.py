"""How many tokens a second one core makes into training batches.

    python -m benchmarks.loader STORE --out FILE

STORE is a token store of glm-ext prepare. Tokens are those of the batches without padding; a step of training
takes its batches from as many processes as `workers` says, or from its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glm_ext.data import ExampleBatches, TokenStore, open_store
from glm_ext.train.config import ObjectivesConfig

from .compare import conditions

LENGTHS = (128, 256, 512)
BUDGET = 8192  # tokens of a batch
OBJECTIVES = {
    "token": {"token": 1.0},
    "document": {"token": 0.0, "document": 1.0},
    "sentence": {"token": 0.0, "sentence": 1.0},
    "token 0.6, document 0.2, sentence 0.2": {"token": 0.6, "document": 0.2, "sentence": 0.2},
}


def tokens_per_second(batches: ExampleBatches, rounds: int) -> float:
    """Of processor time, in the median batch."""
    speeds = []
    for step in range(rounds):
        began = time.process_time()
        batch = batches.batch(step)
        took = time.process_time() - began
        speeds.append(batch.num_tokens / took)
    return statistics.median(speeds)


def measure(store: TokenStore, rounds: int) -> list[dict[str, Any]]:
    pieces = store.tokenizer.pieces()
    found = []
    for name, weights in OBJECTIVES.items():
        for packed in (False, True):
            for length in LENGTHS:
                batches = ExampleBatches(
                    documents=store.documents,
                    ids=store.tokenizer.ids,
                    batch_size=BUDGET // length,
                    max_length=length,
                    objective=ObjectivesConfig(**weights).build(pieces),
                    token_budget=BUDGET if packed else None,
                    join_documents=not packed,
                )
                speed = tokens_per_second(batches, rounds)
                found.append({"objective": name, "packed": packed, "length": length, "speed": round(speed)})
                form = "packed" if packed else "padded"
                print(f"{name}, {form}, {length} tokens: {speed:,.0f} tokens/s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=40, help="batches of each kind")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure(open_store(options.store), options.rounds)
    report = {"conditions": conditions("loader", 1), "loader": found}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
