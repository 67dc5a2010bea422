"""fla's operators with a recurrent state: linear attention, the delta rule, and their relatives.

The arithmetic of the two large families is in `linear_attention` and `generalized_delta_rule`;
`gla`, `delta_rule`, `kda`, `dplr` and others give it fla's names and signatures. Softmax attention
is in `kernels.attention`.
"""
