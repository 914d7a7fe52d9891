"""Models that answer a question about a picture with P(yes), and CLIP: GIT, BLIP and CLIP of transformers.

Knows transformers and pictures; no prompt, no benchmark. P(yes) is p(yes) / (p(yes) + p(no)) of the next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from milr.critics.base import yes_share
from milr.critics.local.detectors import batched, image_processor, tokenizer
from milr.critics.local.models import Frozen, ModelSettings, in_batches, unit_vectors
from milr.drafts import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

LEAST_SHARE = 0.01  # these were taught to answer half a question ('red bench?') in any of thousands of words
LONGEST_QUESTION = 35  # tokens, as the authors of BLIP's VQA cut it


class YesNo(Protocol):
    """Answers questions about pictures."""

    def p_yes(self, images: Sequence[Image], questions: Sequence[str]) -> list[float | str]:
        """P(yes) in [0, 1] of the i-th question about the i-th image, or why there is none."""
        ...


class Git(Frozen):
    """GIT-VQA: the word after '[CLS] red bench?'."""

    def __init__(self, name_or_dir: str, settings: ModelSettings, least_share: float = LEAST_SHARE) -> None:
        from transformers import GitForCausalLM

        super().__init__(GitForCausalLM, name_or_dir, settings)
        self._least = least_share
        self._processor = _square_processor(self._folder, self._model.config.vision_config.image_size)
        self._tokenizer = tokenizer(self._folder)
        self._yes, self._no = yes_and_no(self._tokenizer, self._folder)

    def p_yes(self, images: Sequence[Image], questions: Sequence[str]) -> list[float | str]:
        """See YesNo."""
        return batched(self._run, list(zip(images, questions, strict=True)), self._batch)

    def _run(self, items: Sequence[tuple[Image, str]]) -> list[float | str]:
        import torch

        start = int(self._tokenizer.cls_token_id)
        rows = [
            [start, *self._tokenizer(text, add_special_tokens=False, truncation=True, max_length=40)["input_ids"]]
            for _, text in items
        ]
        longest = max(map(len, rows))
        # Filled up on the right and not masked: the model is causal, so what follows cannot reach the last word.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)
        pixels = self._processor([image for image, _ in items], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels.to(self._device, self._dtype), input_ids=ids).logits
        before = logits.shape[1] - longest  # positions of the picture
        last = torch.stack([logits[row, before + len(rows[row]) - 1] for row in range(len(rows))])
        return yes_shares(self._sound(last), self._yes, self._no, self._least)


class Blip(Frozen):
    """BLIP-VQA as its authors run it: [ENC] in the place of the question's first token, decoder started by [DEC].

    transformers' own class leaves [CLS] there, which the encoder was not trained with, and gives no probability.
    """

    def __init__(self, name_or_dir: str, settings: ModelSettings, least_share: float = LEAST_SHARE) -> None:
        from transformers import BlipForQuestionAnswering, BlipImageProcessorPil

        super().__init__(BlipForQuestionAnswering, name_or_dir, settings)
        self._least = least_share
        side = int(self._model.config.vision_config.image_size)
        self._processor = image_processor(BlipImageProcessorPil, self._folder, size={"height": side, "width": side})
        self._tokenizer = tokenizer(self._folder)
        self._yes, self._no = yes_and_no(self._tokenizer, self._folder)
        self.decoder_start = int(self._model.config.text_config.bos_token_id)  # [DEC], 30522
        self.encoder_start = self.decoder_start + 1  # [ENC], 30523: the two words that the authors added to BERT's
        if self.encoder_start >= int(self._model.config.text_config.vocab_size):
            raise UserError(
                f"{Path(self._folder).name} has no [ENC] word; take a BLIP that was trained to answer questions."
            )

    def p_yes(self, images: Sequence[Image], questions: Sequence[str]) -> list[float | str]:
        """See YesNo."""
        rows = [self._tokenizer(text, truncation=True, max_length=LONGEST_QUESTION)["input_ids"] for text in questions]
        # By length: transformers' decoder attends to filled-up places of a question, whatever the mask says.
        return batched(self._run, list(zip(images, rows, strict=True)), self._batch, [len(row) for row in rows])

    def _run(self, items: Sequence[tuple[Image, list[int]]]) -> list[float | str]:
        import torch

        ids = torch.tensor([row for _, row in items], device=self._device)
        ids[:, 0] = self.encoder_start
        mask = torch.ones_like(ids)
        pixels = self._processor([image for image, _ in items], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = self._model.vision_model(pixel_values=pixels.to(self._device, self._dtype)).last_hidden_state
            asked = self._model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=self._device),
            ).last_hidden_state
            logits = self._model.text_decoder(
                input_ids=torch.full((len(items), 1), self.decoder_start, device=self._device),
                encoder_hidden_states=asked,
                encoder_attention_mask=mask,
            ).logits
        return yes_shares(self._sound(logits[:, 0]), self._yes, self._no, self._least)


class Clip(Frozen):
    """CLIP's cosine similarity of pictures and texts."""

    def __init__(self, name_or_dir: str, settings: ModelSettings) -> None:
        from transformers import CLIPModel

        super().__init__(CLIPModel, name_or_dir, settings)
        self._processor = _square_processor(self._folder, self._model.config.vision_config.image_size)
        self._tokenizer = tokenizer(self._folder)

    def images(self, images: Sequence[Image]) -> torch.Tensor:
        """Unit vectors [images, D], float32, on the CPU."""
        import torch

        return torch.stack(in_batches(self._see, [image.convert("RGB") for image in images], self._batch))

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [texts, D], float32, on the CPU."""
        import torch

        return torch.stack(in_batches(self._read, texts, self._batch))

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Cosine of the i-th image and the i-th text."""
        if not images:
            return []
        return [float(value) for value in (self.images(images) * self.texts(texts)).sum(-1)]

    def _see(self, images: Sequence[Image]) -> Sequence[torch.Tensor]:
        import torch

        pixels = self._processor(list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            features = self._model.get_image_features(pixel_values=pixels.to(self._device, self._dtype))
            return list(unit_vectors(features, self._name).cpu())

    def _read(self, texts: Sequence[str]) -> Sequence[torch.Tensor]:
        import torch

        length = int(self._model.config.text_config.max_position_embeddings)
        read = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=length)
        with torch.inference_mode():
            features = self._model.get_text_features(
                input_ids=read["input_ids"].to(self._device), attention_mask=read["attention_mask"].to(self._device)
            )
            return list(unit_vectors(features, self._name).cpu())


def yes_shares(logits: torch.Tensor, yes: int, no: int, least: float = LEAST_SHARE) -> list[float | str]:
    """p(yes) / (p(yes) + p(no)) of each row of logits [B, vocabulary], or why it means nothing."""
    both = logits.float().softmax(-1)[:, [yes, no]].tolist()
    answers = [yes_share(said, denied, least) for said, denied in both]
    return [why if share is None else share for share, why in answers]


def yes_and_no(words: Any, folder: str) -> tuple[int, int]:
    """The tokens of 'yes' and 'no'. Raises UserError where a tokenizer has no such words."""
    yes, no = (words.convert_tokens_to_ids(word) for word in ("yes", "no"))
    if words.unk_token_id in (yes, no) or yes is None or no is None:
        raise UserError(f"The tokenizer of {Path(folder).name} has no words 'yes' and 'no'; take the model's own.")
    return int(yes), int(no)


def _square_processor(folder: str, side: int) -> Any:
    """Short side to `side`, then its middle: what CLIP and GIT do."""
    from transformers import CLIPImageProcessorPil

    square = {"height": int(side), "width": int(side)}
    return image_processor(CLIPImageProcessorPil, folder, size={"shortest_edge": int(side)}, crop_size=square)
