"""A package, so that the tests of an installed library cannot take its name."""
