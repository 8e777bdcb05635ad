"""The models of a run's ablation: base, SFT, and what goes on from SFT, for each seed.

Reads a recipe, instruction data and the knowledge base; writes one folder a stage and variant, those of further seeds under
``seed-N``; gives each model's name as it is ready. SFT, mining and KR-RTS are done once a seed and shared by all variants that
go on from them, so that those differ in nothing but their loss. Knows nothing about how any of them is trained or measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import read_records
from dcr2ad.config import KrdpoSettings, Recipe, SftSettings, Variant
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.hf import HFModel
from dcr2ad.models.placement import release_memory
from dcr2ad.stages.kinds import pass_on
from dcr2ad.stages.mine import mine_boundary
from dcr2ad.stages.synthesize import one_sided, synthesize_pairs
from dcr2ad.teacher import BuiltinTeacher
from dcr2ad.training.krdpo import displaced, partners, train_krdpo
from dcr2ad.training.sft import train_sft
from dcr2ad.types import BoundaryQuestion, Precision, PreferencePair, Question


@dataclass(frozen=True)
class Trained:
    """A model ready to be measured.

    Attributes:
        variant: its row.
        seed: seed it was trained with; None where no seed of the run decides.
        spec: name to open it by.
    """

    variant: Variant
    seed: int | None
    spec: str


@dataclass
class Training:
    """Trains the variants of a recipe.

    Attributes:
        recipe: settings.
        out: the run's folder.
        knowledge: K.
        questions: instruction data; empty where nothing is trained.
        bar: opens a progress bar under a label.
        say: tells the user one line.
        given_sft: an SFT model to go on from in place of the run's own.
    """

    recipe: Recipe
    out: Path
    knowledge: KnowledgeBase
    questions: Sequence[Question]
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    say: Callable[[str], None]
    given_sft: str | None = None
    _measured: set[tuple[str, int]] = field(default_factory=set)
    _models: dict[Path, str] = field(default_factory=dict)
    _paired: dict[int, list[PreferencePair]] = field(default_factory=dict)

    def models(self, variants: Sequence[Variant], seed: int) -> Iterator[Trained]:
        """Each variant's model under one seed, trained when its turn comes; one that no further seed changes comes once.

        Raises:
            InputError: mining or KR-RTS leaves nothing to prefer.
            Dcr2adError: a training stage's.
        """
        first = self.recipe.training_seeds[0]
        for_all = self.given_sft is not None or self.recipe.seeds_from == "krdpo"
        sft_seed = first if for_all else seed
        for variant in variants:
            own = {"nothing": first, "sft": sft_seed}.get(variant.train, seed)
            if (variant.name, own) in self._measured:
                continue
            self._measured.add((variant.name, own))
            if variant.train == "nothing":
                yield Trained(variant, None, self.recipe.model)
            elif variant.train == "sft":
                yield Trained(variant, None if for_all else seed, self._sft(variant, sft_seed))
            else:
                yield Trained(variant, seed, self._onwards(variant, seed, sft_seed))

    def _home(self, seed: int) -> Path:
        """Folder of a seed: the run's own for the first."""
        return self.out if seed == self.recipe.training_seeds[0] else self.out / f"seed-{seed}"

    def _sft(self, variant: Variant, seed: int) -> str:
        """Equation (2) on the instruction data; returns the model's name."""
        if variant.name == _SFT.name and self.given_sft is not None:
            return self.given_sft
        settings = self.recipe.settings_of(variant)
        assert isinstance(settings, SftSettings)
        return self._supervised(variant.name, self.questions, settings, self.recipe.model, seed)

    def _onwards(self, variant: Variant, seed: int, sft_seed: int) -> str:
        """What goes on from SFT on its pairs; returns the model's name."""
        sft = self._sft(_SFT, sft_seed)
        if sft_seed not in self._paired:
            self._paired[sft_seed] = self._pairs(sft, sft_seed)
        pairs = self._paired[sft_seed]
        settings = self.recipe.settings_of(variant)
        if isinstance(settings, SftSettings):
            chosen = [pair.question.model_copy(update={"response": pair.chosen}) for pair in pairs]
            if self.recipe.krdpo.rehearsal_weight:
                chosen += partners(pairs, self.questions, seed)
            return self._supervised(variant.name, chosen, settings, sft, seed)
        assert isinstance(settings, KrdpoSettings)
        out = self._home(seed) / variant.name
        with opened(sft, base=True) as model, self.bar(_named(out, self.out)) as update:
            done = train_krdpo(
                model.vlm,
                pairs,
                self.knowledge,
                settings,
                out,
                base_spec=sft,
                seed=seed,
                rehearsed=self.questions,
                progress=update,
            )
        return self._trained(out, done)

    def _supervised(self, name: str, questions: Sequence[Question], settings: SftSettings, start: str, seed: int) -> str:
        out = self._home(seed) / name
        if out in self._models:
            return self._models[out]
        with opened(start, base=True) as model, self.bar(_named(out, self.out)) as update:
            done = train_sft(model.vlm, questions, self.knowledge, settings, out, base_spec=start, seed=seed, progress=update)
        return self._trained(out, done)

    def _trained(self, out: Path, done: dict[str, Any]) -> str:
        pass_on(self.out / "kinds", out / "model")
        self.say(f"{_named(out, self.out)}: {done['steps']} steps, loss {done['first_loss']:.3f} to {done['last_loss']:.3f}")
        if warning := displaced(done):
            self.say(f"{_named(out, self.out)}: {warning}")
        self._models[out] = str(out / "model")
        return self._models[out]

    def _pairs(self, sft: str, seed: int) -> list[PreferencePair]:
        """Mining (Appendix B.2) and KR-RTS (Section 3.3) with the SFT model of a seed."""
        recipe, home = self.recipe, self._home(seed)
        with opened(sft) as model:
            with self.bar(_named(home / "mine", self.out)) as update:
                mined = mine_boundary(model, self.questions, self.knowledge, recipe.mine, home / "mine", progress=update)
            boundary = list(read_records(home / "mine" / "boundary.jsonl", BoundaryQuestion))
            if not boundary:
                raise InputError(
                    "mining found no question near chance, so there is nothing to prefer",
                    "Raise mine.threshold in the recipe, or use more images",
                )
            filled_up = mined["filled_up"]
            near = f"{mined['kept'] - filled_up} of {mined['questions']} questions within {recipe.mine.threshold} of chance"
            beyond = f", and {filled_up} others" if filled_up else ""
            self.say(f"{_named(home / 'mine', self.out)}: {near}{beyond} {mined['sides']}")
            out = home / "synthesize"
            with self.bar(_named(out, self.out)) as update:
                paired = synthesize_pairs(
                    boundary,
                    self.knowledge,
                    BuiltinTeacher(seed),
                    recipe.synthesize,
                    out,
                    model=model,
                    seed=seed,
                    progress=update,
                )
        dropped = sum(paired["dropped"].values())
        self.say(f"{_named(out, self.out)}: {paired['pairs']} pairs {paired['kinds']}, dropped {dropped}")
        if warning := one_sided(paired):
            self.say(f"{_named(out, self.out)}: {warning}")
        pairs = list(read_records(out / "pairs.jsonl", PreferencePair))
        if not pairs:
            raise InputError("no preference pair could be made", f"See {out / 'rejected.jsonl'}")
        return pairs


_SFT = Variant(name="sft", label="SFT", train="sft")


def _named(folder: Path, run: Path) -> str:
    """A stage's folder as it is told: ``krdpo``, ``seed-1/krdpo``."""
    return folder.relative_to(run).as_posix()


@contextmanager
def opened(spec: str, *, base: bool = False, precision: Precision = "fp32") -> Iterator[HFModel]:
    """A model (or the base of its adapter) for the length of one stage; its memory is given back at the end.

    A caller's own name for it lives until the caller returns, so what the stage before held is given back first.
    """
    release_memory()
    model = HFModel.open_base(spec) if base else HFModel.open(spec, precision=precision)
    try:
        yield model
    finally:
        del model
        release_memory()
