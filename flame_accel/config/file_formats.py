"""Parses TOML, YAML and JSON text into entries with line numbers; `run_file` interprets them.

A file yields only text, numbers, booleans, dates, and lists and tables of them.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml import MappingNode, SafeLoader


MOST_BYTES = 1 << 20
"""Of a run file."""
MOST_KEY_PARTS = 100
"""Parts of a dotted key, on a line of TOML."""
MOST_PARSED_CHARACTERS = 1 << 21
"""Characters that are parsed in all, those of a value of several lines again and again."""
# a string of TOML on one line
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A section (without a key), or an option (outside any section if `section` is empty)."""

    section: str
    key: str | None = None
    value: Any = None
    line: int

    @property
    def name(self) -> str:
        """section, section.option, or the option alone."""
        return ".".join(part for part in (self.section or None, self.key) if part is not None)


class SyntaxProblem(Exception):
    """The text is not valid in its format."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class Table(list[tuple[str, int, Any]]):
    """A mapping as a list of (key, line, value), which keeps a key that is given twice."""


def _list_sections_and_options(root: Table) -> Iterator[FileEntry]:
    for name, line, body in root:
        if isinstance(body, Table):
            yield FileEntry(section=name, line=line)
            for key, key_line, value in body:
                yield FileEntry(section=name, key=key, value=value, line=key_line)
        elif body is None and "." not in name:
            # a section whose options are all commented out
            yield FileEntry(section=name, line=line)
        else:
            yield FileEntry(section="", key=name, value=body, line=line)


def parse_toml(text: str) -> list[FileEntry]:
    """The entries of a TOML document.

    Raises:
        SyntaxProblem: The text is not valid TOML.
    """
    # tomllib was added in Python 3.11; tomli is the same module for older versions
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    lines = text.split("\n")
    _check_toml_key_lengths(lines)
    problem, message = None, ""
    try:
        toml.loads(text)
    except ValueError as error:
        message, _, place = str(error).partition(" (at ")
        number = re.match(r"line (\d+)", place)
        line = int(number[1]) if number else len(lines)
        problem = SyntaxProblem(f"is not valid TOML: {message}", line)
    if problem is not None and message != "Cannot overwrite a value":
        raise problem
    entries = list(_list_sections_and_options(_parse_toml_with_line_numbers(toml.loads, lines)))
    # the parser does not name a key that is given twice; the entries show it
    if problem is not None and len({entry.name for entry in entries}) == len(entries):
        raise problem
    return entries


def _check_toml_key_lengths(lines: list[str]) -> None:
    """The parser takes time quadratic in the parts of a key: minutes for a line of 100,000 dots."""
    for number, line in enumerate(lines, 1):
        if line.count(".") > MOST_KEY_PARTS and _QUOTED.sub("", line).count(".") > MOST_KEY_PARTS:
            raise SyntaxProblem(f"has a key of more than {MOST_KEY_PARTS} parts", number)


def _parse_toml_with_line_numbers(
    loads: Callable[[str], dict[str, Any]], lines: list[str]
) -> Table:
    """The sections of TOML lines, read statement by statement to know the line of each.

    The parser gives no line numbers. A statement is the fewest lines that parse on their own; a
    section has the line where it is first named.
    """
    root, tables = Table(), dict[str, Table]()
    section, start, parsed = "", 0, 0
    for end in range(1, len(lines) + 1):
        # only these end a value of several lines
        if end > start + 1 and not any(mark in lines[end - 1] for mark in ("]", '"""', "'''")):
            continue
        statement = "\n".join(lines[start:end])
        parsed += len(statement)
        if parsed > MOST_PARSED_CHARACTERS:
            raise SyntaxProblem("has a value of too many lines", start + 1)
        try:
            content = loads(statement)
        except ValueError:
            continue
        line, start = start + 1, end
        if statement.lstrip().startswith("["):
            section = _join_nested_keys(content)
        elif section and content:
            content = {section: content}
        for name, body in content.items():
            if not isinstance(body, dict):
                root.append((name, line, body))
                continue
            if name not in tables:
                tables[name] = Table()
                root.append((name, line, tables[name]))
            tables[name].extend((key, line, value) for key, value in body.items())
    return root


def _join_nested_keys(tables: dict[str, Any]) -> str:
    """The dotted name in a section header, which parses as nested tables of one key each."""
    names: list[str] = []
    inner: Any = tables
    while isinstance(inner, dict) and inner:
        [(name, inner)] = inner.items()
        names.append(name)
    return ".".join(names)


class _Object(list[tuple[str, Any]]):
    """A JSON object as a list of (key, value)."""

    def as_dict(self) -> dict[str, Any]:
        """The object, and those that are values of it, as dictionaries."""
        return {
            key: value.as_dict() if isinstance(value, _Object) else value for key, value in self
        }


# strings, brackets, and the colon that makes a string a key
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[{}\[\]]')


def _json_section_and_option_line_numbers(text: str) -> Iterator[int]:
    """Line numbers of the keys of sections and options, in the order of a valid document."""
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in ("{", "["):
            depth += 1
        elif token[0] in ("}", "]"):
            depth -= 1
        elif token[1] and depth <= 2:
            yield text.count("\n", 0, token.start()) + 1


def parse_json(text: str) -> list[FileEntry]:
    """The entries of a JSON document.

    Raises:
        SyntaxProblem: The text is not valid JSON.
    """
    try:
        content = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise SyntaxProblem(f"is not valid JSON: {error.msg}", error.lineno) from None
    except ValueError as error:
        # a number of thousands of digits
        raise SyntaxProblem(f"is not valid JSON: {error}", 1) from None
    if not isinstance(content, _Object):
        raise SyntaxProblem("must be an object of sections", 1)
    root, lines = Table(), _json_section_and_option_line_numbers(text)
    for name, body in content:
        line = next(lines)
        if isinstance(body, _Object):
            body = Table(
                (key, next(lines), value.as_dict() if isinstance(value, _Object) else value)
                for key, value in body
            )
        root.append((name, line, body))
    return list(_list_sections_and_options(root))


_YAML_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def parse_yaml(text: str) -> list[FileEntry]:
    """The entries of a YAML document; a tag that would build an object is refused.

    Raises:
        SyntaxProblem: The text is not valid YAML.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise SyntaxProblem("must be a mapping of sections", root.start_mark.line + 1)
        table = _yaml_mapping_to_table_keeping_duplicates(loader, root, is_root=True)
        return list(_list_sections_and_options(table))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise SyntaxProblem(f"is not valid YAML: {error.problem}", line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SyntaxProblem(f"is not valid YAML: {error.reason}", line) from None


def _yaml_mapping_to_table_keeping_duplicates(
    loader: "SafeLoader", mapping: "MappingNode", *, is_root: bool
) -> Table:
    table = Table()
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        if key.id != "scalar":
            raise SyntaxProblem("has a key that is not text", line)
        if is_root and value.id == "mapping":
            body = _yaml_mapping_to_table_keeping_duplicates(loader, value, is_root=False)
        else:
            body = _construct_yaml_value_with_1e4_as_float(loader, value, line)
        table.append((key.value, line, body))
    return table


def _construct_yaml_value_with_1e4_as_float(loader: "SafeLoader", node: Any, line: int) -> object:
    try:
        value = loader.construct_object(node, deep=True)
    except ValueError as error:
        # not an existing date or number
        raise SyntaxProblem(str(error), line) from None
    # yaml 1.1 reads 1e-4 as text unless it is written 1.0e-4
    if isinstance(value, str) and node.style is None and _YAML_FLOAT.fullmatch(value):
        return float(value)
    return value


def read_run_file_text(path: Path) -> str:
    """The text of a run file, in UTF-8.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        SyntaxProblem: It is too large for a run file.
    """
    with path.open("rb") as file:
        # a device or a pipe has no size to ask for
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise SyntaxProblem(f"is larger than {MOST_BYTES >> 20} MiB", 1)
    return content.decode("utf-8-sig")


PARSERS = {".toml": parse_toml, ".yaml": parse_yaml, ".yml": parse_yaml, ".json": parse_json}
"""Suffix of a run file -> function that parses its text."""
