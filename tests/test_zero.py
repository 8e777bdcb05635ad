"""DeepSpeed's ZeRO: what it trains, keeps and writes, against one process; two processes over gloo, no GPU."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcr2ad.config import SftSettings
from dcr2ad.errors import ModelError
from dcr2ad.training import zero
from dcr2ad.training.checkpoints import read_log
from dcr2ad.training.launch import check_launch
from tests.test_sharding import (
    CASES,
    assert_same_first_step,
    assert_same_reference,
    assert_same_routing,
    assert_same_run,
    train_by_one_and_two,
)
from tests.test_training import assert_same_log, assert_same_weights, sft, weights
from tests.tiny import tiny_qwen

RECIPES = Path(__file__).parents[1] / "recipes"
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed (extra: deepspeed)")

STAGES = {"zero1": ["full"], "zero2": list(CASES), "zero3": list(CASES)}
"""Which cases of `tests.test_sharding` are trained under which stage."""
TWO = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dcr2ad.errors import ModelError
from dcr2ad.training import trainer
from dcr2ad.training.zero import Zero
from tests import test_training as single
from tests.test_sharding import train
from tests.test_zero import DEEPSPEED, STAGES

folder = Path(sys.argv[1])
spread, step = Zero._spread, trainer._Run.step

def noted(self, model, *arguments, **more):
    whole = sum(value.nbytes for value in model.parameters())
    called = spread(self, model, *arguments, **more)
    hidden = [value for _, _, module in self._hidden for value in module.parameters()]
    held = sum(getattr(value, "ds_tensor", value).nbytes for value in (*model.parameters(), *hidden))
    shares[current] = held / whole
    return called

def killed(run, number):
    if number == 5:
        raise single.Stop
    return step(run, number)

def say(stage, threshold):
    if stage is None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        return
    config = {"zero_optimization": {"stage": stage}, "gradient_accumulation_steps": "auto"}
    if stage == 3 and threshold is not None:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    file = folder / f"{stage}-{threshold}-{os.environ['RANK']}.json"
    file.write_text(json.dumps(config))
    os.environ |= {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}

Zero._spread, shares, current = noted, {}, ""
linear = torch.nn.functional.linear
for name, cases in STAGES.items():
    say(int(name[-1]), 0)
    for case in cases:
        current = f"{name}-{case}"
        train(case, folder, folder / name, accumulation=2)
if os.environ["RANK"] == "0":
    (folder / "shares.json").write_text(json.dumps(shares))

longer = {"n": 16, "gradient_accumulation": 1}
def run(name, stage, broken, threshold=0, more={}):
    say(stage, threshold)
    trainer._Run.step = killed if broken else step
    try:
        single.sft(folder / "qwen", folder / "resumed" / name, folder / "photos", **longer, **more)
    except single.Stop:
        pass

run("whole", None, False)
for stage in (2, 3):
    run(f"unbroken-{stage}", stage, False)
    run(f"resumed-{stage}", stage, True), run(f"resumed-{stage}", stage, False)
# As the recipe has it, where so small parameters are kept by all processes.
run("to-zero", None, True), run("to-zero", 3, False, None)
run("from-zero", 3, True, None), run("from-zero", None, False)
run("between", 2, True), run("between", 3, False)
for stage in (2, 3):
    try:
        run(f"infinite-{stage}", stage, False, more={"learning_rate": 1e30})
    except ModelError as error:
        assert "Lower the learning rate" in str(error)
    else:
        raise AssertionError("a loss that is no number was taken for one")
assert torch.nn.functional.linear is linear
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, and by two under DeepSpeed."""
    return train_by_one_and_two(tmp_path_factory.mktemp("zero"), TWO)


def assert_close_weights(one: Path, two: Path) -> None:
    """To 1e-5, but for single elements whose gradient is of the size of rounding errors: AdamW, whose whole step is 1e-3 here,
    makes some hundredths of a step of the error. None is further off than a twentieth."""
    first, second = weights(one), weights(two)
    assert set(first) == set(second)
    differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert (differences > 1e-5).sum() <= len(differences) / 20_000
    assert differences.max() < 5e-5


EXACT = [(stage, name) for stage, names in STAGES.items() for name in names if "precision" not in CASES[name][2]]
LOW = [(stage, name) for stage, names in STAGES.items() for name in names if "precision" in CASES[name][2]]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), EXACT)
def test_a_model_under_deepspeed_trains_as_one_process(stage: str, name: str, trained: Path) -> None:
    one, two = trained / "one" / name, trained / stage / name
    assert_close_weights(one, two)
    assert_same_run(one, two)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), LOW)
def test_products_in_bfloat16_are_those_of_one_process(stage: str, name: str, trained: Path) -> None:
    assert_same_first_step(trained / "one" / name, trained / stage / name)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_routing_on_the_way_is_that_of_one_process(stage: str, trained: Path) -> None:
    assert_same_routing(trained / "one" / "low", trained / stage / "low")


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_reference_is_that_of_one_process(stage: str, trained: Path) -> None:
    assert_same_reference(trained / "one" / "full", trained / stage / "full")


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_resumes_bitwise(stage: int, trained: Path) -> None:
    unbroken, resumed = (trained / "resumed" / f"{name}-{stage}" for name in ("unbroken", "resumed"))
    assert_same_weights(unbroken, resumed)
    assert_same_log(unbroken, resumed)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["to-zero", "from-zero", "between"])
def test_a_run_goes_on_another_way(name: str, trained: Path) -> None:
    """From DDP to ZeRO, from ZeRO to DDP, and from stage 2 to stage 3; sums are made in another order."""
    resumed = trained / "resumed"
    assert_close_weights(resumed / "whole", resumed / name)
    assert [line["step"] for line in read_log(resumed / name)] == list(range(1, 9))


@needs_deepspeed
@pytest.mark.slow
def test_no_process_holds_the_model_under_stage_3(trained: Path) -> None:
    """Of a tiny model the frozen tower, which stays whole, is much."""
    shares = json.loads((trained / "shares.json").read_text())
    assert shares["zero3-vision"] == pytest.approx(0.5, abs=0.01)
    assert all(0.49 < share < 0.75 for name, share in shares.items() if name.startswith("zero3"))
    assert all(share == pytest.approx(1.0) for name, share in shares.items() if not name.startswith("zero3"))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_make_up_the_tensor(processes: int) -> None:
    whole = torch.arange(10.0).view(2, 5)
    size = -(-10 // processes)
    one = [SimpleNamespace(num_processes=processes, process_index=index) for index in range(processes)]
    shares = torch.cat([zero._share(whole, size, each) for each in one])
    assert torch.equal(shares[:10], whole.flatten()) and not shares[10:].any()


# --- what the launcher says -------------------------------------------------------------------------------------------------

STAGE_2 = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}


@pytest.mark.parametrize(
    ("environment", "config", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, None, "ZeRO stage 0 divides nothing"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, None, "offload_param to nvme is not supported"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, None, "offload_optimizer to cpu is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, None, "mixed_precision: fp16 is not supported"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, None, "gradient_accumulation_steps is 4 .* 2 by the recipe"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, None, "gradient_clipping is 0.5 .* 1.0 by the recipe"),
        ({}, {**STAGE_2, "train_micro_batch_size_per_gpu": 3}, "train_micro_batch_size_per_gpu is 3 .* 1 by the recipe"),
        ({"WORLD_SIZE": "2"}, {**STAGE_2, "train_batch_size": 2}, "train_batch_size is 2 .* 4 by the recipe"),
        ({}, {**STAGE_2, "fp16": {"enabled": True}}, "DeepSpeed's fp16 is not supported"),
        ({}, {**STAGE_2, "optimizer": {"type": "Lion"}}, "DeepSpeed's optimizer is not supported"),
        (
            {},
            {**STAGE_2, "zero_optimization": {"stage": 3, "leaf_module": {}}},
            "zero_optimization.leaf_module is not supported",
        ),
        ({}, {"train_batch_size": 4}, "DeepSpeed configuration: Please specify the ZeRO"),
    ],
)
def test_what_is_not_supported_is_refused(
    environment: dict[str, str],
    config: dict[str, Any] | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(zero, "_check_installed", lambda: None)
    if config is not None:
        (tmp_path / "zero.json").write_text(json.dumps(config))
        environment = {**environment, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero.json")}
    for name, value in {**DEEPSPEED, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=message):
        check_launch(SftSettings(gradient_accumulation=2))
    with pytest.raises(ModelError, match=message):
        sft(tiny_qwen(tmp_path / "qwen"), tmp_path / "sft", tmp_path / "photos", 2)
    assert not (tmp_path / "sft").exists()


def test_clipping_at_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero means "do not clip" to DeepSpeed, and "no step" to torch."""
    monkeypatch.setattr(zero, "_check_installed", lambda: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ModelError, match="max_grad_norm = 0 would"):
        check_launch(SftSettings(max_grad_norm=0.0))


@pytest.mark.parametrize(("version", "message"), [(None, "not installed"), ("0.18.9", "DeepSpeed 0.18.9 is too old")])
def test_a_release_is_refused(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(_: str) -> str:
        if version is None:
            raise zero.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(zero.metadata, "version", found)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ModelError, match=message):
        check_launch(SftSettings())


@pytest.mark.parametrize("stage", [2, 3])
def test_the_recipes_say_zero(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --config_file recipes/deepspeed_zero3.yaml` puts into the environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    monkeypatch.setattr(zero, "_check_installed", lambda: None)
    file = RECIPES / f"deepspeed_zero{stage}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "--main_process_port", "0", "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    for name, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        monkeypatch.setenv(name, value)
    settings = SftSettings(gradient_accumulation=3, max_grad_norm=0.7)
    assert check_launch(settings) is zero.Zero
    config = zero._configuration(settings)
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == 0.7
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
