"""Prompts to TextEmbeddings: caption cleaning, tokenizers, the frozen encoder."""
