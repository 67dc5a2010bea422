"""Generated calls of fla's operators, to compare with references.

Hypothesis draws sizes, packed documents (empty ones, one token), heads in groups, which optional
arguments are given, every option, fp32 or bf16. What a call returns, and must return, is in
`oracle_evaluation`; which operator has which reference in `oracle_cases_*`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import hypothesis.strategies as st
import torch
from torch import Tensor

from flame_accel.kernels.argument_checks import CHUNK_SIZES, SHAPES
from tests.helpers.parity import KEPT, Arguments, resolve


class Result(NamedTuple):
    """What a reference returns."""

    per_token: list[Tensor]
    """[B, T, ...], in the operator's order."""
    states: Sequence[Tensor] = ()
    """[N, ...], after them."""


Reference = Callable[[Arguments], Result]
Plan = dict[str, Any]
"""Argument -> the kind of tensor that is drawn, or the value of an option."""


class OracleCase(NamedTuple):
    """An operator, its reference, and what its arguments may be."""

    operator: str
    """Below `fla.`."""
    reference: Reference
    """Of all arguments by name, in fp64; tokens of equally long sequences [B, T, ...]."""
    source: str
    """Where the reference comes from."""
    shapes: str = ""
    """As in `argument_checks.SHAPES`, which is used if empty."""
    kinds: Mapping[str, str] = {}
    """Argument -> kind of tensor, one of `KINDS`, where it is not that of `KINDS_BY_NAME`."""
    options: Mapping[str, st.SearchStrategy[Any]] = {}
    """Of arguments that are no tensors, in addition to `OPTIONS`."""
    together: tuple[tuple[str, ...], ...] = ()
    """Optional arguments that are all given or all left out."""
    rules: Callable[[Plan], None] = lambda plan: None
    """Changes a plan to one that the operator takes."""
    call: Callable[[Callable[..., Any], Arguments], Any] = lambda function, x: function(**x)
    states: tuple[str, ...] = ("initial_state",)
    """Arguments that final states continue, in the order in which they are returned."""
    states_option: str = "output_final_state"
    """The argument that asks for final states."""
    needed: frozenset[str] = frozenset()
    """Arguments that cannot be left out although their default is None."""
    neutral: Mapping[str, float] = {}
    """State -> what a state that is not given is filled with, 0 for others."""
    kept: frozenset[str] = frozenset()
    """Inputs that stay in fp32 in addition to `KEPT`."""
    fixed: frozenset[str] = frozenset()
    """Inputs without a gradient."""
    widths: tuple[int, ...] = (1, 4, 7, 16)
    """Of keys and of values."""
    refused: frozenset[str] = frozenset()
    """Arguments that we refuse by name."""
    without: tuple[str, ...] = ()
    """Arguments that the reference knows nothing of; laws of their own are in `tests/unit`."""
    answers_empty_documents: bool = False
    """Whether there is a result per document, and not only per token."""
    forward_only: bool = False
    """Whether fla's operator has no gradient."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    note: str = ""
    """Where the reference is not what fla has, and why."""

    @property
    def function_name(self) -> str:
        return self.operator.rpartition(".")[2]

    @property
    def function(self) -> Callable[..., Any]:
        return resolve(f"fla.{self.operator}")

    @property
    def letters(self) -> dict[str, str]:
        """Argument -> letters of its dimensions."""
        letters: dict[str, str] = {}
        waiting: list[str] = []
        for word in (self.shapes or SHAPES[self.function_name]).split():
            name, _, dimensions = word.partition("=")
            waiting.append(name)
            if dimensions:
                letters |= dict.fromkeys(waiting, dimensions)
                waiting = []
        return letters

    @property
    def drawn(self) -> set[str]:
        """Arguments that are drawn, refused by us, or known to no reference."""
        options = {*OPTIONS, *self.options, "chunk_size", "cu_seqlens", "num_householder"}
        return {*self.letters, *options, *self.refused, *self.without}

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Those of fla's signature that have names."""
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(self.function).parameters
        return {name: p for name, p in parameters.items() if p.kind not in variable}


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # of normal and of uniform numbers
    "normal": lambda x, u: x,
    "small": lambda x, u: 0.1 * x,
    "slight": lambda x, u: x / 64,
    "unit": lambda x, u: torch.nn.functional.normalize(x, dim=-1),
    "unit_interval": lambda x, u: u,
    "rate": lambda x, u: 0.05 * u,
    # mostly gentle, some steep
    "log_decay": lambda x, u: -5 * u**4,
    "gentle_log_decay": lambda x, u: -0.3 * u**4,
    "mild_log_decay": lambda x, u: -0.6 * u,
    "positive": lambda x, u: 0.5 + u,
    "phase": lambda x, u: 9 * u,
    "number": lambda x, u: (3 * u).int(),
    "positive_definite": lambda x, u: x @ x.mT / x.shape[-1],
}
KINDS_BY_NAME = {
    **dict.fromkeys(("g", "gk", "gv", "w", "g_atk", "g_scalar", "g_gamma"), "log_decay"),
    **dict.fromkeys(("log_alpha", "log_mu"), "log_decay"),
    **dict.fromkeys(("beta", "eta", "delta", "beta_atk", "level_scales"), "unit_interval"),
}
FLAGS = (
    "output_final_state", "state_v_first", "transpose_state_layout", "use_qk_l2norm_in_kernel",
    "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "reverse", "disable_recompute",
    "output_attentions", "use_gate_in_kernel", "safe_gate",
)  # fmt: skip
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.booleans() for name in FLAGS},
    "scale": st.sampled_from((None, 0.3)),
    "window_size": st.sampled_from((None, 1, 3, 40)),
    "solve_tril_precision": st.sampled_from(("ieee", "tf32")),
    "checkpoint_level": st.sampled_from((0, 1)),
    # the boundaries again
    "cu_seqlens_cpu": st.booleans(),
}


class Call(NamedTuple):
    """One generated call; its text is what a failing example prints."""

    case: OracleCase
    sizes: Mapping[str, int]
    """Letter of a dimension -> its size."""
    plan: Plan
    dtype: torch.dtype
    seed: int

    def __repr__(self) -> str:
        plan = ", ".join(f"{name}={value}" for name, value in self.plan.items())
        return f"{self.case.function_name}({plan}), {self.sizes}, {self.dtype}, seed {self.seed}"

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Tokens of packed documents, or None for rows of equal length."""
        return self.plan.get("cu_seqlens")


@st.composite
def calls(
    draw: st.DrawFn,
    case: OracleCase,
    most_tokens: int = 65,
    sizes_by_letter: Mapping[str, int] | None = None,
    packs: bool = True,
) -> Call:
    """Calls of an operator.

    Args:
        draw: Hypothesis' own.
        case: The operator.
        most_tokens: About how many tokens a sequence has at most.
        sizes_by_letter: Sizes of letters that are not drawn.
        packs: Whether packed documents are drawn where the operator can do without.
    """
    parameters = case.parameters
    optional = packs and "cu_seqlens" in parameters
    packed = "cu_seqlens" in case.needed or (optional and draw(st.booleans()))
    plan: Plan = {"cu_seqlens": _draw_document_lengths(draw, most_tokens)} if packed else {}
    sizes = _draw_sizes(draw, case, plan.get("cu_seqlens"), most_tokens, sizes_by_letter or {})
    plan |= _draw_kinds_of_tensors(draw, case)
    options = {**OPTIONS, "chunk_size": _chunk_sizes(case), **case.options}
    if "S" in sizes:
        options["num_householder"] = st.just(sizes["S"] // sizes["T"])
    left_out = {*case.letters, *case.refused, *case.without}
    for name in dict.fromkeys((*parameters, *case.options)):
        if name in options and name not in left_out:
            required = name in parameters and parameters[name].default is inspect.Parameter.empty
            if required or draw(st.booleans()):
                plan[name] = draw(options[name])
    if not packed or not plan.get("cu_seqlens_cpu"):
        plan.pop("cu_seqlens_cpu", None)
    case.rules(plan)
    dtype = draw(st.sampled_from(case.dtypes))
    return Call(case, sizes, plan, dtype, draw(st.integers(0, 2**16)))


def _draw_kinds_of_tensors(draw: st.DrawFn, case: OracleCase) -> Plan:
    """Kinds of all required and some optional tensors."""
    plan: Plan = {}
    leaders = {name: group[0] for group in case.together for name in group}
    for name in case.letters:
        parameter, leader = case.parameters.get(name), leaders.get(name, name)
        optional = name in leaders or parameter is None or parameter.default is None
        if name in case.without:
            continue
        if leader in plan or not optional or name in case.needed:
            given = True
        else:
            given = leader == name and draw(st.booleans())
        if given:
            plan[name] = case.kinds.get(name, KINDS_BY_NAME.get(name, "normal"))
    return plan


def _chunk_sizes(case: OracleCase) -> st.SearchStrategy[int]:
    return st.sampled_from(CHUNK_SIZES.get(case.function_name, (16, 64)))


def _draw_document_lengths(draw: st.DrawFn, most_tokens: int) -> tuple[int, ...]:
    """Tokens of documents, some without any; one at least has a token."""
    length = st.sampled_from([n for n in (0, 1, 2, 5, 16, 17, 40, 64, 65) if n <= most_tokens])
    lengths = draw(st.lists(length, min_size=1, max_size=5))
    return tuple(lengths) if any(lengths) else (*lengths, 1)


def _draw_sizes(
    draw: st.DrawFn,
    case: OracleCase,
    lengths: tuple[int, ...] | None,
    most_tokens: int,
    sizes_by_letter: Mapping[str, int],
) -> dict[str, int]:
    """Letter -> size, for all letters of the case."""
    letters = {x for x in "".join(case.letters.values()) if x.isalpha()}
    tokens = [n for n in (1, 2, 3, 5, 16, 17, 33, 63, 64, 65, 130) if n <= most_tokens]
    sizes = {"B": 1 if lengths else draw(st.integers(1, 2))}
    sizes["T"] = sum(lengths) if lengths else draw(st.sampled_from(tokens))
    sizes["N"] = len(lengths) if lengths else sizes["B"]
    heads = draw(st.integers(1, 2))
    more = draw(st.integers(1, 3)) * heads if "G" in letters else heads
    # several heads of queries to one of keys and values, or of values to one of keys
    queries_are_more = case.letters.get("k", "")[2:3] == "G"
    sizes |= {"H": more, "G": heads} if queries_are_more else {"H": heads, "G": more}
    sizes |= {letter: size for letter, size in sizes_by_letter.items() if letter in letters}
    special = {
        "L": st.just(10),
        "P": st.sampled_from((3, 5)),
        "Q": st.integers(1, sizes["T"]),
        "S": st.integers(1, 3).map(lambda steps: steps * sizes["T"]),
        "W": st.integers(2, 4),
    }
    # a key of one channel has no direction
    for letter in sorted(letters - sizes.keys() - set("RXYZ")):
        width = st.sampled_from([n for n in case.widths if n > 1 or letter != "K"])
        sizes[letter] = draw(special.get(letter, width))
    if "P" in sizes:
        sizes["M"] = sizes["P"] + 1
    width = sizes.get("K", 0)
    derived = {"X": sizes["G"] * width, "Y": sizes["H"] * width, "Z": sizes["T"] + 2, "R": 4}
    return sizes | {letter: size for letter, size in derived.items() if letter in letters}


def make_arguments(call: Call) -> Arguments:
    """Tensors and options of a call, those that are not kept in fp32 rounded to its dtype."""
    generator = torch.Generator().manual_seed(call.seed)
    arguments: Arguments = {}
    letters = call.case.letters
    for name, value in call.plan.items():
        if name in ("cu_seqlens", "cu_seqlens_cpu"):
            arguments[name] = torch.tensor([0, *(call.lengths or ())]).cumsum(0)
            continue
        if name not in letters or not isinstance(value, str):
            arguments[name] = value
            continue
        shape = [int(x) if x.isdigit() else call.sizes[x] for x in letters[name]]
        normal = torch.randn(shape, generator=generator)
        x = KINDS[value](normal, torch.rand(shape, generator=generator))
        if values_come_first(call, name):
            x = x.mT.contiguous()
        kept = name in KEPT | call.case.kept
        arguments[name] = x.to(call.dtype) if x.is_floating_point() and not kept else x
    return arguments


def values_come_first(call: Call, name: str) -> bool:
    first = call.plan.get("state_v_first") or call.plan.get("transpose_state_layout")
    return bool(first) and call.case.letters.get(name, "").endswith("KV")
