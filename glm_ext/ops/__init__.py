"""The fused ops. Importing this registers them under torch.ops.glm_ext."""

from glm_ext.ops.dropout_add_layer_norm import dropout_add_layer_norm

__all__ = ["dropout_add_layer_norm"]
