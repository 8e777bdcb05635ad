"""FSDP2: what a divided model trains, keeps and writes, against one process; two processes over gloo, no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcr2ad.config import SftSettings
from dcr2ad.errors import ModelError
from dcr2ad.models.placement import computing_device, loading_device
from dcr2ad.training.checkpoints import read_log
from dcr2ad.training.launch import check_launch
from dcr2ad.training.sharding import Fsdp
from tests.test_training import ENVIRONMENT, LORA, assert_same_log, assert_same_weights, krdpo, sft
from tests.tiny import tiny_internvl, tiny_questions, tiny_qwen

RECIPES = Path(__file__).parents[1] / "recipes"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Tower whole, projector divided; the last step and the last round of the reference have rows for one process only.
    "full": ("krdpo", "qwen", {"n": 5}),
    # Tied embeddings; the tower divided too, its blocks computed anew in the backward pass.
    "vision": ("sft", "internvl", {"n": 6, "freeze_vision": False, "gradient_checkpointing": True}),
    # Everything that sees an image whole, so that each process keeps features of its own; an adapter that is trained on.
    "adapter": ("sft", "qwen", {"n": 6, **LORA, "train_projector": False}),
    "lora": ("krdpo", "qwen", {"n": 6, **LORA, "train_projector": False, "start": "adapter", "gradient_checkpointing": True}),
    # Frozen weights in bfloat16 beside trained ones in float32.
    "mixed": ("sft", "internvl", {"n": 6, **LORA, "precision": "bf16"}),
    # As little float32 as there is: layers gathered in bfloat16, routing measured on the way.
    "low": ("krdpo", "internvl", {"n": 5, "precision": "bf16", "routing_dev": "dev.jsonl", "routing_steps": 9}),
}
"""Stage, model and settings of each training; rows of a step are the same for one process and two."""

TWO = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from torch.distributed.tensor import DTensor
from dcr2ad.training import sharding, trainer
from tests import test_training as single
from tests.test_sharding import CASES, FSDP, train

folder = Path(sys.argv[1])
divide, step = sharding.divide, trainer._Run.step

def noted(model, *arguments, **more):
    images = divide(model, *arguments, **more)
    values = list(model.parameters())
    held = sum((value.to_local() if isinstance(value, DTensor) else value).nbytes for value in values)
    shares.append(held / sum(value.nbytes for value in values))
    return images

def killed(run, number):
    if number == 5:
        raise single.Stop
    return step(run, number)

sharding.divide, shares = noted, []
os.environ |= FSDP
for name in CASES:
    train(name, folder, folder / "two", accumulation=2)

longer = {"n": 16, "gradient_accumulation": 1}
def run(name, divided, broken):
    os.environ["ACCELERATE_USE_FSDP"] = str(divided)
    trainer._Run.step = killed if broken else step
    try:
        single.sft(folder / "qwen", folder / "two" / name, folder / "photos", **longer)
    except single.Stop:
        pass

run("whole", True, False)
run("resumed", True, True), run("resumed", True, False)
run("to-fsdp", False, True), run("to-fsdp", True, False)
run("from-fsdp", True, True), run("from-fsdp", False, False)
if os.environ["RANK"] == "0":
    (folder / "shares.json").write_text(json.dumps(shares))
"""


def train(name: str, folder: Path, out: Path, accumulation: int) -> None:
    """Train one of the cases."""
    stage, model, more = CASES[name]
    if "start" in more:
        more = {**more, "start": out / more["start"] / "model"}
    if "routing_dev" in more:
        more = {**more, "routing_dev": str(folder / more["routing_dev"])}
    run = {"sft": sft, "krdpo": krdpo}[stage]
    run(folder / model, out / name, folder / "photos", gradient_accumulation=accumulation, **more)


def train_by_one_and_two(folder: Path, script: str) -> Path:
    """Every case by one process, in ``one``, and what a script trains in two processes; returns the folder."""
    torch.set_num_threads(1)
    tiny_qwen(folder / "qwen"), tiny_internvl(folder / "internvl")
    (folder / "dev.jsonl").write_text(tiny_questions(folder / "photos", 1)[0].model_dump_json() + "\n")
    for name in CASES:
        train(name, folder, folder / "one", accumulation=4)
    file = folder / "two.py"
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder


def assert_same_run(one: Path, two: Path) -> None:
    """What two runs log, and the files they write beside the weights."""
    for first, second in zip(read_log(one), read_log(two), strict=True):
        for key in set(first) - {"seconds", "tokens"}:  # a process without a row computes one again
            assert second[key] == pytest.approx(first[key], rel=1e-4, abs=1e-5), key
    files = [{path.name: path.read_bytes() for path in (out / "model").iterdir()} for out in (one, two)]
    assert set(files[0]) == set(files[1])
    trained_ones = {"dcr2ad.json", "model.safetensors", "adapter_model.safetensors"}
    assert all(files[0][other] == files[1][other] for other in set(files[0]) - trained_ones)


def assert_same_first_step(one: Path, two: Path) -> None:
    """The first step, after which AdamW makes whole steps of gradients that are rounding errors."""
    first, second = (read_log(out)[0] for out in (one, two))
    for key in ("loss", "grad_norm"):
        assert second[key] == pytest.approx(first[key], rel=1e-3), key
    assert first.keys() == second.keys()


def assert_same_routing(one: Path, two: Path) -> None:
    """The routing of a dev set before the first step; there is one line before and one after."""
    lines = [(out / "routing.jsonl").read_text().splitlines() for out in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 2
    assert json.loads(lines[0][0]) == json.loads(lines[1][0])


def assert_same_reference(one: Path, two: Path) -> None:
    """Log-probabilities of pi_ref."""
    stored = [(out / "reference.jsonl").read_text().splitlines() for out in (one, two)]
    for first, second in zip(*(map(json.loads, lines) for lines in stored), strict=True):
        assert (first["id"], first["model"]) == (second["id"], second["model"])
        assert second["chosen"] + second["rejected"] == pytest.approx(first["chosen"] + first["rejected"], abs=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, and by two among whom the model is divided."""
    return train_by_one_and_two(tmp_path_factory.mktemp("sharding"), TWO)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, _, more) in CASES.items() if "precision" not in more])
def test_a_divided_model_trains_as_one_process(name: str, trained: Path) -> None:
    one, two = trained / "one" / name, trained / "two" / name
    assert_same_weights(one, two, 1e-5)
    assert_same_run(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, _, more) in CASES.items() if "precision" in more])
def test_gathering_in_bfloat16_computes_what_autocast_does(name: str, trained: Path) -> None:
    assert_same_first_step(trained / "one" / name, trained / "two" / name)


@pytest.mark.slow
def test_routing_on_the_way_is_that_of_one_process(trained: Path) -> None:
    assert_same_routing(trained / "one" / "low", trained / "two" / "low")


@pytest.mark.slow
def test_reference_is_that_of_one_process(trained: Path) -> None:
    assert_same_reference(trained / "one" / "full", trained / "two" / "full")


@pytest.mark.slow
def test_a_run_resumes_divided_or_not(trained: Path) -> None:
    """Bitwise where the processes stay as they are; otherwise sums are made in another order."""
    two = trained / "two"
    assert_same_weights(two / "whole", two / "resumed")
    assert_same_log(two / "whole", two / "resumed")
    for name in ("to-fsdp", "from-fsdp"):
        assert_same_weights(two / "whole", two / name, 1e-5)
        assert [line["step"] for line in read_log(two / name)] == list(range(1, 9))


@pytest.mark.slow
def test_no_process_holds_the_model(trained: Path) -> None:
    """Of a tiny model the frozen tower, which stays whole, is much."""
    shares = json.loads((trained / "shares.json").read_text())
    assert shares[list(CASES).index("vision")] == pytest.approx(0.5, abs=0.01)
    assert all(0.49 < share < 0.75 for share in shares)


# --- what the launcher says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 is not supported"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
    ],
)
def test_other_ways_to_divide_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=message):
        check_launch(SftSettings())
    with pytest.raises(ModelError, match=message):
        sft(tiny_qwen(tmp_path / "qwen"), tmp_path / "sft", tmp_path / "photos", 2)
    assert not (tmp_path / "sft").exists()


def test_the_recipe_says_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --config_file recipes/fsdp2.yaml` puts into the environment."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", str(RECIPES / "fsdp2.yaml"), "script.py"])
    for name, value in prepare_multi_gpu_env(_validate_launch_command(arguments)[0]).items():
        monkeypatch.setenv(name, value)
    assert check_launch(SftSettings()) is Fsdp
    assert FullyShardedDataParallelPlugin().reshard_after_forward is True


def test_where_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (computing_device(), loading_device()) == ("cuda:3", "cuda:3")
    for plugin in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as launched:
            launched.setenv(f"ACCELERATE_USE_{plugin}", "true")
            assert (computing_device(), loading_device()) == ("cuda:3", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (computing_device(), loading_device()) == ("cpu", "cpu")
