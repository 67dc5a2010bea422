"""Activation checkpointing: the same gradients bit by bit, less memory, no operator run twice."""

import copy
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, PreTrainedModel

from flame_accel import kernels
from flame_accel.config import ActivationCheckpointConfig, UserError
from flame_accel.kernels.wrapping import sequence_mixer_paths, wrap_functions
from flame_accel.models import build_model
from flame_accel.models.catalogue import fla_config_classes, tiny_config
from flame_accel.parallel.activations import checkpoint_activations
from tests.helpers.runs import launch, read_records

MODES = {
    "full": ActivationCheckpointConfig(mode="full"),
    "second": ActivationCheckpointConfig(mode="selective", selective_ac_option="2"),
    "op": ActivationCheckpointConfig(mode="selective", selective_ac_option="op"),
}
BOUNDARIES = torch.tensor([0, 3, 33, 70, 71, 96], dtype=torch.int32)
IDS = torch.randint(256, (1, 96), generator=torch.Generator().manual_seed(0))
LONG = torch.randint(256, (1, 1024), generator=torch.Generator().manual_seed(0))
SOFTMAX = {"layers": [1], "num_heads": 2, "num_kv_heads": 1}
CASES = {
    **{name: (name, {}) for name in sorted(fla_config_classes())},
    "gla with attention and a convolution": ("gla", {"attn": SOFTMAX, "use_short_conv": True}),
    "gla with tied weights": ("gla", {"tie_word_embeddings": True}),
    "gla with residual attention": ("gla", {"attnres_block_size": 2}),
    "gla by single steps": ("gla", {"attn_mode": "fused_recurrent"}),
}
calls: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def counted_operators() -> Iterator[None]:
    """Records the operators that a model calls in `calls`, but not those that these call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inside: list[Any] = []

    def count(operator: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operator)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not inside:
                calls.append(operator.__name__)
            inside.append(operator)
            try:
                return operator(*args, **kwargs)
            finally:
                inside.pop()

        return counted

    kernels.uninstall()
    kernels.install("torch")
    wrap_functions(sequence_mixer_paths(), count)
    yield
    kernels.uninstall()
    kernels.install("torch")
    torch.set_num_threads(threads)


def build(model_type: str, mode: str | None = None, **changes: Any) -> PreTrainedModel:
    config = tiny_config(model_type, **changes)
    model = build_model(
        config, vocabulary_size=256, bos_token_id=None, eos_token_id=None, seed=0
    ).train()
    if mode is not None:
        checkpoint_activations(model, MODES[mode])
    return model


def run_backward(model: PreTrainedModel, **inputs: Any) -> tuple[Tensor, list[Tensor | None], int]:
    """Loss, gradients, and the number of operators that the backward pass called."""
    torch.manual_seed(1)
    loss = model(input_ids=IDS, labels=IDS, **inputs).loss
    calls.clear()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()], len(calls)


def equal_or_both_none(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_bits_and_op_runs_no_operator_twice(name: str) -> None:
    model_type, changes = CASES[name]
    packed = {} if model_type == "cat" else {"cu_seqlens": BOUNDARIES}
    loss, gradients, _ = run_backward(build(model_type, **changes), **packed)
    modes = ["full", "second"] if model_type == "log_linear_mamba2" else ["full", "second", "op"]
    for mode in modes:
        model = build(model_type, mode, **changes)
        same_loss, same_gradients, called = run_backward(model, **packed)
        assert torch.equal(same_loss, loss), mode
        assert all(map(equal_or_both_none, same_gradients, gradients)), mode
        assert (called > 0) == (mode != "op"), mode


def test_rows_with_padding_and_without_documents_have_the_same_gradients() -> None:
    for inputs in ({}, {"attention_mask": torch.cat((torch.zeros(1, 9), torch.ones(1, 87)), 1)}):
        loss, gradients, _ = run_backward(build("gated_deltanet"), **inputs)
        same_loss, same_gradients, called = run_backward(build("gated_deltanet", "op"), **inputs)
        assert torch.equal(same_loss, loss)
        assert all(map(equal_or_both_none, same_gradients, gradients))
        assert called == 0


@pytest.mark.parametrize("mode", MODES)
def test_dropout_draws_the_same_numbers_again(mode: str) -> None:
    def build_with_dropout(mode: str | None) -> PreTrainedModel:
        model = build("gla", mode)
        for block in model.model.layers:
            for part in (block.attn.q_proj, block.attn.o_proj, block.mlp.up_proj):
                part.register_forward_hook(lambda module, inputs, y: nn.functional.dropout(y, 0.5))
        return model

    loss, gradients, _ = run_backward(build_with_dropout(None), cu_seqlens=BOUNDARIES)
    same_loss, same_gradients, _ = run_backward(build_with_dropout(mode), cu_seqlens=BOUNDARIES)
    assert torch.equal(same_loss, loss)
    assert all(map(equal_or_both_none, same_gradients, gradients))


class AllocationLedger(TorchDispatchMode):
    """Records every storage that operators of torch allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return outputs

    def live_bytes(self) -> int:
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def saved_bytes(model: PreTrainedModel) -> int:
    """Bytes that are allocated between forward and backward."""
    with AllocationLedger() as ledger:
        loss = model(input_ids=LONG, labels=LONG).loss
        kept = ledger.live_bytes()
    assert loss.requires_grad
    return kept


@pytest.mark.parametrize("model_type", ["gla", "gated_deltanet", "transformer"])
def test_saved_memory_falls_from_none_to_second_to_op_to_full(model_type: str) -> None:
    none, second, op, full = (
        saved_bytes(build(model_type, mode, num_hidden_layers=4))
        for mode in (None, "second", "op", "full")
    )
    assert full < op < second < none
    assert op < 0.5 * none


def leaked_bytes(model: PreTrainedModel, use: Callable[[PreTrainedModel], Any]) -> int:
    """Bytes that stay allocated after a second use of a model."""
    use(model)
    with AllocationLedger() as ledger:
        use(model)
    for parameter in model.parameters():
        ledger.storages.pop(parameter.untyped_storage()._cdata, None)
    return ledger.live_bytes()


def run_step(model: PreTrainedModel) -> None:
    model(input_ids=IDS, labels=IDS, cu_seqlens=BOUNDARIES).loss.backward()
    model.zero_grad()


def run_forward_only(model: PreTrainedModel) -> None:
    model(input_ids=IDS, labels=IDS, cu_seqlens=BOUNDARIES)


def evaluate(model: PreTrainedModel) -> None:
    # in training mode, too
    with torch.no_grad():
        model(input_ids=IDS, cu_seqlens=BOUNDARIES)


@pytest.mark.parametrize("use", [run_step, run_forward_only, evaluate])
def test_nothing_leaks_even_without_garbage_collection(
    use: Callable[[PreTrainedModel], None],
) -> None:
    gc.disable()
    try:
        plain, *recomputed = (leaked_bytes(build("gla", mode), use) for mode in (None, *MODES))
    finally:
        gc.enable()
    assert recomputed == [plain] * 3


def test_evaluation_and_generation_do_not_change() -> None:
    model, plain = build("gla", "op").eval(), build("gla").eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))


def test_two_backward_passes_through_one_forward_accumulate() -> None:
    model, plain = build("gla", "op"), build("gla")
    for m in (model, plain):
        loss = m(input_ids=IDS, labels=IDS).loss
        loss.backward(retain_graph=True)
        loss.backward()
    gradients = [parameter.grad for parameter in plain.parameters()]
    assert all(
        map(equal_or_both_none, [parameter.grad for parameter in model.parameters()], gradients)
    )


def test_an_output_that_was_written_to_is_not_reused() -> None:
    model = build("transformer", "op")

    def write(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].detach().mul_(2)

    model.model.layers[0].attn.o_proj.register_forward_pre_hook(write)
    loss = model(input_ids=IDS, labels=IDS).loss
    with pytest.raises(RuntimeError, match="wrote to the result of an operator"):
        loss.backward()


@pytest.mark.parametrize("mode", MODES)
def test_names_stay_and_copies_are_independent(mode: str) -> None:
    model, plain = build("gla", mode), build("gla")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    loss, gradients, _ = run_backward(model)
    plain_loss, plain_gradients, _ = run_backward(plain)
    assert torch.equal(loss, plain_loss)
    assert all(map(equal_or_both_none, gradients, plain_gradients))
    assert all(parameter.grad is None for parameter in twin.parameters())


@pytest.mark.covers_option("activation_checkpoint.selective_ac_option")
@pytest.mark.parametrize(
    ("option", "recomputed"), [("1", [0, 1, 2, 3, 4]), ("2", [1, 3]), ("5", [4])]
)
def test_every_nth_block_is_recomputed(option: str, recomputed: list[int]) -> None:
    model = build("gla", num_hidden_layers=5)
    config = ActivationCheckpointConfig(mode="selective", selective_ac_option=option)
    checkpoint_activations(model, config)
    passes = [0] * 5
    for index, block in enumerate(model.model.layers):

        def count(module: nn.Module, inputs: Any, index: int = index) -> None:
            passes[index] += 1

        block.attn.register_forward_pre_hook(count)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert [index for index, times in enumerate(passes) if times == 2] == recomputed


def test_a_number_above_that_of_the_blocks_is_refused() -> None:
    config = ActivationCheckpointConfig(mode="selective", selective_ac_option="3")
    with pytest.raises(UserError, match="the model has 2 blocks") as caught:
        checkpoint_activations(build("gla"), config)
    assert caught.value.exit_code == 2


def llama() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    model = build_model(config, vocabulary_size=256, bos_token_id=None, eos_token_id=None, seed=0)
    return model.train()


@pytest.mark.parametrize("mode", ["full", "second"])
def test_a_model_of_transformers_is_recomputed_by_its_blocks(mode: str) -> None:
    model = llama()
    checkpoint_activations(model, MODES[mode])
    loss, gradients, _ = run_backward(model)
    plain_loss, plain_gradients, _ = run_backward(llama())
    assert torch.equal(loss, plain_loss)
    assert all(map(equal_or_both_none, gradients, plain_gradients))


def test_op_is_refused_where_no_output_could_be_saved() -> None:
    with pytest.raises(UserError, match="LlamaForCausalLM calls none of fla's operators"):
        checkpoint_activations(llama(), MODES["op"])
    with pytest.raises(UserError, match="LogLinearMamba2ForCausalLM recompute their operator"):
        build("log_linear_mamba2", "op")


PACKED = {"training.varlen": True, "training.context_len": 24, "training.steps": 4}


def read_curve(run_folder: Path) -> list[float]:
    names = ("train/loss", "optimizer/grad_norm", "eval/loss")
    return [record[name] for record in read_records(run_folder) for name in names if name in record]


@pytest.mark.covers_option("activation_checkpoint.mode")
@pytest.mark.parametrize("option", ["2", "op"])
def test_a_run_has_the_losses_of_one_that_saves_everything(
    option, flags, corpus, train_here, tmp_path
) -> None:
    changes = {"evaluation.dataset": corpus, **PACKED}
    train_here(flags(**{"job.dump_folder": tmp_path / "plain"}, **changes))
    changes["activation_checkpoint.mode"] = "selective"
    changes["activation_checkpoint.selective_ac_option"] = option
    train_here(flags(**{"job.dump_folder": tmp_path / "recomputed"}, **changes))
    assert len(read_curve(tmp_path / "plain")) == 9
    assert read_curve(tmp_path / "recomputed") == read_curve(tmp_path / "plain")


@pytest.mark.distributed
@pytest.mark.parametrize("config", ["fsdp2", "ddp"])
def test_several_processes_recompute_to_the_same_losses(
    config, flags, train_here, tmp_path
) -> None:
    train_here(flags(**{"job.dump_folder": tmp_path / "one"}, **PACKED))
    changes = {
        "job.dump_folder": tmp_path / "two",
        "training.batch_size": 2,
        "activation_checkpoint.mode": "selective",
        "activation_checkpoint.selective_ac_option": "op",
    }
    launch(flags(**{**PACKED, **changes}), config=config, processes=2)
    assert read_curve(tmp_path / "two") == pytest.approx(read_curve(tmp_path / "one"), rel=1e-5)
