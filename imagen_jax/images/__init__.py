"""Images in and out: decoding, pixels, grids of them, and the list that a pipeline returns."""
