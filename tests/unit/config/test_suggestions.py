"""What counts as near to a mistyped name."""

from flame_accel.config.suggestions import nearest_option_name, nearest_text


def test_the_nearest_option_may_be_in_another_section() -> None:
    names = ["optimizer.lr", "training.seq_len", "training.steps"]
    assert nearest_option_name("training.lr", names) == "optimizer.lr"
    assert nearest_option_name("training.stpes", names) == "training.steps"
    assert nearest_option_name("seq_len", names) == "training.seq_len"
    assert nearest_option_name("something.else", names) is None


def test_the_name_itself_in_another_section_wins_over_a_similar_one() -> None:
    names = ["optimizer.eps", "training.steps", "evaluation.interval", "checkpoint.interval"]
    assert nearest_option_name("optimizer.steps", names) == "training.steps"
    assert nearest_option_name("checkpoin.interval", names) == "checkpoint.interval"


def test_case_does_not_count_in_texts() -> None:
    assert nearest_text("ADAMW", ["Adam", "AdamW"]) == "AdamW"
    assert nearest_text("exponential", ["wsd", "cosine"]) is None
