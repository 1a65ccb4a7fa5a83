"""Stages, how one is sampled, and the cascade that they make together (arXiv 2205.11487)."""
