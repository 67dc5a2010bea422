"""Operators that look at every earlier token: softmax attention and its variants.

Operators with a state of constant size live in `kernels.recurrence`.
"""

import importlib

# fla first: its import puts the functions of this package in place, which must be whole by then
importlib.import_module("fla")
