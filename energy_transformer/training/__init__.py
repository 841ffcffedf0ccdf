"""Training: options, loop and checkpoints."""
