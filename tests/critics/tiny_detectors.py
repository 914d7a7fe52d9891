"""Random checkpoints of the true architectures, small enough for a test, laid out like those on the hub."""

import json
import string
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    GitConfig,
    GitForCausalLM,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
)

WORDS = ("yes", "no", "dog", "cat", "car", "bench", "bear", "fox", "red", "blue", "green", "a", "photo", "of")
BERT_WORDS = 1098  # GroundingDINO has BERT's numbers of [CLS], [SEP], '.' and '?' in its code
CLIP_NORMAL = {
    "image_mean": [0.481, 0.457, 0.408], "image_std": [0.268, 0.261, 0.275], "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
}  # fmt: skip


def picture(seed=0, size=(48, 48)):
    """Coloured blocks: something for a random model to react to."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def save(model, folder, processor, tokenizer=None, spread=4.0, seed=0):
    """Weights far enough from zero that pictures differ, and the hub's processor file."""
    folder = Path(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(spread)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def bert_tokenizer():
    vocabulary = {f"[unused{number}]": number for number in range(BERT_WORDS)}
    taken = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    pieces = [*WORDS, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), "-", "'"]
    taken |= dict(enumerate(dict.fromkeys(pieces), start=200))
    vocabulary = {word: number for word, number in vocabulary.items() if number not in taken}
    return BertTokenizer(vocab={**vocabulary, **{word: number for number, word in taken.items()}})


def clip_tokenizer():
    letters = [*string.ascii_lowercase, "-", "'", "."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def mask2former(folder, classes=80, sure=12.0):
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=swin,
            num_labels=classes,
            num_queries=10,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
        )
    )
    with torch.no_grad():
        model.class_predictor.weight.mul_(sure)  # sure of something, whatever it is
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 384, "width": 384},
        "do_resize": True, "do_rescale": True, "do_normalize": True,
    }  # fmt: skip
    return save(model, folder, processor)


def grounding_dino(folder):
    torch.manual_seed(1)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=32,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=BERT_WORDS + 2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin,
            text_config=bert,
            num_queries=20,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_text_len=64,
        )
    )
    processor = {"image_processor_type": "GroundingDinoImageProcessor", "size": {"shortest_edge": 48}}
    return save(model, folder, processor, bert_tokenizer(), spread=2.0)


def owlv2(folder):
    torch.manual_seed(2)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    model = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={
                **tower,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 16,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.bos_token_id,
            },
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    processor = {"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 960, "width": 960}}
    return save(model, folder, processor, tokenizer)


def dpt(folder):
    torch.manual_seed(3)
    model = DPTForDepthEstimation(
        DPTConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
        )
    )
    processor = {
        "image_processor_type": "DPTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True,
        "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    return save(model, folder, processor)


def depth_anything(folder):
    torch.manual_seed(4)
    dino = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=dino,
            reassemble_hidden_size=16,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=8,
            depth_estimation_type="relative",
        )
    )
    processor = {
        "image_processor_type": "DPTImageProcessor", "size": {"height": 28, "width": 28}, "do_resize": True,
        "keep_aspect_ratio": True, "ensure_multiple_of": 14, "do_rescale": True, "do_normalize": True,
    }  # fmt: skip
    return save(model, folder, processor)


def git(folder):
    torch.manual_seed(5)
    model = GitForCausalLM(
        GitConfig(
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
            vocab_size=BERT_WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    )
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 480}, **CLIP_NORMAL}
    processor |= {"crop_size": {"height": 480, "width": 480}, "do_center_crop": True}
    return save(model, folder, processor, bert_tokenizer(), spread=8.0)


def blip(folder):
    torch.manual_seed(6)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BlipForQuestionAnswering(
        BlipConfig(
            text_config={
                **tower,
                "vocab_size": BERT_WORDS + 2,
                "bos_token_id": BERT_WORDS,
                "encoder_hidden_size": 16,
                "pad_token_id": 0,
                "eos_token_id": 2,
                "sep_token_id": 102,
                "max_position_embeddings": 64,
            },
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            projection_dim=16,
            image_text_hidden_size=16,
        )
    )
    processor = {"image_processor_type": "BlipImageProcessor", "size": {"height": 384, "width": 384}, **CLIP_NORMAL}
    return save(model, folder, processor, bert_tokenizer(), spread=8.0)


def clip(folder):
    torch.manual_seed(7)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 77,
                "projection_dim": 16,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.bos_token_id,
            },
            vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16},
            projection_dim=16,
        )
    )
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, **CLIP_NORMAL}
    processor |= {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    return save(model, folder, processor, tokenizer)
