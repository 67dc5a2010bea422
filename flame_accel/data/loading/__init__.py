"""Rows to the batches of a run: worker processes, states, evaluation."""
