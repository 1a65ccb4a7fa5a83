"""Data sets of generated images: prompts in, shards for training out."""
