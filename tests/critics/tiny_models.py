"""Small models of true architectures with random weights, saved as a hub would hold them. No mocks, no network."""

import json

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pictures(*sizes, seed=0):
    """Noise of these widths and heights."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def save(model, folder, spread, seed=0):
    """Weights far enough from zero for inputs to matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
    model.save_pretrained(folder)


def tiny_clip(folder, logit_scale=4.6052):
    """A CLIP that reads 77 tokens and pictures of 28 pixels."""
    vocabulary = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    begin, end = len(vocabulary) - 2, len(vocabulary) - 1
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(vocabulary), "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**small, **ids, "max_position_embeddings": 77},
        vision_config={**small, "image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    save(model, folder, 0.15)
    with torch.no_grad():
        model.logit_scale.fill_(logit_scale)
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **sizes})
    )
    return folder


def tiny_qwen(folder, template=QWEN_TEMPLATE):
    """A Qwen2.5-VL that knows bytes and the words yes and no."""
    vocabulary, merges = {letter: index for index, letter in enumerate(ALPHABET)}, []
    for pair in ("y e", "ye s", "Y e", "Ye s", "n o", "N o", "Ġ yes", "Ġ Yes", "Ġ no", "Ġ No"):
        left, right = pair.split()
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(QWEN_SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    fast.save_pretrained(folder)
    end, _, turn, seen, unseen, image, video = (fast.convert_tokens_to_ids(token) for token in QWEN_SPECIAL)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(fast),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "bos_token_id": end,
            "eos_token_id": turn,
            "pad_token_id": end,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=seen,
        vision_end_token_id=unseen,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    # The published checkpoints sample unless told otherwise.
    model.generation_config.update(do_sample=True, temperature=1e-6, top_k=1, repetition_penalty=1.05)
    save(model, folder, 0.5)
    sizes = {
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **sizes})
    )
    return folder
