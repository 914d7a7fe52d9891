"""Checkpoints of the true architecture with random weights: tiny for tests, or as large as Janus-Pro.

They prove loading, memory and speed without any download; what they draw is noise. From a shell:

    python -m milr.backbones.random_checkpoint janus-pro-1b --out DIR [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from milr.drafts import UserError

if TYPE_CHECKING:
    from milr.backbones.janus import JanusBackbone

SHARD_BYTES = 1_000_000_000


# --- Configurations ----------------------------------------------------------------------------------------


def _janus_pro(hidden: int, layers: int, heads: int, intermediate: int) -> JanusConfig:
    """Janus-Pro: the two sizes differ in the language model and in what must be as wide as it."""
    text = LlamaConfig(
        vocab_size=102_400,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=16_384,
        bos_token_id=100_000,
        eos_token_id=100_001,
        pad_token_id=100_002,
    )
    return JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(projection_dim=hidden),
        vq_config=JanusVQVAEConfig(projection_dim=hidden, image_token_embed_dim=hidden),
        image_token_id=100_581,
        tie_word_embeddings=False,
    )


def janus_pro_1b() -> JanusConfig:
    """2.077 B parameters, 576 image tokens, 384 pixels."""
    return _janus_pro(hidden=2048, layers=24, heads=16, intermediate=5632)


def janus_pro_7b() -> JanusConfig:
    """7.408 B parameters, 576 image tokens, 384 pixels."""
    return _janus_pro(hidden=4096, layers=30, heads=32, intermediate=11_008)


def tiny(
    heads: int = 4, kv_heads: int = 4, vocabulary: int = 333, codes: int = 61, grid: int = 4, layers: int = 2
) -> JanusConfig:
    """A Janus of under a million parameters that draws `grid` x `grid` tokens of 4 pixels."""
    hidden = 16 * heads
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=2 * hidden + 8,
        max_position_embeddings=4096,
        bos_token_id=vocabulary - 6,
        eos_token_id=vocabulary - 5,
        pad_token_id=vocabulary - 4,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=4 * grid,
        patch_size=4,
        projection_dim=hidden,
        num_image_tokens=grid * grid,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=codes,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=vocabulary - 3,
        tie_word_embeddings=False,
    )


CONFIGS: dict[str, Callable[[], JanusConfig]] = {"janus-pro-1b": janus_pro_1b, "janus-pro-7b": janus_pro_7b}

# --- Tokenizer ---------------------------------------------------------------------------------------------

_SENTENCES = (
    "a photo of a red apple and two green birds above a blue car, left of the white dog on the table",
    "Describe what is to be seen: every object, the attributes that the prompt gives, how they relate.",
    "You are a helpful vision assistant. Is there a yellow clock below the bench? Answer yes or no.",
    "three black cats to the right of an orange bowl with a wooden spoon, next to a small purple book",
)

TEMPLATES = {
    "reasoning": "{{ bos_token }}{{ messages[0]['content'] }} =>",
    "image": "{{ bos_token }}{{ messages[0]['content'] }} => {{ messages[1]['content'] }}<begin_of_image>",
    "question": "{{ bos_token }}<image_placeholder>{{ messages[0]['content'] }} ",
}


def make_tokenizer(config: Any, templates: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any Unicode can be written) with the special tokens at the ids that `config` names.

    The merges come from a few sentences; unused names fill the vocabulary up. Begin and end of an image take
    Janus-Pro's ids where they fit, else the two after the image token.
    """
    text, image = config.text_config, config.image_token_id
    large = text.vocab_size > 100_594
    special = {
        text.bos_token_id: "<｜begin▁of▁sentence｜>",
        text.eos_token_id: "<｜end▁of▁sentence｜>",
        text.pad_token_id: "<｜▁pad▁｜>",
        image: "<image_placeholder>",
        100_016 if large else image + 1: "<begin_of_image>",
        100_593 if large else image + 2: "<end_of_image>",
    }
    base, last = min(special), max(special)

    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(base, 1000), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bytes_only.train_from_iterator(_SENTENCES, trainer)
    learnt = json.loads(bytes_only.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    vocabulary |= {f"<unused_{index}>": index for index in range(len(vocabulary), base)}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [special.get(index, f"<｜place▁holder▁no▁{index}｜>") for index in range(base, last + 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[text.bos_token_id],
        eos_token=special[text.eos_token_id],
        pad_token=special[text.pad_token_id],
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        model_max_length=text.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    if templates:
        fast.chat_template = dict(TEMPLATES)
    return fast


# --- Weights -----------------------------------------------------------------------------------------------


def _tensors(config: Any, dtype: torch.dtype, seed: int, spread: float) -> Iterator[tuple[str, Tensor]]:
    """Every weight by name, made one at a time: norms 1, biases 0, the rest normal with deviation `spread`.

    A tiny model needs a large spread to have preferences, and an end token that is chosen now and then.
    """
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    for index, (name, empty) in enumerate(model.state_dict().items()):
        if name.endswith("bias"):
            yield name, torch.zeros(empty.shape, dtype=dtype)
        elif "norm" in name.rsplit(".", 2)[-2]:
            yield name, torch.ones(empty.shape, dtype=dtype)
        else:
            generator = torch.Generator().manual_seed((seed << 20) + index)
            tensor = torch.empty(empty.shape, dtype=dtype).normal_(0, spread, generator=generator)
            if name == "lm_head.weight" and spread > 0.05:
                tensor[config.text_config.eos_token_id] *= 2
            yield name, tensor


def make_checkpoint(
    config: Any,  # a JanusConfig, whose parts transformers leaves untyped
    directory: str | Path,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    spread: float = 0.02,
    templates: bool = False,
    guidance: float = 5.0,
    max_text_tokens: int | None = None,
) -> Path:
    """Write a complete checkpoint directory. Holds one shard (1 GB) in memory, whatever the model's size."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is not empty; give another folder.")
    directory.mkdir(parents=True, exist_ok=True)

    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    shards, filled, total = 0, 0, 0

    def flush() -> None:
        nonlocal shards, filled, shard
        shards += 1
        save_file(shard, directory / f"part-{shards}.safetensors", metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, shards))
        shard, filled = {}, 0

    for name, tensor in _tensors(config, dtype, seed, spread):
        size = tensor.numel() * tensor.itemsize
        if shard and filled + size > SHARD_BYTES:
            flush()
        shard[name] = tensor
        filled, total = filled + size, total + size
    flush()
    if shards == 1:
        os.replace(directory / "part-1.safetensors", directory / "model.safetensors")
    else:
        files = {number: f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)}
        for number, file in files.items():
            os.replace(directory / f"part-{number}.safetensors", directory / file)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: files[number] for name, number in places.items()},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    tokenizer = make_tokenizer(config, templates)
    tokenizer.save_pretrained(directory)
    config.architectures = ["JanusForConditionalGeneration"]
    config.dtype = dtype
    config.save_pretrained(directory)
    _generation(config, tokenizer, guidance, max_text_tokens).save_pretrained(directory)
    return directory


def random_backbone(
    config: Any, device: str, dtype: torch.dtype, spread: float = 0.02, max_text_tokens: int = 64
) -> JanusBackbone:
    """A model with random weights that are made on the device itself: seconds where a checkpoint takes minutes.

    What it draws depends on the kind of device, as its random numbers do.
    """
    from milr.backbones.janus import JanusBackbone

    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = JanusForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(kept)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name.rsplit(".", 2)[-2]:
                parameter.fill_(1)
            else:
                parameter.normal_(0, spread, generator=generator)
    tokenizer = make_tokenizer(config, False)
    model.generation_config = _generation(config, tokenizer, 5.0, max_text_tokens)
    return JanusBackbone(model, tokenizer, f"random-{config.text_config.hidden_size}", max_text_tokens)


def _generation(config: Any, tokenizer: Any, guidance: float, max_text_tokens: int | None) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        guidance_scale=guidance,
        max_new_tokens=max_text_tokens,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")},
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m milr.backbones.random_checkpoint", description=__doc__)
    parser.add_argument("size", choices=sorted(CONFIGS))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        # Random weights never end a text; 64 tokens are as long as a reasoning of 50 words.
        directory = make_checkpoint(CONFIGS[options.size](), options.out, options.seed, max_text_tokens=64)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(directory)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
