"""Where arrays live: hosts, the device mesh and its rules, the compilation cache, chips."""
