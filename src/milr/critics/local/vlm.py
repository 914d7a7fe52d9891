"""A vision-language model of transformers that runs here: it answers yes or no, or writes.

Any class behind `AutoModelForImageTextToText` with a chat template (Qwen2.5-VL, Qwen3-VL, LLaVA, ...). Its two verbs
give what those of `critics/remote/chat.py` give, so that a critic need not know where its model runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from milr import hub
from milr.critics.base import LEAST_SHARE, yes_share
from milr.critics.local.models import ModelSettings, folder_of, in_batches, load_model, sound
from milr.drafts import UserError
from milr.registry import shorten

if TYPE_CHECKING:
    from PIL.Image import Image

YES = ("yes", "Yes", " yes", " Yes")
NO = ("no", "No", " no", " No")


def load_processor(kind: Any, folder: str) -> Any:
    """What turns text or pictures into a model's inputs, from the files of a folder. Raises UserError."""
    from transformers import AutoTokenizer, BaseImageProcessor

    if kind is AutoTokenizer:
        hub.check_tokenizer(folder)
    guard = {} if issubclass(kind, BaseImageProcessor) else {"trust_remote_code": False}
    try:
        return kind.from_pretrained(folder, local_files_only=True, **guard)
    except Exception as error:  # whatever a broken or missing file, or a missing package, makes of it
        reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0], 200)
        raise UserError(
            f"{kind.__name__} cannot read the files of {hub.name_of(folder)} ({reason}); {hub.again(folder)}, or name "
            "a complete checkpoint."
        ) from error


class VisionLanguageModel:
    """Frozen, greedy, one image and one question a row."""

    def __init__(self, model: str, settings: ModelSettings) -> None:
        from transformers import AutoModelForImageTextToText

        target = settings.target()
        folder = folder_of(model)
        self._name = hub.name_of(folder)
        self._processor = _processor(folder)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:  # transformers gives a bare tokenizer (or image processor) for other models
            raise UserError(f"{model} does not read both pictures and text; choose a vision-language model.")
        hub.check_tokenizer(folder)
        if not (self._processor.chat_template or tokenizer.chat_template):
            raise UserError(f"{model} has no chat template, so it cannot be asked; choose an instruct model.")
        tokenizer.padding_side = "left"  # so that the next token of every row is in one column
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        self._yes, self._no = answer_tokens(tokenizer)
        self._batch = settings.batch
        self._model = load_model(AutoModelForImageTextToText, folder, *target)
        ends = self._model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())

    def yes_probabilities(
        self, images: Sequence[Image], questions: Sequence[str], least_share: float = LEAST_SHARE
    ) -> list[tuple[float | None, str]]:
        """P(yes) / (P(yes) + P(no)) of the first word of each answer, or None and why there is none."""

        def some(pairs: Sequence[tuple[Image, str]]) -> list[tuple[float | None, str]]:
            logits = self._generate(pairs, 1).logits[0]
            return yes_against_no(logits, self._yes, self._no, least_share)

        return in_batches(some, list(zip(images, questions, strict=True)), self._batch)

    def write(self, images: Sequence[Image], requests: Sequence[str], max_tokens: int) -> list[tuple[str | None, str]]:
        """The most probable answer to each request, or None where `max_tokens` were too few for it."""
        cut = (None, f"the reply was not over after {max_tokens} tokens")

        def some(pairs: Sequence[tuple[Image, str]]) -> list[tuple[str | None, str]]:
            rows = self._generate(pairs, max_tokens).sequences.tolist()
            texts = self._processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
            return [(text.strip(), "") if self._ends & set(row) else cut for row, text in zip(rows, texts, strict=True)]

        return in_batches(some, list(zip(images, requests, strict=True)), self._batch)

    def _generate(self, pairs: Sequence[tuple[Image, str]], count: int) -> Any:
        """`count` greedy tokens after each question, with the logits that they were chosen from."""
        import torch

        images, questions = zip(*pairs, strict=True)
        highest = _Highest()
        inputs = self._processor(
            images=[[image.convert("RGB")] for image in images],
            text=[self._request(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            found = self._model.generate(
                **inputs,
                max_new_tokens=count,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._processor.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=count == 1,
                logits_processor=[highest],
            )
        sound(highest.sum, self._name, str(self._model.dtype))
        found.sequences = found.sequences[:, inputs["input_ids"].shape[1] :]
        return found

    def _request(self, question: str) -> str:
        """The conversation up to the model's turn. Nothing in a question may be read as a control token."""
        while self._control.search(question):
            question = self._control.sub("", question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text


class _Highest:
    """Adds up the highest logits of all steps, which are NaN where one of any step was, without looking at them."""

    sum: Any = 0.0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.sum = self.sum + scores.float().amax()
        return scores


def answer_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """First tokens of the spellings of yes, and of no, without those that begin both (a space of its own)."""

    def first(words: Iterable[str]) -> set[int]:
        return {tokenizer.encode(word, add_special_tokens=False)[0] for word in words}

    yes, no = first(YES), first(NO)
    return sorted(yes - no), sorted(no - yes)


def yes_against_no(
    logits: Any, yes: Sequence[int], no: Sequence[int], least_share: float = LEAST_SHARE
) -> list[tuple[float | None, str]]:
    """P(yes) / (P(yes) + P(no)) of each row of logits [B, V]: the mass on either word's first tokens."""
    mass = logits.float().softmax(-1)
    pairs = zip(mass[:, list(yes)].sum(-1).tolist(), mass[:, list(no)].sum(-1).tolist(), strict=True)
    return [yes_share(said, denied, least_share) for said, denied in pairs]


def _processor(folder: str) -> Any:
    """The processor of a checkpoint: also where its video half wants torchvision, which only videos need."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    kind: Any = PROCESSOR_MAPPING.get(type(load_processor(AutoConfig, folder)), None)
    if kind is None or is_torchvision_available() or "video_processor" not in kind.get_attributes():
        return load_processor(AutoProcessor, folder)

    class WithoutVideos(kind):  # type: ignore[misc]
        """transformers takes the parts of a processor from the signature of `__init__`."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    return load_processor(WithoutVideos, folder)
