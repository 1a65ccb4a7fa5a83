"""Sweeps: many runs of one config with other values, and what they say about them."""
