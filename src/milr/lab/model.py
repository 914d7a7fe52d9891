"""The lab model: a true JanusForConditionalGeneration, its byte-level BPE tokenizer and its prompt templates.

7.3 M parameters, 14.6 MB in bfloat16. A checkpoint is a plain Hugging Face directory, so it is loaded by the same
code as Janus-Pro. The tokenizer carries three named chat templates (`reasoning`, `image`, `question`): one string
serves both passes, the image prompt is the reasoning prompt plus the reasoning.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from milr.lab.codes import TILE, TOKENS, starting_codebook, starting_head, starting_patches
from milr.lab.curriculum import DrawingErrors, training_sample
from milr.lab.questions import write_question
from milr.lab.train_vq import vq_config
from milr.lab.world import PAGE

WIDTH = 256
LAYERS = 6
VOCABULARY = 1280  # at most; the world's words need fewer merges than that
MAX_POSITIONS = 4096

PAD, BOS, EOS, BOI, EOI, IMAGE, USER, ASSISTANT = SPECIAL = (
    "<|pad|>", "<|begin|>", "<|end|>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>",
    "<|User|>", "<|Assistant|>",
)  # fmt: skip
YES, NO = " Yes", " No"

_OPEN = BOS + USER + " {{ messages[0]['content'] }}" + ASSISTANT
TEMPLATES = {
    "default": _OPEN + "{% if messages|length > 1 %} {{ messages[1]['content'] }}" + EOS + "{% endif %}",
    "reasoning": _OPEN,
    "image": _OPEN + " {{ messages[1]['content'] }}" + EOS + BOI,
    # The placeholder stands once; whoever feeds the image repeats it for every patch, as JanusProcessor does.
    "question": BOS + USER + IMAGE + " {{ messages[0]['content'] }}" + ASSISTANT,
}


def corpus(samples: int, seed: int) -> Iterator[str]:
    """Texts of the world for the tokenizer to learn its merges from."""
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(samples):
        sample = training_sample(rng, DrawingErrors())
        yield " " + sample.item.prompt
        yield " " + sample.reading
        yield " " + write_question(sample.meaning, rng, sample.item.prompt).text
        yield YES + NO


def make_tokenizer(seed: int = 0, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the world's texts: any Unicode text has tokens, and comes back whole."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(samples, seed), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = dict(TEMPLATES)
    return tokenizer


def make_config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=704,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    vision = JanusVisionConfig(
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PAGE,
        patch_size=TILE,
        projection_dim=WIDTH,
        num_image_tokens=TOKENS,
        mlp_ratio=2.0,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq_config(WIDTH),
        image_token_id=tokenizer.vocab[IMAGE],
        tie_word_embeddings=True,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> JanusForConditionalGeneration:
    """An untrained lab model whose image embeddings and head start from what the codes mean.

    The 8-wide image embeddings need a large first aligner layer: with the usual 0.02 training starts very slowly.
    """
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(make_config(tokenizer))
    model.model.generation_embeddings.weight.data.copy_(starting_codebook())
    model.model.generation_head.vision_head.weight.data.copy_(starting_head(WIDTH))
    patches = model.model.vision_model.embeddings.patch_embedding
    weight, bias = starting_patches(patches.out_channels)
    patches.weight.data.copy_(weight)
    patches.bias.data.copy_(bias)
    for parameter in model.model.generation_aligner.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        guidance_scale=GUIDANCE,
        max_new_tokens=MAX_TEXT,
        generation_kwargs={"boi_token_id": tokenizer.vocab[BOI]},
    )
    return model


GUIDANCE = 1.25  # see the model card: best between 1 and 2, and 5 ruins a small model
MAX_TEXT = 72  # the longest reading of the world has fewer tokens


def save_checkpoint(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face checkpoint directory in bfloat16; it appears whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = next(model.parameters()).dtype
    torch.nn.Module.to(model, torch.bfloat16)
    showed_progress = is_progress_bar_enabled()
    disable_progress_bar()  # over before it could be read
    model.save_pretrained(partial)
    if showed_progress:
        enable_progress_bar()
    torch.nn.Module.to(model, dtype)
    image_processor = JanusImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": PAGE, "width": PAGE}, min_size=14
    )
    JanusProcessor(image_processor, tokenizer, use_default_system_prompt=False).save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
