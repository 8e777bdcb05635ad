"""What a model is shown, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr2ad.errors import RecordError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.prompts import (
    answer_prompt,
    build_prompt,
    describe_findings,
    detection_question,
    knowledge_prompt,
    load_wording,
    open_prompt,
)
from dcr2ad.statements import capital, statement
from dcr2ad.types import ExpertFindings, ImagePart, KindGuess, KnowledgeEntry, Prompt, Sample, Subtask

FINDINGS = ExpertFindings(
    score=3.25,
    raw=0.3,
    threshold=2.0,
    cell=2,
    cells=(0.1, 1.5, 3.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
    extent=0.01,
    elongation=4.0,
    tone="darker",
    box=(0.7, 0.0, 0.9, 0.2),
)
SAMPLE = Sample(
    id="s",
    image="query.png",
    references=("one.png", "two.png"),
    dataset="d",
    object="magnetic tile",
    is_anomalous=True,
    defect="crack",
    expert=FINDINGS,
)
ENTRY = KnowledgeEntry(key="General.x.crack", title="Crack", text="A dark line runs across an [object].")


def text(prompt: Prompt) -> str:
    return "".join(f"<{p.path}>" if isinstance(p, ImagePart) else p.text for p in prompt.parts)


def test_shared_text_first_then_images_findings_knowledge_question() -> None:
    shown = text(build_prompt(detection_question("q", SAMPLE), entries=[ENTRY]))
    order = ["You inspect", "<one.png>", "<query.png>", "Visual expert", "Crack: A dark line", "Question:", "A. Yes", "B. No"]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)
    assert "<two.png>" not in shown and "A dark line runs across a magnetic tile." in shown


def test_shots_expert_and_knowledge_can_be_left_out() -> None:
    bare = text(build_prompt(detection_question("q", SAMPLE), expert=False, shots=0))
    assert "png" in bare and "one.png" not in bare and "expert" not in bare.split("You inspect")[1].split("<query")[1]
    assert "Knowledge:" not in bare
    both = text(build_prompt(detection_question("q", SAMPLE), shots=2))
    assert both.index("<one.png>") < both.index("<two.png>") < both.index("<query.png>") and "2 normal" in both


def test_questions_about_one_image_share_all_but_their_own_words() -> None:
    one = text(build_prompt(detection_question("q", SAMPLE)))
    two = text(build_prompt(detection_question("q", SAMPLE).model_copy(update={"text": "Where is it?"})))
    shared = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert one[:shared].endswith("Question: ")


def test_findings_say_only_what_the_numbers_carry() -> None:
    assert describe_findings(FINDINGS) == (
        "score 3.2, above the limit 2.0. Hottest top right, then top centre. Hot spot small, line-like, darker than normal."
    )
    quiet = FINDINGS.model_copy(update={"score": 1.0, "box": None})
    assert describe_findings(quiet) == "score 1.0, below the limit 2.0. Hottest top right, then top centre."


def test_openings() -> None:
    prompt = build_prompt(detection_question("q", SAMPLE))
    assert answer_prompt(prompt).opening == "<answer>"
    written = "<knowledge>Crack: x</knowledge><think>y</think><answer>A</answer>"
    assert answer_prompt(prompt, written).opening == "<knowledge>Crack: x</knowledge><think>y</think><answer>"
    assert knowledge_prompt(prompt).opening == "<knowledge>"
    assert text(open_prompt(SAMPLE, "What happened?")).endswith("Question: What happened?")


def test_the_object_is_not_told_where_it_is_asked_for() -> None:
    asked = detection_question("q", SAMPLE).model_copy(
        update={"subtask": Subtask.OBJECT_CLASSIFICATION, "text": "What is it?", "options": ("Tile", "Nut")}
    )
    assert "magnetic" not in text(build_prompt(asked, entries=[ENTRY])).lower()

    # The kinds of defect told are such as the object can have: they would tell which it is.
    kinds = (KindGuess(key="General.ceramic.chip", title="Glaze chip", probability=0.9),)
    told = SAMPLE.model_copy(update={"expert": FINDINGS.model_copy(update={"kinds": kinds})})
    hidden, shown = (
        text(build_prompt(asked.model_copy(update={"sample": told}))),
        text(build_prompt(detection_question("q", told))),
    )
    assert "Glaze chip" in shown and "Glaze chip" not in hidden and "Hottest top right" in hidden


def test_other_wording_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('instruction = "Look."\nquery = "\\nNow:"\n')
    shown = text(build_prompt(detection_question("q", SAMPLE), wording=load_wording(tmp_path / "w.toml")))
    assert shown.startswith("Look.\nNormal part:") and "\nNow:<query.png>" in shown
    (tmp_path / "bad.toml").write_text('instuction = "Look."\n')
    with pytest.raises(RecordError, match="instuction"):
        load_wording(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('entry = "\\n- {title}: {texts}"', "no placeholder {texts}; there are title, text, cues, place, cause, effect"),
        ('question = "\\nQuestion:"', "{question} is missing"),
        ('option = "\\n{letter}) "', "{option} is missing"),
        ('query = "\\n{0}"', "no placeholder {0}"),
        ('cause = "It breaks."', "{cause} is missing"),
        ('expert = "{findings"', "expert: "),
    ],
)
def test_a_placeholder_that_does_not_exist_is_one_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "w.toml").write_text(line)
    with pytest.raises(RecordError) as raised:
        load_wording(tmp_path / "w.toml")
    assert words in str(raised.value) and "w.toml: " in str(raised.value) and "\n" not in str(raised.value)


def test_an_entry_is_listed_by_what_the_base_knows_of_it_in_the_words_of_options(tmp_path: Path) -> None:
    entry = KnowledgeBase.builtin().get("General.surface.scratch")
    question = detection_question("q", SAMPLE)
    shown = text(build_prompt(question, entries=[entry]))
    assert entry.cause and entry.effect and len(entry.cues) > 1 and "[object]" in entry.text
    shows, cause, effect = (statement(entry, kind, SAMPLE.object) for kind in ("cues", "cause", "effect"))
    assert f"\n- Surface scratch shows: {shows}, {', '.join(entry.cues[2:])}. Surface scratch comes from: {cause}." in shown
    assert f". Surface scratch leads to: {effect}.\nQuestion" in shown
    plain = entry.model_copy(update={"cues": (), "cause": "", "effect": ""})
    assert f"\n- Surface scratch: {entry.text.replace('[object]', SAMPLE.object)}\nQuestion" in text(
        build_prompt(question, entries=[plain])
    )
    (tmp_path / "w.toml").write_text('entry = "\\n- {title}: {place}."\ncues = ""\ncause = ""\neffect = " So: {effect}."\n')
    other = text(build_prompt(question, entries=[entry], wording=load_wording(tmp_path / "w.toml")))
    assert f"\n- Surface scratch: {capital(entry.place)}. So: {effect}.\nQuestion" in other and cause not in other
