"""The number that is compared is the benchmark's own: WISE and T2I-CompBench from `bench` to the report, by hand."""

import json

import pytest

from milr import registry
from milr.benchmarks import base, geneval, scenes, t2i_compbench, wise, wise_verified
from milr.drafts import UserError
from milr.reports.reading import read_run, report_of, write_report
from milr.reports.report import leading, pair_of, to_markdown
from milr.reports.report_page import render_report
from milr.runs.bench import bench
from milr.runs.planned import PlannedRun, threshold_of
from milr.runs.recipes import RecipeRun
from runs_toy import install_known
from toy_milr.backbone import ToyBackbone

BASE, COOL = "best-of-n:sampled-text", "cool=best-of-n:sampled-text,image_temperature=0.5"
# WiScores of the two drafts of each search, in the order in which the methods run. .9 and more end a search.
WISCORES = {
    "wise-1": {BASE: (0.5, 0.6), "cool": (0.5, 0.8)},
    "wise-2": {BASE: (0.7, 0.65), "cool": (0.7, 0.9)},
    "wise-401": {BASE: (0.95,), "cool": (0.95,)},
    "wise-402": {BASE: (0.2, 0.4), "cool": (0.2, 0.35)},
}


def planned(folder, benchmark, reward, held_out=(), **wanted):
    run = RecipeRun(
        "", "", benchmark, (BASE, COOL), reward, held_out, threshold=threshold_of(benchmark), budget=2,
        category=wanted.pop("category", ()), limit=wanted.pop("limit", None),
    )  # fmt: skip
    return PlannedRun(run, folder, **wanted)


def run(plan):
    bench(
        ToyBackbone(), plan.tasks, plan.folder, plan.terms, methods=plan.methods, baseline=plan.baseline,
        about=plan.about,
    )  # fmt: skip
    return write_report(plan.folder)


@pytest.fixture
def wise_run(tmp_path, monkeypatch):
    """The folder of a run on four WISE prompts whose judge says WISCORES."""
    in_order = {task: [score for of in scores.values() for score in of] for task, scores in WISCORES.items()}
    install_known(monkeypatch, "judged", lambda task, number: in_order[task.id][number])
    ids = [int(task.removeprefix("wise-")) for task in WISCORES]
    data = tmp_path / "wise.json"
    data.write_text(json.dumps([{"Prompt": f"prompt {number}", "prompt_id": number} for number in ids]))
    plan = planned(tmp_path / "run", "wise", "judged", data=data)
    run(plan)
    return plan.folder


def test_wise_is_told_by_its_mean_wiscore(wise_run):
    report = json.loads((wise_run / "report.json").read_text())
    assert (report["number"], report["threshold"], report["judge"]) == ("mean", 0.9, "judged")
    base, cool = report["searches"][BASE], report["searches"]["cool"]
    assert base["value"] == pytest.approx((0.6 + 0.7 + 0.95 + 0.4) / 4)
    assert cool["value"] == pytest.approx((0.8 + 0.9 + 0.95 + 0.35) / 4)
    # sd .228674 of the four, so t = 3.18245 x .228674 / 2
    assert (base["low"], base["high"]) == pytest.approx((0.6625 - 0.363871, 1.0), abs=1e-4)
    assert (base["success"], cool["success"]) == (0.25, 0.5)  # of at least .9
    assert base["by_calls"]["1"]["value"] == pytest.approx((0.5 + 0.7 + 0.95 + 0.2) / 4)
    assert (base["calls"], cool["calls"]) == (7 / 4, 7 / 4)
    categories = {category: of["value"] for category, of in cool["by_category"].items()}
    assert categories == pytest.approx({"culture": 0.85, "time": 0.65})
    assert cool["benchmark_score"] == pytest.approx((400 * 0.85 + 167 * 0.65) / 567)  # of WISE's sizes
    assert base["benchmark_score"] == pytest.approx((400 * 0.65 + 167 * 0.675) / 567)

    pair = pair_of(report, "cool")
    assert (pair["won"], pair["lost"], pair["prompts"], pair["p"]) == (2, 1, 4, 0.5)  # 4 of 8 flips of .2 .2 -.05
    # differences .2 .2 0 -.05: sd .131498, so t = 3.18245 x .131498 / 2
    found = (pair["difference"], pair["low"], pair["high"])
    assert found == pytest.approx((0.0875, 0.0875 - 0.209243, 0.0875 + 0.209243), abs=1e-4)
    assert pair["p_holm"] == 0.5
    assert pair["verdict"].startswith(f"cool and {BASE} cannot be told apart (+8.8 [-12.2, +29.7])")
    assert pair_of(report, "cool", at=1)["difference"] == 0
    assert pair_of(report, "cool", category="culture")["difference"] == pytest.approx(0.2)
    assert pair_of(report, "cool", "tokens")["difference"] == pytest.approx(0.0875)
    assert cool["to_reach_baseline"]["budget"] == 2


def test_the_tables_and_the_page_say_what_is_counted_and_where_a_search_stops(wise_run):
    readings = [read_run(wise_run)]
    report = report_of(readings)
    for text in (to_markdown(report), render_report(report, readings)):
        assert "Mean reward of the draft that a user holds (a search stops at a reward of .9)" in text
        assert "cannot be compared with published WiScores" in text
    table = to_markdown(report)
    assert "| method | @1 | @2 | at least .9 | against baseline |" in table
    assert "[.083, 1.00] | .750 [.314, 1.00] | .500 |" in table
    assert "| culture | time | benchmark's score |" in table
    assert "- cool has a mean reward of .750, the baseline .66" in table
    assert "which it reaches with a budget of 2" in table
    best = "cool comes out highest at 2 calls, as judged judges: a mean reward of .750 [.314, 1.00]."
    assert leading(report)[0] == best


def test_rewards_that_are_never_1_are_seen(tmp_path, monkeypatch):
    """What was reported as a benchmark's score of .000: .95 on twelve WISE prompts."""
    install_known(monkeypatch, "judged", lambda task, number: 0.95)
    data = tmp_path / "wise.json"
    data.write_text(json.dumps([{"Prompt": f"prompt {number}", "prompt_id": number} for number in range(1, 13)]))
    report = run(planned(tmp_path / "run", "wise", "judged", data=data))
    row = report["searches"][BASE]
    assert (row["value"], row["success"], row["calls"]) == (pytest.approx(0.95), 1, 1)
    assert row["benchmark_score"] == pytest.approx(0.95)


def test_t2i_compbench_is_told_by_means_and_so_are_its_held_out_critics(tmp_path, monkeypatch):
    """Two prompts of color, two of spatial; the held-out critic says half of the best."""
    scores = {"color": (0.3, 0.5, 0.3, 0.8), "spatial": (0.4, 0.2, 0.4, 0.35)}
    install_known(monkeypatch, "judged", lambda task, number: scores[task.category][number])
    # Each search ends with its first and its best draft, which are one and the same for 'spatial'.
    halves = {"color": (0.15, 0.25, 0.15, 0.4), "spatial": (0.2, 0.2)}
    install_known(monkeypatch, "other", lambda task, number: halves[task.category][number])
    wanted = {"category": ("color", "spatial"), "limit": 4}
    report = run(planned(tmp_path / "run", "t2i-compbench", "judged", ("other",), **wanted))
    assert (report["number"], report["threshold"], report["judge"]) == ("mean", 0.9, "other")
    base, cool = report["searches"][BASE], report["searches"]["cool"]
    assert (base["optimised"]["value"], cool["optimised"]["value"]) == pytest.approx((0.45, 0.6))
    assert (base["value"], cool["value"]) == pytest.approx((0.225, 0.3))
    assert cool["held_out"]["other"]["gap"] == pytest.approx(0.3)
    assert cool["benchmark_score"] == pytest.approx((0.4 + 0.2) / 2)
    pair = pair_of(report, "cool", critic="other")
    assert (pair["difference"], pair["won"], pair["lost"], pair["p"]) == (pytest.approx(0.075), 2, 0, 0.5)
    assert pair_of(report, "cool", category="color")["judge"] == "other"
    assert "All as judged judges, which is climbed." in to_markdown(report)
    page = render_report(report, [read_run(tmp_path / "run")])
    assert "as other judges, held out" in page
    assert "mean after k calls, as judged judges, which is climbed" in page


def test_what_has_no_score_is_left_out_of_a_mean_and_is_no_zero(tmp_path, monkeypatch):
    first = t2i_compbench.tasks(1, categories=("color",))[0].id
    install_known(monkeypatch, "judged", lambda task, number: None if task.id == first else 0.8)
    report = run(planned(tmp_path / "run", "t2i-compbench", "judged", category=("color", "spatial"), limit=4))
    row = report["searches"]["cool"]
    assert (row["value"], row["reward"], row["prompts"]) == (pytest.approx(0.8), pytest.approx(0.8), 3)
    assert "cool: 1 prompts have no score of judged and are left out of its numbers" in report["warnings"]
    assert pair_of(report, "cool")["prompts"] == 3
    nothing = run(planned(tmp_path / "none", "t2i-compbench", "judged", category=("color",), limit=1))
    assert nothing["searches"]["cool"]["value"] is None
    assert pair_of(nothing, "cool")["verdict"].endswith("cannot be compared: no prompt has a score of both")
    assert "| cool | none | none |" in to_markdown(nothing)
    assert "nothing can be said" in render_report(nothing, [read_run(tmp_path / "none")])


def test_the_number_is_on_record_and_old_runs_take_the_benchmarks(wise_run, monkeypatch):
    was = report_of([read_run(wise_run)])
    monkeypatch.setattr(wise, "NUMBER", "success")
    assert report_of([read_run(wise_run)]) == was
    monkeypatch.setattr(wise, "NUMBER", "mean")
    journal = wise_run / "journal.jsonl"
    first, rest = journal.read_text().split("\n", 1)
    started = json.loads(first)
    assert started["started"].pop("number") == "mean"
    journal.write_text(json.dumps(started) + "\n" + rest)
    assert report_of([read_run(wise_run)]) == was


def test_runs_with_other_numbers_do_not_stand_side_by_side(wise_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in ("run.json", "tasks.jsonl"):
        (other / file).write_bytes((wise_run / file).read_bytes())
    (other / "journal.jsonl").write_text((wise_run / "journal.jsonl").read_text().replace('"mean"', '"success"'))
    with pytest.raises(UserError, match=r"is told by its success, .* by its mean"):
        report_of([read_run(wise_run), read_run(other)])


def test_what_benchmarks_say_of_their_score():
    said = {module.NAME: base.number_of(module) for module in (geneval, scenes, t2i_compbench, wise, wise_verified)}
    assert {name for name, number in said.items() if number == "mean"} == {"wise", "t2i-compbench"}
    assert base.number_of(object()) == "success"
    assert (base.stops_at(wise), base.stops_at(object())) == (0.9, 1.0)
    with pytest.raises(UserError, match="'odd' says NUMBER = 'median'"):
        base.number_of(type("Odd", (), {"NAME": "odd", "NUMBER": "median"}))
    for part in registry.parts("benchmark"):
        if not part.origin:
            assert hasattr(registry.load(part), "NUMBER"), f"{part.name} leaves its number unsaid"
