import numpy as np
import pytest
from scipy import stats

from milr.drafts import Score, Task
from milr.reports.calibrate import calibrate, reliability, to_markdown
from milr.statistics import auc
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness


class Says:
    """A critic made of another one's score."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def score(self, images, tasks):
        return [Score(self.change(score.value)) for score in Redness().score(images, tasks)]


def found(*critics, prompts=40, each=4):
    tasks = [Task(f"fox {number}", f"fox-{number}") for number in range(prompts)]
    return calibrate(ToyBackbone(), critics, Redness(), tasks, each)


def test_auc_by_hand_and_as_scipy_has_it():
    scores, right = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert auc(scores, right) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    rng = np.random.default_rng(0)
    scores, right = rng.random(50), rng.random(50) < 0.4
    u = stats.mannwhitneyu(scores[right], scores[~right]).statistic
    assert auc(scores, right) == pytest.approx(u / (right.sum() * (~right).sum()))
    assert auc(scores, np.ones(50, bool)) is None


def test_a_draft_is_right_where_the_oracle_says_1_but_for_rounding():
    tasks = [Task(f"fox {number}", f"fox-{number}") for number in range(2)]
    report = calibrate(ToyBackbone(), [], Says("oracle", lambda value: 0.9999999999999999), tasks, 2)
    assert report["right"]["share"] == 1.0


def test_the_oracle_itself_its_opposite_and_a_constant():
    report = found(
        Says("same", lambda v: v), Says("opposite", lambda v: 1 - v), Says("flat", lambda v: 0.5), prompts=10, each=16
    )
    same, opposite, flat = report["critics"].values()
    assert same["auc_within_prompts"]["prompts"] >= 2
    assert same["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert same["spearman_with_oracle"] == 1.0
    assert opposite["auc"]["value"] == 0.0
    assert (flat["auc"]["value"], flat["spearman_with_oracle"]) == (0.5, None)
    assert report["agreement"]["same"] == {"opposite": -1.0, "flat": None}
    assert same["auc_within_prompts"]["value"] == 1.0
    assert [one["share"] for one in same["bins"]][-1] == 1.0
    assert sum(one["of"] for one in same["bins"]) == report["drafts"] == 160


def test_abstentions_are_left_out_and_counted():
    (shy,) = found(Says("shy", lambda v: None if v < 0.5 else v))["critics"].values()
    assert shy["abstained"] > 0
    assert shy["judged"] + shy["abstained"] == 160
    (silent,) = found(Says("silent", lambda v: None))["critics"].values()
    assert (silent["judged"], "auc" in silent) == (0, False)


def test_it_is_shown_as_a_table_and_a_plot():
    report = found(Says("a<b", lambda v: v), Says("silent", lambda v: None))
    assert "| a<b | 1.000 [1.000, 1.000]" in to_markdown(report)
    plot = reliability(report)
    assert plot.startswith("<svg")
    assert "a&lt;b" in plot
    assert "silent" not in plot
    assert "- silent abstained on 160, first because: critic 'silent' abstained without a reason" in to_markdown(report)
