"""Tasks of lm-evaluation-harness (package lm-eval, optional) on a model; results as records."""
