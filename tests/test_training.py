"""Training: against TRL, overfitting, kills, resumption, adapters, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from dcr2ad.artifacts import write_records
from dcr2ad.cli import app
from dcr2ad.config import KrdpoSettings, SftSettings, TrainSettings
from dcr2ad.errors import InputError, ModelError, RunError
from dcr2ad.images import content_digest
from dcr2ad.leaks import find_overlap
from dcr2ad.models.adapters import merge_for_inference, read_trained, with_adapter
from dcr2ad.models.hf import HFModel
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.rankings import rank_of, reciprocal
from dcr2ad.routing import route_sample
from dcr2ad.training.batches import completion_logprobs, pair_row, sft_row
from dcr2ad.training.checkpoints import Checkpoint, Checkpoints, StepLog, read_log
from dcr2ad.training.krdpo import displaced, partners, train_krdpo
from dcr2ad.training.losses import dpo_loss, krdpo_loss, segment_sums, sft_loss
from dcr2ad.training.packing import pack_adapter
from dcr2ad.training.plan import Plan
from dcr2ad.training.sft import train_sft
from dcr2ad.training.weights import compute_dtype, load_trainable
from dcr2ad.types import PreferencePair, Subtask, Trajectory
from tests.tiny import tiny_base, tiny_internvl, tiny_pairs, tiny_questions, tiny_qwen

BASE = tiny_base()
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def qwen(folder: Path) -> Path:
    return tiny_qwen(folder / "qwen")


@pytest.fixture(scope="module")
def internvl(folder: Path) -> Path:
    return tiny_internvl(folder / "internvl")


def load(path: Path) -> VisionLanguageModel:
    return VisionLanguageModel.load(path, device="cpu")


def sft(model: Path, out: Path, photos: Path, n: int = 8, progress: Any = None, seed: int = 0, **more: Any) -> dict[str, Any]:
    settings = SftSettings(**{"learning_rate": 1e-3, "gradient_accumulation": 2, "save_steps": 3, **more})
    questions = tiny_questions(photos, n)
    return train_sft(load(model), questions, BASE, settings, out, base_spec=str(model), seed=seed, progress=progress)


def krdpo(
    model: Path, out: Path, photos: Path, n: int = 8, progress: Any = None, start: Path | None = None, **more: Any
) -> dict[str, Any]:
    settings = KrdpoSettings(**{"learning_rate": 1e-3, "gradient_accumulation": 2, "save_steps": 3, **more})
    pairs = tiny_pairs(photos, n)
    return train_krdpo(load(model), pairs, BASE, settings, out, base_spec=str(start or model), seed=0, progress=progress)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next((out / "model").glob("*.safetensors")))


def assert_same_weights(one: Path, two: Path, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(two)
    assert set(first) == set(second)
    for name in first:
        if tolerance == 0.0:
            assert torch.equal(first[name], second[name]), name
        else:
            assert torch.allclose(first[name], second[name], rtol=0, atol=tolerance), name


def assert_same_log(one: Path, two: Path) -> None:
    first, second = ([{**line, "seconds": 0} for line in read_log(out)] for out in (one, two))
    assert [line["step"] for line in first] == list(range(1, len(first) + 1))
    assert first == second


# --- the plan of steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_once_an_epoch(processes: int) -> None:
    plan = Plan(17, TrainSettings(batch_size=2, gradient_accumulation=2, epochs=2), processes, seed=5)
    an_epoch = -(-17 // (4 * processes))
    assert plan.total == 2 * an_epoch
    for epoch in range(2):
        seen = [row for step in range(an_epoch) for row in plan.step_rows(epoch * an_epoch + step)]
        assert sorted(seen) == list(range(17))
    assert plan.step_rows(0) != plan.step_rows(an_epoch)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_weigh_one_and_match_in_number(processes: int) -> None:
    plan = Plan(17, TrainSettings(batch_size=2, gradient_accumulation=2), processes, seed=5)
    for step in range(plan.total):
        shares = [plan.shares(step, process) for process in range(processes)]
        assert len({len(share) for share in shares}) == 1
        rows = [(row, weight) for share in shares for forward in share for row, weight in forward]
        assert sorted(row for row, weight in rows if weight) == sorted(plan.step_rows(step))
        assert sum(weight for _, weight in rows) == pytest.approx(1.0)


def test_groups_stay_together_and_every_row_comes_once() -> None:
    groups = ((0, 3, 4), (1,), (2, 5), (6, 7, 8, 9))
    plan = Plan(10, TrainSettings(batch_size=10, gradient_accumulation=1, epochs=2), 1, seed=5, groups=groups)
    orders = [plan.step_rows(epoch) for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(10))
        for group in groups:
            start = order.index(group[0])
            assert tuple(order[start : start + len(group)]) == group
    assert orders[0] != orders[1]


def test_max_steps() -> None:
    assert Plan(100, TrainSettings(max_steps=3), 1, seed=0).total == 3
    assert Plan(8, TrainSettings(max_steps=30), 1, seed=0).total == 1


# --- learning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen", "internvl"])
def test_sft_overfits_sixteen_rows(name: str, request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    model = request.getfixturevalue(name)
    more = {"learning_rate": 3e-3, "epochs": 10, "gradient_accumulation": 1, "batch_size": 4, "save_steps": 100}
    summary = sft(model, tmp_path, folder / "photos", 16, lambda done, total: told.append((done, total)), **more)
    assert summary["last_loss"] < 0.25 * summary["first_loss"]
    assert (summary["steps"], summary["rows"], summary["dropped"]) == (40, 16, {})
    assert told == [(step, 40) for step in range(41)]
    line = read_log(tmp_path)[-1]
    assert set(line) == {
        *("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds"),
        *("loss_path", "loss_reasoning", "loss_answer"),
    }
    assert not list(tmp_path.glob("checkpoint-*"))


def test_eight_pairs_until_every_path_margin_is_positive(qwen: Path, tmp_path: Path, folder: Path) -> None:
    # A large beta would be content once the reasoning differs; a small one goes on until the paths do.
    more = {"learning_rate": 1e-3, "epochs": 12, "gradient_accumulation": 1, "batch_size": 4, "beta": 0.1}
    summary = krdpo(qwen, tmp_path, folder / "photos", **more)
    first, last = read_log(tmp_path)[0], read_log(tmp_path)[-1]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert summary["last_loss"] < 0.05
    assert last["accuracy"] == last["accuracy_path"] == 1.0
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"])
    parts = ("path", "reasoning", "answer")
    assert last["margin"] == pytest.approx(sum(last[f"margin_{part}"] for part in parts), abs=1e-5)

    # The log's word is not taken: margins again, from the model as written against the model as it was.
    before, after = load(qwen), load(tmp_path / "model")
    with torch.no_grad():
        for pair in tiny_pairs(folder / "photos", 8):
            row = pair_row(after, pair, BASE)
            paths = []
            for model in (before, after):
                sums = [
                    segment_sums(values, torch.tensor(response.segments))
                    for values, response in zip(completion_logprobs(model, [row])[0], row.responses, strict=True)
                ]
                paths.append(float(sums[0][0] - sums[1][0]))
            assert paths[1] - paths[0] > 0, pair.id


def test_right_responses_that_become_unlikely_are_told_and_a_supervised_term_holds_them(
    qwen: Path, tmp_path: Path, folder: Path
) -> None:
    more = {"learning_rate": 3e-3, "epochs": 10, "gradient_accumulation": 1, "batch_size": 4}
    plain = krdpo(qwen, tmp_path / "plain", folder / "photos", **more)
    held = krdpo(qwen, tmp_path / "held", folder / "photos", sft_weight=5.0, **more)
    last = [line["log_ratio_chosen"] for line in read_log(tmp_path / "plain")[-2:]]
    assert plain["steps"] == 20 and plain["chosen_log_ratio"] == pytest.approx(sum(last) / 2)
    assert held["chosen_log_ratio"] > max(0.0, plain["chosen_log_ratio"]) and not displaced(held)


def test_questions_are_rehearsed_beside_the_pairs(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """The first step's loss by hand, Equation (5) plus the weight times Equation (2); what is rehearsed is kept up."""
    pairs = tiny_pairs(folder / "photos", 4)
    others = tiny_questions(folder / "photos", 12)  # the first four are the pairs' own
    more = {"learning_rate": 3e-3, "epochs": 6, "gradient_accumulation": 1, "batch_size": 4}
    settings = KrdpoSettings(**more, rehearsal_weight=0.5)  # type: ignore[arg-type]
    summary = train_krdpo(load(qwen), pairs, BASE, settings, tmp_path, base_spec=str(qwen), seed=0, rehearsed=others)
    beside = partners(pairs, others, 0)
    assert len({question.id for question in beside}) == 4 and not {q.id for q in beside} & {p.question.id for p in pairs}
    before, after = load(qwen), load(tmp_path / "model")

    def supervised(model: VisionLanguageModel) -> list[float]:
        with torch.no_grad():
            return sft_loss([completion_logprobs(model, [sft_row(model, q, BASE)])[0][0] for q in beside]).tolist()

    rows = read_log(tmp_path)
    mean = sum(supervised(before)) / 4
    assert rows[0]["rehearsal_loss"] == pytest.approx(mean, abs=1e-4)
    assert rows[0]["loss"] == pytest.approx(0.693147 + 0.5 * mean, abs=1e-4)
    plain = KrdpoSettings(**more)  # type: ignore[arg-type]
    train_krdpo(load(qwen), pairs, BASE, plain, tmp_path / "plain", base_spec=str(qwen), seed=0)
    assert sum(supervised(after)) < sum(supervised(load(tmp_path / "plain" / "model"))) - 1 and rows[-1]["margin"] > 0
    trained = set(read_trained(tmp_path / "model").train_images)
    assert {content_digest(question.sample.image) for question in beside} <= trained, "the leak guard knows them"
    assert summary["rows"] == 4
    assert summary["rehearsal_losses"] == [rows[0]["rehearsal_loss"], rows[-1]["rehearsal_loss"]]
    other = train_krdpo(load(qwen), pairs, BASE, settings, tmp_path, base_spec=str(qwen), seed=0, rehearsed=others)
    assert other == summary, "finished work is not done again"
    with pytest.raises(RunError, match="rehearsed"):
        train_krdpo(load(qwen), pairs, BASE, settings, tmp_path, base_spec=str(qwen), seed=0, rehearsed=others[:6])
    with pytest.raises(InputError, match="none of 4 questions can be rehearsed"):
        train_krdpo(load(qwen), pairs, BASE, settings, tmp_path / "none", base_spec=str(qwen), seed=0, rehearsed=others[:4])


def test_what_is_given_to_rehearse_is_never_passed_by_in_silence(tmp_path: Path, folder: Path) -> None:
    write_records(tmp_path / "pairs.jsonl", tiny_pairs(folder / "photos", 2))
    write_records(tmp_path / "questions.jsonl", tiny_questions(folder / "photos", 4))
    rest = ["krdpo", str(tmp_path / "pairs.jsonl"), "-m", "nano:base", "--rehearse", str(tmp_path / "questions.jsonl")]
    refused = CliRunner().invoke(app, [*rest, "-o", str(tmp_path / "out")])
    assert isinstance(refused.exception, InputError) and "rehearsal_weight is 0" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_sub_tasks_take_turns_in_what_is_rehearsed(folder: Path) -> None:
    pairs, questions = tiny_pairs(folder / "photos", 6), tiny_questions(folder / "photos", 16)
    rare = questions[9].model_copy(update={"subtask": Subtask.DETECTION})
    beside = partners(pairs, [*questions[:9], rare, *questions[10:]], 1)
    assert [question.id == "q9" for question in beside] == [True, False] * 3, (
        "the one verdict stands for its sub-task each time"
    )
    assert len({question.id for question in beside}) == 4
    without = questions[10].model_copy(update={"response": None})
    assert {question.id for question in partners(pairs, [*questions[:6], without, questions[11]], 1)} == {"q11"}


def test_few_questions_are_rehearsed_in_turn(folder: Path) -> None:
    beside = partners(tiny_pairs(folder / "photos", 5), tiny_questions(folder / "photos", 7), 3)
    assert Counter(question.id for question in beside).most_common() in (
        [("q5", 3), ("q6", 2)],
        [("q6", 3), ("q5", 2)],
    )


def test_the_selection_alone_is_preferred(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """``title``: the margin is of the path and grows; what stands behind the titles has no part in the loss."""
    krdpo(qwen, tmp_path, folder / "photos", tokens="title", epochs=3)
    rows = read_log(tmp_path)
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and rows[-1]["margin"] > 0
    assert rows[-1]["margin"] == pytest.approx(rows[-1]["margin_path"])
    assert not any("margin_reasoning" in row or "margin_answer" in row for row in rows)
    with pytest.raises(ValueError, match="leaves nothing to prefer"):
        KrdpoSettings(objective="dpo", tokens="title")


def test_distinct_tokens_alone_are_preferred(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """Equation (5) over what the two responses do not share, by hand from the models as they were and as written."""
    summary = krdpo(qwen, tmp_path, folder / "photos", tokens="distinct")
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    stored = [json.loads(line) for line in (tmp_path / "reference.jsonl").read_text().splitlines()]
    before, after = load(qwen), load(tmp_path / "model")
    margins = []
    with torch.no_grad():
        for pair, line in zip(tiny_pairs(folder / "photos", 8), stored, strict=True):
            row = pair_row(before, pair, BASE, scored="distinct")
            counted = [torch.tensor([segment >= 0 for segment in response.segments]) for response in row.responses]
            sums = [
                [float(values[mask].sum()) for values, mask in zip(completion_logprobs(model, [row])[0], counted, strict=True)]
                for model in (before, after)
            ]
            assert [sum(line["chosen"]), sum(line["rejected"])] == pytest.approx(sums[0], abs=1e-4)
            margins.append((sums[1][0] - sums[0][0]) - (sums[1][1] - sums[0][1]))
    assert summary["rows"] == 8 and sum(margins) / 8 > 0


def test_each_step_is_preferred_by_itself(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """``stepwise``: both margins grow, though beta is large; by hand from separate forwards of the models before and after."""
    more = {"learning_rate": 1e-3, "epochs": 12, "gradient_accumulation": 1, "batch_size": 4, "beta": 1.0}
    krdpo(qwen, tmp_path, folder / "photos", reasoning="stepwise", **more)
    rows = read_log(tmp_path)
    assert rows[0]["loss"] == pytest.approx(2 * 0.6931, abs=1e-4) and rows[-1]["loss"] < 0.2
    assert rows[-1]["accuracy_path"] == rows[-1]["accuracy_answer"] == 1.0
    stored = [json.loads(line) for line in (tmp_path / "reference.jsonl").read_text().splitlines()]
    before, after = load(qwen), load(tmp_path / "model")
    for pair, line in zip(tiny_pairs(folder / "photos", 8), stored, strict=True):
        assert pair.unrouted is not None
        wrong = pair.unrouted.model_copy(update={"why": pair.chosen.why})
        sums = [[_sums_alone(model, pair, given) for given in (pair.chosen, pair.rejected, wrong)] for model in (before, after)]
        assert line["chosen"] == pytest.approx(sums[0][0], abs=1e-4)
        assert line["rejected"] == pytest.approx([sums[0][1][0], *sums[0][2][1:]], abs=1e-4)
        chosen, path, content = (torch.tensor(now) - torch.tensor(then) for then, now in zip(*sums, strict=True))
        assert chosen[0] > path[0] and chosen[1:].sum() > content[1:].sum(), pair.id
    with pytest.raises(ValueError, match="leaves nothing of them"):
        KrdpoSettings(reasoning="stepwise", tokens="title")


def _sums_alone(model: VisionLanguageModel, pair: PreferencePair, response: Trajectory) -> list[float]:
    """Segment log-probabilities of one response, from a forward of its own."""
    row = sft_row(model, pair.question.model_copy(update={"response": response}), BASE)
    with torch.no_grad():
        values = completion_logprobs(model, [row])[0][0]
    return [float(number) for number in segment_sums(values, torch.tensor(row.responses[0].segments))]


@pytest.mark.parametrize(("ratio", "told"), [(-0.051, True), (-0.05, False), (0.3, False), (None, False)])
def test_displacement_is_told_below_its_limit_and_not_of_older_summaries(ratio: float | None, told: bool) -> None:
    said = displaced({} if ratio is None else {"chosen_log_ratio": ratio})
    assert bool(said) == told and ("sft_weight" in said) == told and ("-0.05" in said) == told


@pytest.mark.parametrize(("losses", "told"), [([0.10, 0.151], True), ([0.10, 0.149], False), ([0.2, 0.1], False)])
def test_rehearsed_questions_that_are_not_kept_up_are_told(losses: list[float], told: bool) -> None:
    said = displaced({"rehearsal_losses": losses})
    assert ("rehearsal_weight" in said) == bool(said) == told
    both = displaced({"rehearsal_losses": losses, "chosen_log_ratio": -1.0})
    assert "log-ratio -1.00" in both and ("; the rehearsed" in both) == told


def test_equation_4_trains_on_the_same_questions_without_a_wrong_path(qwen: Path, tmp_path: Path, folder: Path) -> None:
    made = {name: krdpo(qwen, tmp_path / name, folder / "photos", objective=name, beta=0.5) for name in ("krdpo", "dpo")}
    assert [made["dpo"][name] for name in ("steps", "rows")] == [made["krdpo"][name] for name in ("steps", "rows")] == [4, 8]
    kept = [json.loads(line) for line in (tmp_path / "dpo" / "reference.jsonl").read_text().splitlines()]
    before, after = load(qwen), load(tmp_path / "dpo" / "model")
    losses = []
    with torch.no_grad():
        for pair, stored in zip(tiny_pairs(folder / "photos", 8), kept, strict=True):
            row = pair_row(before, pair, BASE, "unrouted")
            (won, lost), (won_after, lost_after) = (completion_logprobs(model, [row])[0] for model in (before, after))
            assert sum(stored["chosen"]) == pytest.approx(float(won.sum()), abs=1e-4)
            assert sum(stored["rejected"]) == pytest.approx(float(lost.sum()), abs=1e-4)
            losses.append(dpo_loss(*(values.sum()[None] for values in (won_after, lost_after, won, lost)), beta=0.5))
    assert read_log(tmp_path / "dpo")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert float(torch.cat(losses).mean()) < 0.6  # by Equation (4) as printed, on the model as written
    assert read_log(tmp_path / "dpo")[-1]["margin_path"] == pytest.approx(0.0, abs=1e-6)  # one path, so nothing to prefer
    without = [pair.model_copy(update={"unrouted": None}) for pair in tiny_pairs(folder / "photos", 8)]
    with pytest.raises(InputError, match="holds no wrong answer"):
        train_krdpo(load(qwen), without, BASE, KrdpoSettings(objective="dpo"), tmp_path / "x", base_spec=str(qwen), seed=0)


@pytest.mark.parametrize("more", [{}, {**LORA, "train_projector": False}])
def test_routing_on_a_dev_set_is_logged_and_changes_nothing(
    more: dict[str, Any], internvl: Path, tmp_path: Path, folder: Path
) -> None:
    questions = tiny_questions(folder / "photos", 6)
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(question.model_dump_json() + "\n" for question in questions))
    krdpo(internvl, tmp_path / "plain", folder / "photos", epochs=2, **more)
    more |= {"routing_dev": str(dev), "routing_steps": 3}
    made = krdpo(internvl, tmp_path / "logged", folder / "photos", epochs=2, **more)
    assert_same_weights(tmp_path / "plain", tmp_path / "logged")

    # A run that is stopped after a measurement and goes on from the checkpoint before it logs the same.
    with pytest.raises(Stop):
        krdpo(internvl, tmp_path / "broken", folder / "photos", epochs=2, progress=stop_at(5), **more)
    krdpo(internvl, tmp_path / "broken", folder / "photos", epochs=2, **more)
    assert_same_log(tmp_path / "logged", tmp_path / "broken")

    lines = [json.loads(line) for line in (tmp_path / "logged" / "routing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6, 8]
    assert made["routing"] == {"before": lines[0], "after": lines[-1]}
    logged = {line["step"]: line["routing_top1"] for line in read_log(tmp_path / "logged") if "routing_top1" in line}
    assert logged == {line["step"]: line["top1"] for line in lines[1:]}

    # The last measurement is that of the model as written.
    model = HFModel.open(str(tmp_path / "logged" / "model"))
    samples = list({question.sample.image: question.sample for question in questions}.values())
    ranks = [rank_of(str(s.right_key), {e.key: e.probability for e in route_sample(model, s, BASE).ranking}) for s in samples]
    assert lines[-1]["photographs"] == len(samples) == 3
    assert lines[-1]["mrr"] == pytest.approx(sum(reciprocal(ranks)) / 3)

    with pytest.raises(InputError, match="no such file"):
        krdpo(internvl, tmp_path / "none", folder / "photos", routing_dev=str(tmp_path / "none.jsonl"))
    dev.write_text("")
    with pytest.raises(InputError, match="no photograph whose label"):
        krdpo(internvl, tmp_path / "none", folder / "photos", routing_dev=str(dev))


def test_accumulation_is_a_larger_batch(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """Losses and gradients agree; weights are not compared, AdamW makes whole steps of gradients that are rounding errors."""
    krdpo(qwen, tmp_path / "a", folder / "photos", gradient_accumulation=4, batch_size=1)
    krdpo(qwen, tmp_path / "b", folder / "photos", gradient_accumulation=1, batch_size=4)
    for one, two in zip(read_log(tmp_path / "a"), read_log(tmp_path / "b"), strict=True):
        for name in ("loss", "grad_norm", "margin", "tokens"):
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5), name


def test_gradient_checkpointing_trains_the_same(internvl: Path, tmp_path: Path, folder: Path) -> None:
    for name, on in (("a", False), ("b", True)):
        sft(internvl, tmp_path / name, folder / "photos", 4, gradient_checkpointing=on)
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-6)


@pytest.mark.parametrize("more", [{}, LORA, {**LORA, "train_projector": False}])
def test_bfloat16_with_float32_masters(more: dict[str, Any], internvl: Path, tmp_path: Path, folder: Path) -> None:
    """As on a GPU: frozen weights and products in bfloat16, trained weights in float32, so that small steps count."""
    vlm = VisionLanguageModel.load(internvl, device="cpu", dtype=torch.bfloat16)
    settings = SftSettings(learning_rate=3e-3, epochs=4, gradient_accumulation=2, **more)
    done = train_sft(vlm, tiny_questions(folder / "photos", 8), BASE, settings, tmp_path, base_spec="x", seed=0)
    assert done["last_loss"] < 0.95 * done["first_loss"]
    if more:  # a whole model is cast back when it is written
        assert {value.dtype for value in vlm.model.parameters() if value.requires_grad} == {torch.float32}
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32 if more else torch.bfloat16}


@pytest.mark.parametrize("more", [{}, LORA])
def test_precision_is_a_setting(more: dict[str, Any], internvl: Path, tmp_path: Path, folder: Path) -> None:
    """bf16 on a CPU: nearly the same steps, weights written in the model's own type, frozen ones untouched."""
    logs = {}
    for precision in ("fp32", "bf16"):
        sft(internvl, tmp_path / precision, folder / "photos", 4, precision=precision, **more)
        logs[precision] = read_log(tmp_path / precision)
        assert {value.dtype for value in weights(tmp_path / precision).values()} == {torch.float32}
    assert logs["bf16"][0]["loss"] == pytest.approx(logs["fp32"][0]["loss"], rel=0.02)
    assert logs["bf16"][0]["loss"] != logs["fp32"][0]["loss"]
    if not more:
        assert not any("vision_tower" in name for name in _changed(internvl, weights(tmp_path / "bf16")))


@pytest.mark.parametrize("able", [True, False])
def test_automatic_precision_goes_by_the_machine(able: bool, internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcr2ad.training.weights.cpu_has_bfloat16", lambda: able)
    assert compute_dtype(load(internvl), SftSettings()) == torch.float32
    assert compute_dtype(load(internvl), SftSettings(precision="auto")) == (torch.bfloat16 if able else torch.float32)


# --- what is trained and what is written ------------------------------------------------------------------------------------


def _changed(before: Path, after: dict[str, torch.Tensor]) -> set[str]:
    old = load_file(before / "model.safetensors")
    assert set(old) == set(after)
    return {name for name in old if not torch.equal(old[name], after[name])}


@pytest.mark.parametrize("name", ["qwen", "internvl"])
def test_vision_stays_frozen(name: str, request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> None:
    model = request.getfixturevalue(name)

    def kinds(out: Path) -> set[str]:
        def kind(key: str) -> str:
            if "merger" in key or "projector" in key:
                return "projector"
            return "vision" if "visual" in key or "vision" in key else "language"

        return {kind(key) for key in _changed(model, weights(out))}

    sft(model, tmp_path / "a", folder / "photos", 2)
    assert kinds(tmp_path / "a") == {"projector", "language"}
    sft(model, tmp_path / "b", folder / "photos", 2, train_projector=False)
    assert kinds(tmp_path / "b") == {"language"}
    sft(model, tmp_path / "c", folder / "photos", 2, freeze_vision=False)
    assert kinds(tmp_path / "c") == {"projector", "language", "vision"}


def test_whole_model_is_a_model_folder(internvl: Path, tmp_path: Path, folder: Path) -> None:
    sft(internvl, tmp_path, folder / "photos", 4)
    about = read_trained(tmp_path / "model")
    assert (about.kind, about.stage, about.base) == ("full", "sft", str(internvl))
    questions = tiny_questions(folder / "photos", 4)
    assert set(about.train_images) == {content_digest(question.sample.image) for question in questions}
    images = [question.sample.image for question in questions]
    assert {match.by for match in find_overlap(about.train_images, about.train_hashes, images)} == {"content"}
    assert len(find_overlap({}, about.train_hashes, images)) == len(set(images))
    assert about.recipe["gradient_accumulation"] == 2
    assert (about.data, about.objects) == ({"tiny": 2}, {"tiny/widget": 2})
    assert HFModel.open(str(tmp_path / "model")).info.trained_on == ("tiny/widget",)
    load(tmp_path / "model")


@pytest.mark.parametrize("name", ["qwen", "internvl"])
def test_one_adapter_through_both_stages(name: str, request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> None:
    model = request.getfixturevalue(name)
    sft(model, tmp_path / "sft", folder / "photos", 4, **LORA)
    adapter = tmp_path / "sft" / "model"
    krdpo(model, tmp_path / "krdpo", folder / "photos", 6, start=adapter, beta=0.5, **LORA)
    about = read_trained(tmp_path / "krdpo" / "model")
    assert (about.kind, about.base, about.stage) == ("adapter", str(model), "krdpo")
    assert set(read_trained(adapter).train_images) < set(about.train_images)
    assert set(about.train_hashes) == set(about.train_images)

    # pi_ref is the SFT model, and not the base: the kept scores are the merged SFT adapter's.
    merged = load(model)
    merged.model = merge_for_inference(merged.model, adapter)
    row = pair_row(merged, tiny_pairs(folder / "photos", 1)[0], BASE)
    with torch.no_grad():
        sums = segment_sums(completion_logprobs(merged, [row])[0][0], torch.tensor(row.responses[0].segments))
        plain = segment_sums(completion_logprobs(load(model), [row])[0][0], torch.tensor(row.responses[0].segments))
    kept = json.loads((tmp_path / "krdpo" / "reference.jsonl").read_text().splitlines()[0])
    assert kept["chosen"] == pytest.approx(sums.tolist(), abs=1e-4)
    assert kept["chosen"] != pytest.approx(plain.tolist(), abs=1e-2)

    # Merged for inference, the result says what the trained model says.
    result, trained = load(model), load(model)
    result.model = merge_for_inference(result.model, tmp_path / "krdpo" / "model")
    load_trainable(trained, KrdpoSettings(**LORA), tmp_path / "krdpo" / "model")
    with torch.no_grad():
        one, two = (completion_logprobs(vlm, [row])[0] for vlm in (result, trained))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["qwen", "internvl"])
def test_plain_lora_is_merged_without_peft_to_the_same_bits(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(name)
    sft(model, tmp_path / "sft", folder / "photos", 2, **LORA)
    plain, scaled = tmp_path / "sft" / "model", tmp_path / "scaled"
    shutil.copytree(plain, scaled)
    config = json.loads((scaled / "adapter_config.json").read_text())
    (scaled / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    by_peft = {
        adapter: with_adapter(load(model).model, adapter, trainable=False).merge_and_unload().state_dict()
        for adapter in (plain, scaled)
    }
    assert not all(torch.equal(by_peft[plain][key], value) for key, value in by_peft[scaled].items())
    merged = merge_for_inference(load(model).model, scaled).state_dict()  # more than plain: peft's work
    assert all(torch.equal(by_peft[scaled][key], value) for key, value in merged.items())
    monkeypatch.setattr("dcr2ad.models.adapters.with_adapter", None)
    merged = merge_for_inference(load(model).model, plain).state_dict()
    assert set(merged) == set(by_peft[plain]) and all(torch.equal(by_peft[plain][key], value) for key, value in merged.items())
    rounded = merge_for_inference(load(model).model, plain, kept_in=torch.bfloat16)
    assert {value.dtype for value in rounded.state_dict().values()} > {torch.bfloat16}, "what has changed is rounded, no other"
    halved = rounded.to(torch.bfloat16).state_dict()
    assert all(torch.equal(by_peft[plain][key].to(torch.bfloat16), value) for key, value in halved.items())


def test_a_packed_adapter_is_half_the_size_and_says_nearly_the_same(internvl: Path, tmp_path: Path, folder: Path) -> None:
    sft(internvl, tmp_path / "sft", folder / "photos", 4, **LORA)
    adapter, packed = tmp_path / "sft" / "model", tmp_path / "packed"
    about = pack_adapter(adapter, packed)
    sizes = [(path / "adapter_model.safetensors").stat().st_size for path in (packed, adapter)]
    assert sizes[0] < 0.6 * sizes[1]
    assert read_trained(packed) == about and about.digest != read_trained(adapter).digest
    row = sft_row(load(internvl), tiny_questions(folder / "photos", 1, direct_every=0)[0], BASE)
    found = []
    for path in (adapter, packed):
        vlm = load(internvl)
        vlm.model = merge_for_inference(vlm.model, path)
        with torch.no_grad():
            found.append(completion_logprobs(vlm, [row])[0][0])
    assert torch.allclose(*found, atol=0.05) and not torch.equal(*found)
    with pytest.raises(InputError, match="exists already"):
        pack_adapter(adapter, packed)


def test_sft_goes_on_with_the_adapter_it_starts_from(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """A further stage leaves one adapter on the first base, which has learnt from both; its images are those of both."""
    sft(qwen, tmp_path / "first", folder / "photos", 4, **LORA)
    first, later = tmp_path / "first" / "model", tiny_questions(folder / "photos", 8)[4:]
    settings = SftSettings(learning_rate=1e-3, **LORA)
    done = train_sft(load(qwen), later, BASE, settings, tmp_path / "second", base_spec=str(first), seed=0)
    one, two = read_trained(first), read_trained(tmp_path / "second" / "model")
    assert (two.kind, two.base, two.base_digest) == ("adapter", one.base, one.base_digest)
    assert set(one.train_images) < set(two.train_images)
    alone = train_sft(load(qwen), later, BASE, settings, tmp_path / "alone", base_spec=str(qwen), seed=0)
    assert done["first_loss"] < alone["first_loss"]  # begins where the first stage ended
    merged = load(qwen)
    merged.model = merge_for_inference(merged.model, first)
    with pytest.raises(InputError, match="without the adapter"):
        train_sft(merged, later, BASE, settings, tmp_path / "merged", base_spec=str(first), seed=0)


def test_adapter_on_another_base_is_refused(qwen: Path, tmp_path: Path, folder: Path) -> None:
    sft(qwen, tmp_path / "sft", folder / "photos", 2, **LORA)
    adapter = tmp_path / "sft" / "model"
    other = tiny_qwen(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="not the one that the adapter"):
        krdpo(other, tmp_path / "krdpo", folder / "photos", 2, start=adapter, **LORA)
    with pytest.raises(InputError, match="trained with r 4, now 16"):
        krdpo(qwen, tmp_path / "krdpo", folder / "photos", 2, start=adapter, **{**LORA, "lora_rank": 16})
    with pytest.raises(ModelError, match="does not fit"):
        merge_for_inference(load(tiny_qwen(tmp_path / "deeper", layers=3)).model, adapter)
    with pytest.raises(ModelError, match=r"no dcr2ad\.json"):
        read_trained(other)


def test_start_that_is_not_the_sft_model_is_refused(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """pi_ref is the SFT model: neither its base passes for it, nor the adapter merged and then applied again."""
    sft(qwen, tmp_path / "full", folder / "photos", 2)
    with pytest.raises(InputError, match="not the SFT model"):
        krdpo(qwen, tmp_path / "krdpo", folder / "photos", 2, start=tmp_path / "full" / "model")
    sft(qwen, tmp_path / "lora", folder / "photos", 2, **LORA)
    adapter, merged = tmp_path / "lora" / "model", load(qwen)
    merged.model = merge_for_inference(merged.model, adapter)
    pairs = tiny_pairs(folder / "photos", 2)
    with pytest.raises(InputError, match="without the adapter"):
        train_krdpo(merged, pairs, BASE, KrdpoSettings(**LORA), tmp_path / "krdpo", base_spec=str(adapter), seed=0)


def test_rows_without_response_are_counted(qwen: Path, tmp_path: Path, folder: Path) -> None:
    questions = tiny_questions(folder / "photos", 4)
    questions[1] = questions[1].model_copy(update={"response": None})
    done = train_sft(load(qwen), questions, BASE, SftSettings(), tmp_path / "a", base_spec="x", seed=0)
    assert (done["rows"], done["dropped"]) == (3, {"no response": 1})
    with pytest.raises(InputError, match="none of 1 questions has a response"):
        train_sft(load(qwen), questions[1:2], BASE, SftSettings(), tmp_path / "b", base_spec="x", seed=0)


def test_pairs_without_difference_are_counted(qwen: Path, tmp_path: Path, folder: Path) -> None:
    pairs = tiny_pairs(folder / "photos", 3)
    pairs[0] = pairs[0].model_copy(update={"rejected": pairs[0].chosen})
    done = train_krdpo(load(qwen), pairs, BASE, KrdpoSettings(), tmp_path, base_spec="x", seed=0)
    assert (done["rows"], done["dropped"]) == (2, {"chosen and rejected are equal": 1})


def test_loss_that_is_no_number_stops_the_run(qwen: Path, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"at step \d+ the loss is"):
        sft(qwen, tmp_path, folder / "photos", 8, learning_rate=1e30, warmup_ratio=0.0)
    assert not (tmp_path / "model").exists()


# --- stopping and going on --------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_training import krdpo, sft
from dcr2ad.training import checkpoints

stage, model, out, photos, at = sys.argv[1:6]
if at == "checkpoint":
    save, written = torch.save, []
    def torn(state, path):
        save(state, path)
        written.append(path)
        if len(written) == 2:
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save = torn
def progress(done, total):
    if at.isdigit() and done == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
extra = {"method": "lora", "lora_rank": 4, "lora_alpha": 8} if stage == "krdpo" else {}
{"sft": sft, "krdpo": krdpo}[stage](Path(model), Path(out), Path(photos), progress=progress, epochs=3, **extra)
"""


def killed(stage: str, model: Path, out: Path, photos: Path, at: str) -> None:
    """Run a stage in a process of its own that is killed with SIGKILL on the way."""
    command = [sys.executable, "-c", KILLED, stage, str(model), str(out), str(photos), at]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "run", "extra"), [("sft", sft, {}), ("krdpo", krdpo, LORA)])
def test_killed_run_ends_bitwise_as_the_unbroken_one(
    stage: str, run: Callable[..., Any], extra: dict[str, Any], qwen: Path, tmp_path: Path, folder: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = run(qwen, whole, folder / "photos", epochs=3, **extra)
    assert summary["steps"] == 12
    killed(stage, qwen, broken, folder / "photos", "5")  # between two checkpoints: steps 4 and 5 are lost
    assert [line["step"] for line in read_log(broken)] == [1, 2, 3, 4, 5]
    assert [path.name for path in broken.glob("checkpoint-*")] == ["checkpoint-00000003"]
    killed(stage, qwen, broken, folder / "photos", "checkpoint")  # while the second checkpoint of its own, step 9, is written
    assert [path.name for path in broken.glob("checkpoint-*")] == ["checkpoint-00000006"]
    with (broken / "log.jsonl").open("a") as log:
        log.write('{"step": 10, "lo')  # a torn line, as a power cut leaves it
    told: list[int] = []
    again = run(qwen, broken, folder / "photos", epochs=3, progress=lambda done, total: told.append(done), **extra)
    assert told == [6, 7, 8, 9, 10, 11, 12]
    assert_same_weights(whole, broken)
    assert_same_log(whole, broken)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert read_trained(whole / "model").digest == read_trained(broken / "model").digest


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stop

    return progress


def test_adapter_resumes_as_unbroken(internvl: Path, tmp_path: Path, folder: Path) -> None:
    """Under LoRA with a frozen projector: cached features, an SFT adapter that is trained on, weighted segments."""
    photos = folder / "photos"
    more = {**LORA, "train_projector": False}
    sft(internvl, tmp_path / "sft", photos, 4, **more)
    more |= {"start": tmp_path / "sft" / "model", "epochs": 2, "sft_weight": 0.1, "path_weight": 2.0, "reasoning": "shared"}
    krdpo(internvl, tmp_path / "whole", photos, **more)
    with pytest.raises(Stop):
        krdpo(internvl, tmp_path / "broken", photos, progress=stop_at(4), **more)
    krdpo(internvl, tmp_path / "broken", photos, **more)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert_same_log(tmp_path / "whole", tmp_path / "broken")


def test_finished_work_is_not_done_again(qwen: Path, tmp_path: Path, folder: Path) -> None:
    first = sft(qwen, tmp_path, folder / "photos", 2)
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    again = sft(qwen, tmp_path, folder / "photos", 2, progress=stop_at(0))
    assert first == again
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="learning_rate"):
        sft(qwen, tmp_path, folder / "photos", 2, learning_rate=1e-4)
    with pytest.raises(RunError, match="seed"):
        sft(qwen, tmp_path, folder / "photos", 2, seed=1)
    with pytest.raises(RunError, match="base"):
        sft(tiny_qwen(tmp_path / "other", seed=1), tmp_path, folder / "photos", 2)
    with pytest.raises(RunError, match="questions"):
        sft(qwen, tmp_path, folder / "photos", 3)
    questions = tiny_questions(folder / "photos", 3)
    again = train_sft(load(qwen), questions, BASE, SftSettings(), tmp_path, base_spec="x", seed=0, fresh=True)
    assert again["rows"] == 3


def test_reference_is_kept_continued_and_checked(qwen: Path, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Stop):
        krdpo(qwen, tmp_path, folder / "photos", progress=stop_at(0))
    file = tmp_path / "reference.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    file.write_text("".join(lines[:5]) + lines[5][:40])  # killed while it was written
    with pytest.raises(Stop):
        krdpo(qwen, tmp_path, folder / "photos", progress=stop_at(0))
    assert file.read_text().splitlines(keepends=True) == lines
    other = json.loads(lines[2])
    file.write_text("".join(lines[:2]) + json.dumps({**other, "model": "another"}) + "\n")
    with pytest.raises(RunError, match="another model or other pairs"):
        krdpo(qwen, tmp_path, folder / "photos")


def test_checkpoint_files(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load(torch.device("cpu")) is None
    for step in (3, 6):
        checkpoints.save(Checkpoint(step, {"w": torch.tensor([float(step)])}, {"state": {}, "param_groups": []}))
    (tmp_path / ".checkpoint.tmp").mkdir()  # left by a kill
    found = checkpoints.load(torch.device("cpu"))
    assert found is not None and found.step == 6 and found.weights["w"].item() == 6.0
    (tmp_path / "checkpoint-00000006" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot be read"):
        checkpoints.load(torch.device("cpu"))
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def test_log_is_cut_back(tmp_path: Path) -> None:
    log = StepLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0})
    log.close()
    again = StepLog(tmp_path, 2)
    again.write({"step": 3, "loss": 2.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


# --- against others ---------------------------------------------------------------------------------------------------------


def test_loss_and_gradients_equal_trl(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """TRL's DPOTrainer on the same tokens: two rows a pair, its own reference model, its own forward and loss."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    vlm, reference = load(qwen), load(qwen)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for value in vlm.model.parameters():
            value += 0.3 * value.std(unbiased=False) * torch.randn(value.shape, generator=generator)
    pairs = tiny_pairs(folder / "photos", 3)
    rows = [pair_row(vlm, pair, BASE) for pair in pairs]

    both = [(row, response) for which in (0, 1) for row in rows for response in [row.responses[which]]]
    length = max(row.longest for row in rows)
    batch = {
        name: torch.zeros(len(both), length, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for i, (row, response) in enumerate(both):
        ids = [*row.prompt.ids, *response.ids]
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][i, : len(ids)] = 1
        batch["completion_mask"][i, len(row.prompt.ids) : len(ids)] = 1
    batch["mm_token_type_ids"] = (batch["input_ids"] == vlm.image_token_id).int()
    pixels = [vlm.pixel_inputs(path) for row, _ in both for path in row.prompt.images]
    for name in ("pixel_values", "image_grid_thw"):
        batch[name] = torch.cat([image[name] for image in pixels])

    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
    )
    message = [{"role": "user", "content": "q"}]
    picture = datasets.Dataset.from_dict(
        {
            "prompt": [message],
            "chosen": [[{"role": "assistant", "content": "a"}]],
            "rejected": [[{"role": "assistant", "content": "b"}]],
        }
    )
    trainer = trl.DPOTrainer(
        model=vlm.model, ref_model=reference.model, args=arguments, train_dataset=picture, processing_class=vlm.processor
    )
    vlm.model.zero_grad()
    theirs = trainer.compute_loss(vlm.model, dict(batch))
    theirs.backward()
    expected = {name: value.grad.clone() for name, value in vlm.model.named_parameters() if value.grad is not None}

    def sums(model: VisionLanguageModel, which: int) -> torch.Tensor:
        found = completion_logprobs(model, rows, images="pixels")
        parts = [
            segment_sums(values[which], torch.tensor(row.responses[which].segments))
            for row, values in zip(rows, found, strict=True)
        ]
        return torch.stack(parts)

    with torch.no_grad():
        kept = sums(reference, 0), sums(reference, 1)
    vlm.model.zero_grad()
    ours = krdpo_loss(sums(vlm, 0), sums(vlm, 1), *kept, beta=0.3).losses.mean()
    ours.backward()
    ours = ours.detach()
    assert abs(float(ours) - 0.6931) > 0.05  # the models differ, so that the loss says something
    assert float(ours) == pytest.approx(float(theirs), abs=1e-4)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in vlm.model.named_parameters():
        if name in expected:
            assert value.grad is not None
            assert float((value.grad - expected[name]).abs().max()) < 1e-4 * largest, name


@pytest.mark.slow
def test_two_processes_train_as_one(qwen: Path, tmp_path: Path, folder: Path) -> None:
    """torchrun with two processes against one with the same global batch; the last step has rows for one process only."""
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from tests.test_training import krdpo\n"
        "krdpo(*map(Path, sys.argv[1:4]), n=5, gradient_accumulation=2)\n"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    krdpo(qwen, tmp_path / "one", folder / "photos", 5, gradient_accumulation=4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += [str(qwen), str(tmp_path / "two"), str(folder / "photos")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)
    for one, two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        for name in set(one) - {"seconds", "tokens"}:  # a process without a row computes one again
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_processes_part_before_python_ends(tmp_path: Path) -> None:
    script = tmp_path / "part.py"
    script.write_text(
        "import atexit, os, torch.distributed; from dcr2ad.training.launch import open_accelerator\n"
        "atexit.register(lambda: os._exit(3 if torch.distributed.is_initialized() else 0))  # the first registered runs last\n"
        "assert open_accelerator(cpu=True).num_processes == 2\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.mark.slow
def test_of_two_processes_one_tells_what_was_done(qwen: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "questions.jsonl", tiny_questions(tmp_path / "photos", 4))
    (tmp_path / "recipe.toml").write_text('name = "two"\n[sft]\nlearning_rate = 1e-3\ngradient_accumulation = 1\n')
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dcr2ad.cli"]
    BASE.save(tmp_path / "entries.jsonl")
    asked = ["sft", str(tmp_path / "questions.jsonl"), "-m", f"hf:{qwen}", "-o", str(tmp_path / "out")]
    asked += ["--knowledge", str(tmp_path / "entries.jsonl"), "--recipe", str(tmp_path / "recipe.toml")]
    for once in ("trained", "asked again"):
        done = subprocess.run([*launch, *asked], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("written: ") == 1 and done.stdout.count("steps") == 1, once
