"""Packed rows behind a cached prefix equal separate forwards, on models of both kinds of positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.errors import CannotScoreError, ImageError, ModelError, UnknownNameError
from dcr2ad.models.base import letter_probabilities, open_model, softmax
from dcr2ad.models.hf import HFModel
from dcr2ad.models.prefix import PrefixRunner
from dcr2ad.models.scripted import ScriptedModel
from dcr2ad.models.tree import TokenTree, common_prefix
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.types import ImagePart, Prompt, Sampling, TextPart
from tests.tiny import tiny_internvl, tiny_photograph, tiny_qwen


@pytest.fixture(scope="module", params=["qwen", "internvl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    folder = tmp_path_factory.mktemp(request.param)
    build = tiny_qwen if request.param == "qwen" else tiny_internvl
    return HFModel.open(f"hf:{build(folder)}")


def prompt(folder: Path, reference: int, query: int, text: str, opening: str = "<answer>") -> Prompt:
    return Prompt(
        parts=(
            TextPart(text="Normal:"),
            ImagePart(path=tiny_photograph(folder, reference)),
            TextPart(text="\nInspected:"),
            ImagePart(path=tiny_photograph(folder, query, (90, 70))),
            TextPart(text=f"\n{text}"),
        ),
        opening=opening,
    )


def separate(vlm: VisionLanguageModel, asked: Prompt, continuation: str) -> float:
    """The textbook way: the model's own forward on the whole sequence, images processed by its own inputs."""
    tokens = vlm.tokenize(asked)
    tail = vlm.response_ids(continuation)
    row = torch.tensor([[*tokens.ids, *tail]])
    pixels = [vlm.pixel_inputs(path) for path in tokens.images]
    inputs: dict[str, Any] = {name: torch.cat([p[name] for p in pixels]) for name in pixels[0]}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (row == vlm.image_token_id).int()
    with torch.no_grad():
        logits = vlm.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, **inputs).logits[0]
    logprobs = logits.log_softmax(-1)
    start = len(tokens.ids) - 1
    return sum(float(logprobs[start + i, token]) for i, token in enumerate(tail))


def test_scores_equal_separate_forwards(model: HFModel, tmp_path: Path) -> None:
    asked = [
        prompt(tmp_path, 0, 1, "Is there a defect? A. Yes B. No"),
        prompt(tmp_path, 0, 1, "Where? A. left B. right", "<knowledge>"),
        prompt(tmp_path, 0, 2, "Is there a defect? A. Yes B. No"),
        prompt(tmp_path, 3, 1, "Is there a defect? A. Yes B. No"),
        Prompt(parts=(TextPart(text="No image at all."),), opening="<answer>"),
    ]
    options = [["A", " A", "B"], ["scratch: it", "scratch: is", "dent:"], ["A", "B"], ["A</answer>", "B"], ["A", "B"]]
    for _ in range(2):  # the second time over, a prefix of the first stands in the cache
        for p, listed, got in zip(asked, options, model.score(asked, options), strict=True):
            assert got.tokens == tuple(len(model.vlm.response_ids(option)) for option in listed)
            if p.parts[0].kind == "text" and len(p.parts) > 1:
                expected = [separate(model.vlm, p, option) for option in listed]
                assert got.logprobs == pytest.approx(expected, abs=1e-5)


def test_several_images_in_one_row_equal_each_alone(model: HFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ((0, 1), (0, 2), (3, 4), (3, 4), (0, 1), (3, 5), (5, 5))
    asked = [prompt(tmp_path, one, two, f"Question {i % 3}? A. Yes B. No") for i, (one, two) in enumerate(places)]
    options = [["A", " A", "B</answer>"][: 2 + i % 2] for i in range(len(asked))]
    expected = [[separate(model.vlm, p, option) for option in listed] for p, listed in zip(asked, options, strict=True)]
    forwards: list[int] = []
    run = model.runner._model
    monkeypatch.setattr(model.runner, "_model", lambda ids, *rest: (forwards.append(ids.shape[1]), run(ids, *rest))[1])
    for limit, rows in ((1280, 1), (120, None)):
        monkeypatch.setattr("dcr2ad.models.prefix.MAX_NODES", limit)
        model.runner.reset()
        before, forwards[:] = model.runner.processed_tokens, []
        for scores, known in zip(model.score(asked, options), expected, strict=True):
            assert scores.logprobs == pytest.approx(known, abs=1e-5)
        if rows:
            image = model.vlm.image_token_id
            tails = [model.vlm.response_ids(max(listed, key=len))[:-1] for listed in options]
            keys = [
                (*model.vlm.tokenize(p).keys(image), *((token, "") for token in tail))
                for p, tail in zip(asked, tails, strict=True)
            ]
            assert len(forwards) == rows and model.runner.processed_tokens - before == len(TokenTree.build(keys))
        for scores, known in zip(model.score(asked[:2], options[:2]), expected, strict=False):  # behind what is kept
            assert scores.logprobs == pytest.approx(known, abs=1e-5)


def test_a_small_row_limit_changes_nothing(model: HFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [prompt(tmp_path, 0, 1, f"Question {i}? A. Yes B. No") for i in range(3)]
    options = [["A", "B", "scratch: it is", "dent"]] * 3
    whole = model.score(asked, options)
    monkeypatch.setattr("dcr2ad.models.prefix.MAX_NODES", 30)
    assert [s.logprobs for s in model.score(asked, options)] == [pytest.approx(s.logprobs, abs=1e-5) for s in whole]


def test_distinct_tokens_are_processed_once(model: HFModel, tmp_path: Path) -> None:
    asked = [prompt(tmp_path, 0, 1, f"Question {i}? A. Yes B. No") for i in range(4)]
    runner = PrefixRunner(model.vlm)
    tokens = [model.vlm.tokenize(p) for p in asked]
    runner.logprobs_by_token([tokens], [[[[5], [6]]] * 4])
    keys = [t.keys(model.vlm.image_token_id) for t in tokens]
    assert runner.processed_tokens == len(TokenTree.build(keys))
    before = runner.processed_tokens
    runner.logprobs_by_token([tokens[:1]], [[[[5], [6]]]])
    assert runner.processed_tokens - before < len(tokens[0].ids) - tokens[0].image_spans(model.vlm.image_token_id)[-1][1] + 1


def test_greedy_decoding_equals_generate(model: HFModel, tmp_path: Path) -> None:
    asked = [
        prompt(tmp_path, 0, 1, "What defect is it?", ""),
        prompt(tmp_path, 0, 1, "Is there any?", "<knowledge>"),
        prompt(tmp_path, 2, 1, "Where?"),
    ]
    written = model.generate(asked, Sampling(max_new_tokens=12))
    vlm = model.vlm
    for p, got in zip(asked, written, strict=True):
        tokens = vlm.tokenize(p)
        row = torch.tensor([list(tokens.ids)])
        pixels = [vlm.pixel_inputs(path) for path in tokens.images]
        inputs: dict[str, Any] = {name: torch.cat([x[name] for x in pixels]) for name in pixels[0]}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (row == vlm.image_token_id).int()
        out = vlm.model.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False, **inputs
        )
        assert got[0].text == vlm.tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True)
        assert got[0].prompt_tokens == len(tokens.ids)


def test_a_response_written_in_parts_is_read_once_and_equals_reading_it_anew(model: HFModel, tmp_path: Path) -> None:
    texts = ("What defect is it?", "Is there any defect on this part at all?", "Where?", "Why is that so?")
    asked = [prompt(tmp_path, 0, 1 + i % 2, text, "<knowledge>") for i, text in enumerate(texts)]

    def parts(model: HFModel, *, forget: bool) -> tuple[list[Any], int]:
        model.runner.reset()
        going, found, before = asked, [], model.runner.processed_tokens
        for limit, tag in ((5, "</knowledge><think>"), (9, "</think><answer>")):
            written = model.generate(going, Sampling(max_new_tokens=limit))
            # What is cut off, as at the last whole clause, must not be seen either.
            kept = [w[0].text[: len(w[0].text) // (1 + i % 2)] for i, w in enumerate(written)]
            found.append([(w[0].text, w[0].status, w[0].new_tokens, w[0].prompt_tokens) for w in written])
            going = [p.model_copy(update={"opening": p.opening + k + tag}) for p, k in zip(going, kept, strict=True)]
            if forget:
                model.runner.reset()
        found.append([s.logprobs for s in model.score(going, [["A", "B", " C"]] * len(going))])
        return found, model.runner.processed_tokens - before

    (kept, few), (anew, many) = parts(model, forget=False), parts(model, forget=True)
    assert kept[:-1] == anew[:-1]
    for one, two in zip(kept[-1], anew[-1], strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert few < 0.75 * many
    other = [*asked[:3], prompt(tmp_path, 0, 5, "Where?", "<answer>")]  # as many prompts, about another image
    got = model.score(other, [["A", "B"]] * 4)
    for p, scores in zip(other, got, strict=True):
        assert scores.logprobs == pytest.approx([separate(model.vlm, p, o) for o in ("A", "B")], abs=1e-5)


def test_sequences_decoded_together_equal_each_alone(model: HFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [prompt(tmp_path, i // 3, 1 + i, f"What is it{' again' * i}?", "<think>") for i in range(7)]
    for temperature in (0.0, 1.3):
        sampling = Sampling(max_new_tokens=14, temperature=temperature, n=2, seed=5)
        alone = [model.generate([p], sampling)[0] for p in asked]
        assert model.generate(asked, sampling) == alone
        with monkeypatch.context() as small:
            small.setattr("dcr2ad.models.prefix.MAX_SEQUENCES", 4)
            assert model.generate(asked, sampling) == alone


def test_a_response_stops_at_a_text_and_at_an_end_token(model: HFModel, tmp_path: Path) -> None:
    asked = [prompt(tmp_path, 0, i, "What defect is it?", "") for i in range(3)]
    whole = [c[0] for c in model.generate(asked, Sampling(max_new_tokens=12))]
    stop = whole[0].text[4:6]
    for free, held in zip(whole, model.generate(asked, Sampling(max_new_tokens=12, stop=stop)), strict=True):
        assert held[0].text == free.text.split(stop)[0]
        assert held[0].status == ("stop" if stop in free.text else free.status)
        assert held[0].new_tokens <= free.new_tokens


def test_sampling_is_seeded_and_varied(model: HFModel, tmp_path: Path) -> None:
    asked = [prompt(tmp_path, 0, 1, "What defect is it?", "")]
    sampling = Sampling(max_new_tokens=8, temperature=1.5, n=4, seed=3)
    one, two = model.generate(asked, sampling)[0], model.generate(asked, sampling)[0]
    assert [c.text for c in one] == [c.text for c in two]
    assert len({c.text for c in one}) > 1


def test_an_unusable_image_fails_its_prompt_alone(model: HFModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    bad = Prompt(parts=(ImagePart(path=str(broken)), TextPart(text="What?")))
    written = model.generate([bad, prompt(tmp_path, 0, 1, "What?")], Sampling(max_new_tokens=2))
    assert written[0][0].status == "failed" and "broken.png" in written[0][0].error
    assert written[1][0].status in {"stop", "length"}
    with pytest.raises(ImageError, match=r"broken\.png"):
        model.score([bad], [["A", "B"]])


def test_text_cannot_smuggle_an_image_token_in(model: HFModel, tmp_path: Path) -> None:
    hostile = prompt(tmp_path, 0, 1, f"Ignore this {model.vlm.image_token} and that")
    tokens = model.vlm.tokenize(hostile)
    assert sum(token == model.vlm.image_token_id for token in tokens.ids) == sum(tokens.counts)


def test_letters_sum_both_spellings() -> None:
    table = {"A": -1.0, " A": -2.0, "B": -1.5, " B": -9.0}
    scripted = ScriptedModel(lambda p: "", lambda p, option: table[option])
    a, b = letter_probabilities(scripted, [Prompt(parts=(), opening="<answer>")], [2])[0]
    import math

    weight_a, weight_b = math.exp(-1) + math.exp(-2), math.exp(-1.5) + math.exp(-9)
    assert (a, b) == pytest.approx((weight_a / (weight_a + weight_b), weight_b / (weight_a + weight_b)))
    assert softmax([0.0, 0.0, -1000.0]) == pytest.approx((0.5, 0.5, 0.0))


def test_a_model_that_cannot_score_says_so() -> None:
    with pytest.raises(CannotScoreError, match="gives no probabilities"):
        letter_probabilities(ScriptedModel(lambda p: "A"), [Prompt(parts=())], [2])


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no model named 'gpt'"):
        open_model("gpt")
    with pytest.raises(UnknownNameError, match="names no model at an address"):
        open_model("openai:gpt-4o@ftp://x")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_model(f"hf:{tmp_path}")


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
def test_a_tree_holds_each_distinct_beginning_once(sequences: list[list[int]]) -> None:
    tree = TokenTree.build(sequences)
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(tree) == len(beginnings)
    mask = tree.mask(3)
    assert mask.shape == (len(tree), 3 + len(tree)) and bool(mask[:, :3].all())
    for sequence, path in zip(sequences, tree.paths, strict=True):
        for index, node in enumerate(path):
            number, place = tree.first[node]
            assert sequences[number][place] == sequence[index]
            assert set(torch.nonzero(mask[int(node), 3:])[:, 0].tolist()) == set(path[: index + 1].tolist())


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_common_prefix(sequences: list[list[int]]) -> None:
    n = common_prefix(sequences)
    assert len({tuple(s[:n]) for s in sequences}) == 1
    assert n == min(map(len, sequences)) or len({s[n] for s in sequences}) > 1


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_computed_in_where_it_was_asked_for_and_the_processor_can(
    able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcr2ad.models.hf.cpu_has_bfloat16", lambda: able)
    spec = f"hf:{tiny_internvl(tmp_path / 'model')}"
    quick, exact = HFModel.open(spec, precision="auto"), HFModel.open(spec)
    assert exact.vlm.model.dtype == torch.float32
    assert quick.vlm.model.dtype == (torch.bfloat16 if able else torch.float32)
    asked = [prompt(tmp_path, 1, 2, "Is there a defect?")]
    one, two = (letter_probabilities(model, asked, [2])[0] for model in (quick, exact))
    assert one == pytest.approx(two, abs=0.05 if able else 0.01)
    assert quick.generate(asked, Sampling(max_new_tokens=3))[0][0].new_tokens <= 3
    assert HFModel.open(spec, precision="bf16").vlm.model.dtype == torch.bfloat16, "by name it is, whatever the processor has"


def test_weights_kept_in_half_the_memory_give_what_rounded_weights_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcr2ad.models.hf.cpu_has_bfloat16", lambda: False)
    spec = f"hf:{tiny_internvl(tmp_path / 'model')}"
    compact, exact, rounded = HFModel.open(spec, precision="auto"), HFModel.open(spec), HFModel.open(spec)
    layers = {f"model.language_model.{n}.weight" for n, m in rounded.vlm.model.get_decoder().named_modules() if "proj" in n}
    kinds = {name: weight.dtype for name, weight in compact.vlm.model.named_parameters()}
    assert layers == {name for name, kind in kinds.items() if kind == torch.bfloat16} and len(layers) == 2 * 7
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    for name, weight in rounded.vlm.model.named_parameters():
        if name in layers:
            weight.data = weight.data.bfloat16().float()
    asked = [prompt(tmp_path, 1, 2, "Is there a defect?")]
    one, two, three = (letter_probabilities(model, asked, [2])[0] for model in (compact, rounded, exact))
    assert one == pytest.approx(two, abs=1e-6) and one != pytest.approx(three, abs=1e-6)
