"""The captured pass against the plain one: Triton's kernels and torch's own calls choose the same tokens in float32.

On a machine with a GPU the kernels run there, in graphs; elsewhere in Triton's interpreter, which is slow, so that the
models are tiny and the cases few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

CUDA = torch.cuda.is_available()
pytest.importorskip("triton")

from milr.backbones.board import GraphBoard, Shape  # noqa: E402
from milr.backbones.decoding import Engine  # noqa: E402
from milr.backbones.janus import JanusBackbone, load_janus  # noqa: E402
from milr.backbones.kernels import Kernels, Tuning, kernels_for  # noqa: E402
from milr.backbones.leaping import Pace  # noqa: E402
from milr.backbones.random_checkpoint import make_checkpoint, tiny  # noqa: E402
from milr.drafts import Ask, Forced, Greedy, Order, Sample  # noqa: E402
from rounding import assert_same_tokens  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
MODELS = {
    "one key head a query head": tiny(layers=1, grid=2),
    "grouped heads": tiny(heads=6, kv_heads=2, vocabulary=401, codes=97, grid=2, layers=1),
}


def tuned(**settings: Any) -> Tuning:
    return Tuning(**{"pdl": CUDA and torch.cuda.get_device_capability() >= (9, 0), **settings})


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> JanusBackbone:
    folder = make_checkpoint(
        MODELS[request.param],
        tmp_path_factory.mktemp("kernels") / "model",
        seed=3,
        dtype=torch.float32,
        spread=0.25,
        templates=True,
        guidance=2.0,
        max_text_tokens=8 if CUDA else 3,
    )
    return load_janus(str(folder), device=DEVICE, dtype="float32")


@pytest.fixture
def plain(model: JanusBackbone) -> JanusBackbone:
    """The same model on a CPU, with the engine of a CPU."""
    if not CUDA:
        return model
    return JanusBackbone(_copy_on_cpu(model), model.prompts._tokenizer, "plain", model.max_text_tokens)


def _copy_on_cpu(model: JanusBackbone) -> Any:
    from copy import deepcopy

    return deepcopy(model.model).cpu()


@pytest.mark.parametrize("programs", [1, 64], ids=["keys in one part", "keys in parts"])
@pytest.mark.parametrize(("places", "branches"), [(1, 1), (1, 2), (2, 2)], ids=["1 row", "2 rows", "4 rows, library"])
def test_a_step_of_the_kernels_is_that_of_torch(
    model: JanusBackbone, places: int, branches: int, programs: int
) -> None:
    """Any state of the cache, each draft at its own length."""
    decoder, slots, rows = model._decoder, 40, places * branches
    kernels = Kernels(decoder, tuned(programs=programs))
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        ours, theirs = decoder.new_cache(rows, slots), decoder.new_cache(rows, slots)
        for mine, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
            other.copy_(torch.randn(other.shape, generator=generator))
            mine.copy_(other)
        offset = torch.randint(0, 20, (places,), generator=generator).to(DEVICE)
        at = torch.randint(1, 19, (places,), generator=generator).to(DEVICE)
        x = torch.randn(rows, decoder.hidden_size, generator=generator).to(DEVICE)
        positions = (offset + at).repeat(branches)
        turn = theirs.cosine[positions][:, None], theirs.sine[positions][:, None]
        mask = (torch.arange(slots, device=DEVICE) <= positions[:, None])[:, None, None]
        expected = decoder.step(x.clone(), positions, turn, theirs, slots, mask)
        found = kernels.forward(x.clone(), ours, offset, at)
    assert_close(found, expected, atol=2e-5, rtol=1e-4)
    for mine, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        assert_close(mine, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("window", "branches", "queries"), [(3, 2, 16), (24, 1, 16)], ids=["one block", "blocks"])
def test_a_window_of_the_kernels_is_that_of_torch(
    model: JanusBackbone, window: int, branches: int, queries: int
) -> None:
    """Several tokens of two drafts, each at its own length; one runs over the end of the cache, as guesses may."""
    decoder, slots, places = model._decoder, 40, 2
    kernels = Kernels(decoder, tuned(attend_window=(queries, 16, 4, 2)))
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        ours, theirs = (decoder.new_cache(places * branches, slots) for _ in range(2))
        for mine, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
            other.copy_(torch.randn(other.shape, generator=generator))
            mine.copy_(other)
        offset, at = torch.tensor([[7, 20], [3, 38 - window]], device=DEVICE)
        x = torch.randn(places * branches, window, decoder.hidden_size, generator=generator).to(DEVICE)
        positions = (offset + at)[:, None] + torch.arange(window, device=DEVICE)
        inside = (positions < slots - 1).repeat(branches, 1)
        clamped = positions.clamp(max=slots - 1).repeat(branches, 1)
        expected = decoder.forward(x, clamped, theirs, slots, uniform=False)
        found = kernels.forward(x.clone().flatten(0, 1), ours, offset, at, window).view(expected.shape)
    assert not inside.all()
    assert_close(found[inside], expected[inside], atol=2e-5, rtol=1e-4)
    for mine, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        assert_close(mine[:, :, : slots - 1], other[:, :, : slots - 1], atol=2e-5, rtol=1e-4)


def orders() -> list[Order]:
    """Greedy and sampled, forced and free, of unlike length."""
    picture = tuple(range(9))
    return [
        Order("a red apple", Ask(text_ratio=0.4, image_ratio=0.3), 1),
        Order("two green birds", Ask(Forced((7, 8), then=Sample(0.8)), Sample(2.0), image_ratio=1.0), 2),
        Order("x", Ask(Sample(), Greedy()), 3),
        Order(
            "a car", Ask(Sample(), Forced(picture + (1,) * 7, Sample(), frozenset({1, 2, 6, 8})), image_ratio=0.5), 4
        ),
    ]


@pytest.fixture(params=["kernels", "torch", "kernels, leaping", "torch, leaping"])
def captured(request: pytest.FixtureRequest, model: JanusBackbone) -> Iterator[JanusBackbone]:
    """The model with an engine of fixed shapes, on a CPU without the capture itself."""
    kept = model._engine
    engine = model._engine = Engine(model._decoder)
    engine.fixed_shapes = True
    engine.kernels = Kernels(model._decoder, tuned()) if "kernels" in request.param else None
    engine.pace = Pace(1e6) if "leaping" in request.param else None
    yield model
    model._engine = kept


def asked(model: JanusBackbone) -> list[Order]:
    """`orders`, with pictures of this model's size; few where the interpreter draws them."""
    count = model.info.image_tokens
    fitting = orders()
    if model._engine.kernels is not None and not CUDA:
        return fitting[1:2]
    image = fitting[3].ask.image
    assert isinstance(image, Forced)
    cut = Forced(image.tokens[:count], image.then, frozenset(p for p in image.free or () if p < count))
    return [*fitting[:3], Order("a car", Ask(Sample(), cut, image_ratio=0.5), 4)]


def test_drafts_are_those_of_the_plain_engine(captured: JanusBackbone, plain: JanusBackbone) -> None:
    wanted = asked(captured)
    found = captured.draw(wanted)
    again = captured.draw(wanted)  # on boards that were used before
    engine, plain._engine = plain._engine, Engine(plain._decoder)
    expected = plain.draw(wanted)
    plain._engine = engine
    for order, one, other, second in zip(wanted, expected, found, again, strict=True):
        assert (second.text_tokens, second.image_tokens) == (other.text_tokens, other.image_tokens)
        if assert_same_tokens(plain, order, one, other) and one.latents:
            assert other.latents
            assert_close(other.latents.text.cpu(), one.latents.text, atol=1e-4, rtol=1e-3)
            assert_close(other.latents.image.cpu(), one.latents.image, atol=1e-4, rtol=1e-3)


def test_few_boards_are_kept_and_one_memory(captured: JanusBackbone) -> None:
    captured._engine.kernels = None
    for _ in range(2):  # the first time the memory grows, and the boards in the old one are gone
        captured.draw(orders()[:3])
    boards = dict(captured._engine._boards)
    captured.draw(orders()[:3])
    assert captured._engine._boards == boards, "the same shapes, so the same boards"
    captured.draw(orders()[:1])
    assert captured._engine._memory is not None
    for board in captured._engine._boards.values():
        assert isinstance(board, GraphBoard)
        start = captured._engine._memory.untyped_storage().data_ptr()
        assert board.cache.keys[0].untyped_storage().data_ptr() == start
    captured._engine.forget()
    assert captured._engine._memory is None


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_the_kernels_choice_is_that_of_choose(model: JanusBackbone, temperature: float) -> None:
    """Also where a token is impossible, and noting what `Board.take` notes."""
    from milr.backbones.board import Board, Stage

    vocabulary, places = 300, 3
    generator = torch.Generator().manual_seed(int(temperature * 10))
    logits = (3 * torch.randn(places, vocabulary, generator=generator)).to(DEVICE)
    logits[1, 7:] = -float("inf")
    stage = Stage("text", 12, model._decoder.embed_tokens.weight, lambda state: logits, end=5)
    boards = []
    with torch.inference_mode():
        for kernels in (None, Kernels(model._decoder, tuned())):
            board = GraphBoard(model._decoder, stage, Shape(places, 1, 12, 20, 2), None, kernels)
            board.temperatures.fill_(temperature)
            board.numbers.copy_(torch.rand(places, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
            board.free[2, 1] = False
            board.tokens[2, 1] = 5
            board.step()
            boards.append(board)
    plain_board: Board = boards[0]
    for name in ("tokens", "at", "ended"):
        assert torch.equal(getattr(boards[1], name), getattr(plain_board, name)), name
    assert bool(boards[1].health.isfinite().all())
    assert boards[1].ended.tolist()[2], "a forced end is an end"


def test_health_is_lost_with_the_first_nan(model: JanusBackbone) -> None:
    from milr.backbones.board import Stage

    logits = torch.zeros(2, 50, device=DEVICE)
    logits[0, 3] = float("nan")
    stage = Stage("image", 6, model._decoder.embed_tokens.weight, lambda state: logits)
    with torch.inference_mode():
        board = GraphBoard(model._decoder, stage, Shape(2, 1, 6, 12, 0), None, Kernels(model._decoder, tuned()))
        board.step()
    assert board.health.isfinite().tolist() == [False, True]


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_graph_replays_the_same_tokens_every_time(model: JanusBackbone) -> None:
    """A race would show as tokens that change from run to run."""
    wanted = [Order("a red apple", Ask(Sample(), Sample(2.0)), stream) for stream in range(16)]
    first = model.draw(wanted)
    for _ in range(10):
        for one, other in zip(first, model.draw(wanted), strict=True):
            assert (one.text_tokens, one.image_tokens) == (other.text_tokens, other.image_tokens)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_this_gpu_has_its_kernels(model: JanusBackbone) -> None:
    assert kernels_for(model._decoder) is not None
    assert model._engine.kernels is not None
