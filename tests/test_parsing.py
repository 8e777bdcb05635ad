"""Writing and reading responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.parsing import parse_response, read_answer, read_answer_official, response_segments, write_response
from dcr2ad.types import Trajectory, Unparsed

OPTIONS = ("A scratch", "A dent", "No defect", "A stain")

# Words as a teacher writes them: no angle brackets, and no colon in a title.
words = st.lists(st.from_regex(r"[A-Za-z0-9,.'()%-]{1,12}", fullmatch=True), min_size=1, max_size=12).map(" ".join)
titles = st.lists(st.from_regex(r"[A-Za-z0-9-]{1,12}", fullmatch=True), min_size=1, max_size=4).map(" ".join)


@given(titles, words, words, st.integers(0, 3))
def test_every_trajectory_comes_back(entry: str, why: str, reasoning: str, answer: int) -> None:
    trajectory = Trajectory(entry=entry, why=why, reasoning=reasoning, answer=answer)
    assert parse_response(write_response(trajectory), OPTIONS) == trajectory


@given(titles, words, words, st.integers(0, 3), st.permutations([0, 1, 2]), st.sampled_from(["", " ", "\n", "\t \n"]))
def test_order_case_and_blanks_around_tags_do_not_matter(
    entry: str, why: str, reasoning: str, answer: int, order: list[int], gap: str
) -> None:
    trajectory = Trajectory(entry=entry, why=why, reasoning=reasoning, answer=answer)
    segments = response_segments(trajectory)
    text = gap.join(segments[i] for i in order)
    for tag in ("knowledge", "think", "answer"):
        text = text.replace(f"<{tag}>", f"< {tag.upper()} >{gap}").replace(f"</{tag}>", f"{gap}</ {tag.title()}>")
    assert parse_response(text, OPTIONS) == trajectory


@given(st.text(max_size=400), st.lists(st.text(max_size=20), min_size=2, max_size=9))
def test_arbitrary_text_never_raises(text: str, options: list[str]) -> None:
    for read in (parse_response(text, options), read_answer(text, options), read_answer_official(text, options)):
        index = read.answer if isinstance(read, Trajectory) else read
        assert isinstance(index, Unparsed) or 0 <= index < len(options)


@given(st.text(alphabet="<>/answerthinkknowledge :ABCD\n", max_size=200))
def test_broken_tags_never_raise(text: str) -> None:
    parse_response(text, OPTIONS)


def test_direct_answer_has_empty_path_and_reasoning() -> None:
    direct = Trajectory(entry="", why="", reasoning="", answer=1)
    assert write_response(direct) == "<answer>B</answer>"
    assert response_segments(direct) == ("", "", "<answer>B</answer>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", 1),
        ("(b)", 1),
        ("B. A scratch on the surface", 1),
        ("b) a dent", 1),
        ("The answer is C.", 2),
        ("A dent", 1),
        ("a DENT.", 1),
        ("I think it shows a stain", 3),
        ("<answer>D</answer>", 3),
        ("A scratch is visible at the top", 0),
    ],
)
def test_strict_reads(text: str, expected: int) -> None:
    assert read_answer(text, OPTIONS) == expected


@pytest.mark.parametrize(
    "text", ["", "   ", "I cannot see the image", "B or C", "Either a scratch or a dent", "E", "The answer is Z."]
)
def test_strict_never_guesses(text: str) -> None:
    assert isinstance(read_answer(text, OPTIONS), Unparsed)


def test_official_reading_is_reproduced_with_its_faults() -> None:
    # The last stand-alone capital counts, so the article "A" beats the letter "B"; and it always answers something.
    assert read_answer_official("B. A scratch on the surface", OPTIONS) == 0
    assert read_answer_official("I cannot see the image", ("Yes it does", "No defect")) in (0, 1)
    assert isinstance(read_answer_official("E", OPTIONS), Unparsed)
