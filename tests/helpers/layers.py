"""Which folders and modules of the package may import which others; CONTRIBUTING.md shows it."""

# a folder may import itself and the folders of earlier lines
LAYERS = (
    (
        "cache_folders",
        "cpu_cores",
        "files",
        "io_errors",
        "json_text",
        "presets",
        "process_end",
        "standard_streams",
        "stop_signals",
        "suppressed_messages",
    ),
    ("config",),
    ("hub_lookup", "model_files", "prompt_files"),
    ("checkpoint_files",),
    ("kernels",),
    ("data", "models"),
    ("parallel",),
    ("training",),
    ("observe",),
    ("checkpoint", "evaluation"),
    ("diagnosis", "hub"),
    ("accepted_start", "run_parts"),
    ("rewind", "run_evaluation", "run_outputs"),
    ("train",),
    ("train_process",),
    ("commands",),
)
