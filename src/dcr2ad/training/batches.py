"""Questions and preference pairs as token trees, and the log-probability of every response token from one forward.

Reads records, a knowledge base and a `VisionLanguageModel`; returns rows of token ids and, from `completion_logprobs`, tensors.
A row is one prompt with one response (SFT), two (a pair) or three (a pair by steps): `[prefix | chosen | rejected]` in one
sequence, each response seeing the prefix and itself only, its positions continuing the prefix's on every rotary axis. So the
prompt and its images are computed once a pair, and equal beginnings of the responses too; several rows in one forward form a
forest under the same mask. That this equals separate forwards is proved in the tests (log-probabilities and gradients).
Nothing is ever truncated. Knows nothing about losses, optimisers or files. The layout is not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch

from dcr2ad.config import Rejected, Scored
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.blocks import row_images
from dcr2ad.models.selection import token_logprobs
from dcr2ad.models.tree import Span, TokenTree, common_prefix, dense_mask
from dcr2ad.models.tree_attention import has_tree_attention
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel
from dcr2ad.parsing import KNOWLEDGE_CLOSING, response_segments
from dcr2ad.prompts import build_prompt
from dcr2ad.training.weights import ImageInputs, image_inputs
from dcr2ad.types import PreferencePair, Question, Trajectory

PATH = 0
"""Segment of the path in `dcr2ad.training.losses.SEGMENTS`."""
UNSCORED = -1
"""Segment of a token whose log-ratio does not count (`pair_row`)."""
SHOTS = 1
"""References shown while training: the paper's 1-shot setting (Section 4.2)."""


@dataclass(frozen=True)
class ResponseTokens:
    """A response as token ids.

    Attributes:
        ids: its tokens, the end token included.
        segments: for each token an index into `dcr2ad.training.losses.SEGMENTS`, or `UNSCORED`; the end token belongs to the
            answer.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...]


@dataclass(frozen=True)
class TrainingRow:
    """One prompt with the responses scored behind it.

    Attributes:
        id: id of the question or pair.
        prompt: the prompt's tokens.
        responses: the response (SFT); chosen and rejected; or chosen, the rejected path, and the right path with a rejected
            content.
    """

    id: str
    prompt: TokenizedPrompt
    responses: tuple[ResponseTokens, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response: what must fit the model's positions."""
        return len(self.prompt.ids) + max(len(response.ids) for response in self.responses)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of all responses: what the log counts."""
        return len(self.prompt.ids) + sum(len(response.ids) for response in self.responses)


@dataclass(frozen=True)
class Layout:
    """Rows laid out for one forward of T nodes.

    Attributes:
        ids: token of each node, shape ``(T,)``.
        positions: position of each node on each rotary axis, shape ``(axes, T)``.
        spans: which nodes each node sees (`TokenTree.spans`).
        images: paths of the images in the order of their tokens.
        kept: nodes whose logits are needed, ascending, shape ``(U,)``.
        parents: index into `kept` of the node before each response token, all responses in order, shape ``(N,)``.
        tokens: those tokens' ids, shape ``(N,)``.
        lengths: for each row the number of tokens of each of its responses.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: tuple[Span, ...]
    images: tuple[str, ...]
    kept: torch.Tensor
    parents: torch.Tensor
    tokens: torch.Tensor
    lengths: tuple[tuple[int, ...], ...]


def sft_row(vlm: VisionLanguageModel, question: Question, knowledge_base: KnowledgeBase) -> TrainingRow:
    """A question with its worked response; a direct response has an answer segment only.

    Raises:
        InputError: the question has no response, or names an entry that the base does not hold.
        ImageError: an image cannot be used.
    """
    if question.response is None:
        raise InputError(f"question {question.id!r} has no response", "Run `dcr2ad instruct` to have one written")
    prompt = _prompt(vlm, question, knowledge_base)
    return TrainingRow(question.id, prompt, (_response(vlm, question.id, question.response),))


def pair_row(
    vlm: VisionLanguageModel,
    pair: PreferencePair,
    knowledge_base: KnowledgeBase,
    which: Rejected = "matched",
    *,
    scored: Scored = "all",
) -> TrainingRow:
    """A preference pair: the prompt, chosen and rejected (Equations 4 and 5).

    Args:
        vlm: the model whose tokens are wanted.
        pair: the pair.
        knowledge_base: holds the question's candidates.
        which: y_l, see `rejected_trajectory`; under ``stepwise`` the row has three responses: chosen, the path p_l with nothing
            behind it, and the right path, unscored, with a wrong content. Each step is so rejected behind what the right one
            follows.
        scored: ``distinct`` leaves the tokens that both responses hold, in the same segment and order, `UNSCORED`; ``title``
            all but those of the entries' titles, what opens a path included. Not in the paper.

    Raises:
        InputError: the question names an entry that the base does not hold, or the pair has no such response.
        ImageError: an image cannot be used.
    """
    prompt = _prompt(vlm, pair.question, knowledge_base)
    if which == "stepwise":
        return TrainingRow(pair.id, prompt, _by_steps(vlm, pair, distinct=scored == "distinct"))
    trajectories = (pair.chosen, rejected_trajectory(pair, which))
    chosen, rejected = (_response(vlm, pair.id, trajectory) for trajectory in trajectories)
    if scored == "distinct":
        chosen, rejected = _without_shared(chosen, rejected)
    elif scored == "title":
        chosen, rejected = (_title_alone(vlm, *both) for both in zip(trajectories, (chosen, rejected), strict=True))
    return TrainingRow(pair.id, prompt, (chosen, rejected))


def _by_steps(vlm: VisionLanguageModel, pair: PreferencePair, *, distinct: bool) -> tuple[ResponseTokens, ...]:
    """Chosen, the rejected path, and the right path with a rejected content; see `pair_row`."""
    path, content = _steps(_response(vlm, pair.id, pair.chosen))
    lost_path, _ = _steps(_response(vlm, pair.id, pair.rejected))
    _, lost_content = _steps(_response(vlm, pair.id, rejected_trajectory(pair, "stepwise")))
    before = replace(path, segments=(UNSCORED,) * len(path.ids))
    if distinct:
        path, lost_path = _without_shared(path, lost_path)
        content, lost_content = _without_shared(content, lost_content)
    return _joined(path, content), lost_path, _joined(before, lost_content)


def _steps(response: ResponseTokens) -> tuple[ResponseTokens, ResponseTokens]:
    """A response's path, and its content: reasoning and answer."""
    length = response.segments.count(PATH)
    parts = (slice(None, length), slice(length, None))
    path, content = (ResponseTokens(response.ids[part], response.segments[part]) for part in parts)
    return path, content


def _joined(one: ResponseTokens, other: ResponseTokens) -> ResponseTokens:
    return ResponseTokens((*one.ids, *other.ids), (*one.segments, *other.segments))


def _title_alone(vlm: VisionLanguageModel, trajectory: Trajectory, response: ResponseTokens) -> ResponseTokens:
    """A response with all behind its entry's title unscored; a token that holds the title's end and more counts."""
    opening = response_segments(trajectory.model_copy(update={"why": ""})).path.removesuffix(KNOWLEDGE_CLOSING)
    title = tuple(vlm.response_ids(opening))
    length = min(common_prefix([title, response.ids]) + 1, len(title))
    return replace(response, segments=(*response.segments[:length], *[UNSCORED] * (len(response.segments) - length)))


def _without_shared(one: ResponseTokens, other: ResponseTokens) -> tuple[ResponseTokens, ResponseTokens]:
    """Both responses with the tokens of a longest alignment unscored."""
    tokens = [list(zip(response.ids, response.segments, strict=True)) for response in (one, other)]
    found = SequenceMatcher[tuple[int, int]](None, tokens[0], tokens[1], autojunk=False)
    segments = [list(one.segments), list(other.segments)]
    for block in found.get_matching_blocks():
        for scored, start in zip(segments, (block.a, block.b), strict=True):
            scored[start : start + block.size] = [UNSCORED] * block.size
    return replace(one, segments=tuple(segments[0])), replace(other, segments=tuple(segments[1]))


def rejected_trajectory(pair: PreferencePair, which: Rejected) -> Trajectory:
    """y_l of a pair.

    ``matched``: (p_l, c_l) as written. ``shared``: (p_l, c_w), the chosen one's content behind the wrong path; the paper's c
    includes the answer. ``unrouted``: a wrong answer under the right entry, for Equation (4). ``stepwise``: the
    same, of which the content alone is read, behind p_w; the path rejected besides is p_l (`pair_row`).

    Raises:
        InputError: the pair holds no unrouted response.
    """
    if which in ("unrouted", "stepwise"):
        if pair.unrouted is None:
            setting = 'objective = "dpo"' if which == "unrouted" else 'reasoning = "stepwise"'
            what = f"the pair {pair.id!r} holds no wrong answer under the right entry, which {setting} trains on"
            raise InputError(what, "Run `dcr2ad synthesize` again, with synthesize.unrouted = true")
        return pair.unrouted
    if which == "matched":
        return pair.rejected
    return pair.rejected.model_copy(update={"reasoning": pair.chosen.reasoning, "answer": pair.chosen.answer})


def group_by_image(questions: Sequence[Question]) -> tuple[tuple[int, ...], ...]:
    """Indices of questions by the image they are about, in order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.sample.image, []).append(number)
    return tuple(tuple(rows) for rows in groups.values())


def check_lengths(vlm: VisionLanguageModel, count: int, row: Callable[[int], TrainingRow]) -> None:
    """Tokenise every row once before hours are spent: images are opened, entries looked up, lengths compared.

    Args:
        vlm: the model; its `max_position_embeddings` is the limit.
        count: number of rows.
        row: builds one of them.

    Raises:
        InputError: rows that are too long; names them.
        ImageError: an image cannot be used.
    """
    limit = int(vlm.model.config.get_text_config().max_position_embeddings)
    long = []
    for number in range(count):
        found = row(number)
        if found.longest > limit:
            long.append(f"{found.id} ({found.longest} tokens)")
    if long:
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise InputError(
            f"{len(long)} of {count} rows exceed the model's {limit} positions: {', '.join(long[:5])}{more}",
            "List fewer or shorter knowledge entries, or use smaller images; nothing is truncated",
        )


def lay_out(vlm: VisionLanguageModel, rows: Sequence[TrainingRow]) -> Layout:
    """Lay rows out as one forest of tokens."""
    sequences = [(row, response) for row in rows for response in row.responses]
    ids = [(*row.prompt.ids, *response.ids) for row, response in sequences]
    keys = [(*row.prompt.keys(vlm.image_token_id), *((token, "") for token in response.ids)) for row, response in sequences]
    tree = TokenTree.build(keys)
    positions = [vlm.positions(sequence, row.prompt.images) for sequence, (row, _) in zip(ids, sequences, strict=True)]
    parents = [path[len(row.prompt.ids) - 1 : -1] for path, (row, _) in zip(tree.paths, sequences, strict=True)]
    kept, before = np.unique(np.concatenate(parents), return_inverse=True)
    return Layout(
        ids=torch.tensor([ids[number][index] for number, index in tree.first]),
        positions=torch.stack([positions[number][:, index] for number, index in tree.first], dim=1),
        spans=tree.spans(),
        images=tuple(row_images(tree, [row.prompt for row, _ in sequences], vlm.image_token_id)),
        kept=torch.from_numpy(kept),
        parents=torch.from_numpy(before),
        tokens=torch.tensor([token for _, response in sequences for token in response.ids]),
        lengths=tuple(tuple(len(response.ids) for response in row.responses) for row in rows),
    )


def completion_logprobs(
    vlm: VisionLanguageModel, rows: Sequence[TrainingRow], *, model: Any = None, images: ImageInputs | None = None
) -> list[list[torch.Tensor]]:
    """Log-probability of every response token, from one forward over all rows.

    Args:
        vlm: the model; training and evaluation go the same way.
        rows: B rows; they may share prompts and images, which are then computed once.
        model: what is called in place of `vlm.model`: the same model behind a wrapper for several processes.
        images: what images enter as. Default: without gradients cached features, else what the trained weights call for.

    Returns:
        for each row and response a tensor of shape ``(L,)``, nats; float32, or float64 for a float64 model.
    """
    layout = lay_out(vlm, rows)
    device = vlm.device
    if images is None:
        images = image_inputs(vlm.model) if torch.is_grad_enabled() else "features"
    output = (model or vlm.model)(
        input_ids=layout.ids[None].to(device),
        position_ids=vlm.position_ids(layout.positions),
        logits_to_keep=layout.kept.to(device),
        use_cache=False,
        **_attention_inputs(vlm, layout.spans),
        **_image_inputs(vlm, layout.images, images),
    )
    found = iter(
        token_logprobs(output.logits[0], layout.parents.to(device), layout.tokens.to(device)).split(
            [length for lengths in layout.lengths for length in lengths]
        )
    )
    return [[next(found) for _ in lengths] for lengths in layout.lengths]


def _attention_inputs(vlm: VisionLanguageModel, spans: Sequence[Span]) -> dict[str, Any]:
    """What tells the model who sees whom."""
    if has_tree_attention(vlm.model):
        # Four axes, so that transformers builds no mask of its own; nothing reads it.
        return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=vlm.device), "spans": spans}
    if len(spans) == 1:
        return {"attention_mask": torch.ones(1, spans[0].end, dtype=torch.long, device=vlm.device)}  # plainly causal
    hidden = ~dense_mask(spans)[None, None].to(vlm.device)
    bias = torch.zeros(hidden.shape, dtype=vlm.model.dtype, device=vlm.device)
    return {"attention_mask": bias.masked_fill_(hidden, torch.finfo(bias.dtype).min)}


def _prompt(vlm: VisionLanguageModel, question: Question, knowledge_base: KnowledgeBase) -> TokenizedPrompt:
    return vlm.tokenize(build_prompt(question, entries=knowledge_base.listed(question), expert=True, shots=SHOTS))


def _response(vlm: VisionLanguageModel, name: str, trajectory: Trajectory) -> ResponseTokens:
    """Tokenise by segment: cut at the tags, as scoring and generation meet the response."""
    parts = [vlm.response_ids(segment) for segment in response_segments(trajectory)]
    parts[-1] = [*parts[-1], vlm.end_ids[0]]
    ids = tuple(token for part in parts for token in part)
    if vlm.image_token_id in ids:
        raise InputError(f"the response of {name!r} holds the model's image token {vlm.image_token}", "Remove it from the text")
    return ResponseTokens(ids, tuple(number for number, part in enumerate(parts) for _ in part))


def _image_inputs(vlm: VisionLanguageModel, images: Sequence[str], enter_as: ImageInputs) -> dict[str, Any]:
    if not images:
        return {}
    if enter_as != "pixels":
        return {"mm_encoder_outputs": vlm.encoder_outputs(images, projected=enter_as == "tower")}
    inputs = [vlm.pixel_inputs(path) for path in images]
    return {name: torch.cat([pixels[name] for pixels in inputs]).to(vlm.device) for name in inputs[0]}
