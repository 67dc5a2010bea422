"""Metrics of validation sets: modules of the `evaluate` library, ours or the user's.

Ours are in the folder `metrics`, one folder each. A module says by its features which columns it
needs: either sums over rows (`ROW_COLUMNS`), or `predictions` and `references`, the token ids of
all targets, which any metric of classes takes.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import evaluate

from flame_accel.config import UserError
from flame_accel.config.evaluation_sets import SHIPPED_METRICS
from flame_accel.evaluation.validate import RowSums
from flame_accel.observe import get_logger

SHIPPED_FOLDER = Path(__file__).parent / "metrics"
ROW_COLUMNS = (*RowSums._fields, "bytes")
"""Sums over the targets of a row; `bytes`, of the text of all targets, is in the first row."""
TOKEN_COLUMNS = ("predictions", "references")
log = get_logger()


class MetricModule:
    """A loaded metric.

    Args:
        name: A name of `SHIPPED_METRICS`, or the path of a module: a file, or a folder with a file
            of its name.

    Raises:
        UserError: It cannot be loaded, or needs other columns than there are.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._failed = False
        path = SHIPPED_FOLDER / name if name in SHIPPED_METRICS else Path(name).resolve()
        try:
            # from a local path nothing is downloaded; in memory it writes no files
            self._module: Any = evaluate.load(str(path), keep_in_memory=True)
        except (Exception, SystemExit) as error:
            remedy = (
                "name a module of the evaluate library: a .py file with a class of "
                "evaluate.Metric, or a folder that has one of its name"
            )
            if isinstance(error, ImportError):
                # evaluate reads import lines by a pattern: `import a, b` names a package "a,"
                remedy = "install what is missing, and import one module on each line"
            raise UserError(
                f"the metric cannot be loaded: {type(error).__name__}: {error}",
                where=f"evaluation.metrics {name}",
                remedy=remedy,
            ) from error
        features: Any = self._module.features
        # some modules take their columns in several forms
        self.columns = tuple(features[0] if isinstance(features, list) else features)
        available = TOKEN_COLUMNS if self.needs_tokens else ROW_COLUMNS
        if not self.columns or not set(self.columns) <= set(available):
            raise UserError(
                f"the metric asks for {', '.join(self.columns) or 'no columns'}",
                where=f"evaluation.metrics {name}",
                remedy=f"its features can be {' and '.join(TOKEN_COLUMNS)} (token ids of the "
                f"targets), or sums over rows: {', '.join(ROW_COLUMNS)}",
            )

    @property
    def needs_tokens(self) -> bool:
        """Whether it needs the token ids of all targets."""
        return not {*TOKEN_COLUMNS}.isdisjoint(self.columns)

    def compute(self, columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Its figures by name, from all columns there are; without those that are no numbers.

        A module that fails has no figures: the first of several failures is logged, and training
        goes on.
        """
        try:
            found = self._module.compute(**{name: columns[name] for name in self.columns})
            if not isinstance(found, Mapping):
                raise TypeError(f"its figures must be a dict, not {type(found).__name__}")
            return {key: _to_number(value) for key, value in found.items()}
        # also one that exits: other ranks wait for the figures
        except (Exception, SystemExit) as error:
            if not self._failed:
                log.warning(
                    "the metric %s has failed: %s: %s", self.name, type(error).__name__, error
                )
            self._failed = True
            return {}


def _to_number(value: object) -> float:
    """A figure as a number of Python, also one of NumPy.

    Raises:
        TypeError: It is none.
    """
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    if not isinstance(value, Real):
        raise TypeError(f"its figures must be numbers, not {type(value).__name__}")
    return float(value)
