"""The catalogue has every causal language model that fla registers."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from flame_accel.models.catalogue import fla_config_classes


def test_the_catalogue_has_every_registered_model():
    registered = MODEL_FOR_CAUSAL_LM_MAPPING._extra_content
    ours = {value for value in registered if value.__module__.startswith("fla.")}
    assert set(fla_config_classes().values()) == ours
