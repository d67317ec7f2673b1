"""The training loop and what it keeps: configuration, schedule, checkpoints, step log, pseudo-labels, cached prefixes, failures."""
