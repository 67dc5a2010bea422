"""What a user writes into a card stays, and the rest is as if it were written anew."""

import random
import re

import pytest

from flame_accel.hub.card_edits import (
    CardParts,
    combine_with_card_on_hub,
    combine_with_edits,
    edit_and_keep_as_generated,
)

HEADER = {"license": "license: mit\n", "tags": "tags:\n- gla\n- test\n"}
SECTIONS = {"title": "# A model\n\nWords.\n", "data": "## Data\n\n| a | b |\n", "end": "Over.\n"}
OLD = CardParts(header=HEADER, sections=SECTIONS)
NEW = CardParts(
    header={"license": "license: mit\n", "tags": "tags:\n- gla\n- other\n"},
    sections={**SECTIONS, "data": "## Data\n\n| a | c |\n"},
)


def first(parts: CardParts) -> str:
    return combine_with_edits(parts, None).text


def again(parts: CardParts, earlier: str) -> str:
    return combine_with_edits(parts, earlier).text


def test_without_an_edit_a_card_is_as_if_there_had_been_none_before():
    assert again(OLD, first(OLD)) == first(OLD)
    written = combine_with_edits(NEW, first(OLD))
    assert written.text == first(NEW)
    assert written.kept == []


def places_between_the_parts(card: str) -> list[int]:
    """Starts of lines at which nothing generated is torn apart."""
    body = card.index("---\n", 3) + 4
    places = [match.start() for match in re.finditer(r"^(?=license|tags|---\n<)", card, re.M)]
    marks = re.finditer(r"^(?=<!-- flame_accel)|(?<=end of title -->\n)", card[body:], re.M)
    return [*places, *(body + match.start() for match in marks)]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(20))
def test_text_around_the_generated_parts_stays_byte_by_byte(seed: int, line_break: str) -> None:
    numbers = random.Random(seed)
    card = first(OLD).replace("\n", line_break)
    expected = first(NEW).replace("\n", line_break)
    own = f"# mine {seed} é \u2028 | `x`{line_break}{line_break}"
    place = numbers.randrange(len(places_between_the_parts(first(OLD))))
    where = places_between_the_parts(first(OLD))[place]
    where += first(OLD)[:where].count("\n") * (len(line_break) - 1)
    edited = card[:where] + own + card[where:]
    written = combine_with_edits(NEW, edited)
    assert written.kept == []
    assert written.text.replace(own, "", 1) == expected
    assert again(NEW, written.text) == written.text
    assert again(OLD, written.text) == edited


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("license: mit", "license: apache-2.0", []),
        ("- gla\n", "- gla\n- mine\n", ["tags"]),
        ("- gla\n", "# why\n- gla\n", ["tags"]),
        ("| a | b |", "| a | mine |", ["data"]),
        ("# A model", "# My model", ["title"]),
        ("Words.\n", "Words.\n\nAnd more.\n", ["title"]),
    ],
)
def test_an_edited_part_is_the_users_from_then_on(before: str, after: str, kept: list[str]) -> None:
    changed_license = CardParts(
        header=NEW.header | {"license": "license: mit\n"},
        sections=NEW.sections | {"title": "# A model\n\nOther words.\n"},
    )
    edited = first(OLD).replace(before, after, 1)
    written = combine_with_edits(changed_license, edited)
    assert after in written.text
    assert set(kept) <= set(written.kept)
    # the edit is all that is different
    assert written.text.count("| a | c |") == (kept != ["data"])
    assert written.text.count("Other words.") == (kept != ["title"])
    assert again(changed_license, written.text) == written.text


def test_what_a_user_deletes_stays_away():
    edited = first(OLD).replace("license: mit\n", "")
    edited = re.sub(r"<!-- flame_accel: data.*end of data -->\n", "", edited, flags=re.DOTALL)
    written = again(NEW, edited)
    assert "license" not in written.partition("<!--")[0]
    assert "## Data" not in written
    assert again(NEW, written) == written


def test_an_entry_that_a_user_added_wins_over_a_generated_one():
    edited = first(OLD).replace("tags:", "language: fr\ntags:")
    language = CardParts(header={**HEADER, "language": "language: en\n"}, sections=SECTIONS)
    written = combine_with_edits(language, edited)
    assert written.text == edited
    assert written.kept == ["language"]


def test_parts_come_and_go_with_their_facts():
    grown = CardParts(
        header={**HEADER, "datasets": "datasets:\n- a/b\n"},
        sections={"title": SECTIONS["title"], "loss": "A curve.\n", "data": SECTIONS["data"]},
    )
    written = again(grown, first(OLD))
    assert written == first(grown)
    order = ["end of title", "flame_accel: loss", "flame_accel: data"]
    assert sorted(order, key=written.index) == order
    assert again(OLD, written).count("A curve.") == 0


@pytest.mark.parametrize(
    "card",
    [
        "# A card of my own\n",
        "---\nlicense: mit\n---\n# Mine\n",
        "",
        re.sub("<!-- flame_accel wrote.*\n", "", first(OLD)),
        re.sub("wrote {.*}", "wrote {}}", first(OLD)),
        first(OLD).replace("---\n", "", 1),
    ],
)
def test_a_card_without_a_record_is_the_users(card: str) -> None:
    written = combine_with_edits(NEW, card)
    assert written.text == card
    assert written.kept == ["all of it"]


def test_a_byte_order_mark_and_bytes_that_are_no_text_stay():
    mark = "<!-- flame_accel: data"
    edited = "\ufeff" + first(OLD).replace(mark, f"\udcff\n{mark}")
    written = again(NEW, edited)
    assert written.startswith("\ufeff---") and "\udcff\n" in written
    assert "| a | c |" in written


@pytest.mark.parametrize("where", range(first(OLD).count("\n") + 1))
def test_a_line_survives_wherever_it_is_written(where: int) -> None:
    lines = first(OLD).splitlines(keepends=True)
    lines.insert(where, "my line\n")
    written = again(NEW, "".join(lines))
    assert written.count("my line\n") == 1
    # what is around it is as new as can be, and stays so
    assert again(NEW, written) == written
    assert again(NEW, again(OLD, written)) == written


@pytest.mark.parametrize("where", range(first(OLD).count("\n")))
def test_a_deleted_line_does_not_come_back_into_what_is_the_users(where: int) -> None:
    lines = first(OLD).splitlines(keepends=True)
    deleted = lines.pop(where)
    written = again(OLD, "".join(lines))
    assert written.count(deleted) == "".join(lines).count(deleted)
    assert again(OLD, written) == written


@pytest.mark.parametrize("where", range(first(OLD).count("\n") + 1))
def test_a_line_that_is_written_on_the_hub_survives_the_next_uploads(where: int) -> None:
    lines = first(OLD).splitlines(keepends=True)
    lines.insert(where, "my line\n")
    on_hub = "".join(lines)
    merged = combine_with_card_on_hub(first(NEW), on_hub, first(OLD)).text
    assert merged == again(NEW, on_hub)
    assert combine_with_card_on_hub(first(NEW), merged, merged).text == merged


def test_what_is_written_here_reaches_the_card_on_the_hub_once():
    here = first(NEW).replace("Over.", "Over and out.") + "Own words.\n\nMore of them.\n"
    on_hub = first(OLD).replace("Words.", "Better words.") + "By hand.\n"
    merged = combine_with_card_on_hub(here, on_hub, first(OLD))
    assert merged.kept == ["title"]
    for text in (
        "Over and out.",
        "Own words.",
        "More of them.",
        "Better words.",
        "By hand.",
        "| c",
    ):
        assert merged.text.count(text) == 1
    # deleted on the Hub, it does not come back
    shorter = merged.text.replace("Own words.\n", "")
    assert "Own words." not in combine_with_card_on_hub(here, shorter, merged.text).text


def test_a_card_of_the_users_own_is_uploaded_unless_the_one_on_the_hub_was_edited():
    assert combine_with_card_on_hub("Mine", None, None).text == "Mine"
    assert combine_with_card_on_hub("Mine, new", "Mine", "Mine").text == "Mine, new"
    assert combine_with_card_on_hub("Mine, new", "Edited", "Mine").text == "Edited"
    assert combine_with_card_on_hub(first(NEW), "Their own", None).text == "Their own"
    header = "---\nlicense: mit\n---\n"
    assert "| a | c |" in combine_with_card_on_hub(first(NEW), header, None).text


def test_a_part_that_is_edited_as_generated_is_replaced_by_the_next_one():
    def edit(text: str) -> str:
        return text.replace("Words.", "Other words.").replace("b |", "d |")

    own = first(OLD).replace("Over.", "Words.")
    edited = edit_and_keep_as_generated(own, edit)
    assert edited.count("Other words.") == 2
    written = combine_with_edits(NEW, edited)
    assert written.kept == ["end"]
    assert written.text == first(NEW).replace("Over.", "Other words.")
    assert edit_and_keep_as_generated("Words.", edit) == "Other words."
