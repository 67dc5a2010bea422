"""What comes from outside takes bounded time and memory, and an error of one sentence."""

import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.config import UserError, load_run_file
from flame_accel.data.cache.file_format import MANIFEST, read_manifest
from flame_accel.data.documents import Skipped
from flame_accel.data.tokens import chat_template
from flame_accel.data.tokens.chat_template import ChatTemplate
from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.json_text import parse_json_text
from flame_accel.model_files import find_unreadable_or_missing_model_file
from tests.helpers.runs import ROOT

SECONDS = 5
"""Of CPU time; far above what any of these takes, and far below what they took."""
DEEP = 200_000
RUN_FILES = {
    "a key of dots": ("toml", "a." * 100_000 + "a = 1"),
    "a header of dots": ("toml", "[" + "a." * 100_000 + "a]"),
    "dots in a table": ("toml", "[training]\nsteps = {" + "a." * 100_000 + "a = 1}"),
    "dots of quoted parts": ("toml", '"a".' * 100_000 + "a = 1"),
    "a value of many lines": ("toml", "[training]\ndataset = [\n" + "']',\n" * 50_000 + "]"),
    "nested arrays": ("toml", "a = " + "[" * DEEP),
    "nested tables": ("toml", "a = " + "{a = " * DEEP),
    "nested JSON": ("json", '{"a":' * DEEP),
    "nested JSON arrays": ("json", "[" * DEEP + "]" * DEEP),
    "a number of a million digits": ("json", '{"training": {"steps": ' + "9" * 1_000_000 + "}}"),
    "nested YAML": ("yaml", "a: " + "[" * 20_000),
    "aliases of aliases": (
        "yaml",
        "a: &a [x]\n"
        + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n"
            for n in range(9)
        )
        + "training:\n  dataset: *j\n",
    ),
    "a large file": ("toml", "# " + "x" * (1 << 21)),
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_file_is_refused_in_time(tmp_path: Path, name: str):
    suffix, text = RUN_FILES[name]
    path = tmp_path / f"run.{suffix}"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as error:
        load_run_file(path)
    assert time.process_time() - began < SECONDS
    assert len(str(error.value)) < 4000 and error.value.exit_code == 2


def test_a_run_file_without_an_end_is_refused(tmp_path: Path):
    (tmp_path / "run.toml").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="larger than 1 MiB"):
        load_run_file(tmp_path / "run.toml")


def test_a_long_list_is_read_in_time(tmp_path: Path):
    path = tmp_path / "run.toml"
    lines = "".join(f'  "tag-{number}",\n' for number in range(20_000))
    path.write_text(
        f'[model]\nconfig = "m"\n[hub]\ntags = [\n{lines}]\n[training]\ndataset = "d"\nsteps = 7\n'
    )
    began = time.process_time()
    assert load_run_file(path).training.steps == 7
    assert time.process_time() - began < SECONDS


def test_dots_in_values_are_no_parts_of_a_key(tmp_path: Path):
    path, files = tmp_path / "run.toml", ",".join(f"a.{n}.jsonl" for n in range(300))
    path.write_text(f'[model]\nconfig = "m"\n[training]\ndataset = "{files}"\n')
    assert load_run_file(path).training.dataset.count(".jsonl") == 300


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, b"\xff", b"{", "9" * 100_000])
def test_json_has_one_kind_of_error(text: str | bytes):
    with pytest.raises(json.JSONDecodeError):
        parse_json_text(text)


def test_files_from_outside_are_parsed_by_that_one_function():
    allowed = {
        # the same error, with a hook of its own
        "config/file_formats.py",
        "data/sources/record_parsing.py",
        # texts that this package or its processes have just made
        "checkpoint/identity.py",
        "commands/models.py",
        "data/tokens/text_slicing.py",
        "diagnosis/dry_run/run_time.py",
        "diagnosis/conformance/support_table.py",
        "hub/hub_request.py",
        "json_text.py",
        "kernels/tuning/tuned_configs.py",
    }
    package = ROOT / "flame_accel"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found == allowed


LENGTHS = [0, 1, 100_000_001, 2**31, 2**62, 2**63, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("place", ["model.safetensors", "optimizer/shard.safetensors"])
def test_safetensors_whose_header_length_lies_are_refused(tmp_path: Path, length: int, place: str):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(4)
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "model.safetensors").write_bytes(good)
    (tmp_path / place).write_bytes(struct.pack("<Q", length) + header + bytes(4))
    began = time.process_time()
    problem = find_unreadable_or_missing_model_file(tmp_path)
    assert problem is not None and "not a safetensors file" in problem.what
    assert time.process_time() - began < SECONDS


CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "writes": "{% for i in range(99999) %}{% for j in range(9999) %}{{ '' }}{% endfor %}"
    "{% endfor %}",
}


def build_template(text: str) -> ChatTemplate:
    tokenizer = load_tokenizer("byte", trust_remote_code=False)
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_loops_is_refused(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    with pytest.raises(UserError, match="it loops"):
        build_template(TEMPLATES[name]).render(CONVERSATION)


@pytest.mark.parametrize(
    "text",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 // 0 }}",
        "{{ 'a'.index('b') }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_a_chat_template_that_fails_is_a_damaged_conversation(text: str):
    rendered = build_template(text).render(CONVERSATION)
    assert isinstance(rendered, Skipped) and "the chat template refuses it" in rendered.what


LIES: dict[str, Callable[[dict], object]] = {
    "documents": lambda manifest: manifest.update(documents=10**18),
    "documents of a shard": lambda manifest: manifest["shards"][0].update(documents=10**15),
    "both": lambda manifest: (
        manifest.update(documents=10**15),
        manifest["shards"][0].update(documents=10**15),
    ),
    "tokens": lambda manifest: manifest.update(tokens=-1),
    "a number as text": lambda manifest: manifest.update(documents="7"),
    "dtype": lambda manifest: manifest.update(dtype="O"),
    "no shards": lambda manifest: manifest.pop("shards"),
    "a file elsewhere": lambda manifest: manifest["shards"][0]["files"].update(
        {"../../secret": {"size": 1, "xxh3": "0"}}
    ),
    "no tokens": lambda manifest: manifest["shards"][0]["files"].pop("shard-00000.tokens"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_token_cache_that_contradicts_itself_is_refused(tmp_path: Path, lie: str):
    file = {"size": 0, "xxh3": "0"}
    files = {
        "shard-00000.index": {"size": 72, "xxh3": "0"},
        "shard-00000.tokens": {"size": 10, "xxh3": "0"},
        "shard-00000.info": {**file, "size": 123},
    }
    manifest = {
        "format": 1,
        "documents": 2,
        "tokens": 5,
        "dtype": "uint16",
        "shards": [{"documents": 2, "tokens": 5, "files": files}],
    }
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(manifest))
    assert read_manifest(tmp_path)["documents"] == 2
    LIES[lie](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the token cache is damaged"):
        read_manifest(tmp_path)
