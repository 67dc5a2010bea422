"""Which trackers a run has, and whether they can start: told before the run does anything."""

import importlib.util

from flame_accel.config import MetricsConfig, UserError

PIP_NAMES = {"mlflow": "mlflow-skinny sqlalchemy alembic"}
"""What to install for a tracker, where it is not just the package of the tracker's name."""


def enabled_tracker_names(metrics: MetricsConfig) -> list[str]:
    """Accelerate's names of the enabled trackers, each once."""
    switched_on = {"tensorboard": metrics.enable_tensorboard, "wandb": metrics.enable_wandb}
    names = [name for name, enabled in switched_on.items() if enabled]
    return list(dict.fromkeys([*names, *metrics.trackers]))


def check_trackers_can_start(metrics: MetricsConfig) -> None:
    """Checks names, packages and W&B's login, without a network and without starting any.

    Raises:
        UserError: A name is no tracker's, a package is not installed, or W&B has no API key.
    """
    # takes a while to import, and no run needs it that has no tracker
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in enabled_tracker_names(metrics):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                f"there is no tracker {name!r}",
                where="metrics.trackers",
                remedy=f"choose of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, or register one in "
                "model.custom with accelerate.tracking.register_tracker_class",
            )
        is_accelerates = LOGGER_TYPE_TO_CLASS[name].__module__ == "accelerate.tracking"
        if is_accelerates and not is_package_installed(name):
            raise UserError(
                f"the tracker {name} is enabled, and its package is not installed",
                where=_option_of(name),
                remedy=f"install it (pip install {PIP_NAMES.get(name, name)}), or disable it",
            )
        if name == "wandb":
            _check_wandb_login()


def is_package_installed(name: str) -> bool:
    """Whether a package can be imported; a mere folder of its name, such as ./wandb, is none."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def _option_of(name: str) -> str:
    return f"metrics.enable_{name}" if name in ("tensorboard", "wandb") else "metrics.trackers"


def _check_wandb_login() -> None:
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared"):
        return
    # the thread of a tracker must not ask questions on the terminal
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "Weights & Biases is enabled, and it has no API key",
            where="metrics.enable_wandb",
            remedy="run `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline keeps the run in "
            "files, for `wandb sync` later",
        )
