"""Files, each written whole or not at all: parameters, checkpoints, JSON. Knows no model."""
