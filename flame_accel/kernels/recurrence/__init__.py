"""Operators with a state that is carried from token to token: decay, delta rule, and their kin.

The arithmetic is in modules of its own (`decay`, `delta`); the others give it fla's names and
signatures. Softmax attention lives in `kernels.attention`.
"""
