"""Plans: what a run takes on accelerators that are not here, by compiling it for them."""
