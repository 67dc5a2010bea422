"""What a user wrote into a model card stays when the card is written again.

A card is a header of YAML entries and a body with sections; each generated section stands between
two comments that a reader of the page does not see. The last comment records a checksum of every
entry and section as it was generated. So the next card knows which of them are still as generated,
and are replaced, and which a user has changed or deleted: these, and everything between the
sections, stay byte by byte. What the parts say is decided in `card_header` and `card_sections`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flame_accel.files import bytes_xxh3
from flame_accel.json_text import parse_json_text

HEADER = re.compile(r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.M)
ENTRY_LINE = re.compile(r"[^\s#-][^:\n]*:(?:\s|$)")
SECTION = re.compile(
    r"^<!-- flame_accel: (.+?) -->[ \t]*\r?\n(.*?)^<!-- end of \1 -->[ \t]*(?:\r?\n|\Z)",
    re.DOTALL | re.M,
)
RECORD = re.compile(r"^<!-- flame_accel wrote (\{.*\}) -->[ \t]*(?:\r?\n|\Z)", re.M)
HEADER_KEY_PREFIX = "header: "
"""In the record, where entries of the header stand next to sections of the body."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardParts:
    """A card as it is generated."""

    header: Mapping[str, str]
    """By name: the YAML of an entry, with its name and the line break at its end."""
    sections: Mapping[str, str]
    """By name, in their order: Markdown that ends with a line break."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenCard:
    """A card with what a user wrote into the one before it."""

    text: str
    kept: list[str] = field(default_factory=list)
    """Names of entries and sections that are the user's, where generated ones would differ."""


def combine_with_edits(new: CardParts, earlier_text: str | None) -> WrittenCard:
    """The text of a card, with the edits in an earlier one.

    Args:
        new: The card as it is generated.
        earlier_text: The card that it replaces; None if there is none. One without a record of
            its generated parts is the user's own and stays as it is.
    """
    sections = {name: f"\n{text}\n" for name, text in new.sections.items()}
    if earlier_text is None:
        record = {
            _record_key_of_entry(name): _text_checksum(entry) for name, entry in new.header.items()
        }
        record |= {name: _text_checksum(text) for name, text in sections.items()}
        header = "".join(new.header.values())
        body = "".join(_mark_section(name, text) for name, text in sections.items())
        return WrittenCard(text=f"---\n{header}---\n{body}{_format_checksums_comment(record)}")
    header_match = HEADER.match(earlier_text)
    earlier_body = earlier_text[header_match.end() :] if header_match else ""
    if header_match and not earlier_body.strip():
        # such as the license that a page of the Hub asks for
        earlier_body = _format_checksums_comment({})
    written = _read_checksums_comment(earlier_body)
    if header_match is None or written is None:
        return WrittenCard(text=earlier_text, kept=["all of it"])
    opening, entries, closing = header_match.groups()
    # line breaks as the user's editor writes them
    merge = _Merge(written, line_break="\r\n" if opening.endswith("\r\n") else "\n")
    header = merge.merge_header(entries, new.header)
    body = merge.merge_body_and_checksums_comment(earlier_body, sections)
    return WrittenCard(text=f"{opening}{header}{closing}{body}", kept=merge.kept)


def combine_with_card_on_hub(here: str, on_hub: str | None, uploaded: str | None) -> WrittenCard:
    """The text of a card to upload, with the edits in the one that is on the Hub.

    Args:
        here: Text of the card, with or without edits of its own; of a part that was edited in both
            places the one on the Hub stays.
        on_hub: Text of the card on the Hub; None if there is none.
        uploaded: Text of the card as it was uploaded last; None if it was not.
    """
    if on_hub is None or not on_hub.strip() or on_hub == here:
        return WrittenCard(text=here)
    parts = _find_entries_and_sections_by_key(here)
    if not parts:
        # the user's own in both places
        is_edited = on_hub != uploaded
        return WrittenCard(text=on_hub, kept=["all of it"]) if is_edited else WrittenCard(text=here)
    header = {
        key.removeprefix(HEADER_KEY_PREFIX): parts.pop(key)
        for key in list(parts)
        if key.startswith(HEADER_KEY_PREFIX)
    }
    sections = {name: text.removeprefix("\n").removesuffix("\n") for name, text in parts.items()}
    card = combine_with_edits(CardParts(header=header, sections=sections), on_hub)
    known = on_hub + (uploaded or "")
    own = [text for text in _list_paragraphs_between_sections(here) if text not in known]
    *_, record = [None, *RECORD.finditer(card.text)]
    if not own or record is None:
        return card
    place = record.start()
    text = f"{card.text[:place]}\n" + "\n\n".join(own) + f"\n\n{card.text[place:]}"
    return WrittenCard(text=text, kept=card.kept)


def edit_and_keep_as_generated(text: str, edit: Callable[[str], str]) -> str:
    """Edits a text; the parts of a card that are as they were generated still count as such."""
    edited = edit(text)
    record = _read_checksums_comment(text)
    if edited == text or record is None:
        return edited
    after = _find_entries_and_sections_by_key(edited)
    for key, part in _find_entries_and_sections_by_key(text).items():
        if record.get(key) == _text_checksum(part) and key in after:
            record[key] = _text_checksum(after[key])
    *_, match = RECORD.finditer(edited)
    comment = _format_checksums_comment(record)
    return edited[: match.start()] + comment + edited[match.end() :]


def _find_entries_and_sections_by_key(text: str) -> dict[str, str]:
    """Entries of the header and sections, by their keys in the record; none without sections."""
    header, sections = HEADER.match(text), dict(SECTION.findall(text))
    if header is None or not sections:
        return {}
    entries = _split_into_entries_and_comments(header[2])
    named = {_record_key_of_entry(name): entry for name, entry in entries if name is not None}
    return named | sections


def _list_paragraphs_between_sections(text: str) -> list[str]:
    body = RECORD.sub("", SECTION.sub("\n\n", HEADER.sub("", text)))
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", body) if paragraph.strip()]


class _Merge:
    """Puts new parts in the place of those that are as they were generated.

    Args:
        written: Checksums of the earlier card's parts as they were generated.
        line_break: Of the earlier card.
    """

    def __init__(self, written: Mapping[str, str], *, line_break: str) -> None:
        self.written, self.line_break = written, line_break
        self.record: dict[str, str] = {}
        self.kept: list[str] = []

    def merge_header(self, earlier_header: str, new_entries: Mapping[str, str]) -> str:
        """The entries of the new header."""
        chunks = _split_into_entries_and_comments(earlier_header)
        result = [
            text
            if name is None
            else self._choose_new_unless_edited(
                _record_key_of_entry(name), text, new_entries.get(name)
            )
            for name, text in chunks
        ]
        present = {name for name, _ in chunks}
        for name, entry in new_entries.items():
            if name not in present:
                result.append(self._insert_unless_deleted(_record_key_of_entry(name), entry))
        return "".join(result)

    def merge_body_and_checksums_comment(
        self, earlier_body: str, new_sections: Mapping[str, str]
    ) -> str:
        """The new body, with the new record where the earlier one was."""
        text, order = earlier_body, list(new_sections)
        for name in {**new_sections, **self.written}:
            if name.startswith(HEADER_KEY_PREFIX):
                continue
            match = _section_pattern(name).search(text)
            if match is not None:
                section = self._choose_new_unless_edited(name, match[1], new_sections.get(name))
                if section != match[1]:
                    wrapped = (
                        self._with_line_breaks(_mark_section(name, section)) if section else ""
                    )
                    text = text[: match.start()] + wrapped + text[match.end() :]
            elif name in new_sections:
                section = self._insert_unless_deleted(name, new_sections[name])
                if section:
                    place = self._position_for_new_section(text, order[: order.index(name)])
                    # a file's last line may have no line break
                    gap = "" if place == 0 or text[place - 1] == "\n" else self.line_break
                    wrapped = self._with_line_breaks(_mark_section(name, section))
                    text = text[:place] + gap + wrapped + text[place:]
        *_, record = RECORD.finditer(text)
        new_record = self._with_line_breaks(_format_checksums_comment(self.record))
        return text[: record.start()] + new_record + text[record.end() :]

    def _choose_new_unless_edited(self, record_key: str, earlier: str, new: str | None) -> str:
        """The new text of a part, or the earlier one if it is the user's; empty if it is gone."""
        was_written = self.written.get(record_key)
        if was_written == _text_checksum(earlier):
            if new is None:
                return ""
            self.record[record_key] = _text_checksum(new)
            return self._with_line_breaks(new)
        if was_written is not None:
            # it stays the user's at the next export, too
            self.record[record_key] = was_written
        if new is None or _text_checksum(new) != _text_checksum(earlier):
            self.kept.append(record_key.removeprefix(HEADER_KEY_PREFIX))
        return earlier

    def _insert_unless_deleted(self, record_key: str, new: str) -> str:
        """A part that the earlier card does not have: new, unless the user has deleted it."""
        if record_key in self.written:
            self.record[record_key] = self.written[record_key]
            self.kept.append(f"{record_key.removeprefix(HEADER_KEY_PREFIX)} (deleted)")
            return ""
        self.record[record_key] = _text_checksum(new)
        return self._with_line_breaks(new)

    def _position_for_new_section(self, text: str, names_before: list[str]) -> int:
        """Where a new section goes: after the nearest one that it follows, or to the top."""
        for name in reversed(names_before):
            match = _section_pattern(name).search(text)
            if match is not None:
                return match.end()
        return 0

    def _with_line_breaks(self, text: str) -> str:
        return text.replace("\r\n", "\n").replace("\n", self.line_break)


class _HeaderChunk(NamedTuple):
    """Lines of a header."""

    name: str | None
    """Of the entry; None: comments and empty lines, with whatever follows them."""
    text: str


def _split_into_entries_and_comments(text: str) -> list[_HeaderChunk]:
    """The entries of a header, and what a user wrote between them."""
    chunks: list[_HeaderChunk] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if ENTRY_LINE.match(line):
            name = line.partition(":")[0].strip().strip("\"'")
            chunks.append(_HeaderChunk(name, line))
        elif not chunks or (chunks[-1].name is not None and (line[0] == "#" or not line.strip())):
            chunks.append(_HeaderChunk(None, line))
        else:
            chunks[-1] = chunks[-1]._replace(text=chunks[-1].text + line)
    return chunks


def _record_key_of_entry(name: str) -> str:
    return HEADER_KEY_PREFIX + name


def _section_pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name)
    return re.compile(
        rf"^<!-- flame_accel: {escaped} -->[ \t]*\r?\n(.*?)^<!-- end of {escaped} -->[ \t]*"
        r"(?:\r?\n|\Z)",
        re.DOTALL | re.M,
    )


def _mark_section(name: str, section: str) -> str:
    return f"<!-- flame_accel: {name} -->\n{section}<!-- end of {name} -->\n"


def _text_checksum(text: str) -> str:
    return bytes_xxh3(text.replace("\r\n", "\n").encode())[:12]


def _format_checksums_comment(record: Mapping[str, str]) -> str:
    return f"<!-- flame_accel wrote {json.dumps(dict(sorted(record.items())))} -->\n"


def _read_checksums_comment(body: str) -> dict[str, str] | None:
    """The checksums that the body of a card records; None if there are none."""
    found = RECORD.findall(body)
    try:
        record = parse_json_text(found[-1]) if found else None
    except ValueError:
        return None
    valid = isinstance(record, dict) and all(isinstance(value, str) for value in record.values())
    return record if valid else None
