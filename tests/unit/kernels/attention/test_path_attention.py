"""PaTH attention keeps what its decoding step needs."""

import torch

from flame_accel.kernels.attention import (
    path_attention as path,
)
from tests.helpers.attention_variants import (
    DOCUMENTS,
    assert_same,
    directions,
    factors,
    keys,
    queries,
)


def test_path_keeps_keys_carried_to_the_end_of_each_document():
    torch.manual_seed(0)
    total = sum(DOCUMENTS)
    tensors = [queries(total), keys(total), keys(total), directions(total), factors(total)]
    # empty documents keep nothing
    edges = torch.tensor([0, 0, *DOCUMENTS, 0]).cumsum(0)
    _, cache = path.parallel_path_attn(*tensors, cu_seqlens=edges, use_cache=True)
    assert cache is not None
    parts, own = [], (tensors[1], *tensors[3:])
    for k, w, beta in zip(*(x[0].split(DOCUMENTS) for x in own), strict=True):
        for t in range(len(k)):
            inner = (k[:t] * w[t]).sum(-1, keepdim=True) * beta[t, :, None]
            k = torch.cat([k[:t] - inner * w[t], k[t:]])
        parts.append(k)
    assert_same([cache[0]], [torch.cat(parts)])
