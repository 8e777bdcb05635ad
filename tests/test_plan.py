"""Memory of a training run: counts against real models, bytes against real tensors, activations against a measured peak."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcr2ad.config import SftSettings, load_recipe
from dcr2ad.errors import ModelError, UnknownNameError
from dcr2ad.models.sizes import known_size, planned_config, published_config
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.batches import completion_logprobs, lay_out, pair_row, sft_row
from dcr2ad.training.counting import build_on_meta, count, count_model
from dcr2ad.training.memory import FLOAT, Blocks, Counts, Machine, RowShape, fits, need, smaller
from dcr2ad.training.spread import adamw
from dcr2ad.training.weights import load_trainable
from tests.tiny import tiny_base, tiny_pairs, tiny_questions, tiny_qwen

RECIPES = Path(__file__).parents[1] / "recipes"
FACTOR = 1.5
"""What the documents state of the estimate of activations."""


@pytest.mark.parametrize(
    ("name", "everything"), [("qwen2.5-vl-7b", 8_292_166_656), ("qwen2.5-vl-72b", 73_410_777_344)], ids=["7b", "72b"]
)
def test_known_sizes_have_the_published_number_of_parameters(name: str, everything: int) -> None:
    model = build_on_meta(published_config(name))
    assert sum(value.numel() for value in model.parameters()) == everything
    assert {value.device.type for value in model.parameters()} == {"meta"}


def test_names_of_models(tmp_path: Path) -> None:
    assert known_size("hf:Qwen/Qwen2.5-VL-72B-Instruct") == "qwen2.5-vl-72b"
    assert known_size("qwen2.5-vl-7b") == "qwen2.5-vl-7b"
    assert known_size("hf:Qwen/Qwen2.5-VL-3B-Instruct") is None
    assert planned_config(f"hf:{tiny_qwen(tmp_path)}").get_text_config().hidden_size == 64
    with pytest.raises(ModelError, match="no configuration"):
        planned_config("hf:nowhere")
    with pytest.raises(UnknownNameError):
        published_config("qwen")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        planned_config(str(tmp_path))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_gradients_and_moments_are_exact(method: Any, tmp_path: Path) -> None:
    """Bytes of a real model's tensors after one step of the trainer's AdamW."""
    settings = SftSettings(method=method, lora_rank=4)
    vlm = VisionLanguageModel.load(tiny_qwen(tmp_path), dtype=torch.bfloat16)
    config = vlm.model.config
    load_trainable(vlm, settings)
    trained = {name: value for name, value in vlm.model.named_parameters() if value.requires_grad}
    optimizer = adamw(trained, settings, fused=False)
    for value in trained.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    moments = sum(x.nbytes for state in optimizer.state.values() for key, x in state.items() if key != "step")
    found = need(count(config, settings), RowShape(9, 0, 0, 1, 1, 1), Machine(1, 1, "ddp", False))
    assert found.weights == sum(value.nbytes for value in vlm.model.parameters())
    assert found.gradients == sum(value.grad.nbytes for value in trained.values() if value.grad is not None)
    assert found.optimizer == moments
    assert count(config, settings) == count_model(vlm.model, config, settings, torch.bfloat16)


def test_what_is_gathered_at_once() -> None:
    """Qwen2.5-VL-7B, fully fine-tuned: embeddings, in float32 as they are trained, outweigh the head in bfloat16."""
    config, settings = published_config("qwen2.5-vl-7b"), load_recipe(RECIPES / "dcr2ad-7b.toml").sft
    found, text = count(config, settings), config.get_text_config()
    embeddings = text.vocab_size * text.hidden_size
    assert found.gathered == embeddings * (2 * FLOAT + FLOAT + FLOAT)
    assert found.whole == found.frozen_bytes  # the tower
    assert found.copied == found.products - embeddings - sum(value.numel() for value in _layers(config))
    machine, row = Machine(2, 80 * 2**30, "fsdp", True), RowShape(1024, 2, 1369, 256, 1, 1)
    assert fits(need(found, row, machine), machine), "the paper's two GPUs (Section 4.3)"


def _layers(config: Any) -> list[torch.nn.Parameter]:
    """Weights of the language model's linear layers."""
    modules = build_on_meta(config).get_decoder().layers.modules()
    return [value for module in modules if isinstance(module, torch.nn.Linear) for value in module.parameters()]


class Peak(TorchDispatchMode):
    """Largest sum of the storages that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            if storage not in self._seen and id(storage) not in given:
                self._seen[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage.nbytes())
        return out

    def _drop(self, size: int) -> None:
        self.now -= size


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("deep"), layers=4, hidden=128, image_tokens=64)


@pytest.mark.parametrize(
    ("method", "precision", "checkpointing", "stage"),
    [
        ("full", "bf16", True, "sft"),
        ("full", "bf16", False, "krdpo"),
        ("full", "fp32", False, "sft"),
        ("lora", "bf16", True, "krdpo"),
        ("lora", "bf16", False, "sft"),
        ("lora", "fp32", True, "krdpo"),
    ],
)
def test_activations_are_within_the_stated_factor_of_a_measured_peak(
    method: Any,
    precision: Any,
    checkpointing: bool,
    stage: str,
    deep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A CPU computes attention by tiles, whose scores no GPU holds; beside a model this small they would be most of it.
    monkeypatch.setattr("dcr2ad.models.tree_attention.TILE", 16)
    settings = SftSettings(method=method, precision=precision, freeze_vision=stage == "sft", lora_rank=4)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    vlm = VisionLanguageModel.load(deep, dtype=dtype)
    load_trainable(vlm, settings)
    if checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    vlm.model.train()
    base = tiny_base()
    if stage == "sft":
        row = sft_row(vlm, tiny_questions(tmp_path, 1, direct_every=0)[0], base)
    else:
        row = pair_row(vlm, tiny_pairs(tmp_path, 1)[0], base)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = completion_logprobs(vlm, [row])
        torch.stack([values.sum() for values in found[0]]).sum().backward()

    step()  # from now on gradients exist
    with Peak() as measured:
        step()
    layout, pictures, responses = lay_out(vlm, [row]), sum(row.prompt.counts), len(row.responses)
    scored = len(layout.kept)
    shape = RowShape(len(layout.ids) - pictures - scored, 1, pictures, -(-scored // responses), responses, 1)
    counts = count_model(vlm.model, vlm.model.config, settings, dtype)
    planned = need(counts, shape, Machine(1, 1, "ddp", checkpointing))
    estimate = planned.activations + planned.logits + planned.copies
    assert measured.peak / FACTOR < estimate < measured.peak * FACTOR


def counts() -> Counts:
    blocks = Blocks(layers=2, hidden=8, inner=16, queries=8, keys=4)
    return Counts(1000, 600, 1200, 900, 200, 50, 400, blocks, blocks, 4, 50, False, True, False, 2)


def test_sharding_by_hand() -> None:
    row = RowShape(text=10, images=1, image_tokens=4, response=3, responses=2, batch=1)
    assert (row.tokens, row.scored) == (20, 6)
    one = need(counts(), row, Machine(1, 1, "ddp", True))
    assert (one.weights, one.gradients, one.optimizer, one.copies) == (1200 + 4000, 4000, 8000, 2 * 900)
    assert one.logits == 2 * 2 * 6 * 50
    ddp = need(counts(), row, Machine(4, 1, "ddp", True))
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (5200, 8000, 8000), "DDP exchanges gradients in buckets of its own"
    zero2 = need(counts(), row, Machine(4, 1, "zero2", True))
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (5200, 1000, 3000), "ZeRO keeps a float32 copy of its share"
    fsdp = need(counts(), row, Machine(4, 1, "fsdp", True))
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (200 + 1000 / 4 + 1000, 1000, 2000), "the tower stays whole"
    assert fsdp.copies == 2 * 50 + 400, "layers are gathered in bfloat16, one by one"
    zero3 = need(counts(), row, Machine(4, 1, "zero3", True))
    assert (zero3.weights, zero3.gradients, zero3.optimizer, zero3.copies) == (200 + 1000 / 4 + 1000, 1000, 3000, 400)
    # The stream is float32. A block: 2 norms of (4 + 4) x 8, 5 inputs, 4 x queries and a cast, 4 x inner, 2 bytes each.
    block = 2 * 8 * 8 + 5 * 2 * 8 + 2 * 5 * 8 + 2 * 4 * 16
    assert one.activations == 20 * (2 * FLOAT * 8 + block) + 3 * 20 * 2
    assert need(counts(), row, Machine(1, 1, "ddp", False)).activations == 20 * 2 * block + 2 * (3 * 20 * 2)


def test_what_is_told_to_change_does_fit() -> None:
    config, settings = published_config("qwen2.5-vl-7b"), load_recipe(RECIPES / "dcr2ad-7b.toml").sft
    row, machine = RowShape(1024, 2, 1369, 256, 1, 1), Machine(2, 80 * 2**30, "ddp", False)
    found = count(config, settings)
    assert not fits(need(found, row, machine), machine)
    changes = list(smaller(found, row, machine))
    assert changes
    for what, changed in changes:
        assert fits(need(found, row, changed), changed), what


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dcr2ad.cli", "plan", *arguments], capture_output=True, text=True, check=False)


def test_the_verb() -> None:
    """The paper's 72B with LoRA on six GPUs: not a whole model each, but divided."""
    recipe = str(RECIPES / "dcr2ad-72b.toml")
    divided = plan(recipe, "--gpus", "6", "--memory", "80", "--sharding", "fsdp")
    assert divided.returncode == 0, divided.stderr
    assert "73,410,777,344" in divided.stdout
    whole = plan(recipe, "--gpus", "6", "--memory", "80")
    assert whole.returncode == 1
    assert "krdpo would fit with: --sharding fsdp" in whole.stderr


def test_what_is_not_counted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dcr2ad.commands.planning import run_plan

    row, model = {"text": 9, "images": 1, "image_tokens": 4, "response": 3}, f"hf:{tiny_qwen(tmp_path)}"
    for sharding in ("ddp", "fsdp", "zero3"):
        run_plan(RECIPES / "dcr2ad-72b.toml", gpus=2, memory=80.0, sharding=sharding, model=model, row=row)
        assert ("stage3_max_live_parameters" in capsys.readouterr().err) == (sharding == "zero3")


def test_bad_values(tmp_path: Path) -> None:
    from dcr2ad.commands.planning import run_plan

    for more, message in (({"sharding": "some"}, "no sharding 'some'"), ({"model": "hf:nowhere"}, "no configuration")):
        given: dict[str, Any] = {"gpus": 1, "memory": 80.0, "sharding": "ddp", "model": None, "row": {}, **more}
        with pytest.raises((UnknownNameError, ModelError), match=message):
            run_plan(RECIPES / "dcr2ad-72b.toml", **given)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed_zero2", "DEEPSPEED"), ("deepspeed_zero3", "DEEPSPEED")],
    ids=lambda value: value,
)
def test_accelerate_reads_the_configurations(name: str, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / f"{name}.yaml"))
    assert config.distributed_type.value == kind and config.num_processes > 1
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
