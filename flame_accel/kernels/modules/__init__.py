"""What fla's layers put around their operator: norms, convolutions, activations, losses.

The operators themselves live in `kernels.recurrence` and `kernels.attention`.
"""
