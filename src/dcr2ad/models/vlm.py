"""A transformers vision-language model as this package uses it: prompts to token ids, images to features, one forward.

Reads a transformers folder and image files; returns tensors. Works for any model whose processor expands one image token to as
many as the image has features and that offers `get_image_features` (Qwen2.5-VL, InternVL, LLaVA, the embedded model). Each
distinct image is decoded and encoded once. Positions are always explicit, so M-RoPE is right with and without a cache. Knows
nothing about questions, training or scoring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dcr2ad.caches import ByteCache
from dcr2ad.errors import ModelError
from dcr2ad.images import file_key, file_keys, load_image
from dcr2ad.models.placement import computing_device, loading_device
from dcr2ad.models.projected import project, run_tower
from dcr2ad.models.tree_attention import use_tree_attention
from dcr2ad.types import ImagePart, Prompt, TextPart

_TAG_EDGES = re.compile(r"(</?(?:knowledge|think|answer)>)")
_FEATURE_BYTES = 64 * 1024 * 1024
"""Features kept: those of the images being asked about, and of references that neighbours share."""
_TOWER_BYTES = 512 * 1024 * 1024
"""What a frozen tower made of images, kept while the projector is trained."""
_PIXEL_BYTES = 128 * 1024 * 1024
"""Pixels kept; those of an image go when its features are there."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids.

    Attributes:
        ids: token ids, each image expanded to its image tokens.
        images: paths of the images in order.
        counts: number of tokens of each image.
    """

    ids: tuple[int, ...]
    images: tuple[str, ...]
    counts: tuple[int, ...]

    def keys(self, image_token: int) -> tuple[tuple[int, str], ...]:
        """Ids paired with the image they belong to ("" for text): what decides whether two tokens are the same."""
        owners = [path for path, count in zip(self.images, self.counts, strict=True) for _ in range(count)]
        remaining = iter(owners)
        return tuple((token, next(remaining) if token == image_token else "") for token in self.ids)

    def image_spans(self, image_token: int) -> list[tuple[int, int]]:
        """Where each image's tokens lie: (start, end), in the order of `images`."""
        places = [index for index, token in enumerate(self.ids) if token == image_token]
        spans, used = [], 0
        for count in self.counts:
            spans.append((places[used], places[used + count - 1] + 1))
            used += count
        return spans


class VisionLanguageModel:
    """One loaded model with its processor.

    Args:
        model: an image-text-to-text model with a language head.
        processor: its processor; has `image_token` and a chat template that accepts images.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token = str(processor.image_token)
        self.image_token_id = int(self.tokenizer.convert_tokens_to_ids(self.image_token))
        self._pixels = ByteCache(_PIXEL_BYTES)
        self._features = ByteCache(_FEATURE_BYTES)
        self._towers = ByteCache(_TOWER_BYTES)
        self._counts: dict[Any, int] = {}
        self._grids: dict[Any, tuple[int, ...]] = {}
        use_tree_attention(model)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: str | None = None) -> VisionLanguageModel:
        """Load a transformers folder; never asks a hub.

        Args:
            folder: the folder.
            dtype: weights' type; default bfloat16 on a GPU, float32 on a CPU.
            device: default this process's GPU, else the CPU; the CPU too where training will divide the weights.

        Raises:
            ModelError: it is no such folder or cannot be loaded.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is no transformers model (no config.json)", "Name a folder with a model in it")
        from transformers import AutoModelForImageTextToText
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = dtype or (torch.bfloat16 if (device or computing_device()).startswith("cuda") else torch.float32)
        device = device or loading_device()
        if device == "cpu":
            # Otherwise keys and values are copied once for each group of query heads at every masked step.
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        try:
            processor = load_processor(folder)
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelError(f"cannot load the model in {folder}: {str(error).splitlines()[0]}", "Check the folder") from None
        return cls(model, processor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def pixel_limits(self) -> str:
        """How large images reach the model, in the image processor's own words."""
        images = self.processor.image_processor
        limits = {name: getattr(images, name, None) for name in ("min_pixels", "max_pixels")}
        found = {name: value for name, value in limits.items() if value} or dict(getattr(images, "size", None) or {})
        return ", ".join(f"{name} {value}" for name, value in sorted(found.items()) if value)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a response; the first is the one training appends."""
        configured = self.model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return tuple(dict.fromkeys(int(i) for i in [self.tokenizer.eos_token_id, *listed] if i is not None))

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Token ids of a prompt, its opening included.

        Raises:
            ImageError: an image cannot be used.
        """
        content: list[dict[str, str]] = []
        images = []
        for part in prompt.parts:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text.replace(self.image_token, "")})
            elif isinstance(part, ImagePart):
                content.append({"type": "image"})
                images.append(part.path)
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        counts = tuple(self.image_tokens(path) for path in images)
        pieces = text.split(self.image_token)
        if len(pieces) != len(images) + 1:
            raise ModelError("the chat template does not place one image token an image", "Use a processor with image support")
        filled = pieces[0]
        for count, piece in zip(counts, pieces[1:], strict=True):
            filled += self.image_token * count + piece
        ids = self.tokenizer(filled, add_special_tokens=False)["input_ids"]
        return TokenizedPrompt((*ids, *self.response_ids(prompt.opening)), tuple(images), counts)

    def response_ids(self, text: str) -> list[int]:
        """Token ids of (a part of) a response.

        Text is cut at the tags first, so that a response has one tokenisation wherever it is interrupted: byte-pair merges
        such as "><" or ">B" would otherwise differ between training, where the whole response is known, and scoring.
        """
        ids: list[int] = []
        for piece in _TAG_EDGES.split(text):
            if piece:
                ids.extend(self.tokenizer(piece, add_special_tokens=False)["input_ids"])
        return ids

    def image_tokens(self, path: str) -> int:
        """How many tokens an image takes."""
        key = file_key(path)
        if key not in self._counts:
            self.pixel_inputs(path)
        return self._counts[key]

    def pixel_inputs(self, path: str) -> dict[str, torch.Tensor]:
        """An image as the vision tower wants it: ``pixel_values`` and, where the model has one, its grid.

        Raises:
            ImageError: the image cannot be used.
        """
        key = file_key(path)
        found = self._pixels.get(key)
        if found is None:
            batch = self.processor(images=[load_image(path)], text=[self.image_token], return_tensors="pt")
            self._counts[key] = int((batch["input_ids"] == self.image_token_id).sum())
            if "image_grid_thw" in batch:
                self._grids[key] = tuple(batch["image_grid_thw"][0].tolist())
            found = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
            self._pixels.put(key, found, sum(value.nbytes for value in found.values()))
        return dict(found)

    def image_features(self, paths: Sequence[str]) -> list[torch.Tensor]:
        """Features of images as the language model sees them, each ``(tokens, hidden)``; cached, without gradient.

        Images whose features are not there yet are encoded together.
        """
        keys = {path: file_key(path) for path in paths}
        found: dict[str, Any] = {path: self._features.get(key) for path, key in keys.items()}
        missing = [path for path, features in found.items() if features is None]
        if missing:
            inputs = [self.pixel_inputs(path) for path in missing]
            pixels = {name: torch.cat([each[name] for each in inputs]).to(self.device) for name in inputs[0]}
            with torch.inference_mode():
                output = self.model.get_image_features(**pixels).pooler_output
            for path, features in zip(missing, output, strict=True):
                # A copy outside inference mode, the caller's too, so that the features may enter a training graph as constants.
                with torch.inference_mode(False):
                    found[path] = features.clone()
                self._features.put(keys[path], found[path], found[path].nbytes)
                self._pixels.drop(keys[path])
        return [found[path] for path in paths]

    def projected_features(self, path: str) -> torch.Tensor:
        """Features of one image with a gradient to the projector; the vision tower, frozen, runs once an image."""
        key = file_key(path)
        found = self._towers.get(key)
        if found is None:
            pixels = {name: value.to(self.device) for name, value in self.pixel_inputs(path).items()}
            found = run_tower(self.model, pixels, self.image_tokens(path))
            self._towers.put(key, found, found.nbytes)
        return project(self.model, found)

    def forget_features(self, *, tower: bool = True, keep: int | None = None) -> None:
        """Drop cached features; call when the vision tower or, with `tower` false, the projector alone has changed.

        Args:
            tower: whether what the tower made goes too.
            keep: bytes of features to keep from now on; None for as many as before.
        """
        self._features.clear()
        self._features.limit = self._features.limit if keep is None else keep
        if tower:
            self._towers.clear()

    def forget_images(self, paths: Iterable[str]) -> None:
        """Drop all that is kept of some images; what the tower made of them for training stays."""
        for key in file_keys(paths):
            self._pixels.drop(key)
            self._features.drop(key)
            self._counts.pop(key, None)
            self._grids.pop(key, None)

    def encoder_outputs(self, images: Sequence[str], *, projected: bool = False) -> dict[str, Any] | None:
        """Features of images in the form the model's `mm_encoder_outputs` takes; None for no image.

        Args:
            images: paths.
            projected: through the projector as it stands, with gradient; else cached constants.
        """
        if not images:
            return None
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features = [self.projected_features(path) for path in images] if projected else self.image_features(images)
        pooled = tuple(features) if self._has_rope_index else torch.stack(features)
        return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}

    def positions(self, ids: Sequence[int], images: Sequence[str]) -> torch.Tensor:
        """Position of each token on each rotary axis, shape ``(axes, L)``: three axes for M-RoPE, else one."""
        if not self._has_rope_index:
            return torch.arange(len(ids))[None]
        row = torch.tensor([list(ids)])
        if not images:
            return torch.arange(len(ids)).expand(3, -1)
        grids = torch.tensor([self._grid(path) for path in images])
        types = (row == self.image_token_id).int()
        positions, _ = self._core.get_rope_index(row, mm_token_type_ids=types, image_grid_thw=grids)
        return positions[:, 0]

    def _grid(self, path: str) -> tuple[int, ...]:
        key = file_key(path)
        if key not in self._grids:
            self.pixel_inputs(path)
        return self._grids[key]

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions ``(axes, L)`` of one row, or ``(axes, N, L)`` of N, as the model takes them: all axes for M-RoPE."""
        rows = positions[:, None] if positions.dim() == 2 else positions
        return (rows if self._has_rope_index else rows[0]).to(self.device)

    @property
    def text_config(self) -> Any:
        """Configuration that the language model's layers read."""
        return self._core.language_model.config

    @cached_property
    def _core(self) -> Any:
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return base.model

    @cached_property
    def _has_rope_index(self) -> bool:
        return hasattr(self._core, "get_rope_index")


def load_processor(folder: Path) -> Any:
    """A model's processor, without torchvision.

    `AutoProcessor` needs torchvision for Qwen2.5-VL's video half, which this package never uses; there an image-only
    processor is put together from the same files.
    """
    import json

    from transformers import AutoProcessor, AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if str(config.get("model_type", "")).startswith(("qwen2_vl", "qwen2_5_vl")):
        from transformers import Qwen2VLImageProcessorPil

        from dcr2ad.models.qwen import ImageOnlyQwenProcessor

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return ImageOnlyQwenProcessor(
            image_processor=image_processor, tokenizer=tokenizer, chat_template=tokenizer.chat_template
        )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"{folder} has no image processor", "Use a vision-language model")
    return processor
