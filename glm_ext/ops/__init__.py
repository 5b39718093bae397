"""The fused ops. Importing this registers them under torch.ops.glm_ext."""

from glm_ext.ops.dropout_add_layer_norm import dropout_add_layer_norm
from glm_ext.ops.gelu_mlp import gelu_mlp

__all__ = ["dropout_add_layer_norm", "gelu_mlp"]
