"""From rows to batches: steps, worker processes, states in checkpoints, evaluation."""
