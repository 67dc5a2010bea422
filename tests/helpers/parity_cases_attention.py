"""Inputs of softmax attention and its variants for `test_gpu_kernels`."""

import torch

from tests.helpers.parity import FIXED, Arguments, Case, Draw, Looser, narrow

QUERIES, KEYS, WIDTH = 4, 2, 64
"""Heads of queries, heads of keys and values, channels of a head."""


def grouped(d: Draw) -> Arguments:
    """Two heads of queries to one of keys."""
    heads = (QUERIES, KEYS, KEYS)
    q, k, v = (d.normal(number, WIDTH) for number in heads)
    return {"q": q, "k": k, "v": v}


def softmax(d: Draw) -> Arguments:
    return {**grouped(d), "sink_bias": d.parameter(QUERIES)}


def softmax_window(d: Draw) -> Arguments:
    return {**grouped(d), "window_size": 48}


def forgetting(d: Draw) -> Arguments:
    return {**grouped(d), "g": d.log_decay(QUERIES) / 8}


def one_step(d: Draw) -> Arguments:
    """One query for each sequence."""
    q = torch.randn(1, d.layout.sequences, QUERIES, WIDTH, generator=d.generator)
    return {**forgetting(d), "q": q}


def wall(d: Draw) -> Arguments:
    decays = {"g": d.log_decay(QUERIES, WIDTH) / 8, "g_scalar": d.log_decay(QUERIES) / 8}
    return {**softmax(d), **decays}


def parallax(d: Draw) -> Arguments:
    return {**grouped(d), "r": d.normal(QUERIES, WIDTH) / WIDTH}


def parallax_end(d: Draw) -> Arguments:
    """The last queries of a sequence, whose first keys are padding."""
    inputs = parallax(d)
    last = {name: inputs[name][:, -5:] for name in ("q", "r")}
    return {**inputs, **last, "cache_start": torch.arange(d.layout.rows, dtype=torch.int32) * 3}


def parallax_step(d: Draw) -> Arguments:
    inputs = parallax(d)
    return {**inputs, **{name: inputs[name][:, -1:] for name in ("q", "r")}}


def path(d: Draw) -> Arguments:
    rule = {"w": d.unit(KEYS, WIDTH), "beta": d.unit_interval(KEYS), "g": d.log_decay(QUERIES) / 8}
    return {**grouped(d), **rule}


def native_sparse(d: Draw) -> Arguments:
    """Sixteen heads of queries to one of keys; all blocks selected, so that no tie decides."""
    gates = {name: d.unit_interval(16) for name in ("g_cmp", "g_slc", "g_swa")}
    q, k, v = (d.normal(number, WIDTH) for number in (16, 1, 1))
    sizes = {"block_size": 32, "block_counts": 16, "window_size": 32}
    return {"q": q, "k": k, "v": v, **gates, **sizes}


def deltaformer(d: Draw) -> Arguments:
    q, k, v = d.normal(KEYS, WIDTH), d.unit(KEYS, WIDTH), d.normal(KEYS, WIDTH)
    return {"q": q, "k": k, "v": v, "beta": d.unit_interval(KEYS)}


# d g_t is the sum over s >= t of q_s dq_s - k_s dk_s (in fp32 to 1e-6). At 256 tokens the root of
# the summed squares of these terms is 12 times its norm: so the roundings of dq and
# dk, which are off by up to 2.5e-3 in bf16 and 1e-3 in tf32
CANCELLING = tuple(
    Looser(dtype, tolerance, "a sum of terms 12 times as large", tensor="d g")
    for dtype, tolerance in {"bf16": 5e-2, "fp32": 2e-2}.items()
)
PARALLAX_BF16 = {"fp32": "requires bf16 or fp16"}

ATTENTION = (
    Case("ops.attn.parallel.parallel_attn", softmax, "sink"),
    Case("ops.attn.parallel.parallel_attn", softmax_window, "window"),
    Case(
        "ops.attn.decoding.attn_decoding_one_step", one_step, layouts=("ragged",),
        forward_only="a step of generation",
    ),
    Case("ops.forgetting_attn.parallel.parallel_forgetting_attn", forgetting),
    Case(
        "ops.wall_attn.parallel.parallel_wall_attn", wall, kept=frozenset({"g_scalar"}),
        looser=CANCELLING,
    ),
    Case("ops.parallax.parallel.parallel_parallax", parallax, refusals=PARALLAX_BF16),
    Case(
        "ops.parallax.decode.parallax_decode", parallax_end, layouts=FIXED,
        forward_only="a step of generation",
    ),
    Case(
        "ops.parallax.decode.parallax_decode_one_step", parallax_step, layouts=FIXED,
        forward_only="a step of generation",
    ),
    Case("ops.stickbreaking_attn.parallel.parallel_stickbreaking_attn", grouped),
    Case(
        "ops.path_attn.parallel.parallel_path_attn", path, kept=frozenset({"w", "beta"}),
        # its backward wants 240 KiB of a multiprocessor's shared memory, Hopper has 227
        refusals={"fp32": "out of resource: shared memory"},
    ),
    Case(
        "ops.path_attn.parallel.parallel_path_attn", narrow(path), "narrow",
        kept=frozenset({"w", "beta"}),
    ),
    Case("ops.nsa.parallel.parallel_nsa", native_sparse),
    Case("ops.deltaformer.parallel.deltaformer_attn", deltaformer),
)  # fmt: skip
