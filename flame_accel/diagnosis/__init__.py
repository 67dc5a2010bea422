"""What this machine is, what is known to go wrong on it, and whether a model trains here.

`machine` collects facts, `known_problems` is the table of what is known about them: neither imports
transformers or fla, so that they work where those do not import. `trainability` asks both about one
model, `model_parts` says what it is made of, `small_model_trial` runs a small version. Laws of
models live in `diagnosis/conformance/laws.py`, the layout of findings in `commands/doctor.py`.
"""
