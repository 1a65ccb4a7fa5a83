"""One file a verb of the command line: its options, and a few calls of the library."""
