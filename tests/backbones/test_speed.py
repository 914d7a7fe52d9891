"""The measuring is measured: that its numbers are there and hang together, not how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import Milr
from milr.backbones import speed
from milr.backbones.janus import JanusBackbone
from milr.backbones.speed import Spent, Stages, bytes_read, good_width, measure, reckoning_for
from milr.drafts import UserError
from toy_milr.backbone import ToyBackbone


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No megabytes are copied, nothing is done twice, and nothing is remembered of other tests."""
    monkeypatch.setattr(speed, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(speed, "SLOW", 0.0)
    monkeypatch.setattr(speed, "QUICK", 0.0)
    monkeypatch.setenv("MILR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MILR_WIDTH", raising=False)


def test_measure(tiny_backbone: JanusBackbone) -> None:
    said: list[str] = []
    vision = tiny_backbone.model.model.vision_model.config.num_image_tokens
    found = measure(tiny_backbone, images=3, tokens=8, say=said.append)
    assert tiny_backbone.max_text_tokens == 24, "put back"
    assert "pixels" not in vars(tiny_backbone), "put back"
    assert tiny_backbone.model.model.vision_model.config.num_image_tokens == vision, "put back"
    assert [one.images for one in found.stages] == [1, 3]
    assert (found.image_tokens, found.tokens) == (16, 8)
    for stages in found.stages:
        assert stages.image_token.wall > 0
        assert stages.pixels.cpu > 0
        read = bytes_read(tiny_backbone, stages.images, 24)
        assert read is not None
        assert stages.image_share == pytest.approx(read[1] / stages.image_token.wall / 1e9)
    assert [one.note for one in (*found.transformers, found.naive)] == ["", "", ""]
    assert found.naive.draft(found.text_tokens, 16).wall > 0  # type: ignore[union-attr]
    assert said[0] == "copying memory"
    assert len(said) == 8
    assert [(one.images, one.drafts) for one in found.leaps] == [(1, "first"), (1, "later"), (3, "first")]
    for leaps in found.leaps:
        assert 1 <= leaps.image_passes <= leaps.image_tokens == 16
        assert 1 <= leaps.text_passes <= leaps.text_tokens <= 24
        assert leaps.draft.wall > 0
        assert leaps.without.wall > 0
    assert tiny_backbone.speculate == "auto", "put back"


def test_what_a_token_reads(tiny_backbone: JanusBackbone) -> None:
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 136 + 2 * 64)
    slot = 2 * 2 * 64  # keys and values of two layers
    text, image = bytes_read(tiny_backbone, 5, 10) or (0, 0)
    prompt = len(tiny_backbone.prompts.reasoning(speed.PROMPT))
    assert text == 4 * (layers + 333 * 64 + 5 * (prompt + 5) * slot)
    model: Any = tiny_backbone.model.model
    heads = sum(p.numel() for part in (model.generation_head, model.generation_aligner) for p in part.parameters())
    drawing = len(tiny_backbone.prompts.drawing(speed.PROMPT, ""))
    assert image == 4 * (layers + heads + 10 * (drawing + 8) * slot), "two rows an image: with and without the prompt"
    assert bytes_read(ToyBackbone(), 1, 1) is None


def test_a_draft_is_the_sum_of_its_stages() -> None:
    one, two = Spent(1, 2), Spent(2, 2)
    stages = Stages(4, prefill=one, text_token=one, image_token=two, pixels=Spent(5, 6))
    assert stages.draft(text_tokens=10, image_tokens=3) == Spent((1 + 10 + 6 + 5) / 4, (2 + 20 + 6 + 6) / 4)


def test_the_tokens_that_are_drawn_are_in_the_middle(tiny_backbone: JanusBackbone) -> None:
    """So that what stands before them is, on average, what stands before all of them."""
    for tokens in (2, 3, 8, 15, 16):
        probe = speed._Probe(tiny_backbone, tokens)
        drawn = range(probe.start, probe.start + tokens)
        assert abs(sum(drawn) / tokens - 7.5) <= 0.5
        assert drawn[-1] < 16


def test_generate_that_is_broken_is_said_in_a_line(
    tiny_backbone: JanusBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("_prepare_static_cache() missing\n1 argument")

    monkeypatch.setattr(type(tiny_backbone.model), "generate", broken)
    found = measure(tiny_backbone, images=1, tokens=2)
    (note,) = [one.note for one in found.transformers]
    assert note.startswith("fails in transformers ")
    assert note.endswith("TypeError: _prepare_static_cache() missing 1 argument")
    assert found.naive.note == ""
    ratios = speed.against(found)
    assert [one.wall is None for one in ratios] == [True, False]


def test_the_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with Milr(tmp_path) as milr:
        run = milr.here("speed", str(tiny_checkpoint), "--device", "cpu", "--tokens", "2", "--images", "2")
        assert run.returncode == 0, run.stderr
        assert "one draft " in run.stdout
        assert "of which 2 in the middle were drawn" in run.stdout
        assert "bench geneval --budget 20: 11,060 drafts" in run.stdout
        assert "drawing by the naive loop ..." in run.stderr
        run = milr.here("speed", str(tiny_checkpoint), "--device", "cpu", "--tokens", "2", "--images", "1", "--json")
        found = json.loads(run.stdout)
        assert found["bench"]["drafts"] == 11060
        assert found["bench"]["seconds"] == pytest.approx(11060 * found["stages"][0]["draft"]["wall"])
        assert found["naive"]["note"] == ""


def test_a_model_that_is_no_janus_has_no_shares_and_no_rivals(tmp_path: Path) -> None:
    with Milr(tmp_path) as milr:
        run = milr.here("speed", "toy", "--quiet")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "share" not in run.stdout.split("bench")[0].replace("shares are of that", "")
    assert run.stdout.count("only a Janus can be drawn by other code") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["janus-pro"], "Did you mean 'janus-pro-"),
        (["{tiny}", "--tokens", "1"], "--tokens is a number from 2 to 16"),
        (["{tiny}", "--tokens", "17"], "--tokens is a number from 2 to 16"),
        (["{tiny}", "--images", "0"], "--images is a number from 1 to 4096, not 0"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    words = [word.format(tiny=tiny_checkpoint) for word in arguments]
    with Milr(tmp_path) as milr:
        run = milr.here("speed", *words, "--device", "cpu", "--quiet")
    assert run.returncode == 2
    assert run.stdout == ""
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


# --- The width ------------------------------------------------------------------------------------------------------


class Timed:
    """Says that a token of so many images takes so long."""

    def __init__(self, patch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.asked: list[int] = []

        def image_token(probe: Any, images: int) -> Spent:
            self.asked.append(images)
            return Spent(seconds[images], seconds[images])

        patch.setattr(speed._Probe, "image_token", image_token)
        patch.setattr(speed._Probe, "pixels", lambda probe, images: Spent(0, 0))


@pytest.mark.parametrize(
    ("seconds", "width", "asked"),
    [
        ({1: 1, 2: 1.1, 4: 1.2, 8: 1.3, 16: 1.6}, 16, [1, 2, 4, 8, 16]),
        ({1: 1, 2: 1.5, 4: 1.99, 8: 2, 16: 0}, 4, [1, 2, 4, 8]),
        ({1: 1, 2: 2}, 1, [1, 2]),
    ],
)
def test_the_width_is_the_most_that_take_less_than_twice_as_long(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], width: int, asked: list[int]
) -> None:
    timed = Timed(monkeypatch, seconds)
    assert good_width(ToyBackbone()) == width
    assert timed.asked == asked
    assert good_width(ToyBackbone()) == width
    assert timed.asked == asked, "remembered"


def test_pixels_count_for_every_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    Timed(monkeypatch, dict.fromkeys(speed.WIDTHS, 1.0))
    tokens = 16 + speed.TEXT_TOKENS // 2
    monkeypatch.setattr(speed._Probe, "pixels", lambda probe, images: Spent(tokens / 4, tokens / 4))
    assert good_width(ToyBackbone()) == 4, "1 + w / 4 < 2 (1 + 1 / 4)"


def test_no_more_than_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Timed(monkeypatch, dict.fromkeys(speed.WIDTHS, 1.0))
    backbone: Any = ToyBackbone()
    backbone.max_batch = 5
    assert good_width(backbone) == 4


def test_a_user_and_a_backbone_may_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, dict.fromkeys(speed.WIDTHS, 1.0))
    backbone: Any = ToyBackbone()
    backbone.good_width = 3
    assert good_width(backbone) == 3
    monkeypatch.setenv("MILR_WIDTH", "7")
    assert good_width(backbone) == 7
    assert timed.asked == []
    for wrong in ("0", "65", "two", "-1"):
        monkeypatch.setenv("MILR_WIDTH", wrong)
        with pytest.raises(UserError, match=f"MILR_WIDTH .* not '{wrong}'"):
            good_width(backbone)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "milr-speed/1", "measured": [3]}', "\0" * 50])
def test_a_damaged_memory_is_measured_again(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    timed = Timed(monkeypatch, {1: 1, 2: 2})
    assert good_width(ToyBackbone()) == 1
    speed.memory_file().write_text(damage)
    assert good_width(ToyBackbone()) == 1
    assert timed.asked == [1, 2] * 2
    assert good_width(ToyBackbone()) == 1
    assert timed.asked == [1, 2] * 2


@pytest.mark.parametrize("width", [0, 3, "4", None, 32])
def test_a_width_that_is_none_is_measured_again(monkeypatch: pytest.MonkeyPatch, width: object) -> None:
    timed = Timed(monkeypatch, {1: 1, 2: 2})
    backbone = ToyBackbone()
    speed._remember(backbone, width=width)
    assert good_width(backbone) == 1
    assert timed.asked == [1, 2]


def test_a_memory_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = Timed(monkeypatch, {1: 1, 2: 2})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MILR_CACHE", str(tmp_path / "file" / "below"))
    assert [good_width(ToyBackbone()) for _ in range(2)] == [1, 1]
    assert timed.asked == [1, 2] * 2


def test_another_machine_or_engine_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, {1: 1, 2: 2})
    good_width(ToyBackbone())
    for name, value in (("_engine", lambda: "other"), ("_processor", lambda: "other"), ("__version__", "9")):
        with monkeypatch.context() as patch:
            patch.setattr(speed, name, value)
            good_width(ToyBackbone())
    assert timed.asked == [1, 2] * 4
    good_width(ToyBackbone())
    assert timed.asked == [1, 2] * 4, "and the first one is still known"


def test_where_the_memory_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert speed.memory_file() == tmp_path / "cache" / "speed.json"
    monkeypatch.delenv("MILR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert speed.memory_file() == Path("/somewhere/milr/speed.json")
    monkeypatch.setenv("HOME", "/home/me")
    for ignored in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert speed.memory_file() == Path("/home/me/.cache/milr/speed.json")


def test_what_was_measured_is_known_before_the_model_is_loaded(
    tiny_backbone: JanusBackbone, tiny_checkpoint: Path
) -> None:
    assert reckoning_for(str(tiny_checkpoint), "cpu", "float32") is None
    found = measure(tiny_backbone, images=2, tokens=4)
    known = reckoning_for(str(tiny_checkpoint), "cpu", "float32")
    assert known is not None
    assert known.alone == pytest.approx(found.draft(found.stages[0]).wall)
    assert (known.images, known.seconds) == (found.best.images, pytest.approx(found.draft(found.best).wall))
    assert reckoning_for(str(tiny_checkpoint), "cpu", "bfloat16") is None
    assert reckoning_for("toy", "cpu", "float32") is None
