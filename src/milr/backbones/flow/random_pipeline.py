"""Pipelines of the true classes with random weights, small enough for tests. What they draw is noise.

They prove loading, and that our loop is the pipelines' own, without any download. From a shell:

    python -m milr.backbones.flow.random_pipeline FLUX.2-klein --out DIR [--seed 0] [--distilled]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from milr.backbones.flow.families import FAMILIES, KLEIN, QWEN_IMAGE, Z_IMAGE, Family
from milr.drafts import UserError

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_SENTENCES = (
    "a photo of a red apple and two green birds above a blue car, left of the white dog on the table",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of objects",
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_VOCABULARY = 400
_HIDDEN = 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with the chat template and the special tokens of Qwen3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.add_special_tokens(list(_SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    fast.chat_template = _TEMPLATE
    return fast


def _language(layers: int) -> dict[str, Any]:
    """The configuration of a small Qwen."""
    return {
        "vocab_size": _VOCABULARY + 8,
        "hidden_size": _HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    }


def _klein(is_distilled: bool) -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _HIDDEN,
        timestep_guidance_channels=32,
        mlp_ratio=2.0,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae: Any = AutoencoderKLFlux2(
        latent_channels=4, sample_size=32, **_autoencoder(("DownEncoderBlock2D", "UpDecoderBlock2D"))
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **_language(4))),
        tokenizer=make_tokenizer(),
        transformer=transformer,
        is_distilled=is_distilled,
    )


def _z_image(is_distilled: bool) -> Any:
    from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
    from transformers import Qwen3Config, Qwen3Model

    transformer: Any = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_HIDDEN,
        axes_dims=[4, 6, 6],
        axes_lens=[512, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    blocks = ("DownEncoderBlock2D", "UpDecoderBlock2D")
    vae = AutoencoderKL(latent_channels=4, scaling_factor=0.36, shift_factor=0.11, **_autoencoder(blocks))
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if is_distilled else 6.0),
        vae=vae,
        text_encoder=Qwen3Model(Qwen3Config(tie_word_embeddings=True, **_language(3))),
        tokenizer=make_tokenizer(),
        transformer=transformer,
    )


def _autoencoder(blocks: tuple[str, str]) -> dict[str, Any]:
    return {
        "down_block_types": (blocks[0],) * 2,
        "up_block_types": (blocks[1],) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }


def _qwen_image(is_distilled: bool) -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rotary = {"type": "default", "mrope_section": [2, 3, 3], "rope_type": "default"}
    eyes = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": _HIDDEN,
        "fullatt_block_indexes": [0],
    }
    language = _language(2)
    language.pop("head_dim")
    text = Qwen2_5_VLConfig(
        text_config={**language, "rope_parameters": {"rope_theta": 1e6, **rotary}}, vision_config=eyes
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.7, 0.3, 0.1, 0.9],
            latents_std=[2.8, 1.4, 2.3, 0.7],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(text),
        tokenizer=make_tokenizer(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_HIDDEN,
            axes_dims_rope=(4, 6, 6),
        ),
    )


_MAKERS: dict[str, Callable[[bool], Any]] = {
    KLEIN.pipeline: _klein,
    Z_IMAGE.pipeline: _z_image,
    QWEN_IMAGE.pipeline: _qwen_image,
}
# What milr.json says of each: a text of few tokens, pictures of few pixels, layers that there are.
_OWN: dict[str, dict[str, Any]] = {
    KLEIN.pipeline: {"image_size": 32, "text_tokens": 64, "text_layers": [1, 2, 3]},
    Z_IMAGE.pipeline: {"image_size": 32, "text_tokens": 64},
    QWEN_IMAGE.pipeline: {"image_size": 32},
}


def make_pipeline(
    family: Family, directory: str | Path, seed: int = 0, is_distilled: bool = False, spread: float = 1.0
) -> Path:
    """Write a complete folder of a pipeline: of FLUX.2-klein or Z-Image the distilled one or the other.

    The networks' weights are what diffusers makes at random, times `spread`.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is not empty; give another folder.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = _MAKERS[family.pipeline](is_distilled)
        with torch.no_grad():
            for weights in pipe.transformer.parameters():
                weights.mul_(spread)
    pipe.save_pretrained(directory, safe_serialization=True)
    (directory / "milr.json").write_text(json.dumps(_OWN[family.pipeline]) + "\n", encoding="utf-8")
    return directory


def main(arguments: list[str] | None = None) -> int:
    """The command line above."""
    names = {family.name: family for family in FAMILIES.values()}
    parser = argparse.ArgumentParser(description="Write a small flow pipeline with random weights.")
    parser.add_argument("family", choices=list(names))
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distilled", action="store_true")
    chosen = parser.parse_args(arguments)
    try:
        print(make_pipeline(names[chosen.family], chosen.out, chosen.seed, chosen.distilled))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
