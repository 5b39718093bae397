"""Public GLM checkpoints (Megatron names) as a glm_ext.GLM: the names agree, so loading checks and copies."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import GLMConfig
from ..model import GLM

_FIRST_PART = "mp_rank_00_model_states.pt"
_WORD_TABLE = re.compile(r"((?:module\.|model\.|glm\.)*)word_embeddings\.weight")

# What fine-tuned checkpoints hold beside the language model; GLM has no use for it.
_HEADS = ("prompt_spell.", "pool_layer.", "multichoice_head.", "dense.", "out_proj.")


# What the state of numpy's random generator is pickled as, by numpy 1 and 2: arrays, no code.
_RECONSTRUCT = np.arange(1).__reduce__()[0]
_NUMPY_STATE: list[Any] = [
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(np.ndarray, np.dtype, type(np.dtype(np.uint32))),
]


def load_megatron(state_dict_or_path: Mapping[str, Any] | str | Path, num_heads: int | None = None) -> GLM:
    """The GLM that a public checkpoint holds, in the checkpoint's dtype, on the CPU.

    Takes a state dict, plain or under "module"; a .pt, .bin or .safetensors file; or a folder with
    mp_rank_00_model_states.pt. Prefixes "module.", "model." and "glm." are dropped, sizes are read off the
    shapes. num_heads is in no shape: None means head dim 64, as in all published models. Task heads are left
    out with a warning; states of random generators and the like, which training leaves there, are skipped.

    Errors: FileNotFoundError, or ValueError where names or shapes are not those of one whole GLM, or where
    the file cannot be read without running code that it brings.

    >>> config = GLMConfig(vocab_size=50, num_layers=2, hidden_size=32, num_heads=4, max_positions=16)
    >>> load_megatron({"module": GLM(config).state_dict()}, num_heads=4).config == config
    True
    """
    if isinstance(state_dict_or_path, (str, Path)):
        state = _read(Path(state_dict_or_path))
    elif not isinstance(state_dict_or_path, Mapping):
        got = type(state_dict_or_path).__name__
        raise TypeError(f"state_dict_or_path: expected a state dict or the path of a checkpoint, got {got}")
    else:
        state = dict(state_dict_or_path)
    state = _strip(dict(state["module"]) if isinstance(state.get("module"), Mapping) else state)
    model = GLM(_config(state, num_heads), device="meta", dtype=state["word_embeddings.weight"].dtype)
    _check_names_and_shapes(state, model.state_dict())
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        parts = sorted(path.glob("mp_rank_*_model_states.pt"))
        if len(parts) > 1:
            raise ValueError(
                f"{path}: expected one part, got {len(parts)} (model parallel); merge them into one first"
            )
        path = path / _FIRST_PART
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; expected a file or a folder with {_FIRST_PART}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_NUMPY_STATE):
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except ImportError:
        raise
    except Exception as error:  # each of these readers has errors of its own
        raise ValueError(
            f"{path}: not a checkpoint that can be read safely: {error}; if you trust it, pass what "
            "torch.load(..., weights_only=False) gives"
        ) from error


def _strip(state: dict[str, Any]) -> dict[str, Tensor]:
    """Names without their common prefix, task heads left out."""
    tables = [match for name in state if (match := _WORD_TABLE.fullmatch(name))]
    if len(tables) != 1:
        raise ValueError(
            f"expected one word_embeddings.weight, got {len(tables)} among {len(state)} names: is this a GLM?"
        )
    prefix = tables[0][1]
    state = {name.removeprefix(prefix): value for name, value in state.items() if isinstance(value, Tensor)}
    heads = [name for name in state if name.startswith(_HEADS)]
    if heads:
        warnings.warn(f"task heads are not loaded: {', '.join(heads)}", stacklevel=3)
    return {name: value for name, value in state.items() if name not in heads}


def _config(state: dict[str, Tensor], num_heads: int | None) -> GLMConfig:
    vocab_size, width = _matrix(state, "word_embeddings.weight")
    ffn, _ = _matrix(state, "transformer.layers.0.mlp.dense_h_to_4h.weight")
    position_rows, _ = _matrix(state, "transformer.position_embeddings.weight")
    if num_heads is None:
        if width % 64 != 0:
            raise ValueError(f"num_heads: expected a number, as the width {width} is no multiple of 64")
        num_heads = width // 64
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"num_heads: expected an int or None, got {num_heads!r}")
    if num_heads < 1 or width % num_heads != 0:
        raise ValueError(f"num_heads: expected a divisor of the width {width}, got {num_heads}")
    layers = {int(match[1]) for name in state if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    return GLMConfig(
        vocab_size=vocab_size,
        num_layers=max(layers) + 1,
        hidden_size=width,
        num_heads=num_heads,
        max_positions=position_rows - 1,
        ffn_hidden_size=ffn,
    )


def _matrix(state: dict[str, Tensor], name: str) -> tuple[int, int]:
    if name not in state:
        raise ValueError(f"missing {name}: is this a GLM?")
    if state[name].dim() != 2:
        raise ValueError(f"{name}: expected a matrix, got {list(state[name].shape)}")
    rows, cols = state[name].shape
    return rows, cols


def _check_names_and_shapes(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name}: expected {list(expected[name].shape)}, got {list(value.shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"not the parameters of a GLM: {'; '.join(problems[:5])}{more}")
