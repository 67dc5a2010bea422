"""Tasks are datasets: two splits of their own documents, and token ids that the tokenizer has."""

import pytest

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.errors import UsageError, UserError
from flame_accel.config.evaluation_sets import MAIN_SET
from flame_accel.data.from_options import open_data
from flame_accel.data.sources.opening import open_chosen_split
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer

MQAR = "synthetic:mqar:vocab=64:pairs=4:length=16"


def test_training_and_validation_have_documents_of_their_own() -> None:
    data = open_data(
        TrainingConfig(dataset=MQAR), EvaluationConfig(dataset=MQAR), load_tokenizer("byte", False)
    )
    (training,), validation = data.training, data.evaluation[MAIN_SET]
    assert training.held_out is None and validation.held_out is None
    first, second = (next(one.read_in_order()) for one in (training, validation))
    assert first.document.tokens.tolist() != second.document.tokens.tolist()
    assert validation.num_records == 1000


def test_a_shared_split_is_refused() -> None:
    evaluation = EvaluationConfig(dataset=MQAR, dataset_split="train")
    with pytest.raises(UserError, match="training and validation both read the split train"):
        open_data(TrainingConfig(dataset=MQAR), evaluation, load_tokenizer("byte", False))


def test_too_few_token_ids_are_refused_with_the_tokenizer_that_has_enough() -> None:
    source = open_chosen_split(DatasetOptions(dataset="synthetic:mqar"))
    with pytest.raises(UserError, match=r"add --model\.tokenizer_path numbers:8192"):
        source.open_encoded(Encoder(load_tokenizer("byte", False), add_bos=False), None)
    enough = Encoder(load_tokenizer("numbers:8192", False), add_bos=False)
    assert source.open_encoded(enough, None).num_records == 2**31


def test_a_wrong_task_and_options_without_use_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no task 'mqa'"):
        open_chosen_split(DatasetOptions(dataset="synthetic:mqa"))
    with pytest.raises(UserError, match=r"training\.data_dir cannot narrow"):
        open_chosen_split(DatasetOptions(dataset=MQAR, data_dir="x"))


def test_texts_that_are_longer_than_a_row_are_refused_with_a_length_that_fits() -> None:
    def open_phonebook(seq_len: int) -> None:
        training = TrainingConfig(dataset="synthetic:phonebook:entries=9", seq_len=seq_len)
        open_data(training, EvaluationConfig(), load_tokenizer("byte", False))

    with pytest.raises(UserError, match=r"of [0-9]+ tokens and more, and a row has 256") as error:
        open_phonebook(256)
    assert error.value.remedy is not None
    open_phonebook(int(error.value.remedy.split()[3].rstrip(",")))
