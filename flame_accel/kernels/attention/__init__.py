"""Operators that look at every earlier token: softmax attention and its variants.

Operators with a state of constant size live in `kernels.recurrence`.
"""
