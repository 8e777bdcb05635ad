"""Adapters that ship: a full fine-tuning cut to low rank, packed with manifest and card, named and opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcr2ad.config import SftSettings
from dcr2ad.errors import InputError, ModelError, UnknownNameError
from dcr2ad.models import shipped
from dcr2ad.models.adapters import TrainedModel, merge_for_inference, read_trained
from dcr2ad.models.hf import HFModel
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.report.card import model_card
from dcr2ad.training.extract import extract_adapter
from dcr2ad.training.packing import Packing, pack_adapter
from dcr2ad.training.weights import load_trainable, save_trained, weights_digest
from dcr2ad.types import EvalProtocol, EvalReport, Interval
from tests.tiny import tiny_internvl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_internvl(tmp_path_factory.mktemp("shipped") / "internvl")


def load(folder: Path) -> Any:
    return VisionLanguageModel.load(folder).model


def tuned(folder: Path, *, rank: int | None = None) -> Any:
    """The model with every language and projector weight moved, matrices by a change of the rank asked for."""
    model = load(folder)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "vision_tower" in name:
                continue
            if value.dim() == 2 and rank is not None and "projector" not in name:
                rows, columns = value.shape
                value += 0.1 * torch.randn(rows, rank, generator=drawn) @ torch.randn(rank, columns, generator=drawn)
            else:
                value += 0.1 * torch.randn(value.shape, generator=drawn)
    return model


def same(one: Any, two: Any, atol: float) -> bool:
    theirs = dict(two.named_parameters())
    return all(torch.allclose(value, theirs[name], atol=atol) for name, value in one.named_parameters())


def test_extraction_at_full_rank_equals_the_fine_tuned_model(folder: Path, tmp_path: Path) -> None:
    full = tuned(folder)
    found = extract_adapter(load(folder), full, tmp_path / "a", energy=1.0)
    merged = merge_for_inference(load(folder), tmp_path / "a")
    assert found.error < 1e-5 and found.energy == pytest.approx(1)
    assert same(merged, full, 1e-5) and not same(load(folder), full, 1e-2)
    assert merged.lm_head.weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()


def test_a_change_of_rank_three_is_found_and_smaller_ranks_say_what_they_lose(folder: Path, tmp_path: Path) -> None:
    full = tuned(folder, rank=3)
    whole = extract_adapter(load(folder), full, tmp_path / "three", energy=0.9999)
    assert whole.rank == 3 and whole.error < 1e-3
    cut = extract_adapter(load(folder), full, tmp_path / "one", rank=1)
    assert cut.rank == 1 and cut.error == pytest.approx((1 - cut.energy) ** 0.5, abs=1e-6)
    # The error said is the error made, over the matrices of the language model.
    base, merged = dict(load(folder).named_parameters()), merge_for_inference(load(folder), tmp_path / "one")
    aim, lost, moved = dict(full.named_parameters()), 0.0, 0.0
    for name, value in merged.named_parameters():
        if value.dim() == 2 and "language_model" in name:
            lost += float((aim[name] - value).detach().square().sum())
            moved += float((aim[name] - base[name]).detach().square().sum())
    assert cut.error == pytest.approx((lost / moved) ** 0.5, rel=1e-3)


def test_what_cannot_be_extracted_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="equals its base"):
        extract_adapter(load(folder), load(folder), tmp_path / "a")
    with pytest.raises(ModelError, match="other parameters"):
        extract_adapter(load(folder), load(tiny_internvl(tmp_path / "deep", layers=3)), tmp_path / "a")
    with pytest.raises(InputError, match="energy 2"):
        extract_adapter(load(folder), load(folder), tmp_path / "a", energy=2)
    assert not (tmp_path / "a").exists()


def test_a_whole_model_is_packed_small_with_manifest_and_card(folder: Path, tmp_path: Path) -> None:
    vlm = VisionLanguageModel.load(folder)
    vlm.model = tuned(folder, rank=2)
    about = {"base": f"hf:{folder}", "base_digest": "", "stage": "sft", "seed": 3, "recipe": {}}
    seen = {"train_images": {"d" * 64: "a/b/c.png"}, "train_hashes": {}, "data": {"mtd": 1}}
    save_trained(vlm, tmp_path / "model", {**about, **seen}, dtype=torch.float32)
    made = pack_adapter(tmp_path / "model", tmp_path / "packed", Packing(energy=0.999, licence="research only"))
    assert made == read_trained(tmp_path / "packed") and made.kind == "adapter"
    assert made.versions["torch"] and made.data == {"mtd": 1} and made.licence == "research only"
    assert 2 <= made.extracted["rank"] <= 64 and made.extracted["error"] < 0.04
    merged = merge_for_inference(load(folder), tmp_path / "packed")
    assert same(merged, tuned(folder, rank=2), 0.2) and not same(merged, load(folder), 0.2)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "packed").iterdir())
    card = (tmp_path / "packed" / "README.md").read_text()
    for words in ("mtd 1", "research only", made.digest, "Nobody has measured it yet", "cut to low rank"):
        assert words in card
    # What a user opens is the folder's base with the adapter on it.
    assert same(HFModel.open(str(tmp_path / "packed")).vlm.model, merged, 1e-6)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_part_of_the_way_is_packed(kind: str, folder: Path, tmp_path: Path) -> None:
    vlm = VisionLanguageModel.load(folder)
    if kind == "full":
        vlm.model = tuned(folder, rank=2)
    else:
        load_trainable(vlm, SftSettings(method="lora", lora_rank=2, lora_alpha=4))
        with torch.no_grad():
            for name, value in vlm.model.named_parameters():
                if "lora_B" in name:
                    value += 0.5
    about = {"base": f"hf:{folder}", "base_digest": "", "stage": "sft", "seed": 3, "recipe": {}, "train_images": {}}
    save_trained(vlm, tmp_path / "model", about, dtype=torch.float32)
    made = pack_adapter(tmp_path / "model", tmp_path / "half", Packing(rank=2 if kind == "full" else None, part=0.5))
    assert made.part == 0.5 and made.extracted["rank"] == 2
    assert "0.5 of the way" in (tmp_path / "half" / "README.md").read_text()
    start, end = load(folder), HFModel.open(str(tmp_path / "model")).vlm.model
    half = dict(HFModel.open(str(tmp_path / "half")).vlm.model.named_parameters())
    ends, moved = dict(end.named_parameters()), 0
    for name, value in start.named_parameters():
        assert torch.allclose(half[name], (value + ends[name]) / 2, atol=2e-2)
        moved += not torch.equal(value, ends[name])
        if name.endswith("up_proj.weight"):
            assert not torch.allclose(half[name], ends[name], atol=2e-2)
    assert moved
    with pytest.raises(InputError, match=r"no such part of a training: 1\.5"):
        pack_adapter(tmp_path / "model", tmp_path / "more", Packing(part=1.5))
    with pytest.raises(InputError, match="no such cut: rank 0"):
        pack_adapter(tmp_path / "model", tmp_path / "none", Packing(rank=0, part=0.5))
    with pytest.raises(InputError, match=r"half is 0\.5 of the way of its training already"):
        pack_adapter(tmp_path / "half", tmp_path / "more", Packing(part=0.5))
    assert pack_adapter(tmp_path / "half", tmp_path / "again").part == 0.5
    assert not (tmp_path / "more").exists() and not (tmp_path / "none").exists()


def test_a_part_of_a_training_that_went_on_with_an_adapter_is_counted_from_there(folder: Path, tmp_path: Path) -> None:
    """Half of KR-DPO is half of KR-DPO, and not half of the SFT before it as well."""
    about = {"base": f"hf:{folder}", "base_digest": "", "stage": "sft", "seed": 3, "recipe": {}, "train_images": {}}
    settings = SftSettings(method="lora", lora_rank=2, lora_alpha=4)
    for name, before in (("sft", None), ("krdpo", tmp_path / "sft"), ("other", None)):
        vlm = VisionLanguageModel.load(folder)
        load_trainable(vlm, settings, before)
        with torch.no_grad():
            for key, value in vlm.model.named_parameters():
                if "lora_" in key:
                    value += 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(key) + len(name)))
        start = {"start": read_trained(before).digest} if before else {}
        save_trained(vlm, tmp_path / name, {**about, **start}, dtype=torch.float32)
    made = pack_adapter(tmp_path / "krdpo", tmp_path / "half", Packing(part=0.5, start=tmp_path / "sft"))
    assert made.extracted["rank"] <= 4 and made.extracted["error"] < 1e-3, "two adapters of rank 2 are one of 4"
    weights = [dict(HFModel.open(str(tmp_path / name)).vlm.model.named_parameters()) for name in ("sft", "krdpo", "half")]
    moved = 0.0
    for name, first in weights[0].items():
        last, half = weights[1][name], weights[2][name]
        moved = max(moved, float((last - first).abs().max()))
        assert torch.allclose(half, (first + last) / 2, atol=2e-2)
    assert moved > 0.2
    with pytest.raises(InputError, match="a part of its way begins there"):
        pack_adapter(tmp_path / "krdpo", tmp_path / "none", Packing(part=0.5))
    with pytest.raises(InputError, match="other is not the model that"):
        pack_adapter(tmp_path / "krdpo", tmp_path / "none", Packing(part=0.5, start=tmp_path / "other"))
    assert pack_adapter(tmp_path / "krdpo", tmp_path / "whole").part == 1.0, "the whole needs no start"
    assert not (tmp_path / "none").exists()


def test_the_card_prints_the_reports_own_figures_and_the_worst() -> None:
    report = EvalReport(
        protocol=EvalProtocol(),
        model={},
        knowledge_digest="",
        questions=40,
        answered=39,
        status_counts={},
        subtasks={},
        average=Interval(value=61.25, low=50.5, high=70.1, n=40),
        detection={"Overkill": 12.5, "Miss": 30.0, "F1": 75.0},
        objects={"pcb": {"Anomaly Detection": 81.2}, "cookie": {"Anomaly Detection": 44.4, "Defect Analysis": 70.0}},
    )
    trained = TrainedModel(
        base="nano:base", kind="adapter", stage="krdpo", seed=0, recipe={}, digest="d", base_digest="b", train_images={}
    )
    card = model_card(trained, {"dev": report})
    assert "Average 61.2 [50.5, 70.1]. Overkill 12.5, Miss 30.0, F1 75.0" in card
    assert "| cookie | 44.4 | 70.0 |" in card and "| pcb | 81.2 | – |" in card
    assert "Worst: Anomaly Detection of cookie 44.4 %; Defect Analysis of cookie 70.0 %" in card


def test_an_adapter_that_ships_is_what_nano_means(
    nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = VisionLanguageModel.load(nano_folder)
    load_trainable(vlm, SftSettings(method="lora", lora_rank=1, lora_alpha=1))
    with torch.no_grad():
        for name, value in vlm.model.named_parameters():
            if "lora_B" in name:
                value += 0.01
    about = {"base": "nano:base", "base_digest": "", "stage": "sft", "seed": 0, "recipe": {}, "train_images": {}}
    save_trained(vlm, tmp_path / "model", about, dtype=torch.float32)
    pack_adapter(tmp_path / "model", tmp_path / "weights" / "drawn")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    opened, named, base = HFModel.open("nano"), HFModel.open("nano:drawn"), HFModel.open("nano:base")
    assert opened.info.digest == named.info.digest != base.info.digest
    one, two = (m.vlm.model.model.language_model.layers[0].mlp.up_proj.weight for m in (opened, base))
    assert not torch.equal(one, two)
    from dcr2ad.commands.machine import run_doctor

    run_doctor()
    said = capsys.readouterr().out
    assert "adapter nano:drawn" in said and "nano stands for" in said and "not in this package" in said


def test_an_adapter_on_one_of_the_packages_own_becomes_one_on_the_embedded_base(nano_folder: Path, tmp_path: Path) -> None:
    vlm = HFModel.open("nano:drawn").vlm
    load_trainable(vlm, SftSettings(method="lora", lora_rank=1, lora_alpha=1, train_projector=False))
    with torch.no_grad():
        for name, value in vlm.model.named_parameters():
            if "lora_B" in name:
                value += 0.5
    own = {"base_adapter": shipped.adapter_digest("nano:drawn")}
    about = {**own, "base": "nano:drawn", "base_digest": "", "stage": "sft", "seed": 0, "recipe": {}, "train_images": {}}
    save_trained(vlm, tmp_path / "model", about, dtype=torch.float32)
    rank = 33  # of the package's adapter 32, and the one above it
    made = pack_adapter(tmp_path / "model", tmp_path / "packed", Packing(rank=rank))
    assert made.base == "nano:base" and made.extracted["rank"] == rank and made.extracted["error"] < 1e-4
    assert made.base_digest == read_trained(shipped.WEIGHTS / "drawn").base_digest
    stacked, packed = (HFModel.open(str(tmp_path / name)).vlm.model for name in ("model", "packed"))
    assert same(packed, stacked, 2e-3) and not same(packed, HFModel.open("nano:drawn").vlm.model, 2e-3)
    (tmp_path / "other").mkdir()
    for file in (tmp_path / "model").iterdir():
        shutil.copy(file, tmp_path / "other")
    written = read_trained(tmp_path / "model").model_copy(update={"base_adapter": "of another release"})
    (tmp_path / "other" / "dcr2ad.json").write_text(written.model_dump_json())
    with pytest.raises(ModelError, match="trained on nano:drawn as another release carries it"):
        HFModel.open(str(tmp_path / "other"))
    config = json.loads((tmp_path / "packed" / "adapter_config.json").read_text())
    assert isinstance(config["target_modules"], str) and not config["rank_pattern"], "opened without peft's wrapping"


def test_what_the_package_carries_is_small_says_what_it_is_and_has_its_digest() -> None:
    for name, path in shipped.shipped().items():
        about = read_trained(path)
        assert sum(file.stat().st_size for file in path.iterdir()) <= shipped.MOST_BYTES
        assert about.base == shipped.BASE and about.digest == weights_digest(path) and about.licence, name
        assert about.train_images and set(about.train_hashes) == set(about.train_images)
        assert "Worst:" in (path / "README.md").read_text(encoding="utf-8")


def test_names_of_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    assert shipped.full_name("nano") == "nano:base" and shipped.adapter_folder("nano") is None
    with pytest.raises(ModelError, match="carries no adapter 'drawn'"):
        shipped.adapter_folder("nano:drawn")
    with pytest.raises(UnknownNameError, match="nano:real, nano:drawn, nano:base"):
        shipped.adapter_folder("nano:reel")
    for name in ("drawn", "real"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dcr2ad.json").write_text("{}")
        assert shipped.full_name("nano") == f"nano:{name}"
    assert shipped.adapter_folder("nano") == tmp_path / "real" and shipped.adapter_folder("nano:base") is None
