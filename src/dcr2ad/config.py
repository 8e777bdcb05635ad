"""One frozen settings model a stage, and the recipe that holds them all.

Defaults are the paper's values where it gives one (the section is cited) and ours where it is silent ("not in the paper").
Reads TOML; returns models. Knows nothing about what the stages do.
"""

from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcr2ad.errors import RecordError
from dcr2ad.types import Answering, Context, EvalProtocol, Precision, RouteMode, Subtask

Scored = Literal["all", "distinct", "title"]
"""Which tokens of a preference pair count, see `KrdpoSettings.tokens`."""
Rejected = Literal["matched", "shared", "unrouted", "stepwise"]
"""What of a preference pair is y_l, see `KrdpoSettings.rejected` and `dcr2ad.training.batches.pair_row`."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class KnowledgeSettings(Settings):
    """Knowledge base construction (Section 3.3)."""

    mmad: str | None = None
    """Path of MMAD's domain_knowledge.json."""
    real_iad: str | None = None
    """Path of a Real-IAD knowledge file."""
    own: str | None = None
    """Path of own entries: a JSONL file or a folder of Markdown files."""
    builtin: bool = True
    """Whether the built-in entries are included."""
    exclude_sources: tuple[str, ...] = ()
    """Sources left out, for evaluations that must not see a benchmark's own texts."""


class InstructSettings(Settings):
    """AD-Instruct (Appendix B.1)."""

    max_images: int | None = None
    """Images used at most; None is all. The same number is taken from every object in turn."""
    split: str = "train"
    """Split of the data set questions are made from; empty for all."""
    direct_share: float = Field(default=0.3, ge=0.0, le=1.0)
    """Share of questions answered directly, without reasoning, so that both modes are trained; not in the paper."""
    listed_share: float = Field(default=0.4, ge=0.0, le=1.0)
    """Share of questions whose prompt lists knowledge entries, as routed prompts do; not in the paper."""
    exchanged_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the listed questions on a cause or an effect whose entries are listed with each other's, so that what is listed
    must be read; not in the paper."""
    unshown_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of questions whose prompt shows no reference, so that 0-shot prompts are trained on too; the findings stay those
    of the comparison. Not in the paper."""
    subtasks: tuple[Subtask, ...] = ()
    """Sub-tasks asked about, by MMAD's names; empty for all that an image has (Appendix B.1)."""
    hard_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of questions about a defect whose wrong options are such as the object can have, which its name does not rule out;
    not in the paper."""
    supported_only: bool = False
    """Whether questions are left out whose answer the expert's findings do not carry (`dcr2ad.evidence`); not in the paper."""
    teacher: str = "builtin"
    """``builtin`` or ``openai:MODEL@URL``; the paper uses GPT-4o."""
    teacher_per_minute: float | None = Field(default=None, gt=0)
    """Requests a minute sent to a teacher behind a server, at most; None is no limit. Not in the paper."""
    teacher_prices: tuple[float, float] | None = None
    """Price of a million tokens sent and of a million written, for the cost printed; not in the paper."""
    draw_defects: int = Field(default=0, ge=0, le=100)
    """Defects drawn onto each good photograph, one a picture, taken beside the real ones; not in the paper."""
    draw_strength: float = Field(default=1.0, ge=0.25, le=4.0)
    """Factor on the size, or the opacity, of drawn defects; where texture hides them, more than 1. Not in the paper."""
    expert: bool = True
    """Whether the visual expert's findings are computed and stored for the prompts; not in the paper."""
    references: int = Field(default=1, ge=1, le=32)
    """Good images the visual expert compares each part with, of which prompts show the first; from five on they set its limit.
    Not in the paper."""
    kinds: bool = False
    """Whether a gallery is fitted on the labelled defects, so that findings name the kinds a hot spot looks like; in `run`."""


class TrainSettings(Settings):
    """What SFT and KR-DPO share (Section 4.3)."""

    learning_rate: float = 1e-5
    """Initial learning rate of AdamW: 1e-5 for SFT (Section 4.3)."""
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps spent warming up (Section 4.3)."""
    t_0: int | None = None
    """Steps of the first cosine period; None: all steps after warm-up. Not in the paper."""
    t_mult: int = Field(default=1, ge=1)
    """Factor between periods of CosineAnnealingWarmRestarts; not in the paper."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data: one (Section 4.3)."""
    max_steps: int | None = None
    """Optimiser steps at most; None is all. Not in the paper."""
    batch_size: int = Field(default=1, ge=1)
    """Rows a device and forward: one (Section 4.3)."""
    gradient_accumulation: int = Field(default=8, ge=1)
    """Forwards an optimiser step; not in the paper."""
    weight_decay: float = 0.0
    """AdamW's weight decay; not in the paper."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped here; not in the paper."""
    method: Literal["full", "lora"] = "full"
    """Full fine-tuning (7B) or LoRA (72B), Section 4.3."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of LoRA; not in the paper."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of LoRA; not in the paper."""
    train_projector: bool = True
    """Whether the projector from vision to language is trained; not in the paper."""
    freeze_vision: bool = True
    """Whether the vision tower stays frozen; not in the paper."""
    precision: Literal[Precision, "auto"] | None = None
    """What products are computed in. None: bfloat16 on a GPU, float32 on a CPU. ``auto``: bfloat16 also on a CPU that has units
    for it. Trained weights and the optimiser stay float32 in each case; not in the paper."""
    gradient_checkpointing: bool = False
    """Trade time for memory; not in the paper."""
    group_images: bool = False
    """Keep rows about one image together in a step, so that a batch computes their shared prompt once; not in the paper."""
    save_steps: int = Field(default=25, ge=1)
    """Optimiser steps between checkpoints; not in the paper."""


class SftSettings(TrainSettings):
    """Supervised fine-tuning, Equation (2)."""


class MineSettings(Settings):
    """Boundary mining (Appendix B.2)."""

    threshold: float = Field(default=0.1, gt=0.0, le=1.0)
    """Keep questions with |p(gold) - chance| at most this (Appendix B.2)."""
    wanted: int = 1000
    """Questions kept at most, those nearest chance first (Appendix B.2: 1K)."""
    least_each: int = Field(default=0, ge=0)
    """Questions kept of each sub-task mined, as far as there are so many: where fewer are kept, the nearest of the others come
    beside them, so that the preference also speaks of what the model is sure of and does not carry over to it what it learns
    elsewhere (docs/nano.md). 0 is the paper's rule, the band alone."""
    subtasks: tuple[Subtask, ...] = ()
    """Sub-tasks mined, by MMAD's names; empty for all (Appendix B.2). A preference among what the model cannot see, as a small
    one cannot see what an object is, is learnt as a lean (docs/nano.md); not in the paper."""
    answering: Answering = "score"
    """How the model answers while it is mined: the letter at once, as the paper reads it, or behind one or several responses of
    its own (``reason``, ``reason@4``), whose probabilities are averaged; not in the paper."""
    calibrated: bool = False
    """Measure the margin where questions offer the same options (yes or no, the same objects) against the model's own mean
    answer to these, instead of one over the number of options: a model that leans to yes, whatever it sees, is undecided
    there, not at a half; not in the paper."""


class SynthesizeSettings(Settings):
    """KR-RTS (Section 3.3)."""

    candidates: int = Field(default=4, ge=2)
    """Entries listed in the prompt, the right and the wrong one among them; the paper says "several"."""
    teacher: str = "builtin"
    """``builtin`` or ``openai:MODEL@URL``; the paper uses annotators."""
    length_ratio: float = 0.2
    """Largest relative difference in length between chosen and rejected; not in the paper."""
    elsewhere: bool = False
    """Whether the deceptive response of a question that every defect answers alike (a place, an outline) looks for the mark
    elsewhere and is wrong, instead of differing in the path alone; not in the paper."""
    unrouted: bool = True
    """Whether each pair also holds a wrong answer under the right entry, for the ablation by Equation (4): a third response to
    write, which a teacher behind a server takes half as many requests more for."""


class KrdpoSettings(TrainSettings):
    """KR-DPO, Equation (5), and its ablation, Equation (4)."""

    learning_rate: float = 1e-6
    """1e-6 for 7B, 2e-5 for 72B with LoRA (Section 4.3)."""
    objective: Literal["krdpo", "dpo"] = "krdpo"
    """``krdpo``: Equation (5), y_l under a wrong entry. ``dpo``: Equation (4), the ablation: on the same questions and in as
    many steps, y_l is a wrong answer under the right entry, so that no knowledge is ever chosen wrongly."""
    beta: float = Field(default=0.1, gt=0.0)
    """Temperature of the implicit reward; not in the paper."""
    reasoning: Literal["matched", "shared", "stepwise"] = "matched"
    """Which c stands behind p_l in Equation (5): its own (matched) or the chosen one's (shared). ``stepwise``: none; p_l is
    rejected beside p_w, and a wrong c beside the right one, both behind p_w, each by a logistic loss of its own, so that no
    sound inference from p_l becomes unlikely and neither step is paid for by the other. After Step-DPO (Lai et al., 2024,
    arXiv:2406.18629); not in the paper."""
    sft_weight: float = Field(default=0.0, ge=0.0)
    """Weight of an added SFT term on the chosen response; 0 is the paper's loss."""
    rehearsal_weight: float = Field(default=0.0, ge=0.0)
    """Weight of an added SFT term on instruction questions, one beside each pair, so that what the pairs do not speak of is
    kept (as the pretraining mix of Ouyang et al., 2022, arXiv:2203.02155, Equation 2); 0 is the paper's loss."""
    path_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the path segment's log-ratio; 1 is the paper's loss."""
    reasoning_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the log-ratio of reasoning and answer; 1 is the paper's loss."""
    tokens: Scored = "all"
    """Whose log-ratios count: ``all``, the equations; ``distinct``, of those tokens alone that the two responses do not share,
    so that the words of a conclusion are not made unlikely with what it concludes; ``title``, of the selected entry's title
    alone, so that nothing but the selection is preferred; the last two are not in the paper."""
    routing_dev: str | None = None
    """Questions file whose photographs the policy routes while it is trained, for the log; None: off. Not in the paper."""
    routing_steps: int = Field(default=50, ge=1)
    """Optimiser steps between two such measurements; one is made before the first step and one after the last."""
    routing_mode: RouteMode = "hybrid"
    """How the policy ranks the knowledge there."""

    @property
    def rejected(self) -> Rejected:
        """What of a pair is y_l."""
        return "unrouted" if self.objective == "dpo" else self.reasoning

    @model_validator(mode="after")
    def _equation_4_has_no_parts(self) -> KrdpoSettings:
        if self.objective == "dpo" and (self.reasoning != "matched" or (self.path_weight, self.reasoning_weight) != (1.0, 1.0)):
            raise ValueError('objective "dpo" scores whole responses: leave out reasoning, path_weight and reasoning_weight')
        if self.objective == "dpo" and self.tokens == "title":
            raise ValueError('objective "dpo" has one entry in both responses: tokens = "title" leaves nothing to prefer')
        if self.reasoning == "stepwise" and self.tokens == "title":
            raise ValueError('reasoning "stepwise" prefers contents too: tokens = "title" leaves nothing of them')
        return self


class Grid(Settings):
    """Protocols as the product of what varies; the cells of the ablation (Table 4 and beyond it)."""

    contexts: tuple[Context, ...] = ("none", "category", "routed", "oracle")
    """External knowledge in the prompt."""
    expert: tuple[bool, ...] = (True, False)
    """With and without the visual expert's findings."""
    shots: tuple[int, ...] = (1, 0)
    """References shown."""
    answering: tuple[Answering, ...] = ("score",)
    """How the answer is taken."""
    precision: Precision = "fp32"
    """What a model on a CPU computes in, in every cell."""

    @property
    def protocols(self) -> tuple[EvalProtocol, ...]:
        """One protocol a cell, contexts varying fastest."""
        cells = product(self.shots, self.expert, self.answering, self.contexts)
        return tuple(EvalProtocol(shots=s, expert=e, answering=a, context=c, precision=self.precision) for s, e, a, c in cells)


class EvaluateSettings(Settings):
    """MMAD-style evaluation (Section 4.2)."""

    protocols: tuple[EvalProtocol, ...] = ()
    """What is measured, one report each."""
    grid: Grid | None = None
    """Protocols besides, as the product of what varies."""
    split: str = "dev"
    """Split of the data set questions are made from; empty for all."""
    max_images: int | None = None
    """Images used at most; None is all."""

    @property
    def cells(self) -> tuple[EvalProtocol, ...]:
        """Every protocol measured, each once; where none is named, 1-shot without knowledge."""
        named = (*self.protocols, *(self.grid.protocols if self.grid else ()))
        return tuple(dict.fromkeys(named)) or (EvalProtocol(),)


RESERVED = frozenset({"knowledge", "kinds", "instruct", "bench", "mine", "synthesize", "evaluate"})
"""Names that no variant may have: they are folders of a run."""


class Variant(Settings):
    """One row of the ablation: a model that is trained, or not, and measured."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name of its folder and of its evaluations."""
    label: str = ""
    """Name in tables; empty: `name`."""
    train: Literal["nothing", "sft", "more-sft", "krdpo"]
    """``nothing``: the model the run starts from. ``sft``: [sft] on the instruction data. The others go on from there, on the
    same pairs and with the batch, epochs and steps of [krdpo]: ``more-sft`` by Equation (2) on the chosen responses (and, in
    twice the batch, on what [krdpo] rehearses), ``krdpo`` by the loss of [krdpo]."""
    settings: dict[str, Any] = {}
    """What differs from [sft], or for ``krdpo`` from [krdpo]."""


_VARIANTS = (
    Variant(name="base", label="base", train="nothing"),
    Variant(name="sft", label="SFT", train="sft"),
    Variant(name="krdpo", label="SFT + KR-DPO", train="krdpo"),
)
_BUDGET = ("epochs", "max_steps", "batch_size", "gradient_accumulation", "group_images", "precision", "save_steps")


class Recipe(Settings):
    """All stages of one run."""

    name: str
    """Name of the run: results go to runs/NAME unless told otherwise."""
    model: str = "nano"
    """Model to start from: ``nano``, ``hf:PATH`` or a folder."""
    seed: int = 0
    """Seed of every stage."""
    seeds: tuple[int, ...] = ()
    """Seeds of training, one model a variant and seed; empty: `seed` alone. Data and benchmark are those of `seed`."""
    seen: tuple[str, ...] = ()
    """Data sets trained on; the benchmark holds all, so that the others are unseen. Empty: all are trained on."""
    seeds_from: Literal["sft", "krdpo"] = "sft"
    """First stage that is done anew for each seed; ``krdpo``: all seeds go on from one SFT model and its pairs."""
    knowledge: KnowledgeSettings = KnowledgeSettings()
    instruct: InstructSettings = InstructSettings()
    sft: SftSettings = SftSettings()
    mine: MineSettings = MineSettings()
    synthesize: SynthesizeSettings = SynthesizeSettings()
    krdpo: KrdpoSettings = KrdpoSettings()
    variants: tuple[Variant, ...] = Field(default=_VARIANTS, min_length=1)
    """Models trained and measured: the rows of the ablation."""
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _variants_stand(self) -> Recipe:
        names = [variant.name for variant in self.variants]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two variants are named {min(twice)!r}")
        for variant in self.variants:
            if variant.name in RESERVED or variant.name.startswith("seed-"):
                raise ValueError(f"no variant may be named {variant.name!r}: a folder of the run is")
            if variant.name == "sft" and (variant.train != "sft" or variant.settings):
                raise ValueError("the variant 'sft' is [sft] as it stands; give one that differs another name")
            self.settings_of(variant)
        return self

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """Seeds of training, each once."""
        return tuple(dict.fromkeys(self.seeds)) or (self.seed,)

    def settings_of(self, variant: Variant) -> TrainSettings:
        """How a variant is trained.

        Raises:
            ValueError: a setting it overrides is unknown or out of range.
        """
        kind = KrdpoSettings if variant.train == "krdpo" else SftSettings
        values = (self.krdpo if variant.train == "krdpo" else self.sft).model_dump()
        if variant.train == "more-sft":
            values |= {name: getattr(self.krdpo, name) for name in _BUDGET}
            if self.krdpo.rehearsal_weight:  # a pair comes with a question beside it
                values["batch_size"] *= 2
        try:
            return kind.model_validate({**values, **variant.settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"variant {variant.name!r}: {where}: {first['msg']}") from None


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecordError: no such file, not TOML, an unknown key or a value out of range; names the key.
    """
    path = Path(path)
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecordError(f"no such recipe: {path}", "Recipes of the project lie in recipes/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not TOML ({error})", "See recipes/nano.toml for the form") from None
    try:
        return Recipe.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"]).removesuffix(".") or "the recipe"
        what = first["msg"].removeprefix("Value error, ")
        raise RecordError(f"{path}: {where}: {what}", "See recipes/nano.toml for the known keys") from None
