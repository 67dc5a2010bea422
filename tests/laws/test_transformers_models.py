"""transformers' own models keep the conformance laws; what mixes packed documents is refused."""

import pytest

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.laws import TRIAL_LAWS, run_law_checks
from flame_accel.diagnosis.conformance.packing_support import (
    check_keeps_documents_apart_unless_fla_model,
)
from flame_accel.models.transformers_catalogue import (
    tiny_transformers_config,
    transformers_only_decoder_config_classes,
)

MODELS = (
    "bamba",
    "gemma3_text",
    "gpt2",
    "kimi_linear",
    "lfm2",
    "llama",
    "mixtral",
    "nemotron_h",
    "olmo_hybrid",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
)
"""One of each kind of layer; docs/models.md has all."""

MIXING = {
    "falcon": "changes another's logits",
    "falcon_mamba": "takes no position_ids",
    "minimax": "changes another's logits",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_of_transformers_breaks_no_law(model_type):
    findings = run_law_checks(tiny_transformers_config(model_type), laws=TRIAL_LAWS)
    assert {finding.law: finding.reason for finding in findings if not finding.holds} == {}


@pytest.mark.parametrize("model_type", ["qwen3_next", "llama", "gpt2"])
def test_packing_is_accepted_where_documents_stay_apart(model_type):
    check_keeps_documents_apart_unless_fla_model(tiny_transformers_config(model_type), "cpu")


@pytest.mark.parametrize(("model_type", "reason"), MIXING.items())
def test_packing_is_refused_where_documents_mix(model_type, reason):
    with pytest.raises(UserError, match=f"{model_type} does not keep packed documents.*{reason}"):
        check_keeps_documents_apart_unless_fla_model(tiny_transformers_config(model_type), "cpu")


def test_the_catalogue_has_the_models_that_are_tried():
    assert {*MODELS, *MIXING} <= transformers_only_decoder_config_classes().keys()
    assert (
        not {"bert", "bart", "mamba2", "gemma3"} & transformers_only_decoder_config_classes().keys()
    )
