"""Every recipe loads; the paper's recipes hold the paper's values, and say of each line where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcr2ad.config import load_recipe
from dcr2ad.errors import RecordError

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
PAPER = [FOLDER / "dcr2ad-7b.toml", FOLDER / "dcr2ad-72b.toml"]


def test_the_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"nano", "dcr2ad-7b", "dcr2ad-72b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_under_its_own_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    named = [*recipe.evaluate.protocols, *(recipe.evaluate.grid.protocols if recipe.evaluate.grid else ())]
    assert recipe.evaluate.cells and len(set(named)) == len(named), "a protocol twice"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_what_both_sizes_share(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.sft.learning_rate == 1e-5, "Section 4.3"
    assert recipe.sft.warmup_ratio == recipe.krdpo.warmup_ratio == 0.05, "Section 4.3"
    assert recipe.sft.epochs == 1 and recipe.sft.batch_size == recipe.krdpo.batch_size == 1, "Section 4.3"
    assert recipe.mine.threshold == 0.1 and recipe.mine.wanted == 1000, "Appendix B.2"
    assert recipe.krdpo.reasoning == "matched" and recipe.krdpo.sft_weight == 0, "Equation (5)"
    assert recipe.krdpo.path_weight == recipe.krdpo.reasoning_weight == 1, "Equation (5)"
    assert not recipe.instruct.expert and not any(p.expert for p in recipe.evaluate.cells), "the paper has no expert"
    measured = [(p.shots, p.context) for p in recipe.evaluate.cells]
    assert measured == [(1, "none"), (1, "category"), (0, "none"), (1, "routed")], "Tables 1, 2 and 3, and Figure 2(c)"


@pytest.mark.parametrize(("size", "method", "krdpo_rate"), [("7b", "full", 1e-6), ("72b", "lora", 2e-5)], ids=["7b", "72b"])
def test_what_the_sizes_differ_in(size: str, method: str, krdpo_rate: float) -> None:
    recipe = load_recipe(FOLDER / f"dcr2ad-{size}.toml")
    assert recipe.model == f"hf:Qwen/Qwen2.5-VL-{size.upper()}-Instruct", "Sections 4.4 and 4.5"
    assert recipe.sft.method == recipe.krdpo.method == method, "Section 4.3"
    assert recipe.krdpo.learning_rate == krdpo_rate, "Section 4.3"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_value_names_its_source(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\w+ = ", line) and not line.startswith("name = "):
            assert re.search(r"#.*(Section|Appendix|Equation|Table|not in the paper)", line), f"{path.name}:{number}: {line}"


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[sft]\nlearning_rat = 1e-5\n")
    with pytest.raises(RecordError, match=r"sft\.learning_rat"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[variants]]\nname = "a"\ntrain = "sft"\n[[variants]]\nname = "a"\ntrain = "krdpo"', "two variants are named 'a'"),
        ('[[variants]]\nname = "bench"\ntrain = "sft"', "'bench': a folder of the run is"),
        ('[[variants]]\nname = "x"\ntrain = "krdpo"\nsettings = { beta = -1 }', "variant 'x': beta"),
        ('[[variants]]\nname = "x"\ntrain = "sft"\nsettings = { beta = 1 }', "variant 'x': beta"),
        ('[[variants]]\nname = "sft"\ntrain = "sft"\nsettings = { epochs = 2 }', "'sft' is \\[sft\\] as it stands"),
        ('[[variants]]\nname = "../x"\ntrain = "sft"', r"variants\.0\.name"),
    ],
)
def test_variants_that_cannot_stand_are_named(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecordError, match=told):
        load_recipe(path)


def test_the_ablation_is_one_recipe() -> None:
    """Rows and cells of Table 4 as `recipes/nano.toml` measures them; all that go on from SFT have one budget."""
    recipe = load_recipe(FOLDER / "nano.toml")
    assert [variant.train for variant in recipe.variants][:3] == ["nothing", "sft", "more-sft"]
    assert {cell.context for cell in recipe.evaluate.cells} == {"none", "category", "routed", "oracle"}
    assert {(cell.shots, cell.expert) for cell in recipe.evaluate.cells} == {(1, True), (1, False), (0, True), (0, False)}
    assert len(recipe.evaluate.cells) == 32 and len(recipe.training_seeds) == 3
    onwards = [recipe.settings_of(variant) for variant in recipe.variants if variant.train in {"more-sft", "krdpo"}]
    budgets = {(s.epochs, s.max_steps, s.batch_size, s.gradient_accumulation) for s in onwards}
    assert len(budgets) == 1
    assert {getattr(settings, "rejected", None) for settings in onwards} == {"matched", "shared", "unrouted", None}
    rehearsing = recipe.model_copy(update={"krdpo": recipe.krdpo.model_copy(update={"rehearsal_weight": 1.0})})
    more = {v.train: rehearsing.settings_of(v).batch_size for v in recipe.variants if v.train in {"more-sft", "krdpo"}}
    assert more["more-sft"] == 2 * more["krdpo"], "as many pairs a step, each with the question that is rehearsed beside it"


@pytest.mark.parametrize("line", ["path_weight = 2.0", "reasoning_weight = 0.5", 'reasoning = "shared"'])
def test_equation_4_has_no_parts_to_weigh(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ablation.toml"
    path.write_text(f'[krdpo]\nobjective = "dpo"\n{line}\n')
    with pytest.raises(RecordError, match="whole responses"):
        load_recipe(path)
    path.write_text('[krdpo]\nobjective = "dpo"\n')
    assert load_recipe(path).krdpo.rejected == "unrouted"
