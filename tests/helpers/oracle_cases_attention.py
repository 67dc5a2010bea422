"""Softmax attention and its variants, and their references, for `oracle`.

fla's own references, or sums over all pairs of ours where it has none.
"""

from unittest.mock import patch

import hypothesis.strategies as st
import torch
from fla.ops.attn.naive import naive_attn_decoding, naive_parallel_attn
from fla.ops.deltaformer.naive import naive_deltaformer_attn
from fla.ops.forgetting_attn.naive import naive_forgetting_attn
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from fla.ops.parallax.naive import naive_parallax
from fla.ops.path_attn.naive import naive_path_attn
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn
from fla.ops.wall_attn import naive as wall_naive

from tests.helpers.oracle import OracleCase, Plan, Result
from tests.helpers.parity import Arguments


def _scale(a: Arguments) -> float:
    return a["k"].shape[-1] ** -0.5 if a["scale"] is None else a["scale"]


def softmax(a: Arguments) -> Result:
    names = ("q", "k", "v", "scale", "window_size")
    o, _ = naive_parallel_attn(*(a[x] for x in names), g=a["g"], sink_bias=a["sink_bias"])
    return Result([o])


def last_query(a: Arguments) -> Result:
    names = ("q", "k", "v", "g", "scale")
    edges = torch.tensor([0, a["k"].shape[1]])
    o = naive_attn_decoding(
        *(a[x] for x in names), edges, a["do_gate_scale"],
        window_size=a["window_size"], sink_bias=a["sink_bias"],
    )  # fmt: skip
    return Result([o])


def forgetting(a: Arguments) -> Result:
    names = ("q", "k", "v", "g", "scale", "window_size")
    return Result([naive_forgetting_attn(*(a[x] for x in names))])


def wall(a: Arguments) -> Result:
    names = ("window_size", "sink_bias", "g_scalar")
    # in place of a kernel of fla
    with patch.object(wall_naive, "chunk_global_cumsum", lambda g, scale, **_: g.cumsum(1) * scale):
        o = wall_naive.naive_wall_attn(
            a["q"], a["k"], a["v"], a["g"], scale=_scale(a), **{name: a[name] for name in names}
        )
    return Result([o])


def parallax(a: Arguments) -> Result:
    names = ("q", "r", "k", "v", "scale", "window_size")
    return Result([naive_parallax(*(a[x] for x in names))])


def last_parallax(a: Arguments) -> Result:
    """Each row from its first key that counts on; queries before that yield zeros."""
    queries, tokens = a["q"].shape[1], a["k"].shape[1]
    rows = []
    for row, (q, r, k, v) in enumerate(zip(a["q"], a["r"], a["k"], a["v"], strict=True)):
        start = 0 if a["cache_start"] is None else int(a["cache_start"][row])
        hidden = min(max(start - (tokens - queries), 0), queries)
        q, r, k, v = q[hidden:], r[hidden:], k[start:], v[start:]
        # the keys before the queries have queries that are not asked for
        before = q.new_zeros(k.shape[0] - q.shape[0], *q.shape[1:])
        o = torch.zeros_like(a["q"][0])
        if len(q):
            q, r = (torch.cat((before, x)).unsqueeze(0) for x in (q, r))
            found = naive_parallax(
                q, r, k.unsqueeze(0), v.unsqueeze(0), a["scale"], a["window_size"]
            )
            o = torch.cat((o[:hidden], found[0, len(before) :]))
        rows.append(o)
    return Result([torch.stack(rows)])


def stickbreaking(a: Arguments) -> Result:
    names = ("q", "k", "v", "scale", "attend_current")
    return Result([*naive_stickbreaking_attn(*(a[x] for x in names))])


def path(a: Arguments) -> Result:
    g = torch.zeros_like(a["q"][..., 0]) if a["g"] is None else a["g"]
    o = naive_path_attn(*(a[x] for x in ("q", "k", "v", "w", "beta")), g, _scale(a))
    if not a["use_cache"]:
        return Result([o])
    keys = a["k"][:, :0]
    for t in range(a["k"].shape[1]):
        w = a["w"][:, t : t + 1]
        read = (keys * w).sum(-1, keepdim=True) * a["beta"][:, t : t + 1].unsqueeze(-1)
        keys = torch.cat((keys - read * w, a["k"][:, t : t + 1]), 1)
    return Result([o, keys])


def native_sparse(a: Arguments) -> Result:
    q, k, v, size, scale = a["q"], a["k"], a["v"], a["block_size"], _scale(a)
    k_cmp, v_cmp = (torch.stack([part.mean(1) for part in x.split(size, 1)], 1) for x in (k, v))
    compressed, _ = naive_nsa_compression(q, k_cmp, v_cmp, size, scale)
    blocks = naive_nsa_topk(q.detach(), k_cmp.detach(), a["block_counts"], size, scale)
    o = naive_nsa_selection(q, k, v, blocks, size, scale)
    o = o if a["g_slc"] is None else o * a["g_slc"].unsqueeze(-1)
    o = o + compressed * a["g_cmp"].unsqueeze(-1)
    if a["window_size"]:
        near, _ = naive_parallel_attn(q, k, v, window_size=a["window_size"])
        o = o + near * a["g_swa"].unsqueeze(-1)
    return Result([o])


def block_attention(a: Arguments) -> Result:
    """Of a query to its own chunk and those whose mean keys match best."""
    q, k, v, size = a["q"], a["k"], a["v"], a["chunk_size"]
    tokens, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
    number = torch.arange(tokens) // size
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * k.shape[-1] ** -0.5
    seen = (number == number.unsqueeze(-1)).expand_as(scores)
    if a["topk"] == 1:
        seen = torch.ones_like(seen)
    elif number[-1]:
        means = torch.stack([x.mean(1) for x in k.split(size, 1)], 1)[:, : number[-1]]
        match = torch.einsum("bqhd,bchd->bhqc", q, means)
        earlier = torch.arange(match.shape[-1]) < number.unsqueeze(-1)
        match = match.masked_fill(~earlier, -torch.inf)
        best = match.topk(min(a["topk"] - 1, match.shape[-1]), -1).indices
        chosen = torch.zeros_like(match, dtype=torch.bool).scatter(-1, best, True) & earlier
        chosen = torch.cat((chosen, torch.zeros_like(chosen[..., :1])), -1)
        seen = seen | chosen[..., number]
    hidden = ~(seen & torch.ones(tokens, tokens, dtype=torch.bool).tril())
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return Result([torch.einsum("bhqk,bkhd->bqhd", weights, v)])


def deltaformer(a: Arguments) -> Result:
    heads = a["q"].shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (a["k"], a["v"]))
    return Result([naive_deltaformer_attn(a["q"], k, v, a["beta"])])


def gate_of_window(plan: Plan) -> None:
    if plan.get("window_size"):
        plan["g_swa"] = "unit_interval"


SOFTMAX = "q=BTHK k=BTGK v=BTGV"

ATTENTION_CASES = (
    OracleCase("ops.attn.parallel.parallel_attn", softmax, "fla", states=()),
    OracleCase(
        "ops.attn.decoding.attn_decoding_one_step", last_query, "fla",
        shapes="q=1NHK k=1TGK v=1TGV g=1TH sink_bias=H",
        options={"do_gate_scale": st.booleans()}, needed=frozenset({"cu_seqlens"}), states=(),
        answers_empty_documents=True, forward_only=True,
    ),
    OracleCase(
        "ops.forgetting_attn.parallel.parallel_forgetting_attn", forgetting, "fla", states=()
    ),
    OracleCase("ops.wall_attn.parallel.parallel_wall_attn", wall, "fla", states=()),
    OracleCase("ops.parallax.parallel.parallel_parallax", parallax, "fla", states=()),
    OracleCase(
        "ops.parallax.decode.parallax_decode", last_parallax, "fla, row by row",
        shapes="q r=BQHK k v=BTGK cache_start=B", kinds={"cache_start": "number"}, states=(),
        forward_only=True,
    ),
    OracleCase(
        "ops.parallax.decode.parallax_decode_one_step", last_parallax, "fla, row by row",
        kinds={"cache_start": "number"}, states=(), forward_only=True,
    ),
    OracleCase(
        "ops.stickbreaking_attn.parallel.parallel_stickbreaking_attn", stickbreaking, "fla",
        options={"attend_current": st.booleans()}, states=(),
    ),
    OracleCase(
        "ops.path_attn.parallel.parallel_path_attn", path, "fla; its cache token by token, ours",
        shapes="q=BTHK k w=BTGK v=BTGV beta=BTG g=BTH", kinds={"w": "unit"},
        options={"use_cache": st.booleans()}, states=(),
    ),
    OracleCase(
        "ops.nsa.parallel.parallel_nsa", native_sparse,
        "fla's parts; the window by its reference of softmax attention",
        shapes=f"{SOFTMAX} g_cmp g_slc g_swa=BTH",
        kinds=dict.fromkeys(("g_cmp", "g_slc", "g_swa"), "unit_interval"),
        # fewer than three blocks would leave out one that every query selects, by a tie
        options={
            "block_counts": st.sampled_from((3, 16)), "block_size": st.sampled_from((4, 16)),
            "window_size": st.sampled_from((0, 3, 40)),
        },
        rules=gate_of_window, needed=frozenset({"g_cmp"}), without=("block_indices",), states=(),
        note="fla's reference of the whole needs flash-attn and sixteen heads of queries to a key",
    ),
    OracleCase(
        "ops.moba.parallel.parallel_moba", block_attention, "all pairs, ours",
        shapes="q=1THK k v=1TGK",
        options={
            "chunk_size": st.sampled_from((4, 16)), "topk": st.sampled_from((1, 2, 3)),
            "max_seqlen": st.just(128),
        },
        needed=frozenset({"cu_seqlens"}), states=(),
    ),
    OracleCase(
        "ops.deltaformer.parallel.deltaformer_attn", deltaformer, "fla",
        without=("attention_mask",), states=(),
        note="fla's reference knows no padding, see tests/unit",
    ),
)  # fmt: skip
