"""The generate command: text on the screen, records of a file, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flame_accel.__main__ import main
from flame_accel.data import load_tokenizer
from flame_accel.evaluation.generate import GenerationSettings, generate_continuations
from tests.helpers.model_configs import tiny_generator

TEMPLATE = "{% for m in messages %}{{ m['content'] }}?{% endfor %}"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GLA over bytes, with a chat template."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = load_tokenizer("byte", False)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_generator("gla", vocab_size=258).save_pretrained(folder)
    return folder


def expected_text(prompt: str, **settings: object) -> str:
    given = {"max_new_tokens": 8, "temperature": 0.0, **settings}
    model, tokenizer = tiny_generator("gla", vocab_size=258), load_tokenizer("byte", False)
    (ids,) = generate_continuations(
        model, [list(prompt.encode())], GenerationSettings(**given), padding_token=0
    )
    return tokenizer.decode(ids, skip_special_tokens=True)


def generate(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["generate", *map(str, arguments), "--max_new_tokens=8", "--device=cpu"])
    return capsys.readouterr().out


@pytest.mark.parametrize("beams", [1, 2])
def test_the_continuation_of_a_prompt_is_printed(beams, export, capsys):
    printed = generate(capsys, export, "--prompt", "abc", "--temperature=0", f"--beams={beams}")
    assert printed == expected_text("abc", beams=beams) + "\n"


def test_an_interrupt_ends_the_text_without_a_traceback(export, capsys, monkeypatch):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "flame_accel.commands.generate.stream_continuation_without_prompt_to_stdout", interrupt
    )
    with pytest.raises(SystemExit) as ended:
        generate(capsys, export, "--prompt", "abc")
    assert ended.value.code == 130 and capsys.readouterr().out == "\n"


def test_a_prompt_is_read_from_stdin(export, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("abc"))
    assert generate(capsys, export, "--temperature=0") == expected_text("abc") + "\n"


def test_samples_follow_the_seed(export, capsys):
    texts = [
        generate(capsys, export, "--prompt", "abc", "--temperature=2", f"--seed={seed}")
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    settings = {"temperature": 2.0, "seed": 1}
    assert texts[0] == expected_text("abc", **settings) + "\n"


def test_a_message_goes_through_the_chat_template(export, capsys):
    printed = generate(capsys, export, "--prompt", "abc", "--chat", "--temperature=0")
    assert printed == expected_text("abc?") + "\n"


@pytest.mark.parametrize("to_file", [True, False])
def test_prompts_of_a_file_become_records_in_their_order(to_file, export, capsys, tmp_path):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    messages = [{"role": "user", "content": "a"}]
    records = [{"prompt": "a long prompt"}, {"messages": messages}, {"prompt": "abc"}]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    where = ["--output", output] if to_file else []
    options = ["--temperature=0", "--batch_size=2"]
    printed = generate(capsys, export, "--prompts-file", prompts, *where, *options)
    written = output.read_text(encoding="utf-8") if to_file else printed
    texts = [expected_text(text) for text in ("a long prompt", "a?", "abc")]
    assert [json.loads(line) for line in written.splitlines()] == [
        {**record, "text": text, "tokens": 8} for record, text in zip(records, texts, strict=True)
    ]


def test_runs_checkpoints_and_weights_of_a_dtype_generate(finished, capsys):
    of_run = generate(capsys, finished, "--prompt=abc", "--temperature=0")
    of_step = generate(capsys, finished / "checkpoint/step-8", "--prompt=abc", "--temperature=0")
    assert of_run == of_step
    generate(capsys, finished / "hf", "--prompt=abc", "--dtype=bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a\udcff"], "--prompt: is not UTF-8"),
        (["--prompt", "a", "--prompts_file", "b"], "two sources of prompts"),
        (["--prompt", "a", "--output", "b"], "is the file of results of --prompts_file"),
        (["--prompts_file", "missing.txt"], "missing.txt: no such file"),
        (["--prompt", "a", "--device", "cuda"], "there is no GPU here"),
        (["--prompt", "a", "--temperature", "-1"], "'-1' is not a number >= 0"),
        (["--prompt", "a", "--top_p", "2"], "'2' is not a number of 0 to 1"),
        (["--prompt", "a", "--temperature", "nan"], "is not a number"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, message, export, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(export), *arguments])
    assert ended.value.code in (1, 2)
    assert message in capsys.readouterr().err


def test_an_existing_output_is_kept(export, capsys, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(SystemExit):
        main(["generate", str(export), "--prompts_file", "x", "--output", str(output)])
    assert "already exists" in capsys.readouterr().err and output.read_text() == "mine"


def test_bytes_from_stdin_that_are_no_text_are_refused(export, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(export)])
    assert ended.value.code == 2
    assert "standard input: is not UTF-8" in capsys.readouterr().err


def test_no_prompt_at_a_terminal_is_refused(export, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(SystemExit):
        main(["generate", str(export)])
    assert "there is no prompt" in capsys.readouterr().err


def test_a_chat_without_a_template_is_refused(export, capsys, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(export)
    tokenizer.chat_template = None
    model = tiny_generator("gla", vocab_size=258)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["generate", str(tmp_path), "--prompt=a", "--chat", "--device=cpu"])
    assert "no chat template" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_refused(capsys, tmp_path):
    load_tokenizer("byte", False).save_pretrained(tmp_path)
    model = tiny_generator("transformer", vocab_size=258, max_position_embeddings=32)
    model.save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["generate", str(tmp_path), f"--prompt={'a' * 30}", "--device=cpu"])
    error = capsys.readouterr().err
    assert "has 30 tokens and 256 are to follow" in error and "--max_new_tokens 2 at most" in error
