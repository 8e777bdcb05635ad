"""Attention by spans against torch's attention under the tree's dense mask, and log-probabilities of single tokens."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.models import tree_attention as subject
from dcr2ad.models.selection import token_logprobs
from dcr2ad.models.tree import Span, TokenTree
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.batches import completion_logprobs, pair_row
from tests.tiny import tiny_base, tiny_internvl, tiny_pairs

MODULE = torch.nn.Module()


def random_tree(seed: int) -> TokenTree:
    """A forest of one to three roots whose sequences share beginnings of any length."""
    draw = random.Random(seed)
    sequences: list[list[int]] = []
    for _ in range(draw.randint(1, 7)):
        head = draw.choice(sequences) if sequences and draw.random() < 0.8 else []
        sequences.append([*head[: draw.randint(0, len(head))], *(draw.randrange(10**6) for _ in range(draw.randint(1, 9)))])
    return TokenTree.build(sequences)


def tensors(length: int, heads: int, groups: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, length, 8), (1, groups, length, 8), (1, groups, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def by_mask(tree: TokenTree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    times = query.shape[1] // key.shape[1]
    wide = [tensor.repeat_interleave(times, dim=1) for tensor in (key, value)]
    scores = (query @ wide[0].mT * scaling).masked_fill(~tree.mask(), -torch.inf)
    return (scores.softmax(-1) @ wide[1]).transpose(1, 2)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(4, 4), (6, 2), (3, 1)]), st.sampled_from([1, 3, 192]), st.booleans())
def test_spans_equal_the_mask_in_values_and_gradients(seed: int, shape: tuple[int, int], tile: int, by_torch: bool) -> None:
    tree = random_tree(seed)
    given_ = tensors(len(tree), *shape, torch.float64, seed)
    above = torch.randn(1, len(tree), shape[0], 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    expected = by_mask(tree, *given_, scaling=0.3)
    wanted = torch.autograd.grad(expected, given_, above)
    if by_torch:
        parts = [subject._by_torch(*given_, span, 0.0, 0.3) for span in tree.spans()]
        found = torch.cat(parts, dim=2).transpose(1, 2)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subject, "TILE", tile)
            found, _ = subject.tree_attention(MODULE, *given_, None, scaling=0.3, spans=tree.spans())
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    for one, two in zip(torch.autograd.grad(found, given_, above), wanted, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_cut_spans_see_the_same(seed: int, size: int) -> None:
    tree = random_tree(seed)
    mask = tree.mask()
    pieces = [piece for span in tree.spans() for piece in span.cut(size)]
    assert [node for piece in pieces for node in range(piece.start, piece.end)] == list(range(len(tree)))
    for piece in pieces:
        assert 1 <= piece.end - piece.start <= size
        seen = [node for start, end in piece.seen for node in range(start, end)]
        assert seen == torch.nonzero(mask[piece.end - 1])[:, 0].tolist()


def test_gradient_by_differences() -> None:
    tree = TokenTree.build([[1, 2, 3, 4, 5], [1, 2, 6, 7], [8, 9]])
    given_ = tensors(len(tree), 4, 2, torch.float64, 3)
    assert torch.autograd.gradcheck(lambda q, k, v: subject._Tiled.apply(q[0], k[0], v[0], 0.4, tree.spans()), given_)


def test_without_spans_it_is_sdpa() -> None:
    given_ = tensors(9, 4, 2, torch.float32, 0)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, _ = subject.tree_attention(module, *given_, None, scaling=0.3)  # type: ignore[arg-type]
    whole = TokenTree.build([list(range(9))])
    assert torch.allclose(found, by_mask(whole, *given_, scaling=0.3), atol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, subject.FEW + 2), st.sampled_from([(4, 4), (6, 2), (3, 1)]))
def test_few_tokens_behind_a_cache_equal_the_mask(seed: int, rows: int, length: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, groups = shape
    query = torch.randn(rows, heads, length, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, rows, groups, length + 5, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, 1, length, length + 5, generator=generator) < 0.5
    mask[..., 0] = True
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    found, _ = subject.tree_attention(module, query, key, value, mask, scaling=0.3)  # type: ignore[arg-type]
    wide = [tensor.repeat_interleave(heads // groups, dim=1) for tensor in (key, value)]
    scores = (query @ wide[0].mT * 0.3).masked_fill(~mask, -torch.inf)
    assert torch.allclose(found, (scores.softmax(-1) @ wide[1]).transpose(1, 2), rtol=0, atol=1e-13)


def test_autocast_computes_in_its_type() -> None:
    tree = random_tree(5)
    query, key, value = tensors(len(tree), 4, 2, torch.float32, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = subject.tree_attention(MODULE, query, key, value.to(torch.bfloat16), None, scaling=0.3, spans=tree.spans())
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert query.grad is not None and query.grad.dtype == torch.float32
    assert torch.allclose(found.float(), by_mask(tree, query, key, value, scaling=0.3), atol=0.05)


def test_another_attention_asked_for_is_left_alone_and_computes_the_same(tmp_path: Path) -> None:
    folder, pair = tiny_internvl(tmp_path / "m"), tiny_pairs(tmp_path / "p", 1)[0]
    vlm = VisionLanguageModel.load(folder, device="cpu")
    assert subject.has_tree_attention(vlm.model)
    vlm.model.save_pretrained(tmp_path / "saved")
    assert subject.NAME not in (tmp_path / "saved" / "config.json").read_text()
    row = pair_row(vlm, pair, tiny_base())
    with torch.no_grad():
        by_spans = completion_logprobs(vlm, [row])[0]
        vlm.model.set_attn_implementation("eager")
        other = VisionLanguageModel(vlm.model, vlm.processor)
        assert not subject.has_tree_attention(other.model)
        dense = completion_logprobs(other, [row])[0]
    for one, two in zip(by_spans, dense, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_span_says_what_it_sees() -> None:
    tree = TokenTree.build(["abcd", "abx", "abxyz", "q"])
    # The x of the second sequence and the yz of the third are one path.
    assert tree.spans() == (Span(0, 4, ()), Span(4, 7, ((0, 2),)), Span(7, 8, ()))
    assert tree.spans()[1].cut(2) == [Span(4, 6, ((0, 2),)), Span(6, 7, ((0, 2), (4, 6)))]
    assert tree.spans()[0].cut(3) == [Span(0, 3, ()), Span(3, 4, ((0, 3),))]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(1, 90), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 999))
def test_token_logprobs_equal_log_softmax(rows: int, tokens: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(rows, 40, generator=generator, dtype=dtype)).requires_grad_()
    other = copy.deepcopy(logits.detach()).requires_grad_()
    at, which = (torch.randint(0, high, (tokens,), generator=generator) for high in (rows, 40))
    above = torch.randn(tokens, generator=generator, dtype=dtype)
    found, expected = token_logprobs(logits, at, which), other.log_softmax(-1)[at, which]
    assert torch.allclose(found, expected, atol=1e-5)
    found.backward(above)
    expected.backward(above)
    assert logits.grad is not None and other.grad is not None
    assert torch.allclose(logits.grad, other.grad, atol=1e-5)
