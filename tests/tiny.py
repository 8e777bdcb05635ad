"""Tiny random models in the model hub's folder layout, and records to train them on: built in seconds, no network.

    tiny_qwen(folder), tiny_internvl(folder)   vision-language folders that `VisionLanguageModel.load` takes
    learn(folder, asked, answer)               a `tiny_qwen` that answers everything with one text
    tiny_llama(), tiny_qwen3()                 text models in memory
    tiny_base()                                four knowledge entries
    tiny_questions(folder, n), tiny_pairs(folder, n)   questions about small random photographs, and preference pairs

The Qwen2.5-VL has real M-RoPE and window attention, the InternVL the classes of the embedded model. Weights are four times
the default initialisation, so that logits differ enough for comparisons to mean something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.types import ExpertFindings, KnowledgeEntry, PreferencePair, Question, Sample, Subtask, Trajectory

TEXT = (
    "<|im_start|>user\nYou inspect industrial parts. Choose the knowledge that applies, reason under it, then give one option "
    "letter, as <knowledge>title: why</knowledge><think>reasoning</think><answer>letter</answer>. Normal Inspected Visual "
    "expert: score above below the limit Hottest top left middle right bottom centre Hot spot small compact darker brighter "
    "Question: Is there any defect in the widget? A. Yes B. No C. D. The surface shows a scratch, a dent, a stain, a hole."
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERNVL_TEMPLATE = QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
INTERNVL_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


def tiny_tokenizer(specials: tuple[str, ...] = QWEN_SPECIALS, template: str = QWEN_TEMPLATE) -> Any:
    """A byte-level BPE of about 450 tokens, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(specials[1:]),
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def tiny_qwen(
    folder: str | Path, *, layers: int = 2, hidden: int = 64, image_tokens: int = 16, limit: int = 4096, seed: int = 0
) -> Path:
    """A random Qwen2.5-VL.

    Args:
        folder: where to write it.
        layers: layers of the language model.
        hidden: its width, a multiple of 64.
        image_tokens: most tokens an image takes (at least 4).
        limit: `max_position_embeddings`.
        seed: seed of the weights.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    head = hidden // 4
    special = {"bos_token_id": 0, "eos_token_id": number("<|im_end|>"), "pad_token_id": number("<|endoftext|>")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": limit,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, head // 8 + head // 16, head // 8 + head // 16],
            },
            "tie_word_embeddings": False,
            **special,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    folder = _write(Qwen2_5_VLForConditionalGeneration, config, folder, seed)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "min_pixels": 28 * 28 * 4,
                "max_pixels": 28 * 28 * image_tokens,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            }
        )
    )
    return folder


def learn(folder: Path, asked: Sequence[str], answer: str, *, steps: int = 300, seed: int = 0) -> None:
    """Teach a `tiny_qwen` by heart to answer all of `asked`, and what is much like it, with one text.

    Its folder is written over. Ends as soon as the answer's tokens are nearly certain.
    """
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    target = tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids
    with torch.no_grad():  # four times the default initialisation learns badly
        for weight in model.parameters():
            weight /= 4 if weight.dim() > 1 else 1
    optimiser, rng = torch.optim.AdamW(model.parameters(), lr=2e-3), np.random.default_rng(seed)
    sure = 0
    for _ in range(steps):
        message = [{"role": "user", "content": str(rng.choice(asked))}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        start = tokenizer(text, add_special_tokens=False).input_ids
        rows = torch.tensor([start + target]), torch.tensor([[-100] * len(start) + target])
        loss = model(input_ids=rows[0], labels=rows[1]).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        sure = sure + 1 if float(loss.detach()) < 0.003 else 0
        if sure == 20:
            break
    model.eval().save_pretrained(folder)


def tiny_internvl(
    folder: str | Path, *, layers: int = 2, hidden: int = 64, side: int = 56, limit: int = 4096, seed: int = 0
) -> Path:
    """A random model of the embedded model's classes: InternVL with a Llama, tied embeddings, square images.

    Args:
        folder: where to write it.
        layers: layers of the language model.
        hidden: its width.
        side: image side in pixels, a multiple of 28; an image takes (side / 28)^2 tokens.
        limit: `max_position_embeddings`.
        seed: seed of the weights.
    """
    from transformers import (
        BitImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        LlamaConfig,
        LlavaProcessor,
    )

    tokenizer = tiny_tokenizer(INTERNVL_SPECIALS, INTERNVL_TEMPLATE)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            attention_bias=True,
            image_size=[side, side],
            patch_size=[14, 14],
            use_mean_pooling=True,
        ),
        text_config=_text_config(LlamaConfig, tokenizer, layers, hidden, limit, tie_word_embeddings=True),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // 28) ** 2,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    folder = _write(InternVLForConditionalGeneration, config, folder, seed)
    square = {"height": side, "width": side}
    images = BitImageProcessorPil(do_resize=True, size=square, do_center_crop=False, crop_size=square, do_convert_rgb=True)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=28,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=INTERNVL_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def tiny_llama(seed: int = 0) -> Any:
    """A random Llama in memory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _random(LlamaForCausalLM, _text_config(LlamaConfig, tiny_tokenizer(), 2, 64, 4096), seed)


def tiny_qwen3(seed: int = 0) -> Any:
    """A random Qwen3 in memory."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _random(Qwen3ForCausalLM, _text_config(Qwen3Config, tiny_tokenizer(), 2, 64, 4096, head_dim=16), seed)


def tiny_base() -> KnowledgeBase:
    """Three defects and the normal state."""
    texts = {
        "scratch": ("Scratch", "A thin bright line on the [object], where something dragged."),
        "dent": ("Dent", "A round darker hollow in the [object], where something struck."),
        "stain": ("Stain", "A dull patch on the [object] that follows no edge."),
        "good": ("Normal surface", "The [object] is even, without marks."),
    }
    return KnowledgeBase(
        KnowledgeEntry(key=f"General.surface.{name}", title=title, text=text, is_normal=name == "good")
        for name, (title, text) in texts.items()
    )


def tiny_photograph(folder: str | Path, number: int, size: tuple[int, int] = (84, 60)) -> str:
    """Path of a random photograph; the same number is the same picture."""
    path = Path(folder) / f"photo-{number}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return str(path)


def tiny_questions(folder: str | Path, n: int, *, direct_every: int = 3) -> list[Question]:
    """Questions with worked responses about random photographs, one reference each.

    Args:
        folder: where the photographs are written.
        n: how many; two questions share a photograph.
        direct_every: every how many-th response is a direct answer; 0 for none.
    """
    questions = []
    for i in range(n):
        entry = list(tiny_base())[i % 3]
        direct = direct_every and i % direct_every == direct_every - 1
        answer = i % 2
        questions.append(
            Question(
                id=f"q{i}",
                sample=_sample(folder, i // 2, entry.key),
                subtask=Subtask.CLASSIFICATION,
                text=f"Which kind of defect is number {i}?",
                options=(entry.title, "Hole") if answer == 0 else ("Hole", entry.title),
                answer=answer,
                candidates=() if direct else tuple(e.key for e in tiny_base()),
                response=Trajectory(
                    entry="" if direct else entry.title,
                    why="" if direct else f"the mark is like a {entry.title.lower()}",
                    reasoning="" if direct else f"The line {i} at the top left is a {entry.title.lower()}.",
                    answer=answer,
                ),
            )
        )
    return questions


def tiny_pairs(folder: str | Path, n: int) -> list[PreferencePair]:
    """Preference pairs over `tiny_questions`, every fourth of the kind ``path``."""
    entries = list(tiny_base())
    pairs = []
    for i, question in enumerate(tiny_questions(folder, n, direct_every=0)):
        right, wrong = entries[i % 3], entries[(i + 1) % 3]
        chosen = question.response
        assert chosen is not None
        kind = "path" if i % 4 == 3 else "answer"
        rejected = Trajectory(
            entry=wrong.title,
            why=f"the mark looks like a {wrong.title.lower()}",
            reasoning=f"The spot {i} in the centre is a {wrong.title.lower()} with an edge.",
            answer=chosen.answer if kind == "path" else 1 - chosen.answer,
        )
        pairs.append(
            PreferencePair(
                id=f"p{i}",
                question=question,
                right_key=right.key,
                wrong_key=wrong.key,
                wrong_reason="similar text: similarity 0.40",
                wrong_kind="similar text",
                wrong_strength=0.4,
                chosen=chosen,
                rejected=rejected,
                kind=kind,
                unrouted=chosen.model_copy(update={"reasoning": f"The line {i} is a hole.", "answer": 1 - chosen.answer}),
            )
        )
    return pairs


def _sample(folder: str | Path, number: int, key: str) -> Sample:
    sizes = ((84, 60), (60, 112), (90, 90))
    return Sample(
        id=f"s{number}",
        image=tiny_photograph(folder, number, sizes[number % 3]),
        references=(tiny_photograph(folder, 1000, (84, 84)),),
        dataset="tiny",
        object="widget",
        defect=key.rsplit(".", 1)[1],
        is_anomalous=True,
        right_key=key,
        expert=ExpertFindings(
            score=3.0 + number,
            raw=0.2,
            threshold=2.5,
            cell=number % 9,
            cells=tuple(float(c == number % 9) for c in range(9)),
            extent=0.02,
            elongation=4.0,
            tone="brighter",
            box=(0.1, 0.1, 0.2, 0.2),
        ),
    )


def _text_config(kind: Any, tokenizer: Any, layers: int, hidden: int, limit: int, **more: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=limit,
        bos_token_id=0,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **more,
    )


def _random(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).float().eval()
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def _write(kind: Any, config: Any, folder: str | Path, seed: int) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _random(kind, config, seed).save_pretrained(folder)
    return folder
