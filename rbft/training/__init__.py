"""How weights change: loss, optimiser, checkpoints, several processes."""
