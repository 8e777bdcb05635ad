"""The paper's objectives as pure tensor functions: Equations (2), (4) and (5).

Reads log-probabilities of response tokens under the policy and under the reference; returns one loss a row and what is worth
logging. Knows nothing about models, rows of tokens or training loops.

How the preference objectives relate. y = (p, c, A) and log pi(y|x) is the sum of its segments' log-probabilities, so on whole
responses Equation (4) and Equation (5) are the same expression: the sums over p, c and A of log pi/pi_ref. What makes KR-DPO
is the pair: in D_select the two responses reason equally well and differ in the knowledge they select (KR-RTS, Section 3.3),
while a plain DPO pair is any right and any wrong response: here, for the ablation, a wrong one under the same knowledge. Hence
there is one implementation; `dpo_loss` is Equation (4) as printed and the tests hold the two together. The paper writes one c
for both paths and says that it stays consistent "within their respective knowledge sources". The reading ``matched`` scores
(p_w, c_w) against (p_l, c_l), the reading ``shared`` (p_w, c_w) against (p_l, c_w). All three differ in the rejected response's
tokens, hence in `dcr2ad.training.batches`, not here. ``stepwise``, which is not in the paper, rejects p_l beside p_w and a
wrong c beside the right one behind the same p_w, and has one logistic loss for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

SEGMENTS = ("path", "reasoning", "answer")
"""Order of the segments of y = (p, c, A) in every tensor's last axis."""


@dataclass(frozen=True)
class PreferenceLoss:
    """What a batch of B preference pairs gives.

    Attributes:
        losses: loss of each pair, shape ``(B,)``, with gradient.
        chosen_ratios: log pi_theta/pi_ref of y_w by segment, shape ``(B, 3)``, no gradient, nats.
        rejected_ratios: the same of y_l.
        beta: temperature the rewards below are scaled with.
    """

    losses: torch.Tensor
    chosen_ratios: torch.Tensor
    rejected_ratios: torch.Tensor
    beta: float

    @property
    def chosen_rewards(self) -> torch.Tensor:
        """Implicit reward of each chosen response, beta * log pi_theta/pi_ref(y_w|x), shape ``(B,)``."""
        return self.beta * self.chosen_ratios.sum(-1)

    @property
    def rejected_rewards(self) -> torch.Tensor:
        """Implicit reward of each rejected response, shape ``(B,)``."""
        return self.beta * self.rejected_ratios.sum(-1)

    @property
    def segment_margins(self) -> torch.Tensor:
        """Reward of chosen minus rejected by segment, unweighted, shape ``(B, 3)``."""
        return self.beta * (self.chosen_ratios - self.rejected_ratios)

    @property
    def margins(self) -> torch.Tensor:
        """Reward of chosen minus rejected, unweighted, shape ``(B,)``."""
        return self.chosen_rewards - self.rejected_rewards


def sft_loss(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Equation (2), as a mean over tokens.

    The equation sums -log P(y_k | X, y_<k) over the L tokens of a response and takes the expectation over responses. Here each
    response's sum is divided by its own L: the gradient of a response then does not grow with its length, and a direct answer
    counts as much as a reasoned one. The paper's sum is this value times L; it does not say which of the two was trained.

    Args:
        logprobs: B responses, each the log-probabilities of its tokens, shape ``(L_i,)``, nats.

    Returns:
        loss of each response, shape ``(B,)``.
    """
    return torch.stack([-row.mean() for row in logprobs])


def segment_sums(logprobs: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Log-probability of each segment of one response.

    Args:
        logprobs: log-probability of each token, shape ``(L,)``, nats.
        segments: index into `SEGMENTS` of each token, shape ``(L,)``, integers.

    Returns:
        shape ``(3,)``; zero for a segment the response does not have.
    """
    return torch.stack([logprobs[segments == number].sum() for number in range(len(SEGMENTS))])


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Equation (4): -log sigmoid(beta log pi/pi_ref(y_w|x) - beta log pi/pi_ref(y_l|x)).

    Args:
        policy_chosen: log pi_theta(y_w|x), shape ``(B,)``, nats.
        policy_rejected: log pi_theta(y_l|x).
        reference_chosen: log pi_ref(y_w|x).
        reference_rejected: log pi_ref(y_l|x).
        beta: temperature; not in the paper.

    Returns:
        loss of each pair, shape ``(B,)``.
    """
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return -logsigmoid(beta * chosen - beta * rejected)


def krdpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    beta: float,
    path_weight: float = 1.0,
    reasoning_weight: float = 1.0,
    stepwise: bool = False,
) -> PreferenceLoss:
    """Equation (5): -log sigmoid(beta log pi/pi_ref(p_w, c|x) - beta log pi/pi_ref(p_l, c|x)), by segment.

    The paper's content c holds the reasoning and the answer, so `reasoning_weight` weighs both. With both weights at one, the
    default, this is the equation; other weights are not in the paper.

    Args:
        policy_chosen: log pi_theta of y_w's path, reasoning and answer, shape ``(B, 3)``, nats.
        policy_rejected: the same of y_l: (p_l, c_l) under ``matched``, (p_l, c_w) under ``shared``; under ``stepwise`` p_l, and
            a wrong c behind p_w.
        reference_chosen: under pi_ref, the SFT model.
        reference_rejected: under pi_ref.
        beta: temperature; not in the paper.
        path_weight: weight of the path's log-ratios.
        reasoning_weight: weight of the log-ratios of reasoning and answer.
        stepwise: the sum of two logistic losses, of the path and of the content, in place of the one of their sum. Not in the
            paper.
    """
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    weights = chosen.new_tensor([path_weight, reasoning_weight, reasoning_weight])
    margins = beta * (chosen - rejected) * weights
    steps = (margins[:, :1], margins[:, 1:]) if stepwise else (margins,)
    losses = torch.stack([-logsigmoid(step.sum(-1)) for step in steps]).sum(0)
    return PreferenceLoss(losses, chosen.detach(), rejected.detach(), beta)
