"""See glm_ext.extras."""

from glm_ext.extras import MissingExtra, require

__all__ = ["MissingExtra", "require"]
