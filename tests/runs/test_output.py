import io
import json
import os
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import milr
from milr.drafts import UserError
from milr.runs import output
from milr.runs.output import claim, claim_fresh, slug
from runs_toy import draw
from toy_milr.critic import Redness

CANARY = "sk-canary-0123456789"


@pytest.fixture(scope="module")
def result():
    return draw()


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_result_is_saved_whole(result, tmp_path):
    folder = result.save(tmp_path / "foxes")
    drafts = len(result.trajectory.drafts)
    expected = [f"drafts/{number:02d}.png" for number in range(drafts)]
    assert files_in(folder) == [*expected, "image.png", "trajectory.html", "trajectory.json"]
    with Image.open(folder / "image.png") as best:
        assert best.tobytes() == result.image.tobytes()


def test_the_image_says_how_it_was_made(result, tmp_path):
    with Image.open(result.save(tmp_path / "foxes") / "image.png") as image:
        assert list(image.text) == ["parameters", "milr", "XML:com.adobe.xmp"]  # no 'prompt', which ComfyUI would run
        about = json.loads(image.text["milr"])
    assert about["prompt"] == "two red foxes"
    assert about["reasoning"] == result.reasoning
    assert (about["seed"], about["search"]) == (0, "milr")
    assert about["model"]["name"] == "toy"
    assert about["settings"]["learning_rate"] == 0.03
    assert about["versions"]["torch"]
    assert (about["draft"], about["reward"]) == (result.trajectory.best, result.reward)


RECORD = {
    "prompt": "two foxes,\n a caf\u00e9:\x00 \U0001f98a",
    "drafts": [{"guidance": 2.0, "reward": None}, {"guidance": 5.0, "reward": 0.75}],
    "best": 1,
    "search": "repair",
    "seed": 7,
    "critic": "mix:0.5*geneval+0.5*clip",
    "model": {"name": 'my "janus", new', "fingerprint": "0123abcd"},
    "versions": {"milr": "9.9"},
}
PARAMETERS = (
    "two foxes, a caf\u00e9: \U0001f98a\n"
    "Steps: 2, Sampler: repair, CFG scale: 5.0, Seed: 7, Size: 6x4, Model hash: 0123abcd, Model: "
    '"my \\"janus\\", new", Critic: "mix:0.5*geneval+0.5*clip", Reward: 0.75, Version: milr 9.9'
)
# How Stable Diffusion WebUI takes the last line apart (modules/infotext_utils.py), and those who read what it writes.
WEBUI = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def test_viewers_read_the_parameters():
    picture = Image.new("RGB", (6, 4))
    said = output.parameters(RECORD, picture)
    assert said == PARAMETERS
    with Image.open(io.BytesIO(output.png(picture, {}, said))) as image:
        prompt, last = image.text["parameters"].split("\n")
    found = {name: json.loads(value) if value.startswith('"') else value for name, value in WEBUI.findall(last)}
    assert (found["Seed"], found["Model"], found["Critic"]) == ("7", RECORD["model"]["name"], RECORD["critic"])
    assert len(found) == 10
    assert prompt.startswith("two foxes, a caf")


def test_every_picture_says_that_a_model_made_it_unless_unwanted(result, tmp_path):
    for mark in (True, False):
        folder = draw(out=tmp_path / str(mark), budget=2, mark=mark).folder
        saved = result.save(tmp_path / f"saved {mark}", mark=mark)
        pictures = [*folder.rglob("*.png"), *saved.rglob("*.png")]
        assert len(pictures) >= 4
        for file in pictures:
            with Image.open(file) as image:
                assert json.loads(image.text["milr"])
                packet = image.text.get("XML:com.adobe.xmp")
            if not mark:
                assert b"trainedAlgorithmicMedia" not in file.read_bytes()
                continue
            said = ElementTree.fromstring(packet.split("?>", 1)[1].rsplit("<?", 1)[0])
            kind = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
            (found,) = [one.attrib[kind] for one in said.iter() if kind in one.attrib]
            assert found == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_nothing_tells_of_the_machine_or_its_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    folder = tmp_path / "some-private-folder"
    draw(out=folder, budget=2)
    for file in folder.rglob("*.*"):
        content = file.read_bytes()
        assert CANARY.encode() not in content, file
        assert b"some-private-folder" not in content, file
        assert os.getcwd().encode() not in content, file


def test_existing_work_is_never_replaced_silently(result, tmp_path):
    folder = result.save(tmp_path / "foxes")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "image.png").read_bytes()
    with pytest.raises(UserError, match=r"not empty; name another with --out, or add --overwrite"):
        result.save(folder)
    assert (folder / "image.png").read_bytes() == before
    draw(out=folder, overwrite=True, budget=1)
    assert files_in(folder) == ["drafts/00.png", "image.png", "notes.txt", "trajectory.html", "trajectory.json"]


def test_what_is_to_be_replaced_stays_until_the_new_search_begins(result, tmp_path):
    folder = result.save(tmp_path / "foxes")
    before = files_in(folder)
    with pytest.raises(UserError, match="Unknown model"):
        draw_with_unknown_model(folder)
    assert files_in(folder) == before


def draw_with_unknown_model(folder):
    milr.generate("no-such-model", "a fox", out=folder, overwrite=True, reward=Redness())


def test_fresh_folders_are_numbered(tmp_path):
    names = [claim_fresh("Two  red foxes!", 3, tmp_path).path.name for _ in range(3)]
    assert names == ["two-red-foxes-3", "two-red-foxes-3-2", "two-red-foxes-3-3"]


def test_a_folder_that_was_not_used_is_removed(tmp_path):
    folder = claim(tmp_path / "a")
    folder.release()
    assert not folder.path.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    claim(mine).release()
    assert mine.exists(), "it was there before"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is not a folder; name another with --out"):
            claim(path)
    with pytest.raises(UserError, match="is not a folder"):
        claim_fresh("fox", 0, tmp_path / "file")


@given(st.text(max_size=300))
def test_slugs_are_safe_file_names(prompt):
    name = slug(prompt)
    assert 1 <= len(name) <= 48
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-")


def test_slugs_read_like_the_prompt():
    assert slug("Two red foxes, above a blue car!") == "two-red-foxes-above-a-blue-car"
    assert slug("ein Fuchs über Zürich") == "ein-fuchs-uber-zurich"
    assert slug("../../etc/passwd\x00") == "etc-passwd"
    assert slug("🦊") == "prompt"
