"""Forward passes of whole models, where fla's own drop `cu_seqlens` on their way to the layers."""

from fla.models.modeling_utils import FLAForCausalLM, FLAModel

# what most of fla's models inherit; it hands all options on
forward_model = FLAModel.forward
forward_causal_lm = FLAForCausalLM.forward
