import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from milr import registry
from milr.critics import naming
from milr.drafts import Score, Task, UserError
from milr.reports.reading import write_report
from milr.reports.report import CALLS, to_markdown
from milr.runs.bench import Local, Terms, bench
from milr.runs.journal import read_image
from milr.runs.methods import METHODS, Method, choose_methods
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks

FEW = (METHODS[0], METHODS[1], METHODS[2], METHODS[4])


class CountingBackbone(ToyBackbone):
    drawn = 0

    def _draw(self, order):
        type(self).drawn += 1
        return super()._draw(order)


@pytest.fixture
def redness(monkeypatch):
    install_redness(monkeypatch)


def run(folder, backbone=None, methods=FEW, n=6, batch=32, tell=None, asked=None, note=lambda text: None, **terms):
    bench(
        backbone or ToyBackbone(), asked or tasks(n, 7), folder, Terms(**{"budget": 5, "critic": "redness", **terms}),
        methods=methods, batch=batch, tell=tell, note=note,
    )  # fmt: skip
    return write_report(folder)


def test_a_run_leaves_a_report_and_its_tables(redness, tmp_path):
    report = run(tmp_path, seeds=2)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    table = (tmp_path / "report.md").read_text()
    assert table == to_markdown(report)
    assert table.count("\n| ") == len(FEW) + 1
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")
    first = {row["by_calls"]["1"]["success"] for row in report["searches"].values()}
    assert len(first) == 1, "all methods share their first draft"


def test_what_is_done_is_not_drawn_again(redness, tmp_path):
    whole = run(tmp_path)
    CountingBackbone.drawn = 0
    again = run(tmp_path, CountingBackbone())
    assert CountingBackbone.drawn == 0
    assert again == whole


WIDE = choose_methods(["repair,width=3", "best-of-n:distinct,width=4", "milr:repaired,width=2"])


def test_a_run_that_was_cut_within_a_round_ends_as_if_it_had_not_been(redness, tmp_path):
    """After every so many lines of its journal: the next drafts of the round are drawn, those on record are not."""
    whole = run(tmp_path / "whole", methods=WIDE, n=4, budget=6)
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    drafts = sum(b'"draft"' in line for line in lines)
    for kept in (2, 4, 5, 7, 12, 17, 24, 30):
        shutil.copytree(tmp_path / "whole", cut := tmp_path / f"cut-{kept}")
        (cut / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        backbone = Sampling()
        assert run(cut, backbone, methods=WIDE, n=4, budget=6) == whole
        assert backbone.sampled <= drafts - sum(b'"draft"' in line for line in lines[:kept])
    settings = [dict(method["settings"]) for method in json.loads(lines[0])["started"]["methods"]]
    assert [one["width"] for one in settings] == ["3", "4", "2"]
    assert [row["width"] for row in whole["searches"].values()] == [3, 4, 2]


class Sampling(ToyBackbone):
    """Counts the drafts that it samples (one whose tokens are all forced is only read)."""

    sampled = 0

    def draw(self, orders):
        found = super().draw(orders)
        self.sampled += sum(one.cost.decoded_tokens > 0 for one in found)
        return found


def test_another_method_joins_later(redness, tmp_path):
    run(tmp_path, methods=FEW[:1], n=3)
    CountingBackbone.drawn = 0
    report = run(tmp_path, CountingBackbone(), n=3, methods=FEW[:3])
    assert list(report["searches"]) == [method.name for method in FEW[:3]]
    assert report == {**run(tmp_path / "at once", n=3, methods=FEW[:3])}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 3}, "another number of prompts \\(2, not 3\\)"),
        ({"seed": 1}, "another seed \\(0, not 1\\)"),
        ({"held_out": ("self",)}, "another held out"),
        ({"budget": 4}, "another budget \\(5, not 4\\)"),
        ({"threshold": 0.5}, "another threshold"),
    ],
)
def test_a_run_with_other_terms_is_refused_with_the_field_named(redness, tmp_path, changes, said):
    run(tmp_path, n=2)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match=said):
        run(tmp_path, **{"n": 2, **changes})
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_progress_counts_searches_and_drafts(redness, tmp_path):
    heard = []
    run(tmp_path, methods=FEW[:1], n=5, batch=2, tell=heard.append)
    assert [one.done for one in heard] == sorted(one.done for one in heard)
    assert (heard[0].done, heard[-1].done, heard[-1].searches, heard[-1].drafts) == (0, 5, 5, 5)


def test_methods_by_name():
    assert choose_methods(["milr paper", "single", "milr:text-only"]) == (
        METHODS[3],
        METHODS[0],
        Method("milr:text-only", "milr", "text-only"),
    )
    assert choose_methods(["cold=best-of-n:sampled-text,image_temperature=0.5"]) == (
        Method("cold", "best-of-n", "sampled-text", (("image_temperature", "0.5"),)),
    )
    with pytest.raises(UserError, match="put LABEL= before"):
        choose_methods(["single", "single"])
    with pytest.raises(UserError, match="Did you mean 'milr paper'"):
        choose_methods(["milr papre"])


def test_every_method_of_the_report_exists():
    for method in METHODS:
        part = registry.find("search", method.search)
        assert method.preset is None or method.preset in part.presets
    assert {method.name for method in METHODS if method.returns_last} == {"milr official"}
    assert CALLS == (1, 4, 8, 16, 20)


def test_a_name_means_one_thing_in_a_journal(redness, tmp_path):
    run(tmp_path, methods=(Method("m", "best-of-n"),), n=2)
    with pytest.raises(UserError, match="give it another LABEL="):
        run(tmp_path, methods=(Method("m", "best-of-n", None, (("image_temperature", "0.5"),)),), n=2)


def test_out_of_memory_halves_the_batch_and_changes_no_result(tmp_path, monkeypatch):
    """With the embedded model itself: its engine runs out of memory at more than three drafts at once."""
    import torch

    import milr
    from milr.benchmarks.scenes import tasks as scenes
    from milr.reports.reading import read_run

    lab = milr.load("lab")
    terms, methods = Terms(budget=3), choose_methods(["repair", "milr:paper"])
    bench(lab, scenes(6), tmp_path / "enough", terms, methods=methods)
    real, sizes = lab._draw_batch, []

    def small_memory(orders):
        sizes.append(len(orders))
        if len(orders) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(orders)

    monkeypatch.setattr(lab, "_draw_batch", small_memory)
    bench(lab, scenes(6), tmp_path / "little", terms, methods=methods)
    assert max(sizes) == 6
    assert lab.max_batch <= 3
    enough, little = (read_run(tmp_path / name).ends for name in ("enough", "little"))
    assert enough.keys() == little.keys()

    def is_same(one, other):
        """But for the last bit of a pixel: pictures are decoded in batches of another size, too."""
        a, b = (
            np.asarray(read_image(tmp_path / name, end.returned_image), dtype=int)
            for name, end in (("enough", one), ("little", other))
        )
        ends = [(end.outcome.rewards, end.outcome.tokens, end.outcome.returned) for end in (one, other)]
        return ends[0] == ends[1] and np.abs(a - b).max() <= 1

    # On some machine one token may be tied (rounding.py) and end one search otherwise; a wrong batch changes many.
    assert len([key for key in enough if not is_same(enough[key], little[key])]) <= 1


def test_auto_batch_is_what_the_model_draws_at_once(redness):
    backbone = ToyBackbone()
    assert Local(backbone).batch == 32
    backbone.max_batch = 5
    assert Local(backbone).batch == 5
    assert Local(backbone, 7).batch == 7


# --- A run knows its question --------------------------------------------------------------------------------------


ASKED = [Task("a fox", "1", "one", {"checks": ["a fox"], "boxes": (1, 2)}), Task("two cars", "2", "two", {})]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metadata": {"checks": ["a dog"], "boxes": (1, 2)}}, r"other checks for prompt '1' \(\[.a fox.\], not \["),
        ({"metadata": {"checks": ["a fox"], "boxes": (1, 2), "tag": 0}}, "other tag for prompt '1' .null, not 0"),
        ({"metadata": {}}, "other boxes for prompt '1'"),
        ({"category": "other"}, 'the category of prompt .1. was "one", not "other"'),
        ({"prompt": "a dog"}, 'the text of prompt .1. was "a fox", not "a dog"'),
        ({"id": "3"}, "the id of prompt '1'"),
    ],
)
@pytest.mark.parametrize("by", ["this milr", "an older milr"])
def test_another_question_is_refused_before_any_work(redness, tmp_path, changed, said, by):
    run(tmp_path / "run", methods=FEW[:1], asked=ASKED)
    if by == "an older milr":
        forget(tmp_path / "run")
    CountingBackbone.drawn = 0
    with pytest.raises(UserError, match=said) as refused:
        run(tmp_path / "run", CountingBackbone(), methods=FEW[:2], asked=[replace(ASKED[0], **changed), ASKED[1]])
    assert "--force-new" in str(refused.value)
    assert CountingBackbone.drawn == 0
    run(tmp_path / "run", methods=FEW[:2], asked=ASKED)


def forget(folder):
    """Make a run what milr 0.1 left: without what was noted later."""
    head = json.loads((folder / "run.json").read_text())
    del head["checks"], head["contents"]
    (folder / "run.json").write_text(json.dumps(head))
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("started", {}).pop("machine", None)
        for name in ("prefilled", "unjudged"):
            line.get("outcome", {}).pop(name, None)
        line.get("draft", {"score": {}})["score"].pop("outage", None)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_runs_of_an_older_milr_go_on_and_are_told(redness, tmp_path):
    whole = run(tmp_path / "whole", n=3)
    run(tmp_path / "old", n=3, methods=FEW[:2])
    forget(tmp_path / "old")
    old = write_report(tmp_path / "old")
    assert [row["prefilled_tokens"] for row in old["searches"].values()] == [None, None]
    assert old["machines"] == []
    CountingBackbone.drawn = 0
    run(tmp_path / "old", CountingBackbone(), n=3, methods=FEW[:2])
    assert CountingBackbone.drawn == 0
    assert json.loads((tmp_path / "old" / "run.json").read_text())["checks"]  # from here on it is known
    assert run(tmp_path / "old", n=3)["searches"][FEW[3].name] == whole["searches"][FEW[3].name]


def test_prompts_that_were_changed_behind_a_runs_back_are_said_and_put_right(redness, tmp_path):
    whole = run(tmp_path, methods=FEW[:1], asked=ASKED)
    file = tmp_path / "tasks.jsonl"
    file.write_text(file.read_text().replace("a fox", "a dog", 1))
    with pytest.raises(UserError, match=r"tasks\.jsonl holds other prompts or checks than the run began with"):
        write_report(tmp_path)
    assert run(tmp_path, methods=FEW[:1], asked=ASKED) == whole


def test_a_critic_whose_files_have_changed_is_refused(redness, tmp_path, monkeypatch):
    contents = {"redness": "1", "noise": ""}
    monkeypatch.setattr(naming, "content_of", contents.get)
    terms = {"methods": FEW[:1], "n": 2, "held_out": ("noise",)}
    run(tmp_path, **terms)
    contents["noise"] = "7"  # nobody knew it then
    run(tmp_path, **terms)
    assert json.loads((tmp_path / "run.json").read_text())["contents"] == contents
    for name in contents:
        changed = {**contents, name: "other"}
        monkeypatch.setattr(naming, "content_of", changed.get)
        with pytest.raises(UserError, match=f"another '{name}': its files have changed since .* not other"):
            run(tmp_path, **terms)


class Elsewhere(ToyBackbone):
    """The same model on another kind of device, and one that reads tokens."""

    def __init__(self):
        super().__init__()
        self.info = replace(self.info, device="cuda:0")

    def draw(self, orders):
        drawn = super().draw(orders)
        return [replace(one, cost=replace(one.cost, prefilled_tokens=7)) for one in drawn]


def test_a_run_that_goes_on_on_another_machine_says_so(redness, tmp_path):
    noted = []
    first = run(tmp_path, methods=FEW[:1], n=2, note=noted.append)
    assert (first["warnings"], noted) == ([], [])
    (machine,) = first["machines"]
    assert machine.keys() == {"device", "name", "dtype", "threads", "batch"}
    assert (machine["device"], machine["dtype"], machine["batch"]) == ("cpu", "float32", 32)
    run(tmp_path, Elsewhere(), methods=FEW[:1], n=2)  # nothing is left to draw
    assert write_report(tmp_path)["machines"] == [machine]
    noted.clear()
    report = run(tmp_path, Elsewhere(), methods=FEW[:2], n=2, note=noted.append)
    assert [one["device"] for one in report["machines"]] == ["cpu", "cuda"]
    (said,) = noted
    assert said.startswith(f"This run was drawn on cpu ({machine['name']}) so far and goes on on cuda")
    (warning,) = report["warnings"]
    assert "parts were drawn on another machine (device cpu; device cuda): seconds are of all of them" in warning
    before, now = (report["searches"][method.name] for method in FEW[:2])
    assert (before["prefilled_tokens"], now["prefilled_tokens"]) == (0, 7 * now["calls"])


# --- Critics that could not be asked -------------------------------------------------------------------------------


class Judge:
    """Likes every picture half; while it is down, it cannot be asked about prompts of odd number."""

    is_down = False
    marks = True  # an outage as one; older versions of milr did not

    def __init__(self, name):
        self.name, self.calls = name, 0

    def score(self, images, tasks):
        self.calls += len(images)
        outage = Score(None, reason="no connection", outage=self.marks)
        return [outage if self.is_down and int(task.id[-1]) % 2 else Score(0.5) for task in tasks]


@pytest.fixture
def judges(redness, monkeypatch):
    """The critics redness and noise, which may be down."""
    made = {"redness": Judge("redness"), "noise": Judge("noise")}
    monkeypatch.setattr(naming, "make", lambda name, backbone, place: made[name])
    return made


TWO = (METHODS[2], METHODS[3])  # without and with latents


def test_searches_whose_critic_could_not_be_asked_are_taken_up_again(judges, tmp_path):
    terms = {"n": 4, "budget": 12, "methods": TWO}
    whole = run(tmp_path / "whole", **terms)
    judges["redness"].is_down = True
    down = run(tmp_path / "run", **terms)
    assert down["searches"][TWO[0].name]["abstained"] > 0.4
    judges["redness"].is_down, judges["redness"].calls = False, 0
    CountingBackbone.drawn, noted = 0, []
    assert run(tmp_path / "run", CountingBackbone(), note=noted.append, **terms) == whole
    assert noted == [
        f"2 finished searches of '{method.name}' lack a verdict since redness could not be asked; they are taken up "
        "again."
        for method in TWO
    ]
    assert judges["redness"].calls == 2 * 12 * len(TWO)  # those of the even prompts stand
    sampled = 2 * 2  # two drafts that were never drawn, for each of two searches
    assert CountingBackbone.drawn >= sampled
    judges["redness"].calls, CountingBackbone.drawn = 0, 0
    noted.clear()
    assert run(tmp_path / "run", CountingBackbone(), note=noted.append, **terms) == whole
    assert (judges["redness"].calls, CountingBackbone.drawn, noted) == (0, 0, [])


def test_only_what_lacks_a_verdict_is_asked_for_again(judges, tmp_path):
    terms = {"n": 4, "budget": 3, "methods": TWO, "held_out": ("noise",)}
    whole = run(tmp_path / "whole", **terms)
    judges["noise"].is_down = True
    assert run(tmp_path / "run", **terms) != whole
    judges["noise"].is_down = False
    for judge in judges.values():
        judge.calls = 0
    CountingBackbone.drawn, noted = 0, []
    assert run(tmp_path / "run", CountingBackbone(), note=noted.append, **terms) == whole
    assert (CountingBackbone.drawn, judges["redness"].calls) == (0, 0)
    assert judges["noise"].calls == 2 * len(TWO)
    assert "lack a verdict since noise could not be asked" in noted[0]


def test_a_critic_that_ends_the_run_costs_nothing_on_record(judges, tmp_path, monkeypatch):
    terms = {"n": 4, "budget": 4, "methods": TWO}
    CountingBackbone.drawn = 0
    whole = run(tmp_path / "whole", CountingBackbone(), **terms)
    drawn, real = CountingBackbone.drawn, Judge.score

    def refuses(self, images, tasks):
        if self.calls >= 8:
            raise UserError("The judge refused the key; see to it.")
        return real(self, images, tasks)

    judges["redness"].calls = 0
    monkeypatch.setattr(Judge, "score", refuses)
    CountingBackbone.drawn = 0
    with pytest.raises(UserError, match="refused the key"):
        run(tmp_path / "run", CountingBackbone(), **terms)
    monkeypatch.setattr(Judge, "score", real)
    assert run(tmp_path / "run", CountingBackbone(), **terms) == whole
    assert CountingBackbone.drawn == drawn


def test_a_search_that_is_taken_up_again_may_be_stopped_again(judges, tmp_path, monkeypatch):
    """Some drafts lack a verdict and others after them have one; it is stopped between two of them."""

    def only_some(self, images, tasks):
        lost = [self.is_down and sum(image.tobytes()) % 3 == 0 for image in images]
        found = [Score(None, reason="down", outage=True) if bad else Score(0.5) for bad in lost]
        self.calls += len(images)
        if self.calls > self.most:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Judge, "score", only_some)
    monkeypatch.setattr(Judge, "most", 10**6, raising=False)
    terms = {"n": 4, "budget": 6, "methods": TWO[:1]}
    whole = run(tmp_path / "whole", **terms)
    judge = judges["redness"]
    judge.is_down = True
    down = run(tmp_path / "run", **terms)
    assert 0 < down["searches"][TWO[0].name]["abstained"] < 1
    judge.is_down, judge.calls, judge.most = False, 0, 3
    CountingBackbone.drawn = 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", CountingBackbone(), batch=2, **terms)
    judge.most = 10**6
    again = run(tmp_path / "run", CountingBackbone(), **terms)
    assert again["searches"] == whole["searches"]
    assert CountingBackbone.drawn == 0


def test_searches_of_an_older_milr_that_no_critic_judged_are_taken_up_again(judges, tmp_path):
    terms = {"n": 4, "budget": 12, "methods": TWO[:1], "held_out": ("noise",)}
    whole = run(tmp_path / "whole", **terms)
    for judge in judges.values():
        judge.is_down, judge.marks = True, False
    run(tmp_path / "run", **terms)
    forget(tmp_path / "run")
    for judge in judges.values():
        judge.is_down = False
    (again,), (row,) = run(tmp_path / "run", **terms)["searches"].values(), whole["searches"].values()
    assert again == {**row, "prefilled_tokens": None}  # the even prompts' lines stay as they were
