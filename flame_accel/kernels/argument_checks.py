"""What the arguments of fla's operators must be: one table of shapes, and rules for all operators.

fla checks some of this and reads past the end of a tensor for the rest; here every violation is an
error that names the argument. Which arguments an operator takes is in `signatures`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.signatures import ArgumentError

SHAPES = {
    "chunk_gla": "q k g=BTHK v=BTHV initial_state=NHKV",
    "fused_recurrent_gla": "q k gk=BTHK v gv=BTHV initial_state=NHKV",
    "chunk_simple_gla": "q k=BTHK v=BTHV g=BTH g_gamma=H initial_state=NHKV",
    "fused_chunk_simple_gla": "q k=BTHK v=BTHV g=BTH g_gamma=H initial_state=NHKV",
    "fused_recurrent_simple_gla": "q k=BTHK v=BTHV g=BTH g_gamma=H initial_state=NHKV",
    "parallel_simple_gla": "q k=BTHK v=BTHV g=BTH",
    "chunk_hgrn": "x g=BTK initial_state=NK",
    "fused_recurrent_hgrn": "x g=BTK initial_state=NK",
    "chunk_gsa": "q=BTHK k=BTGK v=BTGV s g=BTGM",
    "fused_recurrent_gsa": "q=BTHK k=BTGK v=BTGV s g=BTGM",
    "chunk_abc": "q k=BTHK v=BTHV s=BTHM",
    "chunk_rwkv6": "r k w=BTHK v=BTHV u=HK initial_state=NHKV",
    "fused_recurrent_rwkv6": "r k w=BTHK v=BTHV u=HK initial_state=NHKV",
    "parallel_based": "q k=BTHK v=BTHV",
    "parallel_rebased": "q k=BTHK v=BTHV",
    "chunk_delta_rule": "q k=BTHK v=BTHV beta=BTH initial_state=NHKV",
    "fused_recurrent_delta_rule": "q k=BTHK v=BTHV initial_state=NHKV",
    "chunk_gated_delta_rule": "q k=BTHK v=BTGV g beta=BTG A_log dt_bias=G initial_state=NGKV",
    "fused_recurrent_gated_delta_rule": "q k=BTHK v gv=BTGV g=BTG gk=BTGK A_log dt_bias=G "
    "initial_state=NGKV",
    "chunk_gated_delta_product": "q=BTHK k=BSHK v=BSHV g=BTH beta=BSH initial_state=NHKV",
    "chunk_comba": "q k p=BTHK v=BTGV g beta=BTG initial_state=NGKV",
    "fused_recurrent_comba": "q k p=BTHK v=BTGV g beta=BTG initial_state=NGKV",
    "chunk_gated_oja_rule": "q k=BTHK v gv=BTGV beta=BTG initial_state=NGKV",
    "fused_recurrent_gated_oja_rule": "q k=BTHK v gv=BTGV beta=BTG initial_state=NGKV",
    "chunk_ttt_linear": "q k v=BTHK w b=HK eta=BTH1 initial_state=NHKK initial_state_bias=NH1K",
    "fused_chunk_ttt_linear": "q k v=BTHK w b=HK eta=BTH1 initial_state=NHKK "
    "initial_state_bias=NH1K",
    "fused_recurrent_rwkv4": "w u=K k v=BTK state=B31K",
    "chunk_mesa_net": "q k=BTHK v=BTHV g beta=BTH lamb=HK h_kk_init=NHKK h_kv_init=NHKV",
    "mesa_net_decoding_one_step": "q k=BHK v=BHV g beta=BH lamb=HK prev_h_kk=BHKK prev_h_kv=BHKV",
    "chunk_momentum_delta_rule": "q k p=BTHK v=BTHV log_alpha log_mu beta eta=BTH "
    "initial_state=2NHKV",
    "fused_recurrent_momentum_delta_rule": "q k p=BTHK v=BTHV log_alpha log_mu beta eta=BTH "
    "initial_state=2NHKV",
    "chunk_precond_gated_delta_rule": "q k=BTHK v=BTGV g beta=BTG g_atk beta_atk=BTH "
    "log_atk_scale=H initial_state=NGKV initial_A_state=NHK",
    "fused_recurrent_precond_gated_delta_rule": "q k=BTHK v gv=BTGV g beta=BTG gk=BTGK g_atk "
    "beta_atk=BTH log_atk_scale=H initial_state=NGKV initial_A_state=NHK",
    "chunk_precond_kda": "q k=BTHK v=BTGV g=BTGK beta=BTG g_atk beta_atk=BTH log_atk_scale=H "
    "initial_state=NGKV initial_A_state=NHK",
    "fused_recurrent_precond_kda": "q k=BTHK v=BTGV g=BTGK beta=BTG g_atk beta_atk=BTH "
    "log_atk_scale=H initial_state=NGKV initial_A_state=NHK",
    "chunk_cyfa": "q k=BTHK v=BTHV g delta beta=BTH readout=HPP q_norm_weight k_norm_weight=K",
    "fused_recurrent_cyfa": "q k=BTHK v=BTHV g delta beta=BTH readout=HPP q_norm_weight "
    "k_norm_weight=K",
    "chunk_log_linear_attn": "q k=BTHK v=BTGV g=BTG level_scales=BTGL",
    "deltaformer_attn": "q=BTHK k v=BTGK beta=BTH attention_mask=BT",
    "chunk_kda": "q k=BTHK v=BTGV g=BTGK beta=BTG A_log=G initial_state=NGKV",
    "fused_recurrent_kda": "q k=BTHK v=BTGV g=BTGK beta=BTG A_log=G initial_state=NGKV",
    "chunk_gdn2": "q k=BTHK v w=BTGV g b=BTGK A_log=G initial_state=NGKV",
    "fused_recurrent_gdn2": "q k=BTHK v w=BTGV g b=BTGK A_log=G initial_state=NGKV",
    "chunk_dplr_delta_rule": "q k a b gk=BTHK v=BTHV initial_state=NHKV",
    "fused_recurrent_dplr_delta_rule": "q k a b gk=BTHK v=BTHV initial_state=NHKV",
    "chunk_iplr_delta_rule": "q k a b=BTHK v=BTHV initial_state=NHKV",
    "fused_recurrent_iplr_delta_rule": "q k a b=BTHK v=BTHV initial_state=NHKV",
    "chunk_rwkv7": "r w k a b=BTHK v=BTHV initial_state=NHKV",
    "fused_recurrent_rwkv7": "r w k a b=BTHK v=BTHV initial_state=NHKV",
    "fused_mul_recurrent_rwkv7": "r w k kk a=BTHK v=BTHV initial_state=NHKV",
    "channel_mixing_rwkv7": "x=BTK x_k=11K key_weight=KV value_weight=VK",
    "parallel_attn": "q=BTHK k=BTGK v=BTGV g=BTH sink_bias=H",
    "parallel_forgetting_attn": "q=BTHK k=BTGK v=BTGV g=BTH",
    "attn_decoding_one_step": "q=1NHK k=1TGK v=1TGV g=1TH sink_bias=H",
    "parallel_wall_attn": "q g=BTHK k=BTGK v=BTGV g_scalar=BTH sink_bias=H",
    "parallel_wall_attn_decode": "q p_curr=BSHK k_tilde=BTHK v=BTGV r_cache=BMHK sink_bias=H "
    "g_scalar_cumsum=BTH",
    "parallel_parallax": "q r=BTHK k v=BTGK",
    "parallax_decode": "q r=BSHK k v=BTGK cache_start=B",
    "parallax_decode_one_step": "q r=B1HK k v=BTGK cache_start=B",
    "parallel_stickbreaking_attn": "q=BTHK k=BTGK v=BTGV",
    "parallel_path_attn": "q=BTHK k w=BTGK v=BTGV beta=BTG g=BTH",
    "parallel_nsa": "q=BSHK k=BTGK v=BTGV g_cmp g_slc g_swa=BSH",
    "parallel_moba": "q=BTHK k v=BTGK",
}
"""Shapes of operators' arguments: B rows, T tokens (S where their number is another one), N
sequences, H heads of queries, G of values, one a multiple of the other, K and V widths."""

ANY_SHAPE = ("A_log",)
"""Arguments of a value per head, which fla reads one after the other whatever their shape."""

PACKED_INPUT = {"x": "BT", "s": "BT", "g": "BT", "A": "BT"}
"""What boundaries divide in functions that the table does not list."""

PACKED_IN_ALL_ROWS = ("rotary_embedding",)
"""Functions that take boundaries of sequences in several rows, one after the other."""

NOT_PACKED = ("pack_sequence", "unpack_sequence")
"""Functions whose inputs boundaries do not divide."""

CHUNK_SIZES = {
    "chunk_delta_rule": (16, 32, 64),
    "chunk_gated_oja_rule": (16, 32, 64),
    "chunk_gated_delta_rule": (16, 32, 64),
    "chunk_gdn2": (64,),
    "chunk_kda": (32, 64),
    "chunk_momentum_delta_rule": (16, 32, 64),
}
"""The values of `chunk_size` that fla's operators take; the others take powers of two."""

NEEDED = {
    "attn_decoding_one_step": ("cu_seqlens",),
    "causal_conv1d": ("weight",),
    "fused_recurrent_precond_gated_delta_rule": ("g_atk", "beta_atk"),
}
"""Arguments that cannot be left out although fla's signature has None for them."""

FP32_STATES = ("chunk_gdn2", "chunk_gla", "chunk_kda", "chunk_mesa_net", "chunk_precond_kda")
"""Operators that take initial states in fp32 only."""

WHOLE_WINDOWS = (
    "parallel_attn",
    "parallel_forgetting_attn",
    "parallel_parallax",
    "parallel_wall_attn",
    "parallel_wall_attn_decode",
)
"""Operators whose window, if given, holds the query's own key."""


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Checks shapes, dtypes, devices, boundaries and options of a call of one of fla's functions.

    Args:
        name: fla's name of the function.
        arguments: Those that were given, by name.

    Raises:
        ArgumentError: One of them is not what the function takes.
    """
    _check_one_device_and_floats(name, arguments)
    shape = dimension_letters_by_argument(name)
    sizes = _check_boundaries_and_count_sequences(name, arguments, shape or PACKED_INPUT)
    for argument, letters in shape.items():
        value = arguments.get(argument)
        if isinstance(value, Tensor):
            _check_shape_and_enter_sizes(name, argument, value, letters, sizes, arguments)
    h, g = sizes.get("H"), sizes.get("G")
    if h and g and h % g and g % h:
        raise ArgumentError(f"{name} takes heads whose numbers are multiples, not {h} and {g}")
    _check_needed_options_and_state_dtypes(name, arguments)


def _check_one_device_and_floats(name: str, arguments: Mapping[str, Any]) -> None:
    """Tensors are on one device; queries, keys and values hold fractions."""
    tensors = {
        key: x for key, x in arguments.items() if isinstance(x, Tensor) and key != "cu_seqlens_cpu"
    }
    devices = {x.device for x in tensors.values()}
    if len(devices) > 1:
        places = ", ".join(f"{key} on {x.device}" for key, x in tensors.items())
        raise ArgumentError(f"{name} takes tensors on one device, not {places}")
    for key in ("q", "k", "v", "r", "x"):
        if key in tensors and not tensors[key].is_floating_point():
            raise ArgumentError(
                f"{name} takes floating point numbers as {key}, not {tensors[key].dtype}"
            )


def _check_boundaries_and_count_sequences(
    name: str, arguments: Mapping[str, Any], shape: Mapping[str, str]
) -> dict[str, int]:
    """The number of sequences and their tokens, as far as boundaries tell it."""
    cu_seqlens = arguments.get("cu_seqlens")
    if not isinstance(cu_seqlens, Tensor) or name in NOT_PACKED:
        return {}
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.numel() < 2:
        raise ArgumentError(
            f"{name} takes cu_seqlens as whole numbers [N + 1], not {cu_seqlens.dtype} of shape "
            f"{[*cu_seqlens.shape]}"
        )
    edges = cu_seqlens.tolist()
    if edges[0] != 0 or any(end < begin for begin, end in pairwise(edges)):
        raise ArgumentError(
            f"{name} takes cu_seqlens that rise from 0, not {_first_eight_and_so_on(edges)}"
        )
    for argument, letters in shape.items():
        x = arguments.get(argument)
        if not isinstance(x, Tensor) or letters[:2] not in ("BT", "1T") or x.dim() < 2:
            continue
        if name in PACKED_IN_ALL_ROWS:
            x = x.flatten(0, 1).unsqueeze(0)
        if x.shape[0] != 1:
            raise ArgumentError(
                f"{name} takes a batch size of 1 with cu_seqlens, not {x.shape[0]}",
                remedy="lay the sequences one after the other in one row",
            )
        if x.shape[1] != edges[-1]:
            raise ArgumentError(
                f"cu_seqlens of {name} end at {edges[-1]}, and {argument} has {x.shape[1]} tokens"
            )
        break
    return {"N": len(edges) - 1}


def _check_shape_and_enter_sizes(
    name: str,
    argument: str,
    value: Tensor,
    letters: str,
    sizes: dict[str, int],
    arguments: Mapping[str, Any],
) -> None:
    """Enters the sizes of letters that come for the first time; checks the others."""
    if letters.endswith("KV") and (
        arguments.get("state_v_first") or arguments.get("transpose_state_layout")
    ):
        letters = f"{letters[:-2]}VK"
    if "B" in sizes:
        sizes.setdefault("N", sizes["B"])
    shape = (value.numel(),) if argument in ANY_SHAPE else value.shape
    matches = len(shape) == len(letters) and all(
        size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size))
        for letter, size in zip(letters, shape, strict=True)
    )
    if not matches:
        expected = [
            letter if letter.isdigit() else str(sizes.get(letter, letter)) for letter in letters
        ]
        raise ArgumentError(
            f"{name} takes {argument} of shape [{', '.join(letters)}] = [{', '.join(expected)}], "
            f"not {[*value.shape]}"
        )


def _check_needed_options_and_state_dtypes(name: str, arguments: Mapping[str, Any]) -> None:
    """Rules between options, and of their values."""
    given = arguments.get
    if missing := [needed for needed in NEEDED.get(name, ()) if given(needed) is None]:
        raise ArgumentError(f"{name} needs {' and '.join(missing)}")
    if "head_first" in arguments:
        raise ArgumentError(f"{name} takes inputs [B, T, H, ...]; fla has removed head_first")
    chunk_size = given("chunk_size")
    if chunk_size is not None and name != "parallel_moba":
        sizes = CHUNK_SIZES.get(name)
        if sizes is None and chunk_size & (chunk_size - 1):
            raise ArgumentError(f"`chunk_size` must be a power of 2 for {name}, got {chunk_size}")
        if sizes is not None and chunk_size not in sizes:
            choices = " or ".join(map(str, sizes))
            either = "either " if len(sizes) == 2 else ""
            raise ArgumentError(
                f"`chunk_size` must be {either}{choices} for {name}, got {chunk_size}"
            )
    if given("allow_neg_eigval") and not given("use_beta_sigmoid_in_kernel"):
        raise ArgumentError(f"{name} takes allow_neg_eigval with use_beta_sigmoid_in_kernel only")
    lower_bound = given("lower_bound")
    if lower_bound is not None and lower_bound >= 0:
        raise ArgumentError(f"{name} takes a lower_bound below 0, not {lower_bound}")
    if given("use_gate_in_kernel"):
        if given("A_log") is None and lower_bound is None:
            raise ArgumentError(f"{name} with use_gate_in_kernel takes A_log or lower_bound")
        if given("safe_gate") and (lower_bound is None or lower_bound < -5):
            raise ArgumentError(
                f"{name} with safe_gate takes a lower_bound from -5 to 0, not {lower_bound}"
            )
    window_size = given("window_size")
    smallest = 0 if given("sink_bias") is not None and name == "parallel_attn" else 1
    if window_size is not None and name in WHOLE_WINDOWS and window_size < smallest:
        raise ArgumentError(f"{name} takes a window_size of at least {smallest}, not {window_size}")
    if name in FP32_STATES:
        for state in ("initial_state", "h_kk_init", "h_kv_init"):
            value = given(state)
            if isinstance(value, Tensor) and value.dtype != torch.float32:
                raise ArgumentError(f"{name} takes {state} in torch.float32, not {value.dtype}")


@lru_cache(maxsize=256)
def dimension_letters_by_argument(name: str) -> Mapping[str, str]:
    """Letters of the dimensions of each argument, in the order of the table."""
    shapes: dict[str, str] = {}
    waiting: list[str] = []
    for word in SHAPES.get(name, "").split():
        argument, _, letters = word.partition("=")
        waiting.append(argument)
        if letters:
            shapes |= dict.fromkeys(waiting, letters)
            waiting = []
    return shapes


def _first_eight_and_so_on(numbers: Sequence[int]) -> str:
    return str([*numbers]) if len(numbers) < 9 else f"{[*numbers[:8]]} and so on"
