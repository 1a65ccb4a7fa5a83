"""What a run takes on accelerators that are not here: compiled for them, and read."""
