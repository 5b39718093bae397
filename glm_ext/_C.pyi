"""
The kernels of glm_ext. Call them through glm_ext.ops, which checks arguments and allocates results.
"""

from __future__ import annotations

import typing

import torch

__all__: list[str] = [
    "GELU_MLP_TILE_ROWS",
    "compiler",
    "cuda_architectures",
    "cuda_devices",
    "dropout_add_layer_norm_backward",
    "dropout_add_layer_norm_forward",
    "dropout_add_layer_norm_partials",
    "embedding_2d_backward",
    "embedding_2d_finds_zeros",
    "embedding_2d_forward",
    "embedding_2d_workspace",
    "fma_peak",
    "gelu_mlp_backward",
    "gelu_mlp_backward_workspace",
    "gelu_mlp_forward",
    "gelu_mlp_forward_workspace",
    "gelu_mlp_gelu",
    "gelu_mlp_gelu_grad",
    "gelu_mlp_row_tiles",
    "gelu_mlp_sum_rows",
    "isa",
    "isas_built",
    "isas_supported",
    "limit_shared_bytes",
    "linear_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_workspace",
    "linear_forward",
    "span_attention_backward",
    "span_attention_forward",
    "span_attention_workspace",
    "sum_groups",
    "use_ffma",
    "use_wgmma",
]

def compiler() -> str:
    """
    The compiler that built the extension.
    """

def cuda_architectures() -> str:
    """
    The CUDA architectures that this build holds, as in "80 90a"; empty without CUDA.
    """

def cuda_devices() -> list[tuple[str, int, int, int]]:
    """
    (name, major, minor, shared bytes of a block) of each GPU that the CUDA build sees.
    """

def dropout_add_layer_norm_backward(
    grad_normed: torch.Tensor | None,
    grad_new_residual: torch.Tensor | None,
    new_residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_residual: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    workspace: torch.Tensor | None,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> None: ...
def dropout_add_layer_norm_forward(
    x: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    normed: torch.Tensor | None,
    new_residual: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> None: ...
def dropout_add_layer_norm_partials(rows: typing.SupportsInt | typing.SupportsIndex) -> int: ...
def embedding_2d_backward(
    grad: torch.Tensor | None,
    tokens: torch.Tensor | None,
    positions: torch.Tensor | None,
    block_positions: torch.Tensor | None,
    token_rows: typing.SupportsInt | typing.SupportsIndex,
    position_rows: typing.SupportsInt | typing.SupportsIndex,
    block_rows: typing.SupportsInt | typing.SupportsIndex,
    grad_token_table: torch.Tensor | None,
    grad_position_table: torch.Tensor | None,
    grad_block_table: torch.Tensor | None,
    add_tokens: bool,
    workspace: torch.Tensor | None,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> typing.Any: ...
def embedding_2d_finds_zeros(target: int | tuple[int, int]) -> bool: ...
def embedding_2d_forward(
    tokens: torch.Tensor | None,
    positions: torch.Tensor | None,
    block_positions: torch.Tensor | None,
    token_table: torch.Tensor | None,
    position_table: torch.Tensor | None,
    block_table: torch.Tensor | None,
    out: torch.Tensor | None,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> typing.Any: ...
def embedding_2d_workspace(
    rows: typing.SupportsInt | typing.SupportsIndex,
    width: typing.SupportsInt | typing.SupportsIndex,
    table_rows: typing.SupportsInt | typing.SupportsIndex,
    is_double: bool,
    target: int | tuple[int, int],
) -> int: ...
def fma_peak(threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Measured float multiply-add peak of this machine, GFLOP/s.
    """

def gelu_mlp_backward(
    grad_y: torch.Tensor | None,
    x: torch.Tensor | None,
    w1: torch.Tensor | None,
    w2: torch.Tensor | None,
    pre: torch.Tensor | None,
    post: torch.Tensor | None,
    grad_pre: torch.Tensor | None,
    workspace: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_w1: torch.Tensor | None,
    grad_b1: torch.Tensor | None,
    grad_w2: torch.Tensor | None,
    grad_b2: torch.Tensor | None,
    tanh: bool,
    target: int | tuple[int, int],
) -> None: ...
def gelu_mlp_backward_workspace(
    rows: typing.SupportsInt | typing.SupportsIndex,
    hidden: typing.SupportsInt | typing.SupportsIndex,
    width_out: typing.SupportsInt | typing.SupportsIndex,
    keeps_post: bool,
    element_size: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> int: ...
def gelu_mlp_forward(
    x: torch.Tensor | None,
    w1: torch.Tensor | None,
    b1: torch.Tensor | None,
    w2: torch.Tensor | None,
    b2: torch.Tensor | None,
    pre: torch.Tensor | None,
    post: torch.Tensor | None,
    y: torch.Tensor | None,
    workspace: torch.Tensor | None,
    tanh: bool,
    target: int | tuple[int, int],
) -> None: ...
def gelu_mlp_forward_workspace(
    rows: typing.SupportsInt | typing.SupportsIndex,
    hidden: typing.SupportsInt | typing.SupportsIndex,
    keeps_post: bool,
    element_size: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> int: ...
def gelu_mlp_gelu(
    pre: torch.Tensor | None, post: torch.Tensor | None, tanh: bool, target: int | tuple[int, int]
) -> None: ...
def gelu_mlp_gelu_grad(
    grad_post: torch.Tensor | None,
    pre: torch.Tensor | None,
    grad_pre: torch.Tensor | None,
    post: torch.Tensor | None,
    sums: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    tanh: bool,
    target: int | tuple[int, int],
) -> None: ...
def gelu_mlp_row_tiles(rows: typing.SupportsInt | typing.SupportsIndex) -> int: ...
def gelu_mlp_sum_rows(
    values: torch.Tensor | None,
    sums: torch.Tensor | None,
    out: torch.Tensor | None,
    target: int | tuple[int, int],
) -> None: ...
def isa() -> str:
    """
    The instruction set of the CPU kernels in force.
    """

def isas_built() -> list[str]:
    """
    The instruction sets that this build holds, best first.
    """

def isas_supported() -> list[str]:
    """
    Those of them that this machine runs.
    """

def limit_shared_bytes(bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Chooses attention's tiles as for a GPU whose blocks have no more shared memory than this: for tests.
    """

def linear_backward(
    grad_y: torch.Tensor | None,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    sums: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    target: int | tuple[int, int],
) -> None: ...
def linear_cross_entropy(
    hidden: torch.Tensor | None,
    weight: torch.Tensor | None,
    targets: torch.Tensor | None,
    row_weight: torch.Tensor | None,
    loss: torch.Tensor | None,
    grad_hidden: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    workspace: torch.Tensor | None,
    label_smoothing: typing.SupportsFloat | typing.SupportsIndex,
    reduction: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> None: ...
def linear_cross_entropy_workspace(
    rows: typing.SupportsInt | typing.SupportsIndex,
    width: typing.SupportsInt | typing.SupportsIndex,
    vocab: typing.SupportsInt | typing.SupportsIndex,
    element_size: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> int: ...
def linear_forward(
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor | None,
    target: int | tuple[int, int],
) -> None: ...
def span_attention_backward(
    query: torch.Tensor | None,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    prefix_len: torch.Tensor | None,
    seq_len: torch.Tensor | None,
    start: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    grad_out: torch.Tensor | None,
    grad_lse: torch.Tensor | None,
    grad_query: torch.Tensor | None,
    grad_key: torch.Tensor | None,
    grad_value: torch.Tensor | None,
    workspace: torch.Tensor | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    way: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> None: ...
def span_attention_forward(
    query: torch.Tensor | None,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    prefix_len: torch.Tensor | None,
    seq_len: torch.Tensor | None,
    start: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    workspace: torch.Tensor | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> None: ...
def span_attention_workspace(
    backward: bool,
    query: torch.Tensor | None,
    batch: typing.SupportsInt | typing.SupportsIndex,
    kv_heads: typing.SupportsInt | typing.SupportsIndex,
    keys: typing.SupportsInt | typing.SupportsIndex,
    packed: bool,
    way: typing.SupportsInt | typing.SupportsIndex,
    target: int | tuple[int, int],
) -> int:
    """
    Floats that the workspace must hold; 0: it takes none.
    """

def sum_groups(rows: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    How many partial sums a bias gradient over `rows` rows is taken in.
    """

def use_ffma(wanted: bool) -> None:
    """
    Whether attention on GPUs multiplies float32 by FFMA; as GLM_FFMA=1 says at first.
    """

def use_wgmma(wanted: bool) -> None:
    """
    Whether Hopper GPUs run the kernels of warpgroups, where an op has them; as GLM_WGMMA=1 says at first.
    """

GELU_MLP_TILE_ROWS: int = 128
