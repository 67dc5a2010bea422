"""Which tokenizers are taken for the one that the weights were trained with."""

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from flame_accel.checkpoint import identity
from flame_accel.checkpoint.hf_model import save_hf_model
from flame_accel.checkpoint.identity import check_weights_match_config_and_tokenizer
from flame_accel.config import UserError
from flame_accel.data.tokens.tokenizer import tokenizer_identity
from flame_accel.models.instantiate import instantiate_on_default_device
from tests.helpers.model_configs import tiny_config

VOCABULARY = {
    character: number
    for number, character in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "qz", "zx"])
}


def build_backend(*, merges: tuple[tuple[str, str], ...] = (("q", "z"), ("z", "x"))) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocab=VOCABULARY, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return backend


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def other_merges() -> Tokenizer:
    return build_backend(merges=(("z", "x"), ("q", "z")))


def with_normalizer() -> Tokenizer:
    backend = build_backend()
    backend.normalizer = normalizers.NFKC()
    return backend


def with_bos() -> Tokenizer:
    backend = build_backend()
    bos = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return backend


def check(folder: Path, tokenizer: PreTrainedTokenizerFast, *accepted: str) -> None:
    check_weights_match_config_and_tokenizer(
        folder, tiny_config("gla"), tokenizer, accepted=accepted, where="there", remedy="that"
    )


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (other_merges, "model"),
        (with_normalizer, "normalizer"),
        (with_bos, "post_processor"),
    ],
)
def test_tokenizers_with_the_same_vocabulary_and_another_pipeline_differ(tmp_path, build, part):
    wrap(build()).save_pretrained(tmp_path)
    trained = wrap(build_backend())
    with pytest.raises(UserError, match=rf"tokenizer +.*{part}"):
        check(tmp_path, trained)
    check(tmp_path, trained, "tokenizer")
    check(tmp_path, wrap(build()))


def test_padding_and_truncation_are_no_difference(tmp_path):
    stored, trained = wrap(build_backend()), wrap(build_backend())
    stored.save_pretrained(tmp_path)
    trained.backend_tokenizer.enable_truncation(5)
    trained.backend_tokenizer.enable_padding()
    assert tokenizer_identity(stored) == tokenizer_identity(wrap(build_backend()))
    check(tmp_path, trained)


def test_accepted_names_cover_nested_fields_and_those_without_a_difference_are_logged(
    tmp_path, monkeypatch
):
    messages = []

    class Log:
        def info(self, message: str, *values: object) -> None:
            messages.append(message % values)

        warning = info

    monkeypatch.setattr(identity, "get_logger", Log)
    attention = {"layers": [1], "num_heads": 2}
    tiny_config("gla", attn={**attention, "rope_theta": 5.0}).save_pretrained(tmp_path)

    def start(*accepted: str) -> None:
        check_weights_match_config_and_tokenizer(
            tmp_path,
            tiny_config("gla", attn=attention),
            wrap(build_backend()),
            accepted=accepted,
            where="there",
            remedy="that",
        )

    with pytest.raises(UserError, match=r"attn\.rope_theta"):
        start("att", "attn.rope")
    assert messages == [
        "there: att of checkpoint.accept_differences does not differ",
        "there: attn.rope of checkpoint.accept_differences does not differ",
    ]
    messages.clear()
    start("attn")
    (message,) = messages
    assert "attn.rope_theta is 5.0 there" in message


@pytest.mark.parametrize("model_type", ["bitnet", "mamba2", "mom", "rwkv7"])
def test_what_saving_adds_to_a_config_is_no_difference(tmp_path, model_type):
    config = tiny_config(model_type)
    model = instantiate_on_default_device(config, seed=0)
    tokenizer = wrap(build_backend())
    weights = dict(model.state_dict())
    save_hf_model(model, weights, tokenizer, tmp_path, torch.float32)
    check_weights_match_config_and_tokenizer(
        tmp_path, tiny_config(model_type), tokenizer, where="there", remedy="that"
    )
