"""Training: state, steps, the loop, checkpoints, metrics, sharding."""
