"""An exported model is the model: stock classes load it and give the same logits, whatever adapters it stood on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dcr2ad.config import SftSettings
from dcr2ad.errors import InputError, ModelError
from dcr2ad.images import load_image
from dcr2ad.models.export import EXPORT_FILE, Exported, export_model
from dcr2ad.models.hf import HFModel
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.prompts import build_prompt
from dcr2ad.training.weights import load_trainable, save_trained
from tests.tiny import tiny_internvl, tiny_questions, tiny_qwen

LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 8}


def _trained(base: Path, folder: Path) -> Path:
    """A folder of a trained adapter whose weights are far from zero."""
    vlm = VisionLanguageModel.load(base)
    load_trainable(vlm, SftSettings(**LORA))
    torch.manual_seed(1)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    about: dict[str, Any] = {"base": str(base), "base_digest": "x", "stage": "sft", "seed": 0, "recipe": {}, "train_images": {}}
    save_trained(vlm, folder, about, dtype=torch.float32)
    return folder


def _logits(vlm: VisionLanguageModel, tmp_path: Path) -> torch.Tensor:
    prompt = build_prompt(tiny_questions(tmp_path / "photos", 1)[0])
    images = [part.path for part in prompt.parts if part.kind == "image"]
    text = "".join(vlm.image_token if part.kind == "image" else part.text for part in prompt.parts)
    batch = vlm.processor(images=[load_image(path) for path in images], text=[text], return_tensors="pt")
    with torch.no_grad():
        return torch.as_tensor(vlm.model(**batch).logits)


@pytest.mark.parametrize("make", [tiny_qwen, tiny_internvl])
def test_exported_with_its_adapter_merged_it_gives_equal_logits(make: Any, tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    adapter = _trained(base, tmp_path / "adapter")
    made = export_model(str(adapter), tmp_path / "out")
    assert made == Exported.model_validate_json((tmp_path / "out" / EXPORT_FILE).read_text()) and made.adapters == 1
    wanted = _logits(HFModel.open(str(adapter)).vlm, tmp_path)
    found = _logits(VisionLanguageModel.load(tmp_path / "out"), tmp_path)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, _logits(VisionLanguageModel.load(base), tmp_path), atol=1e-2)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"adapter_model.safetensors", "dcr2ad.json"}


def test_the_layout_is_the_hubs(tmp_path: Path) -> None:
    """Stock Auto classes take it: no class of ours is named in it, and the processor's files are the base's own."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    base = tiny_qwen(tmp_path / "base")
    made = export_model(f"hf:{base}", tmp_path / "out", dtype="bfloat16")
    assert (made.architecture, made.dtype, made.vllm) == ("Qwen2_5_VLForConditionalGeneration", "bfloat16", True)
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == [made.architecture]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype is torch.bfloat16
    tokens = [AutoTokenizer.from_pretrained(folder)("a scratch")["input_ids"] for folder in (base, tmp_path / "out")]
    assert tokens[0] == tokens[1]
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out").size["longest_edge"] == 28 * 28 * 16
    assert all("dcr2ad" not in file.read_text() for file in (tmp_path / "out").glob("*config*.json"))


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights here"):
        export_model("openai:m@http://x/v1", tmp_path / "out")
    with pytest.raises(InputError, match="no type of weights"):
        export_model("nano", tmp_path / "out", dtype="int3")
    with pytest.raises(ModelError, match="no transformers model"):
        export_model(f"hf:{tmp_path / 'nothing'}", tmp_path / "out")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no export"):
        export_model(f"hf:{tiny_qwen(tmp_path / 'base')}", tmp_path / "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "base"}
