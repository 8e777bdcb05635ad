"""The tree row against separate forwards, and what a row holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcr2ad.config import SftSettings
from dcr2ad.errors import ImageError, InputError, UnknownNameError
from dcr2ad.images import load_image
from dcr2ad.models.tree import Span
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel
from dcr2ad.parsing import write_response
from dcr2ad.prompts import build_prompt
from dcr2ad.training.batches import (
    UNSCORED,
    ResponseTokens,
    TrainingRow,
    check_lengths,
    completion_logprobs,
    lay_out,
    pair_row,
    rejected_trajectory,
    sft_row,
)
from dcr2ad.training.weights import image_inputs, load_trainable
from dcr2ad.types import ImagePart, PreferencePair, Question, Sample
from tests.tiny import tiny_base, tiny_internvl, tiny_llama, tiny_pairs, tiny_questions, tiny_qwen, tiny_qwen3

BASE = tiny_base()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module", params=[tiny_qwen, tiny_internvl])
def vlm(request: pytest.FixtureRequest, folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel.load(request.param(folder / request.param.__name__), device="cpu")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[PreferencePair]:
    return tiny_pairs(folder / "photos", 4)


def separate(vlm: VisionLanguageModel, question: Question, response: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of one response by the stock processor and the stock forward, nothing of ours but the prompt's text."""
    prompt = build_prompt(question, entries=[BASE.get(key) for key in question.candidates])
    content: list[dict[str, Any]] = [
        {"type": "image", "image": load_image(part.path)}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in prompt.parts
    ]
    batch = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = batch["input_ids"].shape[1]
    ids = torch.cat([batch["input_ids"], torch.tensor([list(response)])], dim=1)
    inputs = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == vlm.image_token_id).int()
    logits = vlm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
    return _gather(logits, ids[0])[length - 1 :]


def _gather(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


def gap(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def gradients(model: Any, logprobs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of an uneven mix of all token log-probabilities, so that no two tokens can be confused."""
    generator = torch.Generator().manual_seed(1)
    model.zero_grad()
    sum((values * torch.randn(len(values), generator=generator)).sum() for values in logprobs).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def gradient_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest gradient of the same parameter.

    Keys' biases are left to a floor: attention does not depend on them, so that their gradients are rounding errors alone.
    """
    assert set(ours) == set(theirs)
    floor = 1e-4 * max(float(value.abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=floor)) for name in theirs)


def test_pair_equals_separate_forwards(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    row = pair_row(vlm, pairs[0], BASE)
    theirs = [separate(vlm, pairs[0].question, response.ids) for response in row.responses]
    expected = gradients(vlm.model, theirs)
    assert any("visual" in name or "vision" in name for name in expected)
    ours = completion_logprobs(vlm, [row])[0]
    assert gap(ours, theirs) < 1e-5
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-5
    with torch.no_grad():
        assert gap(completion_logprobs(vlm, [row], images="features")[0], theirs) < 1e-5


@pytest.mark.parametrize("build", [tiny_qwen, tiny_internvl])
def test_pair_equals_separate_forwards_to_the_last_digit(build: Any, folder: Path, pairs: list[PreferencePair]) -> None:
    """In float64, where rounding is out of the way but for the models' own norms, which compute in float32."""
    vlm = VisionLanguageModel.load(build(folder / f"double-{build.__name__}"), device="cpu", dtype=torch.float64)
    row = pair_row(vlm, pairs[0], BASE)
    theirs = [separate(vlm, pairs[0].question, response.ids) for response in row.responses]
    expected = gradients(vlm.model, theirs)
    ours = completion_logprobs(vlm, [row])[0]
    assert gap(ours, theirs) < 1e-13
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-6


@pytest.mark.slow
def test_embedded_model(nano_folder: Path, pairs: list[PreferencePair]) -> None:
    """The same on nano; thirty layers in float32 leave both ways about 3e-5 from float64, so they may differ by as much."""
    vlm = VisionLanguageModel.load(nano_folder, device="cpu")
    parts = ("projector", "layers.0.self_attn.q_proj", "layers.29.mlp.down_proj", "encoder.layer.0.mlp.fc1", "model.norm")
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    row = pair_row(vlm, pairs[0], BASE)
    theirs = [separate(vlm, pairs[0].question, response.ids) for response in row.responses]
    expected = gradients(vlm.model, theirs)
    ours = completion_logprobs(vlm, [row])[0]
    assert gap(ours, theirs) < 1e-4
    # Rounding adds up in the order of the processor's sums: up to 2e-4 with AVX-512, 2.5e-4 with AVX2.
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-3
    vlm.model.double()
    exact = [separate(vlm, pairs[0].question, response.ids) for response in row.responses]
    expected = gradients(vlm.model, exact)
    ours = completion_logprobs(vlm, [row], images="pixels")[0]
    assert gap(ours, exact) < 1e-6
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-6  # free of rounding, and so of the processor


def test_forest_of_pairs_equals_separate_forwards(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    rows = [pair_row(vlm, pair, BASE) for pair in pairs]
    layout = lay_out(vlm, rows)
    # pairs 0 and 1 share both photographs, 2 and 3 the reference: four pairs show three images, not eight
    assert len(layout.images) == len(set(layout.images)) == 3
    assert len(layout.ids) < 0.45 * sum(2 * row.longest for row in rows)
    theirs = [
        separate(vlm, pair.question, response.ids) for pair, row in zip(pairs, rows, strict=True) for response in row.responses
    ]
    expected = gradients(vlm.model, theirs)
    ours = [values for row in completion_logprobs(vlm, rows) for values in row]
    assert gap(ours, theirs) < 1e-5
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-5
    with torch.no_grad():
        cached = [values for row in completion_logprobs(vlm, rows, images="features") for values in row]
        assert gap(cached, theirs) < 1e-5


def test_one_response_equals_a_separate_forward(vlm: VisionLanguageModel, folder: Path) -> None:
    question = tiny_questions(folder / "photos", 1)[0]
    row = sft_row(vlm, question, BASE)
    assert lay_out(vlm, [row]).spans == (Span(0, row.longest, ()),)
    theirs = [separate(vlm, question, row.responses[0].ids)]
    expected = gradients(vlm.model, theirs)
    ours = completion_logprobs(vlm, [row])[0]
    assert gap(ours, theirs) < 1e-5
    assert gradient_gap(gradients(vlm.model, ours), expected) < 1e-5


def test_same_image_in_other_places_is_another_image(
    vlm: VisionLanguageModel, folder: Path, pairs: list[PreferencePair]
) -> None:
    """A row whose query is another row's reference: the images come in the order of their tokens, none merged wrongly."""
    first, second = pairs[0], pairs[2]
    swapped = second.question.sample.model_copy(
        update={"image": second.question.sample.references[0], "references": (first.question.sample.image,)}
    )
    other = second.model_copy(update={"question": second.question.model_copy(update={"sample": swapped})})
    rows = [pair_row(vlm, pair, BASE) for pair in (first, other)]
    assert len(lay_out(vlm, rows).images) == 4
    with torch.no_grad():
        theirs = [
            separate(vlm, pair.question, response.ids)
            for pair, row in zip((first, other), rows, strict=True)
            for response in row.responses
        ]
        for images in ("pixels", "features", "tower"):
            ours = [values for row in completion_logprobs(vlm, rows, images=images) for values in row]
            assert gap(ours, theirs) < 1e-5


@pytest.mark.parametrize("adapter", [False, True])
def test_a_frozen_tower_runs_once_an_image(adapter: bool, vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    """The tower's kept output through the projector: values and gradients of pixels, under autocast with an adapter too."""
    fresh = VisionLanguageModel.load(vlm.model.name_or_path, device="cpu")
    settings = SftSettings(method="lora", lora_rank=4, precision="bf16") if adapter else SftSettings()
    load_trainable(fresh, settings, seed=1)
    assert image_inputs(fresh.model) == "tower"
    tower = next(m for name, m in fresh.model.named_modules() if name.endswith((".visual", ".vision_tower")))
    runs: list[int] = []
    tower.register_forward_hook(lambda *_: runs.append(1))
    rows = [pair_row(fresh, pair, BASE) for pair in pairs]

    def outcome(images: Any, which: list[TrainingRow]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=adapter):
            found = [values for row in completion_logprobs(fresh, which, images=images) for values in row]
        return found, gradients(fresh.model, found)

    expected, wanted = outcome("pixels", rows)
    assert any("projector" in name or "merger" in name for name in wanted)
    runs.clear()
    once, slopes = outcome(None, rows)
    images = len({image for row in rows for image in row.prompt.images})
    assert len(runs) == images == 3
    again, same = outcome("tower", rows)
    assert len(runs) == images
    assert all(map(torch.equal, once, again)) and all(torch.equal(slopes[name], same[name]) for name in slopes)
    assert gap(once, expected) < (0.1 if adapter else 1e-5)
    assert gradient_gap(slopes, wanted) < (0.2 if adapter else 1e-5)
    fresh.forget_features(tower=False)
    outcome("tower", rows)
    assert len(runs) == images
    fresh.forget_features()
    outcome("tower", rows)
    assert len(runs) == 2 * images


def test_gradient_checkpointing_changes_nothing(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    row = pair_row(vlm, pairs[0], BASE)
    expected = gradients(vlm.model, completion_logprobs(vlm, [row])[0])
    vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    vlm.model.train()
    try:
        again = gradients(vlm.model, completion_logprobs(vlm, [row])[0])
    finally:
        vlm.model.gradient_checkpointing_disable()
        vlm.model.eval()
    assert gradient_gap(again, expected) < 1e-6


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
def test_text_models(build: Any) -> None:
    model = build()
    vlm = VisionLanguageModel(model, SimpleNamespace(tokenizer=_NoImages(), image_token="<image>"))
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(8, 400, (count,), generator=generator).tolist())

    prompt, beginning = tokens(300), tokens(5)
    responses = [tokens(40), beginning + tokens(20), beginning + tokens(31)]
    row = TrainingRow("t", TokenizedPrompt(prompt, (), ()), tuple(ResponseTokens(ids, (2,) * len(ids)) for ids in responses))
    theirs = []
    for response in responses:
        ids = torch.tensor([prompt + response])
        theirs.append(_gather(model(input_ids=ids, use_cache=False).logits[0], ids[0])[len(prompt) - 1 :])
    expected = gradients(model, theirs)
    ours = completion_logprobs(vlm, [row])[0]
    assert gap(ours, theirs) < 1e-5
    assert gradient_gap(gradients(model, ours), expected) < 1e-5
    assert len(lay_out(vlm, [row]).ids) == 300 + 40 + 5 + 20 + 31


class _NoImages:
    def convert_tokens_to_ids(self, token: str) -> int:
        return -1


def test_segments_cover_the_response(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    row = pair_row(vlm, pairs[0], BASE)
    for response, trajectory in zip(row.responses, (pairs[0].chosen, pairs[0].rejected), strict=True):
        assert list(response.ids) == [*vlm.response_ids(write_response(trajectory)), vlm.end_ids[0]]
        assert list(response.segments) == sorted(response.segments)
        text = ["", "", ""]
        for segment in range(3):
            own = [token for token, number in zip(response.ids, response.segments, strict=True) if number == segment]
            text[segment] = vlm.tokenizer.decode(own)
        assert text[0].startswith("<knowledge>") and text[0].endswith("</knowledge>")
        assert text[1].startswith("<think>") and text[1].endswith("</think>")
        assert text[2].startswith("<answer>") and text[2].endswith("</answer>" + vlm.tokenizer.eos_token)


def test_direct_response_is_an_answer_alone(vlm: VisionLanguageModel, folder: Path) -> None:
    direct = tiny_questions(folder / "photos", 3)[2]
    assert direct.candidates == ()
    row = sft_row(vlm, direct, BASE)
    assert set(row.responses[0].segments) == {2}
    assert "Knowledge:" not in vlm.tokenizer.decode(row.prompt.ids)


def test_shared_reasoning_differs_in_the_path_only(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    chosen, rejected = pair_row(vlm, pairs[0], BASE, "shared").responses
    matched = pair_row(vlm, pairs[0], BASE).responses[1]

    def part(response: ResponseTokens, *wanted: int) -> list[int]:
        return [token for token, number in zip(response.ids, response.segments, strict=True) if number in wanted]

    assert part(rejected, 0) == part(matched, 0) != part(chosen, 0)
    assert part(rejected, 1, 2) == part(chosen, 1, 2) != part(matched, 1, 2)
    assert rejected_trajectory(pairs[0], "matched") == pairs[0].rejected


def test_distinct_tokens_are_what_the_responses_do_not_share(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    whole, scored = pair_row(vlm, pairs[0], BASE), pair_row(vlm, pairs[0], BASE, scored="distinct")
    rest: list[list[tuple[int, int]]] = []
    for before, after in zip(whole.responses, scored.responses, strict=True):
        assert before.ids == after.ids, "what the model reads stays"
        both = list(zip(before.segments, after.segments, strict=True))
        assert all(now in (UNSCORED, old) for old, now in both)
        kept = zip(before.ids, before.segments, after.segments, strict=True)
        rest.append([(token, old) for token, old, now in kept if now == UNSCORED])
    assert rest[0] == rest[1], "the unscored tokens are the same words of both, in order and segment"
    words = [vlm.tokenizer.decode([t for t, s in zip(r.ids, r.segments, strict=True) if s >= 0]) for r in scored.responses]
    assert words[0] != words[1] and all(0 < len(word) < 60 for word in words)
    assert not any(tag in word for word in words for tag in ("<knowledge>", "</think>", "<answer>"))


def test_a_title_alone_is_what_is_selected(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    for pair in pairs:
        whole, scored = pair_row(vlm, pair, BASE), pair_row(vlm, pair, BASE, scored="title")
        for before, after, trajectory in zip(whole.responses, scored.responses, (pair.chosen, pair.rejected), strict=True):
            assert before.ids == after.ids, "what the model reads stays"
            assert set(after.segments) == {0, UNSCORED}
            title = [token for token, segment in zip(after.ids, after.segments, strict=True) if segment == 0]
            assert vlm.tokenizer.decode(title).replace(" ", "") == f"<knowledge>{trajectory.entry}".replace(" ", "")
            assert title == list(after.ids[: len(title)])
    bare = pairs[0].model_copy(update={"rejected": pairs[0].rejected.model_copy(update={"why": ""})})
    rejected = pair_row(vlm, bare, BASE, scored="title").responses[1]
    assert rejected.segments.count(0) == pair_row(vlm, pairs[0], BASE, scored="title").responses[1].segments.count(0)


def test_an_unrouted_response_shares_the_path_and_its_tokens(vlm: VisionLanguageModel, pairs: list[PreferencePair]) -> None:
    row = pair_row(vlm, pairs[0], BASE, "unrouted")
    assert pairs[0].unrouted is not None and pairs[0].unrouted.entry == pairs[0].chosen.entry
    assert row.prompt == pair_row(vlm, pairs[0], BASE).prompt
    chosen, rejected = row.responses
    path = chosen.segments.count(0)
    assert chosen.ids[:path] == rejected.ids[:path] and chosen.ids != rejected.ids
    assert len(lay_out(vlm, [row]).ids) <= len(row.prompt.ids) + len(chosen.ids) + len(rejected.ids) - path
    with pytest.raises(InputError, match=r"'p0' holds no wrong answer under the right entry"):
        rejected_trajectory(pairs[0].model_copy(update={"unrouted": None}), "unrouted")


@pytest.mark.parametrize("scored", ["all", "distinct"])
def test_steps_are_rejected_behind_what_the_right_ones_follow(
    scored: Any, vlm: VisionLanguageModel, pairs: list[PreferencePair]
) -> None:
    unrouted = pairs[0].unrouted
    assert unrouted is not None
    pair = pairs[0].model_copy(update={"unrouted": unrouted.model_copy(update={"why": "another place"})})
    whole = pair_row(vlm, pair, BASE)
    row = pair_row(vlm, pair, BASE, "stepwise", scored=scored)
    chosen, path, content = row.responses
    assert row.prompt == whole.prompt and chosen.ids == whole.responses[0].ids
    length, lost = whole.responses[0].segments.count(0), len(path.ids)
    assert path.ids == whole.responses[1].ids[:lost] and lost == whole.responses[1].segments.count(0), "nothing behind p_l"
    assert content.ids[:length] == chosen.ids[:length] and content.ids[length:] != chosen.ids[length:], (
        "both contents behind p_w"
    )
    assert set(path.segments) <= {0, UNSCORED} and set(content.segments[:length]) == {UNSCORED}
    assert set(content.segments[length:]) <= {1, 2, UNSCORED} and 2 in content.segments and 0 in path.segments
    if scored == "all":
        assert chosen.segments == whole.responses[0].segments and UNSCORED not in (*path.segments, *content.segments[length:])
    else:
        assert min(response.segments.count(UNSCORED) for response in row.responses) > 0 and {0, 2} <= set(chosen.segments)
    with pytest.raises(InputError, match=r'reasoning = "stepwise" trains on'):
        pair_row(vlm, pair.model_copy(update={"unrouted": None}), BASE, "stepwise")


def test_long_rows_are_named_before_training(folder: Path, pairs: list[PreferencePair]) -> None:
    vlm = VisionLanguageModel.load(tiny_qwen(folder / "short"), device="cpu")
    rows = [pair_row(vlm, pair, BASE) for pair in pairs]
    longest = max(row.longest for row in rows)
    vlm.model.config.text_config.max_position_embeddings = longest
    check_lengths(vlm, len(rows), rows.__getitem__)
    vlm.model.config.text_config.max_position_embeddings = longest - 1
    too_long = [row.id for row in rows if row.longest == longest]
    with pytest.raises(InputError, match=rf"{too_long[0]} \({longest} tokens\)") as caught:
        check_lengths(vlm, len(rows), rows.__getitem__)
    assert f"{len(too_long)} of {len(rows)} rows exceed the model's {longest - 1} positions" in str(caught.value)


def test_what_a_row_refuses(vlm: VisionLanguageModel, folder: Path) -> None:
    question = tiny_questions(folder / "photos", 1)[0]
    with pytest.raises(InputError, match="'q0' has no response"):
        sft_row(vlm, question.model_copy(update={"response": None}), BASE)
    with pytest.raises(UnknownNameError, match=r"General\.surface\.none"):
        sft_row(vlm, question.model_copy(update={"candidates": ("General.surface.none",)}), BASE)
    lost: Sample = question.sample.model_copy(update={"image": str(folder / "lost.png")})
    with pytest.raises(ImageError, match="no such image"):
        sft_row(vlm, question.model_copy(update={"sample": lost}), BASE)
    assert question.response is not None
    response = question.response.model_copy(update={"reasoning": f"see {vlm.image_token}"})
    with pytest.raises(InputError, match="image token"):
        sft_row(vlm, question.model_copy(update={"response": response}), BASE)
