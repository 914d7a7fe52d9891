"""What a model must offer to be searched. Knows no critic, no search and no particular architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from milr.drafts import Drawn, Order

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True)
class BackboneInfo:
    """What a result must say about the model that made it."""

    name: str  # 'lab', a hub id, or a directory's own name (never a full path)
    dtype: str
    device: str
    image_tokens: int  # tokens of one image
    image_size: int  # pixels a side
    hidden_size: int
    guidance: float  # default guidance scale
    grid: int  # image tokens a side, raster order; of a flow model cells, each with the key of its noise
    sees: bool = True  # whether it can answer questions about pictures
    choices: Literal["tokens", "noise"] = "tokens"  # what its pictures are made of


class Backbone(Protocol):
    """A frozen unified multimodal model: writes a reasoning, draws image tokens, answers questions about images.

    Stateless between calls: the same order gives the same drawing, alone or in any batch (up to float ties).
    """

    info: BackboneInfo

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        """Draw each order, in order. Batches as it sees fit; halves the batch when memory runs out."""
        ...

    def text_logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Text head: [T, D] float32 -> [T, V_text] float32. Differentiable with respect to `latents`."""
        ...

    def image_logits(self, latents: torch.Tensor, guidance: float) -> torch.Tensor:
        """Image head and guidance u + w (c - u): [T, 2, D] float32 -> [T, V_image] float32. Differentiable."""
        ...

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) against P(no), in [0, 1], for one question about each image (the understanding path)."""
        ...

    def understand(self, images: Sequence[Image], questions: Sequence[str]) -> torch.Tensor:
        """The final hidden state, [B, D] float32, from which the answer to a question about each image would follow."""
        ...

    def describe(self, images: Sequence[Image], questions: Sequence[str], max_tokens: int) -> list[str]:
        """The most probable answer in words to one question about each image, cut after `max_tokens` tokens."""
        ...

    def text_end(self) -> int:
        """Id of the token that ends a reasoning."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """The text tokens of a string as it would stand in a reasoning, without begin or end tokens."""
        ...

    def decode_text(self, tokens: Sequence[int]) -> str:
        """The string that these text tokens spell."""
        ...
