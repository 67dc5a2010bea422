"""What leaves a run: the exported model, its code and its card, and what is sent to the Hub.

Weights, config and tokenizer are written in `checkpoint/hf_model`, as for every checkpoint. Nothing
is imported here, so that `flame-accel push` checks its arguments without torch.
"""
