"""The fused ops. Importing this registers them under torch.ops.glm_ext."""

from glm_ext.ops._cuda import allow_atomics as allow_atomics
from glm_ext.ops._cuda import use_ffma as use_ffma
from glm_ext.ops.dropout_add_layer_norm import dropout_add_layer_norm
from glm_ext.ops.embedding_2d import embedding_2d
from glm_ext.ops.embedding_2d import tied_embedding_2d as tied_embedding_2d  # for glm_ext.model
from glm_ext.ops.gelu_mlp import gelu_mlp
from glm_ext.ops.linear import linear
from glm_ext.ops.linear_cross_entropy import linear_cross_entropy
from glm_ext.ops.span_attention import span_attention
from glm_ext.ops.span_attention_qkvpacked import span_attention_qkvpacked
from glm_ext.ops.span_attention_varlen import span_attention_varlen

__all__ = [
    "dropout_add_layer_norm",
    "embedding_2d",
    "gelu_mlp",
    "linear",
    "linear_cross_entropy",
    "span_attention",
    "span_attention_qkvpacked",
    "span_attention_varlen",
]
