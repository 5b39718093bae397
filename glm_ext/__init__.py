"""Fused GLM layers for PyTorch."""
