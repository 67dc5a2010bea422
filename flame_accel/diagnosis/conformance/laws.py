"""Laws that every causal language model should keep, checked on a tiny one.

Trains, comes back from disk, keeps packed documents apart; those of generation live in
`generation_laws`. On a CPU in float32, on a GPU under bfloat16 autocast. Which models there are
lives in `models/catalogue`, known failures in `known_issues`, the table of all models in
`support_table`.
"""

import inspect
import itertools
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import fla
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import flame_accel
from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.generation_laws import (
    GENERATION_LAWS,
    copy_for_eval_with_noise_on_weights,
)
from flame_accel.diagnosis.conformance.measures import (
    PRECISION,
    LawBroken,
    compute_uncached_fp32_logits,
    draw_same_token_ids_every_time,
    raise_law_broken_unless,
    relative_error,
    seed_and_compute_uncached_autocast_logits,
    set_torch_seed_and_autocast_unless_on_cpu,
)
from flame_accel.kernels.called_families import record_entered_replacement_modules
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.parameter_groups import parameter_groups

DOCUMENT_LENGTHS = (3, 30, 70, 1, 26)
"""Tokens of the packed documents: one, several, and more than a chunk of 64."""
CHANGED = 1
"""Index of the document that the leak test changes; its length is no multiple of a chunk."""
ROWS, ROW_LENGTH = 2, 70
EXPERTS_ROUNDING = {"cpu": 1e-6, "cuda": 4e-3}
"""How much a document may change another's logits through experts.

An expert multiplies the tokens of all documents at once, and how many there are decides in which
order a product is summed up. Gradients have to be 0 all the same.
"""


class LawResult(NamedTuple):
    """What became of one law."""

    law: str
    holds: bool
    reason: str
    """Why it does not hold; empty where it does."""
    seconds: float


def run_law_checks(
    config: PreTrainedConfig, device: str = "cpu", laws: Iterable[str] | None = None
) -> Iterator[LawResult]:
    """Checks laws on the model of a configuration, all of `LAWS` in their order unless named.

    An exception, whatever it is, is a reason.

    Args:
        config: small: the model is built, trained for two steps and called some twenty times.
        device: "cpu" or "cuda".
        laws: names of some of them.
    """
    model = noisy_model = None
    for name in LAWS if laws is None else laws:
        started_at = time.monotonic()
        reason = ""
        try:
            model = model or build_model_on_device(config, device)
            if name in GENERATION_LAWS:
                noisy_model = noisy_model or copy_for_eval_with_noise_on_weights(model)
            LAWS[name](noisy_model if name in GENERATION_LAWS and noisy_model else model)
        except Exception as error:
            reason = describe_exception_with_place(error)
        yield LawResult(name, not reason, reason, round(time.monotonic() - started_at, 1))


def describe_exception_with_place(error: Exception) -> str:
    """The kind of an exception, the line of fla or of our kernels that raised it, its message."""
    if isinstance(error, LawBroken):
        return str(error)
    if isinstance(error, UserError):
        return error.what
    roots = [
        os.path.dirname(os.path.dirname(inspect.getfile(package))) for package in (fla, flame_accel)
    ]
    places = [
        f" at {os.path.relpath(frame.filename, root)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        for root, part in zip(roots, ("fla", "flame_accel/kernels"), strict=True)
        if frame.filename.startswith(os.path.join(root, part, ""))
    ]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{''.join(places[-1:])}" + (f": {message}" if message else "")


def check_training_lowers_loss(model: PreTrainedModel) -> None:
    """Two optimizer steps on one batch lower the loss; every parameter gets a finite gradient.

    Where weights start at 0 so that a layer starts as the identity, the gradients of others do too:
    they get some more steps.
    """
    ids = draw_same_token_ids_every_time(model, (ROWS, ROW_LENGTH))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=3e-3)
    without = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.train()
    losses = [
        _check_finite_gradients_step_and_get_loss(model, optimizer, ids, without) for _ in range(2)
    ]
    with torch.no_grad(), set_torch_seed_and_autocast_unless_on_cpu(model):
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    for _ in range(3 if without else 0):
        _check_finite_gradients_step_and_get_loss(model, optimizer, ids, without)
    raise_law_broken_unless(
        all(loss < float("inf") for loss in losses) and losses[-1] < losses[0],
        f"the loss does not fall: {', '.join(f'{loss:.4f}' for loss in losses)}",
    )
    more = f" and {len(without) - 3} more" if len(without) > 3 else ""
    raise_law_broken_unless(
        not without, f"no gradient reaches {', '.join(sorted(without)[:3])}{more}"
    )


def _check_finite_gradients_step_and_get_loss(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    names_without_gradient_yet: set[str],
) -> float:
    """Steps, and returns the loss.

    Takes from `names_without_gradient_yet` the names of parameters with a gradient that is not 0.
    """
    with set_torch_seed_and_autocast_unless_on_cpu(model):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    raise_law_broken_unless(not wrong, f"gradients are not finite: {', '.join(wrong)}")
    names_without_gradient_yet -= {name for name, gradient in gradients.items() if gradient.any()}
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def check_reload_keeps_logits(model: PreTrainedModel) -> None:
    """A model that is saved and loaded through the auto class gives the same logits, bit by bit."""
    ids = draw_same_token_ids_every_time(model, (ROWS, ROW_LENGTH))
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.nn.Module.to(loaded, model.device)
    raise_law_broken_unless(
        type(loaded) is type(model), f"it comes back as {type(loaded).__name__}"
    )
    same = torch.equal(
        seed_and_compute_uncached_autocast_logits(loaded, ids),
        seed_and_compute_uncached_autocast_logits(model, ids),
    )
    raise_law_broken_unless(same, "the loaded model gives other logits")


def check_keeps_documents_apart(model: PreTrainedModel) -> None:
    """Nothing of a packed document reaches another one, neither forward nor backward."""
    row = draw_same_token_ids_every_time(model, (1, sum(DOCUMENT_LENGTHS)))
    bounds = torch.tensor((0, *DOCUMENT_LENGTHS), device=row.device).cumsum(0, dtype=torch.int32)
    edges = bounds.tolist()
    others = torch.ones_like(row, dtype=torch.bool)
    others[:, edges[CHANGED] : edges[CHANGED + 1]] = False
    changed = torch.where(others, row, model.config.vocab_size - 1 - row)
    # as in training, whose kernels may be others than those of evaluation
    model.train()
    before, gradient = _run_packed_and_get_embedding_gradient(model, row, bounds, others)
    after, _ = _run_packed_and_get_embedding_gradient(model, changed, bounds, others)
    change = relative_error(after[others], before[others])
    raise_law_broken_unless(
        torch.equal(before[others], after[others])
        or (_has_experts(model) and change <= EXPERTS_ROUNDING[model.device.type]),
        f"one document changes another's logits by {change:.0e}",
    )
    raise_law_broken_unless(
        not gradient[~others].any(), "the loss of one document has a gradient in another"
    )
    raise_law_broken_unless(
        bool(gradient[others].any()), "the loss has no gradient in its own documents"
    )

    model.eval()
    try:
        _check_documents_match_alone(model, row, bounds, seed_and_compute_uncached_autocast_logits)
    except LawBroken:
        if model.device.type == "cpu" or not _has_experts(model):
            raise
        # rounding to bf16 decides between experts that are about as likely as each other
        _check_documents_match_alone(model, row, bounds, compute_uncached_fp32_logits)


def _check_documents_match_alone(
    model: PreTrainedModel,
    row: torch.Tensor,
    bounds: torch.Tensor,
    compute_logits: Callable[..., torch.Tensor],
) -> None:
    packed = compute_logits(model, row, cu_seqlens=bounds)
    tolerance = PRECISION[model.device.type].packing
    for begin, end in itertools.pairwise(bounds.tolist()):
        error = relative_error(packed[:, begin:end], compute_logits(model, row[:, begin:end]))
        raise_law_broken_unless(
            error <= tolerance,
            f"a document of {end - begin} tokens differs by {error:.1e} from the same one alone",
        )


LAWS: dict[str, Callable[[PreTrainedModel], None]] = {
    "trains": check_training_lowers_loss,
    "reloads": check_reload_keeps_logits,
    "generates": GENERATION_LAWS["generates"],
    "keeps documents apart": check_keeps_documents_apart,
    **GENERATION_LAWS,
}
"""The name of each law, and the function that raises where a model breaks it."""

TRIAL_LAWS = ("trains", "reloads", "generates", "keeps documents apart")
"""Those of `LAWS` that tell whether a model can be trained, exported and sampled from."""


def law_names_for_model_type(model_type: str) -> tuple[str, ...]:
    """Names of the laws that results hold: all for fla's models, else `TRIAL_LAWS`."""
    return tuple(LAWS) if model_type in fla_config_classes() else TRIAL_LAWS


def _has_experts(model: PreTrainedModel) -> bool:
    return any("Expert" in type(module).__name__ for module in model.modules())


class PackedPass(NamedTuple):
    """What one pass over a packed row gives."""

    logits: torch.Tensor
    """[1, T, V]"""
    embedding_gradient: torch.Tensor
    """[1, T, D]"""


def _run_packed_and_get_embedding_gradient(
    model: PreTrainedModel,
    row: torch.Tensor,
    cu_seqlens: torch.Tensor,
    counted_positions: torch.Tensor,
) -> PackedPass:
    """Logits of a packed row, and the gradient of those counted with respect to its embeddings."""
    embedded: list[torch.Tensor] = []

    def retain_embedding_gradient(module: object, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    hook = model.get_input_embeddings().register_forward_hook(retain_embedding_gradient)
    try:
        with set_torch_seed_and_autocast_unless_on_cpu(model):
            logits = model(input_ids=row, cu_seqlens=cu_seqlens, use_cache=False).logits.float()
    finally:
        hook.remove()
    weight = torch.linspace(-1, 1, logits.shape[-1], device=logits.device)
    (logits[counted_positions] * weight).sum().backward()
    model.zero_grad()
    gradient = embedded[0].grad
    if gradient is None:
        raise LawBroken("the logits do not depend on the embeddings")
    return PackedPass(logits.detach(), gradient)


def find_cpu_mixer_kernel_modules(config: PreTrainedConfig) -> list[str]:
    """Lists the kernels that mix the tokens of a model on a CPU, as `replacements` names them.

    Empty for a model that fla's own PyTorch code serves. Norms, convolutions and losses, which
    nearly every model has, are left out.
    """
    model = build_model_on_device(config, "cpu")
    with record_entered_replacement_modules() as families:
        seed_and_compute_uncached_autocast_logits(
            model, draw_same_token_ids_every_time(model, (ROWS, ROW_LENGTH))
        )
    return sorted(module for module in families if not module.startswith("modules."))


def build_model_on_device(config: PreTrainedConfig, device: str) -> PreTrainedModel:
    """The model of a config with random weights, the same every time."""
    size: int = config.vocab_size
    model = build_model(config, vocabulary_size=size, bos_token_id=None, eos_token_id=None, seed=0)
    torch.nn.Module.to(model, device)
    return model
