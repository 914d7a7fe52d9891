"""Every critic that milr has, through every door: a search, a run, files on disk, and a service, with one result.

A critic's file without an entry in CASES fails here. Critics with models of their own load small random checkpoints of
the true architectures by the names and settings that a user would write; those that ask over HTTP ask a stub.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import tiny_detectors
import tiny_models
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from stub_judge import stub_judge

import milr
from command import ROOT, Milr
from milr import registry
from milr.critics import naming
from milr.critics.base import Place, judge
from milr.critics.geneval import metadata_of
from milr.drafts import UserError
from milr.pictures import see
from milr.reports.reading import write_report
from milr.runs.bench import Local, Terms, bench
from milr.runs.generate import Request, prepare, tasks_of
from milr.runs.journal import image_file, read_lines
from milr.runs.methods import Method
from milr.runs.score import Found, Picture, score
from milr.serve.critic import needs_backbone
from rounding import of_critic
from serving import serving
from toy_milr.backbone import ToyBackbone

PROMPTS = ("a red car above a blue dog", "two cats")
BUDGET = 2
SINGLE, BEST_OF_N = Method("single", "single"), Method("best-of-n", "best-of-n")


@dataclass(frozen=True)
class Case:
    """A critic as a user names it, {words} filled in by the fixture `world`; `alone`: needs no model at all.

    `silent` is why it must abstain wherever a task has no `metadata` (as in `milr generate`), `mute` why it must
    abstain whatever it is shown.
    """

    text: str
    alone: bool = False
    prompts: tuple[str, str] = PROMPTS
    metadata: tuple[dict, dict] = ({}, {})
    category: str = ""
    signs: bool = False  # drawn by a model that paints signs, light and dark ones
    same: bool = False  # its stub says the same of every picture
    silent: str = ""
    mute: str = ""
    asks_backbone: bool = False
    name: str = field(init=False)

    def __post_init__(self):
        part = "service" if self.text.startswith("{service}") else self.text.partition(",")[0].partition(":")[0]
        object.__setattr__(self, "name", part)


EXPLAINED = ({"explanation": "The shop is not closed."}, {"explanation": "One cannot leave here."})
QUESTIONS = ({"checks": ["Is there a red car?", "Is there a blue dog?"]}, {"checks": ["Are there two cats?"]})
HARD = ("a purple umbrella and a yellow snail left of a gray bee and a pink cow", "three green keys above two cats")
SIGNS = ('a shop sign that says "OPEN"', 'a poster that says "NO EXIT"')
NO_GRADE = "a random model writes no grade, and that must be no score"
SERVER = ",url=$EVERYWHERE_JUDGE,key=none,model=stub"
CASES = (
    Case("scene", alone=True),
    Case("scene-lite", alone=True, prompts=HARD),
    Case("scene-blind", alone=True, prompts=HARD),
    Case("scene-right", alone=True),
    Case("scene-noisy", alone=True),
    Case("noise", alone=True),
    Case("self", asks_backbone=True),
    Case("self:json,max_tokens=8", mute="the lab model never learnt to write JSON", asks_backbone=True),
    Case("learned:{head}", asks_backbone=True),
    Case("clip,model={clip},low=-1,high=1"),
    Case("pickscore,model={clip},processor={clip},width=100"),
    Case("ocr", alone=True, prompts=SIGNS, signs=True),
    Case("geneval,detector={mask2former},clip={plain clip}", metadata=tuple(map(metadata_of, PROMPTS))),
    Case("mixed,detector={grounding dino},vqa={git},least_share=0"),
    Case("t2i-compbench,vqa={blip},detector={owlv2},depth={depth},clip={plain clip},least_share=0", category="color"),
    Case("t2i-compbench,vqa={blip},detector={owlv2},depth={depth},clip={plain clip},least=0.05,least_share=0",
         category="complex", metadata=({"kind": "spatial and action"}, {"kind": "action"})),
    Case("vqa-score,model={qwen},least_share=0", metadata=QUESTIONS),
    Case("vqa-score" + SERVER, metadata=QUESTIONS),
    Case("vqa-score,model=backbone,parts=yes", asks_backbone=True),
    Case("unified-reward,model={qwen},max_tokens=4", mute=NO_GRADE),
    Case("unified-reward:2.0" + SERVER.replace("JUDGE", "GRADER"), same=True),
    Case("judge:general" + SERVER, alone=True, prompts=SIGNS, signs=True),
    Case("judge:geneval-style" + SERVER, alone=True, prompts=SIGNS, signs=True, metadata=QUESTIONS),
    Case("judge:wise" + SERVER, alone=True, prompts=SIGNS, signs=True, metadata=EXPLAINED,
         silent="its rubric needs an explanation"),
    Case("service,url={service},batch=2", alone=True),
    Case("{service}", alone=True),
    Case("mix:0.5*[clip,model={clip},low=-1,high=1]+0.5*scene"),
    Case("mix:min(scene,noise)", alone=True),
    Case("mix:gate(scene>=0.5,[vqa-score,model=backbone])", asks_backbone=True),
)  # fmt: skip


def key(case):
    return case.text.replace("{", "").replace("}", "").replace(SERVER, "@stub")[:60]


every_case = pytest.mark.parametrize("case", CASES, ids=key)


class Remembering:
    """The lab model, which draws each order once and counts what it is asked to draw."""

    def __init__(self, model):
        self._model, self._drawn, self.asked = model, {}, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def draw(self, orders):
        self.asked += len(orders)
        new = [order for order in orders if repr(order) not in self._drawn]
        self._drawn.update(zip(map(repr, new), self._model.draw(new), strict=True))
        return [self._drawn[repr(order)] for order in orders]


class SignPainter(ToyBackbone):
    """Writes words that sometimes are the asked ones, on a ground that sometimes is light."""

    asked = 0

    def draw(self, orders):
        self.asked += len(orders)
        return [replace(drawn, image=sign(order)) for drawn, order in zip(super().draw(orders), orders, strict=True)]


def sign(order):
    words, ground = [(order.prompt.split('"')[1], "white"), ("CLOSED", "gray")][order.stream % 2]
    image = Image.new("RGB", (320, 320), ground)  # the reader makes narrow ones large, and takes its time for them
    ImageDraw.Draw(image).text((20, 20), words, "black", font=ImageFont.load_default(48))
    return image


@pytest.fixture(scope="module")
def lab():
    return Remembering(milr.load("lab", device="cpu"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, lab):
    """What the names of critics are filled in with: folders of checkpoints, and servers that run."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints = {
        "clip": tiny_models.tiny_clip, "qwen": tiny_models.tiny_qwen, "plain clip": tiny_detectors.clip,
        "mask2former": tiny_detectors.mask2former, "grounding dino": tiny_detectors.grounding_dino,
        "owlv2": tiny_detectors.owlv2, "depth": tiny_detectors.depth_anything, "git": tiny_detectors.git,
        "blip": tiny_detectors.blip,
    }  # fmt: skip
    words = {}
    for name, make in checkpoints.items():
        (folder / name.replace(" ", "-")).mkdir()
        words[name] = str(make(folder / name.replace(" ", "-")))
    words["head"] = str(folder / "head.safetensors")
    save_file({"weight": torch.linspace(-1, 1, lab.info.hidden_size), "bias": torch.zeros(())}, words["head"])
    for name in ("clip", "qwen"):
        words[f"wordless {name}"] = str(folder / f"wordless-{name}")
        shutil.copytree(words[name], words[f"wordless {name}"], ignore=shutil.ignore_patterns("tokenizer*"))
    grades = "Alignment Score (1-5): 4\nCoherence Score (1-5): 5\nStyle Score (1-5): 3"
    reply = json.dumps({"choices": [{"message": {"content": grades}}]})
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERYWHERE_JUDGE", stack.enter_context(stub_judge()).url)
        patch.setenv("EVERYWHERE_GRADER", stack.enter_context(stub_judge(lambda number: f"body-{reply}")).url)
        patch.setenv("MILR_PRICE_IN", "0")
        patch.setenv("MILR_PRICE_OUT", "0")
        words["service"] = stack.enter_context(serving(naming.make("scene", None)))
        yield words


def test_every_critic_of_milr_has_a_case():
    own = {part.name for part in registry.parts("critic") if not part.origin}
    assert own == {case.name for case in CASES}


@every_case
def test_every_door_gives_one_picture_one_score(case, world, lab, tmp_path):
    text = case.text.format_map(world)
    model = SignPainter() if case.signs else lab
    tasks = [
        replace(task, metadata=metadata, category=case.category)
        for task, metadata in zip(tasks_of(case.prompts), case.metadata, strict=True)
    ]
    terms, methods = Terms(BUDGET, critic=text), (BEST_OF_N,)

    bench(model, tasks, tmp_path / "run", terms, methods=methods)
    report = write_report(tmp_path / "run")
    drafts = [line for line in read_lines(tmp_path / "run") if "draft" in line]
    images = [see(image_file(tmp_path / "run", line["image"])).image for line in drafts]
    judged = [next(task for task in tasks if task.id == line["task"]) for line in drafts]
    there = [line["draft"]["score"] for line in drafts]
    rewards = [said["value"] for said in there]
    assert len(drafts) >= len(tasks)
    assert all(value is None for value in rewards) if case.mute else None not in rewards, there
    assert all(said["reason"] for said in there if said["value"] is None)
    assert case.mute or case.same or len(set(rewards)) > 1, "a critic that says one thing of all proves nothing here"

    asked = model.asked
    bench(model, tasks, tmp_path / "run", terms, methods=methods)
    assert write_report(tmp_path / "run") == report
    assert model.asked == asked, "what is on record is not drawn again"
    assert json.loads((tmp_path / "run" / "report.json").read_text())["critic"] == text

    result = milr.generate(model, case.prompts[0], reward=text, search="best-of-n", budget=BUDGET, out=tmp_path / "one")
    mine = [draft.score for draft in result.trajectory.drafts]
    assert result.trajectory.critic == text, result.notes
    assert json.loads((tmp_path / "one" / "trajectory.json").read_text())["critic"] == text
    if case.silent:
        assert all(found.value is None and case.silent.split()[-1] in found.reason for found in mine)
    elif case.metadata[0].keys() <= {"include", "tag", "prompt"}:  # a prompt says all that these say
        first = [said["value"] for said, task in zip(there, judged, strict=True) if task == tasks[0]]
        assert [found.value for found in mine] == pytest.approx(first, abs=of_critic(1.0)) if not case.mute else first
    else:
        assert not any(found.abstained for found in mine)

    critic = naming.make(text, model)
    pictures = [
        Picture(image_file(tmp_path / "run", line["image"]), task) for line, task in zip(drafts, judged, strict=True)
    ]
    scored = score(Found(tuple(pictures), (), tuple(tasks), len(tasks)), [critic])
    assert list(scored["critics"]) == [text]
    assert same([row["scores"][text] for row in scored["pictures"]], rewards)

    with serving(critic) as url:
        served = judge(naming.make(url, None), images, judged)
    assert same([found.value for found in served], rewards)
    assert [len(found.checks) for found in served] == [len(said["checks"]) for said in there]


def same(some, others):
    """Equal up to what another batch changes in floats; abstentions in the same places."""
    blank = [[np.nan if value is None else value for value in values] for values in (some, others)]
    return len(some) == len(others) and np.allclose(*blank, rtol=0, atol=of_critic(1.0), equal_nan=True)


@every_case
def test_the_reward_cannot_be_held_out(case, world):
    text = case.text.format_map(world)
    with pytest.raises(UserError, match="cannot be held out"):
        prepare(Request(reward=text, held_out=("noise" if text != "noise" else "scene", f" {text}")))
    prepare(Request(reward=text, held_out=("noise" if text != "noise" else "scene",)))


@every_case
def test_where_a_critic_runs_over_ray_and_behind_an_address(case, world):
    """A critic that needs no model is shared by all workers; of the others only those that ask it are given one."""
    text = case.text.format_map(world)
    assert naming.stands_alone(text) == case.alone
    assert needs_backbone(text) == case.asks_backbone
    if case.alone or not case.asks_backbone:
        assert naming.make(text, None).name == text


def test_every_critic_is_listed_with_its_settings_before_anything_heavy_is_imported():
    """One process for all: each of them costs a second to start."""
    names = sorted({case.name for case in CASES})
    code = (
        "import sys\nfrom milr.cli import app\n"
        f"for words in [['list', 'critics'], *(['list', 'critics', name] for name in {names})]:\n"
        "    print('#', *words)\n    app(words, standalone_mode=False)\n"
        "    heavy = {'torch', 'transformers', 'httpx', 'rapidocr', 'scipy', 'fastapi'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    shown = {}
    for block in run.stdout.split("# list critics")[1:]:
        head, _, rest = block.partition("\n")
        shown[head.strip()] = rest.strip().splitlines()
    lines = [line.split()[0] for line in shown.pop("")[1:]]
    assert sorted(set(lines) & set(names)) == names
    assert len(lines) == len(set(lines))
    for name in names:
        module = registry.load(registry.find("critic", name))
        if not hasattr(module, "SETTINGS"):
            assert shown[name] == [f"{name} has no settings"]
            continue
        fields = module.SETTINGS.__dataclass_fields__
        assert [line.strip().partition("=")[0] for line in shown[name][1::2]] == list(fields)
        assert all(line.strip() not in ("", ".") for line in shown[name][2::2]), "every setting says what it means"


def test_the_doctor_has_one_line_on_each(tmp_path, world):
    texts = [case.text.format_map(world) for case in CASES]
    run = Milr(tmp_path)("doctor", *(word for text in texts for word in ("--critic", text)))
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "critics"
    assert len(lines) == 1 + len(texts)
    for text, line in zip(texts, lines[1:], strict=True):
        assert text in line
        assert "needs no download" in line, "all its models are folders, servers, or none"


QWEN, NEWER = "Qwen/Qwen2.5-VL-3B-Instruct", "CodeGoat24/UnifiedReward-2.0-qwen-7b"


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("vqa-score", {QWEN}),
        ("vqa-score,model=owner/other", {"owner/other"}),
        ("vqa-score,model=backbone", set()),
        (f"vqa-score,url=http://127.0.0.1:9/v1,model={QWEN}", set()),
        ("unified-reward:2.0", {NEWER}),
        ("unified-reward:2.0,url=http://127.0.0.1:9/v1", set()),
        ("mix:scene+[geneval,clip=owner/other]", {"facebook/mask2former-swin-small-coco-instance", "owner/other"}),
    ],
)
def test_what_would_be_fetched_is_what_the_settings_name(text, models):
    assert set(naming.models_of(text)) == models


# --- What a user meets who got something wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,model=nobody", "neither a folder nor a hub id"),
        ("clip,device=tpu", "Unknown device 'tpu'"),  # all these before gigabytes are fetched
        ("vqa-score,dtype=int8", "Unknown dtype 'int8'"),
        ("unified-reward,device=cuda:x", "Unknown device 'cuda:x'"),
        ("t2i-compbench,device=cuda:99", "no device 'cuda:99'"),
        ("clip,dtype=float16,device=cpu", "float16 needs a GPU"),
        ("geneval,detector={clip},clip={clip}", "of the type 'clip', and 'mask2former' is needed"),
        ("mixed,detector={git},vqa={git}", "of the type 'git', and 'grounding-dino' is needed"),
        ("t2i-compbench,vqa={clip},detector={owlv2},depth={depth},clip={clip}", "and 'blip' is needed"),
        ("pickscore,model={qwen},processor={clip}", "and 'clip' is needed"),
        ("clip,model={wordless clip}", "no tokenizer is among them"),
        ("vqa-score,model={wordless qwen}", "no tokenizer is among them"),
        ("mix:scene+", "name of a critic is missing in 'scene[+]'"),
        ("judge", "OPENAI_API_KEY, which is not set"),
        ("judge:wise,key=NOT_THERE,url=http://127.0.0.1:1/v1", "NOT_THERE, which is not set"),
        ("judge:wise,url=http://127.0.0.1:1/v1,attempts=1", "not answer .cannot reach 127.0.0.1:1 .*; start"),
        ("vqa-score,url=http://127.0.0.1:1/v1,attempts=1", "judge does not answer"),
        ("unified-reward,url=http://127.0.0.1:1/v1,attempts=1", "judge does not answer"),
        ("mix:scene+[judge:general,url=http://127.0.0.1:1/v1,attempts=1]", "judge does not answer"),
        ("http://127.0.0.1:1", "No critic answers at"),
    ],
)  # fmt: skip
def test_what_the_user_must_put_right_is_one_sentence(text, message, world, lab, tmp_path, monkeypatch, capfd):
    for name in ("OPENAI_API_KEY", "NOT_THERE"):
        monkeypatch.delenv(name, raising=False)
    task = replace(tasks_of(PROMPTS)[0], metadata=EXPLAINED[0])
    with pytest.raises(UserError, match=message) as caught:
        bench(lab, [task], tmp_path, Terms(1, critic=text.format_map(world)), methods=(SINGLE,))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # transformers reports a page about weights that do not fit


@pytest.mark.parametrize(
    "text", ["clip,device=tpu", "geneval,dtype=int8", "vqa-score,dtype=x", "unified-reward,device=x"]
)
def test_a_wrong_device_is_found_before_the_drawing_model_is_loaded(text):
    with pytest.raises(UserError, match="Unknown d"):
        prepare(Request(reward=text))


def test_no_picture_is_scored_twice_by_a_critic_named_twice(tmp_path):
    noise = naming.make("noise", None)
    with pytest.raises(UserError, match="named twice"):
        score(Found((), (), (), 0), [noise, noise])


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(lambda progress: progress.done == 2, id="a search is done"),
        pytest.param(lambda progress: progress.drafts == 3, id="its last draft is scored"),
    ],
)
def test_a_run_that_is_stopped_pays_for_no_reply_twice_and_lacks_none(moment, lab, tmp_path, monkeypatch):
    """Ctrl-C in the middle, the same again, and once more when all is done."""

    def stop(progress):
        if moment(progress):
            raise KeyboardInterrupt

    def run(tell=None):
        bench(Local(lab, 1, Place(tmp_path)), tasks, tmp_path, terms, methods=(SINGLE,), tell=tell)
        return write_report(tmp_path)

    tasks = [replace(task, metadata=QUESTIONS[0]) for task in tasks_of([*PROMPTS, *HARD])]
    with stub_judge() as stub:
        monkeypatch.setenv("EVERYWHERE_JUDGE", stub.url)
        terms = Terms(2, critic="judge:general" + SERVER, held_out=("judge:geneval-style" + SERVER,))
        with pytest.raises(KeyboardInterrupt):
            run(stop)
        assert 0 < len(stub.seen) < 2 * len(tasks)
        report = run()
        asked = [json.dumps(body, sort_keys=True) for body in stub.seen]
        assert len(asked) == len(set(asked)) == 2 * len(tasks)
        assert run() == report
        assert len(stub.seen) == len(asked)
