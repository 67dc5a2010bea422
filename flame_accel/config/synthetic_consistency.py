"""Options that a task made on the fly needs; the tasks are declared in `synthetic_tasks`."""

from collections.abc import Iterator

from flame_accel.config.errors import BrokenRule
from flame_accel.config.evaluation_sets import MAIN_SET, evaluation_sets
from flame_accel.config.schema import Config
from flame_accel.config.synthetic_tasks import is_synthetic, parse_synthetic_task
from flame_accel.config.training_options import dataset_names
from flame_accel.config.values import InvalidValue


def find_synthetic_task_problems(config: Config) -> Iterator[BrokenRule]:
    """Names of tasks that mean none, and rows that would cut a question from its answer."""
    training = config.training
    for name in filter(is_synthetic, dataset_names(training)):
        try:
            task = parse_synthetic_task(name)
        except InvalidValue as error:
            yield BrokenRule(options=("training.dataset",), rule=error.rule, remedy=error.remedy)
            continue
        context_len = training.context_len or training.seq_len
        if not training.varlen or training.packing != "best_fit":
            yield BrokenRule(
                options=("training.packing", "training.varlen", "training.dataset"),
                rule=f"would cut documents of {name}, and the answers from what they answer",
                remedy="Add --training.varlen --training.packing best_fit.",
            )
        longest = task.longest_document
        if longest is not None and longest > context_len:
            yield BrokenRule(
                options=("training.seq_len", "training.context_len", "training.dataset"),
                rule=f"is {context_len}, and documents of {name} have {longest} tokens",
                remedy=f"Set --training.seq_len {longest} or more.",
            )
    for each in evaluation_sets(config.evaluation):
        if each.is_probe:
            try:
                parse_synthetic_task(each.dataset)
            except InvalidValue as error:
                option = "evaluation.dataset" if each.name == MAIN_SET else "evaluation.sets"
                yield BrokenRule(options=(option,), rule=error.rule, remedy=error.remedy)
