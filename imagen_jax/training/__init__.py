"""Training one stage: config, start, step, optimizer, loop, and what a run reports."""
