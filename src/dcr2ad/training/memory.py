"""What a training step takes of a GPU's memory, from counts alone.

Numbers in, numbers out; knows nothing about models, files or devices (`dcr2ad.training.counting` makes the counts). It follows
what this package's trainer does: trained weights, their gradients and AdamW's two moments in float32, frozen weights as loaded,
products in bfloat16 under autocast, logits of response tokens only, one row ``[prefix | chosen | rejected]`` a pair, and no
second model for pi_ref, whose log-probabilities are computed once. Weights, gradients and moments are exact; activations are an
estimate (docs/training.md says how far from a measurement). Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Sharding = Literal["ddp", "zero2", "fsdp", "zero3"]
"""What is divided among GPUs: nothing (ddp), gradients and moments (zero2), weights too (fsdp, zero3)."""

FLOAT = 4
"""Bytes of a float32."""
RESERVED = 2 * 2**30
"""Bytes a GPU set aside for the driver's context, communication buffers and fragmentation: an assumption, not a measurement."""
MOST_GPUS = 512
"""Where the search for enough GPUs ends."""


@dataclass(frozen=True)
class Blocks:
    """Transformer blocks of one kind.

    Attributes:
        layers: how many.
        hidden: width.
        inner: width between the two halves of the feed-forward part.
        queries: width of all query heads together.
        keys: width of all key heads together; the values' too.
        gated: whether the feed-forward part is gated (three matrices) or not (two).
    """

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    gated: bool = True


@dataclass(frozen=True)
class Counts:
    """What a model has to be trained.

    Attributes:
        trained: trained elements.
        frozen: frozen elements.
        frozen_bytes: bytes of the frozen elements.
        products: trained elements that products use and autocast copies to bfloat16.
        whole: bytes of the frozen elements that stay whole in each process where weights are divided: a frozen tower's.
        copied: those of `products` that FSDP gathers in float32, so that autocast still copies them.
        gathered: bytes of the largest part that sharded weights are gathered for: twice its weights, one part being fetched
            while another is used, and its gradients, as they come and in float32 to be exchanged.
        text: blocks of the language model.
        vision: blocks of the vision tower.
        patches: patches of an image token.
        vocabulary: tokens the model knows.
        lora: whether weights are trained by LoRA.
        trains_text: whether the embeddings are trained, so that the stream between blocks is float32.
        trains_vision: whether the vision tower is trained.
        compute: bytes of a number in products: 2 (bfloat16 under autocast) or 4.
    """

    trained: int
    frozen: int
    frozen_bytes: int
    products: int
    whole: int
    copied: int
    gathered: int
    text: Blocks
    vision: Blocks
    patches: int
    vocabulary: int
    lora: bool
    trains_text: bool
    trains_vision: bool
    compute: int


@dataclass(frozen=True)
class RowShape:
    """The row that memory is planned for.

    Attributes:
        text: tokens of the prompt without its images.
        images: images of the prompt.
        image_tokens: tokens of each image.
        response: tokens of one response.
        responses: 1 (SFT) or 2 (a pair); equal beginnings are counted twice.
        batch: rows of a forward.
    """

    text: int
    images: int
    image_tokens: int
    response: int
    responses: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of a forward."""
        return self.batch * (self.text + self.images * self.image_tokens + self.scored)

    @property
    def scored(self) -> int:
        """Response tokens of a row."""
        return self.response * self.responses


@dataclass(frozen=True)
class Machine:
    """What there is to train on.

    Attributes:
        gpus: how many.
        memory: bytes of each.
        sharding: how the model is divided.
        checkpointing: whether blocks are computed again in the backward pass.
    """

    gpus: int
    memory: int
    sharding: Sharding
    checkpointing: bool


@dataclass(frozen=True)
class Need:
    """Bytes a GPU.

    Attributes:
        weights: the model's weights, trained and frozen.
        gradients: float32 gradients; what DDP exchanges them in is counted here too.
        optimizer: AdamW's two moments, and the float32 copy that DeepSpeed's ZeRO keeps of its share.
        copies: bfloat16 copies of trained weights that autocast holds through a forward, and what is gathered for a moment.
        activations: kept for the backward pass.
        logits: of response tokens, with their gradients.
        reserved: `RESERVED`.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int
    reserved: int = RESERVED

    @property
    def total(self) -> int:
        """All of it."""
        return sum((self.weights, self.gradients, self.optimizer, self.copies, self.activations, self.logits, self.reserved))


def need(counts: Counts, row: RowShape, machine: Machine) -> Need:
    """Bytes a GPU needs for one training step."""
    states = machine.gpus if machine.sharding != "ddp" else 1
    shards = machine.gpus if machine.sharding in ("fsdp", "zero3") else 1
    exchange = 2 if machine.sharding == "ddp" and machine.gpus > 1 else 1
    moments = 3 if machine.sharding.startswith("zero") else 2
    whole = counts.whole if machine.sharding in ("fsdp", "zero3") else 0
    # ZeRO-3 casts anew in the backward pass.
    copied = {"fsdp": counts.copied, "zero3": 0}.get(machine.sharding, counts.products)
    return Need(
        weights=whole + _share(counts.frozen_bytes - whole, shards) + FLOAT * _share(counts.trained, shards),
        gradients=FLOAT * _share(counts.trained, states) * exchange,
        optimizer=FLOAT * _share(counts.trained, states) * moments,
        copies=(counts.compute * copied if counts.compute < FLOAT else 0) + (counts.gathered if shards > 1 else 0),
        activations=activations(counts, row, checkpointing=machine.checkpointing),
        logits=2 * counts.compute * row.batch * row.scored * counts.vocabulary,  # logits and their gradient
    )


def activations(counts: Counts, row: RowShape, *, checkpointing: bool) -> int:
    """Bytes kept for the backward pass, logits apart.

    With checkpointing each block keeps its input, and one block at a time what it keeps without.
    """
    stream = FLOAT if counts.trains_text or counts.compute == FLOAT else counts.compute
    kept = _blocks(counts, counts.text, row.tokens, stream, counts.trains_text, checkpointing)
    # A response behind the first attends to the prompt under a small mask of its own, kept by each block.
    masks = (row.responses * row.batch - 1) * row.response * row.tokens * counts.compute
    kept += masks * (1 if checkpointing else counts.text.layers)
    if counts.trains_vision:
        patches = row.batch * row.images * row.image_tokens * counts.patches
        kept += _blocks(counts, counts.vision, patches, FLOAT, not counts.lora, checkpointing)
    return kept


def _blocks(counts: Counts, blocks: Blocks, tokens: int, stream: int, norms: bool, checkpointing: bool) -> int:
    one = _block(blocks, counts.compute, stream, norms=norms, lora=counts.lora)
    return tokens * (blocks.layers * stream * blocks.hidden + one if checkpointing else blocks.layers * one)


def _block(blocks: Blocks, compute: int, stream: int, *, norms: bool, lora: bool) -> int:
    """Bytes a token keeps in one block.

    Two norms in float32; the inputs of the attention's and the feed-forward part's matrices, each cast by itself where the
    stream or LoRA's weights have another type; queries, keys, values and what attention gives, keys and values spread over the
    query heads; activation, gate and their product.
    """
    cast = compute < FLOAT and (lora or stream > compute)
    inputs = (5 if blocks.gated else 4) if cast else 2
    norm = 2 * blocks.hidden * (FLOAT + (stream if norms else 0))
    matrices = inputs * compute * blocks.hidden
    attention = compute * (4 * blocks.queries + (blocks.queries if cast else 0))
    forward = compute * blocks.inner * ((4 if blocks.gated else 2) + (1 if cast and lora else 0))
    return norm + matrices + attention + forward


def smaller(counts: Counts, row: RowShape, machine: Machine) -> Iterator[tuple[str, Machine]]:
    """Changes under which it fits: what to change, and the machine it then is."""
    tries = [("gradient_checkpointing = true", replace(machine, checkpointing=True))]
    checkpointing = replace(machine, checkpointing=True)
    also = "" if machine.checkpointing else " and gradient_checkpointing = true"
    tries.append((f"--sharding fsdp{also}", replace(checkpointing, sharding="fsdp")))
    fitting = [(what, changed) for what, changed in tries if changed != machine and fits(need(counts, row, changed), changed)]
    yield from fitting
    if not fitting:
        for gpus in range(machine.gpus + 1, MOST_GPUS + 1):
            changed = replace(checkpointing, gpus=gpus, sharding="fsdp")
            if fits(need(counts, row, changed), changed):
                yield f"--gpus {gpus} --sharding fsdp{also}", changed
                return


def fits(needed: Need, machine: Machine) -> bool:
    """Whether a GPU has as much."""
    return needed.total <= machine.memory


def _share(count: int, parts: int) -> int:
    """The largest share."""
    return -(-count // parts)
