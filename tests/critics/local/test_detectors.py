"""From outputs to detections by hand; then the real classes on small random checkpoints, loaded as users load them."""

import functools
import math
from pathlib import Path

import pytest
import tiny_detectors as tiny
import torch
from safetensors.torch import load_file, save_file

from milr.critics.local import detectors, vqa_models
from milr.critics.local.detectors import DetectorSettings
from milr.drafts import UserError
from rounding import of_critic

CPU = DetectorSettings(device="cpu")
IMAGES = [tiny.picture(0), tiny.picture(1), tiny.picture(2, (64, 40)), tiny.picture(3)]
QUESTIONS = ["red bench?", "a dog", "a photo of a blue car?", "no?"]
NOUNS = [("dog", "red car"), ("cat",), (), ("a green bench", "fox", "bear")]


# --- From outputs to detections -------------------------------------------------------------------------------


def test_a_mask_becomes_a_box_and_its_confidence_is_class_times_mask():
    classes = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]]))  # the last is 'no object'
    masks = torch.full((2, 4, 4), -5.0)
    masks[0, 1:3, 0:2] = math.log(4)  # a sigmoid of .8 in rows 1 and 2, columns 0 and 1
    found = detectors.instances_of(classes, masks, (4, 4), (4, 4), 0.2)
    assert [(one.label, one.box) for one in found] == [(0, (0.0, 1.0, 2.0, 3.0)), (1, (0.0, 1.0, 2.0, 3.0))]
    assert [one.score for one in found] == pytest.approx([0.5 * 0.8, 0.3 * 0.8], abs=1e-5)
    assert found[0].mask.sum() == 4
    assert found[0].mask[1:3, 0:2].all()
    assert len(detectors.instances_of(classes, masks, (4, 4), (4, 4), 0.24)) == 1  # above, not at
    assert detectors.instances_of(classes, masks, (4, 4), (4, 4), 0.5) == []


def test_an_empty_mask_is_no_object():
    classes = torch.log(torch.tensor([[0.9, 0.1]]))
    assert detectors.instances_of(classes, torch.full((1, 4, 4), -1.0), (4, 4), (8, 8), 0.0) == []


def test_masks_are_brought_to_the_pictures_own_pixels():
    masks = torch.full((1, 4, 4), -1.0)
    masks[:, :, 2:] = 1.0
    (one,) = detectors.instances_of(torch.log(torch.tensor([[0.9, 0.1]])), masks, (8, 8), (16, 32), 0.1)
    assert one.mask.shape == (32, 16)
    assert one.box == (8.0, 0.0, 16.0, 32.0)


def test_at_most_as_many_objects_as_queries():
    classes = torch.log(torch.tensor([[0.4, 0.35, 0.25], [0.3, 0.3, 0.4]]))
    found = detectors.instances_of(classes, torch.full((2, 2, 2), 9.0), (2, 2), (2, 2), 0.0)
    assert [(one.label, round(one.score, 2)) for one in found] == [(0, 0.4), (1, 0.35)]  # both of the first query


def test_tokens_of_each_noun():
    # "dog . red car .": [CLS], dog, ., red, ca, ##r, ., [SEP]
    offsets = [(0, 0), (0, 3), (4, 5), (6, 9), (10, 12), (12, 13), (14, 15), (0, 0)]
    assert detectors.noun_tokens(["dog", "red car"], offsets) == [[1], [3, 4, 5]]


def test_a_noun_is_as_sure_as_the_mean_of_its_tokens():
    def logit(p):
        return math.log(p / (1 - p))

    logits = torch.tensor([[0.0, logit(0.9), logit(0.8), logit(0.4)], [0.0, logit(0.1), logit(0.2), logit(0.3)]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.4]])
    found = detectors.grounded(logits, boxes, [[1], [2, 3]], ["dog", "red car"], (100, 50), 0.25)
    assert [(one["label"], round(one["score"], 3)) for one in found] == [("dog", 0.9), ("red car", 0.6)]
    assert found[0]["box"] == pytest.approx((40, 15, 60, 35))
    low = detectors.grounded(logits, boxes, [[1], [2, 3]], ["dog", "red car"], (100, 50), 0.2)
    assert low[2]["box"] == pytest.approx((0, 0, 30, 15))  # cut at the picture's edge; .25 is the mean of .2 and .3


def test_owl_boxes_are_shares_of_the_padded_square():
    logits = torch.tensor([[2.0, 1.0], [-3.0, 0.0], [5.0, 5.0]])
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.25, 1.0, 0.5], [0.5, 0.5, 0.1, 0.1]])
    found = detectors.owl_detections(logits[:2], boxes[:2], ["dog", "cat"], (200, 100), 0.4)
    assert [(one["label"], one["box"]) for one in found] == [("dog", (0, 0, 100, 100)), ("cat", (0, 0, 200, 100))]
    assert [one["score"] for one in found] == pytest.approx([1 / (1 + math.exp(-2)), 0.5])
    assert detectors.owl_detections(logits, boxes, [], (200, 100), 0.0) == []


def box(label, score, *corners):
    return {"label": label, "score": score, "box": corners}


def test_of_boxes_that_share_more_than_half_the_surest_stays():
    first, second = box("dog", 0.6, 0, 0, 10, 10), box("dog", 0.9, 0, 0, 10, 6)  # share 60 of 100
    third, fourth = box("cat", 0.5, 0, 0, 10, 10), box("dog", 0.4, 0, 5, 10, 15)  # shares 10 of 150 with the second
    assert detectors.suppress([first, second, third, fourth], 0.5) == [second, third, fourth]
    assert detectors.suppress([first, second], 0.6) == [second, first]
    assert detectors.shared((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_nearness_is_the_mean_within_a_box():
    depth = torch.arange(12.0).reshape(3, 4)  # rows 0-3, 4-7, 8-11
    assert detectors.nearness(depth, (1.0, 0.0, 3.0, 2.0)) == pytest.approx((1 + 2 + 5 + 6) / 4)
    assert detectors.nearness(depth, (9.0, 9.0, 9.0, 9.0)) == 11  # outside: the pixel nearest to it


def test_the_share_of_yes():
    logits = torch.tensor([[9.0, math.log(3), 0.0], [0.0, 1.0, 1.0]])
    assert vqa_models.yes_shares(logits, 1, 2, least=0) == pytest.approx([0.75, 0.5])
    why, share = vqa_models.yes_shares(logits, 1, 2)
    assert why == "yes and no hold 0.0005 of the probability together, less than least_share=0.01"
    assert share == pytest.approx(0.5)


# --- The real classes -----------------------------------------------------------------------------------------

KINDS = {
    "mask2former": (tiny.mask2former, detectors.Mask2Former),
    "grounding_dino": (tiny.grounding_dino, detectors.GroundingDino),
    "owlv2": (tiny.owlv2, detectors.Owlv2),
    "dpt": (tiny.dpt, detectors.Depth),
    "depth_anything": (tiny.depth_anything, detectors.Depth),
    "git": (tiny.git, functools.partial(vqa_models.Git, least_share=0)),  # random weights have no answer
    "blip": (tiny.blip, functools.partial(vqa_models.Blip, least_share=0)),
    "clip": (tiny.clip, vqa_models.Clip),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {name: make(base / name) for name, (make, _) in KINDS.items()}


@pytest.fixture(autouse=True)
def small_inputs(monkeypatch):
    monkeypatch.setattr(detectors, "SHORT_SIDE", 96)
    monkeypatch.setattr(detectors, "LONG_SIDE", 160)


def asked(name, model, images, numbers):
    """Per picture the numbers that a model gives."""
    if name == "mask2former":
        return [[(*one.box, one.score, one.label) for one in found] for found in model.instances(images, 0.05)]
    if name in ("grounding_dino", "owlv2"):
        every = model.find(images, [NOUNS[number] for number in numbers], 0.05)
        return [[(*one["box"], one["score"], len(one["label"])) for one in found] for found in every]
    if name in ("dpt", "depth_anything"):
        return [[(float(depth.mean()), float(depth.max()))] for depth in model.maps(images)]
    questions = [QUESTIONS[number] for number in numbers]
    give = model.similarity if name == "clip" else model.p_yes
    return [[(value,)] for value in give(images, questions)]


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_equals_one_by_one(name, folders):
    model = KINDS[name][1](folders[name], CPU)
    together = asked(name, model, IMAGES, range(len(IMAGES)))
    for number, image in enumerate(IMAGES):
        (alone,) = asked(name, model, [image], [number])
        assert len(alone) == len(together[number])
        for one, other in zip(alone, together[number], strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert together[0] != together[1]
    assert any(found for found in together)


@pytest.mark.parametrize("name", KINDS)
def test_batches_of_two_say_the_same(name, folders):
    model = KINDS[name][1](folders[name], CPU)
    whole = asked(name, model, IMAGES, range(len(IMAGES)))
    halves = asked(name, KINDS[name][1](folders[name], DetectorSettings(device="cpu", batch=2)), IMAGES, range(4))
    for one, other in zip(whole, halves, strict=True):
        assert [list(row) for row in one] == [pytest.approx(list(row), abs=1e-4) for row in other]


@pytest.mark.parametrize("name", KINDS)
def test_no_pictures_are_no_answers(name, folders):
    assert asked(name, KINDS[name][1](folders[name], CPU), [], []) == []


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_near(name, folders):
    half = KINDS[name][1](folders[name], DetectorSettings(device="cpu", dtype="bfloat16"))
    assert next(half._model.parameters()).dtype == torch.bfloat16
    found = asked(name, half, IMAGES[:2], range(2))
    assert len(found) == 2
    assert all(math.isfinite(value) for rows in found for row in rows for value in row)
    if name in ("git", "blip", "clip"):
        exact = asked(name, KINDS[name][1](folders[name], CPU), IMAGES[:2], range(2))
        assert [rows[0][0] for rows in found] == pytest.approx([rows[0][0] for rows in exact], abs=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_missing_weights_are_refused(name, folders, tmp_path):
    folder = copied(folders[name], tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if key.endswith("weight") and "norm" in key.lower())
    save_file({key: value for key, value in weights.items() if key != gone}, folder / "model.safetensors")
    with pytest.raises(UserError, match="no complete"):
        KINDS[name][1](str(folder), CPU)


@pytest.mark.parametrize("name", KINDS)
def test_pickled_weights_are_refused(name, folders, tmp_path):
    folder = copied(folders[name], tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights as safetensors"):
        KINDS[name][1](str(folder), CPU)


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2", "git", "blip", "clip"])
def test_a_missing_tokenizer_is_said(name, folders, tmp_path):
    folder = copied(folders[name], tmp_path, but=("tokenizer.json", "tokenizer_config.json"))
    with pytest.raises(UserError, match="tokenizer"):
        KINDS[name][1](str(folder), CPU)


def test_a_missing_processor_is_said(folders, tmp_path):
    folder = copied(folders["mask2former"], tmp_path, but=("preprocessor_config.json",))
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        detectors.Mask2Former(str(folder), CPU)


def test_code_of_a_repository_is_not_run(folders, tmp_path):
    import json

    folder = copied(folders["clip"], tmp_path)
    file = folder / "preprocessor_config.json"
    stolen = {**json.loads(file.read_text()), "auto_map": {"AutoImageProcessor": "evil.Evil"}}
    file.write_text(json.dumps(stolen))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert vqa_models.Clip(str(folder), CPU).similarity(IMAGES[:1], ["dog"])


def test_published_dpt_files_lack_weights_that_are_never_used(folders, tmp_path):
    folder = copied(folders["dpt"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    save_file({key: value for key, value in weights.items() if unused not in key}, folder / "model.safetensors")
    (whole,) = detectors.Depth(folders["dpt"], CPU).maps(IMAGES[:1])
    (part,) = detectors.Depth(str(folder), CPU).maps(IMAGES[:1])
    torch.testing.assert_close(whole, part, rtol=0, atol=of_critic(whole))


def test_depth_has_the_pictures_own_pixels(folders):
    (depth,) = detectors.Depth(folders["depth_anything"], CPU).maps([IMAGES[2]])
    assert depth.shape == (40, 64)


def test_a_detector_of_nouns_is_found_by_its_files(folders):
    assert isinstance(detectors.noun_detector(folders["owlv2"], CPU), detectors.Owlv2)
    assert isinstance(detectors.noun_detector(folders["grounding_dino"], CPU), detectors.GroundingDino)
    with pytest.raises(UserError, match="is a 'dpt' model"):
        detectors.noun_detector(folders["dpt"], CPU)
    with pytest.raises(UserError, match="is a 'clip' model"):
        detectors.Depth(folders["clip"], CPU)


def test_more_nouns_than_the_model_reads_is_an_error(folders):
    with pytest.raises(ValueError, match="more nouns"):
        detectors.GroundingDino(folders["grounding_dino"], CPU).find(IMAGES[:1], [("abcdefgh",) * 12], 0.3)


def test_blip_reads_enc_and_answers_from_dec(folders):
    blip = vqa_models.Blip(folders["blip"], CPU)
    seen = []
    for part in (blip._model.text_encoder, blip._model.text_decoder):
        part.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
        )
    blip.p_yes(IMAGES[:1], ["a dog?"])
    dog = blip._tokenizer("a dog?")["input_ids"]
    assert seen == [[[tiny.BERT_WORDS + 1, *dog[1:]]], [[tiny.BERT_WORDS]]]


def test_git_is_asked_after_cls_without_sep(folders):
    git = vqa_models.Git(folders["git"], CPU)
    seen = []
    git._model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    git.p_yes(IMAGES[:1], ["red bench?"])
    words = git._tokenizer.convert_ids_to_tokens(seen[0][0])
    assert words == ["[CLS]", "red", "bench", "?"]


def test_clips_vectors_have_length_one(folders):
    clip = vqa_models.Clip(folders["clip"], CPU)
    assert torch.allclose(clip.texts(["dog", "a red car"]).norm(dim=-1), torch.ones(2))
    assert torch.allclose(clip.images(IMAGES).norm(dim=-1), torch.ones(4))


def copied(folder, to, but=()):
    for file in Path(folder).iterdir():
        if file.name not in but:
            (to / file.name).write_bytes(file.read_bytes())
    return to


# --- Against transformers' own post-processing, where both mean the same ----------------------------------------


def test_at_384_pixels_masks_are_those_of_transformers(folders, monkeypatch):
    monkeypatch.setattr(detectors, "SHORT_SIDE", 384)
    monkeypatch.setattr(detectors, "LONG_SIDE", 384)
    model = detectors.Mask2Former(folders["mask2former"], CPU)
    image = tiny.picture(5, (384, 384))
    (mine,) = model.instances([image], 0.3)
    with torch.inference_mode():
        out = model._model(**model._processor([image], return_tensors="pt"))
    (theirs,) = model._processor.post_process_instance_segmentation(
        out, threshold=0.3, target_sizes=[(384, 384)], return_binary_maps=True
    )
    segments = sorted(
        zip(theirs["segments_info"], theirs["segmentation"], strict=True), key=lambda one: -one[0]["score"]
    )
    assert len(mine) == len(segments) > 0
    for one, (other, mask) in zip(mine, segments, strict=True):
        assert (one.label, one.score) == (other["label_id"], pytest.approx(other["score"], abs=1e-4))
        assert (one.mask == mask.numpy().astype(bool)).mean() > 0.999


def test_owl_boxes_are_those_of_transformers(folders, monkeypatch):
    monkeypatch.setattr(detectors, "suppress", lambda detections, overlap: detections)
    model = detectors.Owlv2(folders["owlv2"], CPU)
    image, nouns = IMAGES[0], ("dog", "red car")
    (mine,) = model.find([image], [nouns], 0.1)
    read = model._tokenizer(
        [f"a photo of a {noun}" for noun in nouns], return_tensors="pt", padding="max_length", max_length=16,
        truncation=True,
    )  # fmt: skip
    with torch.inference_mode():
        out = model._model(**model._processor([image], return_tensors="pt"), **read)
    (theirs,) = model._processor.post_process_object_detection(out, threshold=0.1, target_sizes=[(48, 48)])
    order = theirs["scores"].argsort(descending=True, stable=True).tolist()
    assert [one["label"] for one in mine] == [nouns[theirs["labels"][index]] for index in order]
    assert [one["score"] for one in mine] == pytest.approx(
        [float(theirs["scores"][index]) for index in order], abs=of_critic(1.0)
    )
    for one, index in zip(mine, order, strict=True):
        assert one["box"] == pytest.approx(theirs["boxes"][index].clamp(0, 48).tolist(), abs=1e-3)
