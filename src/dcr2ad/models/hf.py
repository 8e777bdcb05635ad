"""Any chat VLM that transformers runs, behind `generate` and `score`.

Reads model folders; answers prompts. Prompts about the same images are answered together on one cached prefix
(`dcr2ad.models.prefix`); the caller gains by asking them in one call or one after the other. Knows nothing about questions or
stages.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from dcr2ad.artifacts import digest_file
from dcr2ad.errors import Dcr2adError, ModelError
from dcr2ad.models.adapters import MARKER, adapter_of, merge_for_inference, read_trained
from dcr2ad.models.base import ModelInfo
from dcr2ad.models.compact import keep_compact
from dcr2ad.models.held import held_logprobs, open_parts
from dcr2ad.models.placement import cpu_has_bfloat16
from dcr2ad.models.prefix import PrefixRunner
from dcr2ad.models.shipped import adapter_digest, adapter_folder, is_nano
from dcr2ad.models.vlm import TokenizedPrompt, VisionLanguageModel
from dcr2ad.types import Completion, OptionScores, Precision, Prompt, Sampling

KEPT_OPTIONS = 4096
"""Continuations whose token ids are kept."""


class HFModel:
    """A transformers model as a `ChatModel`.

    Args:
        vlm: the loaded model.
        name: the name it was opened by.
        digest: digest of its weights.
    """

    def __init__(self, vlm: VisionLanguageModel, *, name: str, digest: str) -> None:
        self.vlm = vlm
        self._name = name
        self._digest = digest
        self.runner = PrefixRunner(vlm)
        self._ids: dict[str, list[int]] = {}

    @classmethod
    def open(cls, spec: str, *, precision: Precision | Literal["auto"] = "fp32") -> HFModel:
        """Open ``nano``, ``nano:NAME``, ``hf:PATH`` or a folder that a training stage wrote.

        Adapters are merged in the type the weights were loaded in; `precision` is that of `dcr2ad.models.base.open_model`.

        Raises:
            ModelError: it cannot be built or loaded.
        """
        folder, adapters, digest = resolve(spec)
        vlm = VisionLanguageModel.load(folder)
        smaller = precision != "fp32" and vlm.device.type == "cpu"
        for place, adapter in enumerate(adapters, 1):
            kept_in = torch.bfloat16 if smaller and place == len(adapters) else None
            vlm.model = merge_for_inference(vlm.model, adapter, kept_in=kept_in)
        if smaller:
            computed = precision == "bf16" or cpu_has_bfloat16()
            vlm.model = vlm.model.to(torch.bfloat16) if computed else keep_compact(vlm.model)
        return cls(vlm, name=spec, digest=digest)

    @classmethod
    def open_base(cls, spec: str) -> HFModel:
        """Open what a trained folder's own adapter goes onto, to train that adapter on; any other model as `open` does."""
        trained = adapter_of(spec)
        return cls.open(trained.base if trained else spec)

    @cached_property
    def info(self) -> ModelInfo:
        """What the model is."""
        folder = trained_folder(self._name)
        trained = read_trained(folder) if folder else None
        return ModelInfo(
            name=self._name,
            digest=self._digest,
            backend="transformers",
            can_score=True,
            routing=trained.routing if trained else {},
            pixels=self.vlm.pixel_limits,
            trained_on=tuple(trained.objects or trained.data) if trained else (),
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """See `ChatModel.generate`; a prompt with an unusable image is a ``failed`` completion."""
        results: list[list[Completion]] = [[] for _ in prompts]
        groups = self._groups(prompts, results)
        repeated = [[t for t in tokenized for _ in range(sampling.n)] for _, tokenized in groups]
        written = self.runner.generate(
            repeated,
            max_new_tokens=sampling.max_new_tokens,
            ends=lambda tokens: self._ends(tokens, sampling.stop),
            temperature=sampling.temperature,
            seeds=[_seeds(group, sampling.seed) for group in repeated],
        )
        for (indices, _), asked, found in zip(groups, repeated, written, strict=True):
            for place, (tokens, ended) in enumerate(found):
                if tokens and tokens[-1] in self.vlm.end_ids:
                    del tokens[-1]
                text = self.vlm.tokenizer.decode(tokens, skip_special_tokens=True)
                results[indices[place // sampling.n]].append(
                    Completion(
                        text=text.split(sampling.stop)[0] if sampling.stop else text,
                        status="stop" if ended else "length",
                        prompt_tokens=len(asked[place].ids),
                        new_tokens=len(tokens),
                    )
                )
        return results

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """See `ChatModel.score`.

        Raises:
            ImageError: an image cannot be used.
        """
        ids = [[self._spelled(option) for option in listed] for listed in options]
        found = self._read(prompts, ids)
        return [
            OptionScores(logprobs=tuple(map(sum, values)), tokens=tuple(map(len, listed)))
            for values, listed in zip(found, ids, strict=True)
        ]

    def score_held(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[OptionScores]:
        """See `dcr2ad.models.base.ScoresHeld`.

        Raises:
            ImageError: an image cannot be used.
        """
        ids = [[self._spelled(option) for option in listed] for listed in options]
        parts = [open_parts(listed) for listed in ids]
        found = self._read(prompts, parts)
        return [
            OptionScores(logprobs=tuple(held_logprobs(part, values)), tokens=tuple(map(len, listed)))
            for part, values, listed in zip(parts, found, ids, strict=True)
        ]

    def _read(self, prompts: Sequence[Prompt], ids: Sequence[Sequence[Sequence[int]]]) -> list[list[list[float]]]:
        """Log-probability of each token of each prompt's continuations."""
        results: list[list[list[float]]] = [[] for _ in prompts]
        groups = self._groups(prompts, None)
        found = self.runner.logprobs_by_token(
            [tokenized for _, tokenized in groups], [[ids[i] for i in indices] for indices, _ in groups]
        )
        for (indices, _), values in zip(groups, found, strict=True):
            for i, read in zip(indices, values, strict=True):
                results[i] = read
        return results

    def forget(self, images: Collection[str]) -> None:
        """See `dcr2ad.models.base.Forgets`."""
        self.vlm.forget_images(images)
        self.runner.forget(images)

    def _spelled(self, option: str) -> list[int]:
        """Token ids of a continuation; the last ones are kept, since the same titles and letters are asked for every image."""
        if option not in self._ids:
            if len(self._ids) >= KEPT_OPTIONS:
                self._ids.clear()
            self._ids[option] = self.vlm.response_ids(option)
        return self._ids[option]

    def _ends(self, tokens: Sequence[int], stop: str) -> bool:
        """Whether new tokens, the newest last, end a response: by an end token, or by the text it stops at."""
        if tokens[-1] in self.vlm.end_ids:
            return True
        return bool(stop) and stop in self.vlm.tokenizer.decode(tokens[-len(stop) :])

    def _groups(
        self, prompts: Sequence[Prompt], failures: list[list[Completion]] | None
    ) -> list[tuple[list[int], list[TokenizedPrompt]]]:
        """Prompts by the images they show, order within a group kept; unusable ones become failures, or raise."""
        usable: list[tuple[int, TokenizedPrompt]] = []
        for index, prompt in enumerate(prompts):
            try:
                usable.append((index, self.vlm.tokenize(prompt)))
            except Dcr2adError as error:
                if failures is None:
                    raise
                failures[index] = [Completion(text="", status="failed", error=str(error))]
        image = self.vlm.image_token_id

        def head(item: tuple[int, TokenizedPrompt]) -> tuple[Any, ...]:
            keys = item[1].keys(image)
            last = max((i for i, key in enumerate(keys) if key[1]), default=-1)
            return keys[: last + 1]

        grouped = [list(group) for _, group in groupby(sorted(usable, key=head), key=head)]
        return [([index for index, _ in group], [t for _, t in group]) for group in grouped]


def trained_folder(spec: str) -> Path | None:
    """The folder that holds a model's `dcr2ad.json`, where it has one: a trained folder, or nano's shipped adapter."""
    folder = adapter_folder(spec) if is_nano(spec) else Path(spec.removeprefix("hf:"))
    return folder if folder is not None and (folder / MARKER).is_file() else None


def resolve(spec: str) -> tuple[Path, list[Path], str]:
    """Where a model lies: its transformers folder, the adapters to apply in order, and a digest of all of it.

    Raises:
        UnknownNameError: the embedded model has no adapter of that name.
        ModelError: it cannot be built, or the folder is no model, or one trained on another adapter than the package carries.
    """
    if is_nano(spec):
        from dcr2ad.models.nano import build_nano

        adapter = adapter_folder(spec)
        folder, adapters = build_nano(), [adapter] if adapter else []
        return folder, adapters, _digest([folder, *adapters])
    folder = Path(spec.removeprefix("hf:"))
    trained = adapter_of(str(folder))
    if trained is None:
        return folder, [], _digest([folder])
    if trained.base_adapter and trained.base_adapter != adapter_digest(trained.base):
        what = f"{folder} was trained on {trained.base} as another release carries it"
        raise ModelError(what, "Install that release, or train again")
    base, adapters, _ = resolve(trained.base)
    return base, [*adapters, folder], _digest([base, *adapters, folder])


def _seeds(group: Sequence[TokenizedPrompt], seed: int) -> list[int]:
    """A seed for each prompt: equal prompts of a group draw apart, and their company decides nothing."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for prompt in group:
        found.append(seed * 1_000_003 + seen[prompt.ids])
        seen[prompt.ids] += 1
    return found


def _digest(folders: Sequence[Path]) -> str:
    """Digest over the weights of several folders; a folder's own note of its digest is believed, else files are read."""
    parts = []
    for folder in folders:
        built, trained = folder / "nano.json", folder / MARKER
        if built.is_file():  # notes what hashing 0.6 GB anew at each start would give
            noted = json.loads(built.read_text(encoding="utf-8"))["weights_sha256"]
            parts.append(hashlib.sha256(noted.encode()).hexdigest())
        elif trained.is_file():
            parts.append(json.loads(trained.read_text(encoding="utf-8"))["digest"])
        else:
            files = sorted(folder.glob("*.safetensors"))
            parts.append(hashlib.sha256("".join(digest_file(file) for file in files).encode()).hexdigest())
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
