"""One photograph under four contexts: what each is told, and which entry the model trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr2ad.deception import holds_too
from dcr2ad.errors import UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.report.comparison import render_comparison, trusted
from dcr2ad.stages.compare import compare_contexts
from dcr2ad.stages.diagnose import Diagnoser
from dcr2ad.types import Prompt
from tests.tiny import tiny_photograph

BASE = KnowledgeBase.builtin()
CRACK = BASE.get("General.structural.crack")


def model(*, gullible: bool = False) -> ScriptedModel:
    """Believes in a crack; calls the part defective unless an entry other than a crack is all it is told."""

    def text(prompt: Prompt) -> str:
        return "".join(part.text for part in prompt.parts if part.kind == "text")

    def logprob(prompt: Prompt, option: str) -> float:
        if option.endswith(":"):
            crack = option == f"{CRACK.title}:"
            both = text(prompt).count("\n- ") == 2
            return 0.0 if crack != (gullible and both) else -6.0
        sees_crack = f"- {CRACK.title}:" in text(prompt) or "Knowledge:" not in text(prompt)
        return 0.0 if option.strip() == ("A" if sees_crack else "B") else -3.0

    return ScriptedModel(lambda p: " a line</knowledge><think>It is dark.</think><answer>A</answer>", logprob)


def test_four_contexts_and_the_entry_trusted(tmp_path: Path) -> None:
    image, good = tiny_photograph(tmp_path, 1), tiny_photograph(tmp_path, 0)
    made = compare_contexts(Diagnoser(model(), BASE, None), image, [good], object_name="widget")
    contexts = [d.context for d in made.diagnoses]
    assert contexts == ["none", "category", "routed", f"oracle:{made.wrong_key}"]
    assert made.right_key == CRACK.key and not made.right_known
    assert not holds_too(BASE.get(made.wrong_key), CRACK)
    assert made.trust[0].key == CRACK.key and "trusts the routed one" in trusted(made, BASE)
    assert [d.verdict for d in made.diagnoses][-1] == "normal"
    fooled = compare_contexts(Diagnoser(model(gullible=True), BASE, None), image, [good], right=CRACK.key)
    assert fooled.trust[0].key == fooled.wrong_key and "trusts the deceptive one" in trusted(fooled, BASE)


def test_the_page_shows_all_four_and_loads_nothing(tmp_path: Path) -> None:
    image = tiny_photograph(tmp_path, 1)
    made = compare_contexts(Diagnoser(model(), BASE, None), image, object_name="<b>tile")
    Path(image).unlink()
    page = render_comparison(made, knowledge={entry.key: entry for entry in BASE})
    for words in ("Without knowledge", "category's knowledge", "Routed", "Under a deceptive entry", "another verdict"):
        assert words.replace("'", "&#39;") in page
    assert "&lt;b&gt;tile" in page and "<b>tile" not in page
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert "no such file" in page.lower() or "missing" in page


def test_an_unknown_right_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        compare_contexts(Diagnoser(model(), BASE, None), tiny_photograph(tmp_path, 1), right="General.none.none")
