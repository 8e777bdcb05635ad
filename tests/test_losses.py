"""The objectives against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dcr2ad.training.losses import dpo_loss, krdpo_loss, segment_sums, sft_loss


def test_equation_2_is_the_mean_over_a_responses_tokens() -> None:
    # Token probabilities 1/2, 1/4, 1/8: -log sums to 6 log 2 over three tokens; the other response has one token of 1/2.
    logprobs = [torch.tensor([0.5, 0.25, 0.125]).log(), torch.tensor([0.5]).log()]
    losses = sft_loss(logprobs)
    assert losses.tolist() == pytest.approx([2 * math.log(2), math.log(2)])
    assert losses[0].item() * 3 == pytest.approx(6 * math.log(2))  # times L it is the paper's sum


def test_equation_2_pulls_every_token_alike() -> None:
    tokens = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    sft_loss([tokens])[0].backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [-0.25] * 4


def test_segment_sums() -> None:
    sums = segment_sums(torch.tensor([-1.0, -2.0, -4.0, -8.0]), torch.tensor([0, 0, 2, 2]))
    assert sums.tolist() == [-3.0, 0.0, -12.0]


def test_equation_4_by_hand() -> None:
    # log-ratios: chosen -10 - -12 = 2, rejected -9 - -8 = -1; beta 0.5: sigmoid(1 + 0.5).
    loss = dpo_loss(torch.tensor([-10.0]), torch.tensor([-9.0]), torch.tensor([-12.0]), torch.tensor([-8.0]), beta=0.5)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))), rel=1e-6)
    same = dpo_loss(*[torch.tensor([-7.0])] * 4, beta=0.1)
    assert same.item() == pytest.approx(math.log(2))


POLICY_W, POLICY_L = torch.tensor([[-1.0, -5.0, -0.5]]), torch.tensor([[-4.0, -6.0, -2.0]])
REFERENCE_W, REFERENCE_L = torch.tensor([[-2.0, -4.5, -1.0]]), torch.tensor([[-3.0, -5.0, -2.25]])
# ratios chosen: 1, -0.5, 0.5; rejected: -1, -1, 0.25


def test_equation_5_by_hand() -> None:
    outcome = krdpo_loss(POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, beta=0.1)
    # chosen sum 1.0, rejected sum -1.75: margin 2.75 times beta
    assert outcome.losses.item() == pytest.approx(math.log(1 + math.exp(-0.275)), rel=1e-6)
    assert outcome.chosen_rewards.item() == pytest.approx(0.1)
    assert outcome.rejected_rewards.item() == pytest.approx(-0.175)
    assert outcome.margins.item() == pytest.approx(0.275)
    assert outcome.segment_margins[0].tolist() == pytest.approx([0.2, 0.05, 0.025])


def test_equation_5_with_weights_by_hand() -> None:
    # path 2 x 2, reasoning and answer 0.5 x (0.5 + 0.25)
    outcome = krdpo_loss(POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, beta=1.0, path_weight=2.0, reasoning_weight=0.5)
    assert outcome.losses.item() == pytest.approx(math.log(1 + math.exp(-4.375)), rel=1e-5)
    assert outcome.margins.item() == pytest.approx(2.75)  # what is reported stays unweighted


def test_steps_have_a_loss_each_by_hand() -> None:
    # path: 1 - -1 = 2; reasoning and answer: (-0.5 - -1) + (0.5 - 0.25) = 0.75
    outcome = krdpo_loss(POLICY_W, POLICY_L, REFERENCE_W, REFERENCE_L, beta=0.1, stepwise=True)
    by_hand = math.log(1 + math.exp(-0.2)) + math.log(1 + math.exp(-0.075))
    assert outcome.losses.item() == pytest.approx(by_hand, rel=1e-6)
    assert outcome.margins.item() == pytest.approx(0.275)
    # A content that is won by far pays for no path: its loss stays what the path's margin makes it.
    far = POLICY_L - torch.tensor([[0.0, 1e3, 0.0]])
    paid, unpaid = (
        krdpo_loss(POLICY_W, far, REFERENCE_W, REFERENCE_L, beta=0.1, stepwise=s).losses.item() for s in (False, True)
    )
    assert paid == pytest.approx(0.0, abs=1e-6) and unpaid == pytest.approx(math.log(1 + math.exp(-0.2)), rel=1e-6)


def test_equation_5_on_whole_responses_is_equation_4() -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [-10 * torch.rand(16, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    by_segment = krdpo_loss(*parts, beta=0.3).losses
    whole = dpo_loss(*[part.sum(-1) for part in parts], beta=0.3)
    assert torch.allclose(by_segment, whole, rtol=0, atol=1e-14)


def test_gradient_by_hand() -> None:
    # d/dz -log sigmoid(beta z) = -beta sigmoid(-beta z), the same for every segment, opposite for the rejected response
    chosen, rejected = POLICY_W.clone().requires_grad_(), POLICY_L.clone().requires_grad_()
    krdpo_loss(chosen, rejected, REFERENCE_W, REFERENCE_L, beta=0.1).losses.sum().backward()
    pull = 0.1 / (1 + math.exp(0.275))
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad[0].tolist() == pytest.approx([-pull] * 3)
    assert rejected.grad[0].tolist() == pytest.approx([pull] * 3)


def test_far_margins_stay_finite() -> None:
    far = torch.tensor([[-1e4, 0.0, 0.0]])
    zero = torch.zeros(1, 3)
    assert krdpo_loss(far, zero, zero, zero, beta=1.0).losses.item() == pytest.approx(1e4)
    assert krdpo_loss(zero, far, zero, zero, beta=1.0).losses.item() == 0.0
