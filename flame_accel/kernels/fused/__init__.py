"""Our own Triton kernels around matrix products: norms, gates, embedding, loss, parts of mixers.

They are bound by memory: each reads its inputs once and writes its outputs once, and sums the
gradients of weights on the way; what is cheap to compute again is not kept for the backward pass.
Nothing is tuned, and nothing is added in an order that chance decides, so that a run computes the
same bits wherever it resumes on the same kind of GPU. `replace` puts them in the place of fla's and
PyTorch's.
"""
