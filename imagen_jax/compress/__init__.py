"""Smaller models: quantized and pruned trees of parameters."""
