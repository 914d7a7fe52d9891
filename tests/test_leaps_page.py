"""docs/leaps.md says what its data say; what tools/leaps.py compares draws from one distribution, and no leap changes a
token whatever the rule of choosing."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from command import ROOT
from milr.backbones.sampling import choose, uniforms
from milr.drafts import Task

spec = importlib.util.spec_from_file_location("leaps", ROOT / "tools" / "leaps.py")
leaps = importlib.util.module_from_spec(spec)
sys.modules["leaps"] = leaps  # where its dataclasses look for themselves
spec.loader.exec_module(leaps)

LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, -9.0, 1.5])
LOOKS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
RULES = leaps.rules_of(LOOKS, 2)


def drawn(rule, numbers, temperature):
    count = len(numbers)
    found = rule(LOGITS.expand(count, -1), torch.full((count,), temperature), torch.from_numpy(numbers))
    return np.bincount(found.numpy(), minlength=len(LOGITS))


# --- Rules of choosing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_draws_from_the_softmax(name, temperature):
    chances = (LOGITS.double() / temperature).softmax(-1).numpy()
    if name == leaps.GUMBEL:
        counts = drawn(RULES[name], uniforms(1, 1, 40_000), temperature)
        expected = 40_000 * chances
        often = expected > 5
        assert (
            stats.chisquare(counts[often], expected[often] * counts[often].sum() / expected[often].sum()).pvalue > 0.001
        )
        assert counts[~often].sum() < 10
    else:  # a code owns one stretch of the numbers, as long as it is likely: evenly spaced ones count it to within one
        counts = drawn(RULES[name], (np.arange(10_000) + 0.5) / 10_000, temperature)
        assert np.abs(counts - 10_000 * chances).max() < 1.5


@pytest.mark.parametrize("name", RULES)
def test_at_temperature_0_every_rule_takes_the_likeliest(name):
    temperatures = torch.tensor([0.0, 0.0, 1e-6])
    assert RULES[name](LOGITS.expand(3, -1), temperatures, torch.tensor([0.0, 0.999, 0.5]).double()).tolist() == [2] * 3


def test_the_rules_differ_in_what_a_number_means():
    numbers = uniforms(2, 1, 200)
    rows = [LOGITS.expand(200, -1), torch.ones(200), torch.from_numpy(numbers)]
    assert len({tuple(rule(*rows).tolist()) for rule in RULES.values()}) == len(RULES)
    assert RULES[leaps.SHIPPED] is choose


def test_gumbel_noise_of_two_codes_or_two_numbers_is_independent():
    noise = leaps.hashed(torch.from_numpy(uniforms(3, 1, 4000)), 6).numpy()
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.001
    beside, below = np.corrcoef(noise[:, 0], noise[:, 1])[0, 1], np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]
    assert abs(beside) < 0.06
    assert abs(below) < 0.06
    # Neighbouring numbers, too: all 53 bits count.
    near = leaps.hashed(torch.tensor([0.5, 0.5 + 2.0**-53], dtype=torch.float64), 2000).numpy()
    assert abs(np.corrcoef(near)[0, 1]) < 0.09


def test_gumbel_keeps_the_token_where_only_other_codes_change_places():
    # A half of the chances moves from code 0 to code 1: of the inverse CDF's numbers for code 2 all still mean code 2,
    # but of those for a code between them none need.
    before, after = torch.tensor([[8.0, 1, 1, 8]]).log(), torch.tensor([[1.0, 1, 8, 8]]).log()
    numbers = torch.from_numpy(uniforms(4, 1, 2000))
    kept = {}
    for name, rule in {"codes": choose, "gumbel": leaps.gumbel}.items():
        one, two = (rule(row.expand(2000, -1), torch.ones(2000), numbers) for row in (before, after))
        kept[name] = float((one == two).double().mean())
    overlap = torch.minimum(before.softmax(-1), after.softmax(-1)).sum().item()
    assert kept["gumbel"] >= overlap / (2 - overlap) - 0.04  # its least, (1 - TV) / (1 + TV)


def test_a_tour_meets_every_code_once_and_goes_to_the_nearest():
    line = torch.tensor([[0.0], [5.0], [1.0], [3.5], [9.0]])
    assert leaps.tour(line, 0).tolist() == [0, 2, 3, 1, 4]
    assert leaps.along_principal(line).tolist() in ([0, 2, 3, 1, 4], [4, 1, 3, 2, 0])


# --- Leaps change no token --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tiny_backbone):
    return leaps.Study(tiny_backbone, [Task(prompt) for prompt in ("a red apple", "x", "two green birds")])


@pytest.mark.parametrize("window", [4, 8])
@pytest.mark.parametrize(
    "guess", [leaps.ABOVE, leaps.UNREMEMBERED, "token to the left", "blank token", leaps.DRAFTS[1]]
)
@pytest.mark.parametrize("rule", leaps.RULES)
def test_no_leap_changes_a_token(study, rule, guess, window):
    for temperature in (0.3, 1.0):
        cell = study.cell(temperature, rule, guess, window)
        assert cell["same"] == len(cell["passes"]) >= 1
        # Each position but the first is decided once; a last one that is left alone is chosen without a leap.
        drafts, alone = len(cell["passes"]), len(cell["passes"]) - cell["decided"][-1]
        assert cell["decided"][:-1] == [0, *[drafts] * 14]
        # A pass is that of the prompt, or ends with a wrong guess, with its window or with the draft.
        wrong, leaps_of = sum(cell["decided"]) - sum(cell["right"]), sum(cell["passes"]) - drafts - alone
        assert wrong <= leaps_of <= wrong + drafts * -(-15 // window)


@pytest.mark.parametrize("window", [1, 4, 16])
def test_a_right_guess_is_over_in_as_many_passes_as_it_has_windows(study, window):
    (found,), _ = leaps.decoded(study.backbone._decoder, study.backbone.image_stage, [study.plan(0, "it", 1.0, 5)], 1)
    plan = study.plan(0, "it", 1.0, 5, found.tokens)
    (again,), tally = leaps.decoded(study.backbone._decoder, study.backbone.image_stage, [plan], window)
    assert again.tokens == found.tokens
    assert again.passes == 1 + -(-15 // window)
    assert tally.fed == (0 if window == 1 else 15)
    assert tally.right.sum() == tally.decided.sum() == (0 if window == 1 else 15)


@pytest.mark.parametrize("kind", leaps.TEXTS)
def test_no_leap_changes_a_word(study, kind):
    lore = leaps.Lore()
    lore.learn(study.said(1.0, 500)[0])
    cell = study.text_cell(1.0, kind, lore)
    assert cell["same"] == 3
    assert all(passes <= tokens for passes, tokens in zip(cell["passes"], cell["tokens"], strict=True))
    if kind == leaps.NONE:
        assert cell["passes"] == cell["tokens"]


def test_another_rule_is_gone_when_its_cell_is_done(study):
    with pytest.raises(RuntimeError), leaps.chosen_by(leaps.gumbel):
        raise RuntimeError
    assert leaps.board.choose is choose


def test_a_model_of_ones_own_is_looked_at(tiny_checkpoint, capsys):
    assert leaps.main(["--model", str(tiny_checkpoint), "--prompts", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("2 of 2") == 4
    assert "passes for 16 tokens" in shown


# --- The data and the page --------------------------------------------------------------------------------------------


def test_a_study_that_was_stopped_goes_on(study, tmp_path, monkeypatch):
    monkeypatch.setattr(leaps, "DATA", tmp_path / "leaps.json")
    monkeypatch.setattr(leaps, "IN_BLOCK", 2)
    monkeypatch.setattr(leaps, "MODELS", {"tiny": lambda: study.backbone})
    cells = [("tiny", 1.0, leaps.SHIPPED, leaps.ABOVE, window) for window in (4, 8)]
    monkeypatch.setattr(leaps, "PARTS", {"passes": cells})
    measured = []
    cell_of = leaps.Study.cell

    def cell(self, *cell):
        if len(measured) == 1:
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(cell[-1])
        return cell_of(self, *cell)

    monkeypatch.setattr(leaps.Study, "cell", cell)
    with pytest.raises(KeyboardInterrupt):
        leaps.keep(["passes"], 1, anew=False)
    leaps.keep(["passes"], 1, anew=False)
    assert measured == [4, "stopped", 8]
    kept = json.loads(leaps.DATA.read_text())
    assert [list(block) for block in kept["blocks"]] == [[leaps.named(one) for one in cells]]
    leaps.keep(["passes"], 1, anew=True)
    assert measured[3:] == [4, 8]
    assert json.loads(leaps.DATA.read_text()) == kept
    leaps.keep(["passes"], 2, anew=False)  # more prompts: those of before stay
    assert measured[5:] == [4, 8]
    more = json.loads(leaps.DATA.read_text())["blocks"]
    assert more[0] == kept["blocks"][0] != more[1]
    monkeypatch.setattr(leaps, "SEED", 5)  # other prompts: those of before go
    leaps.keep(["passes"], 1, anew=False)
    assert measured[7:] == [4, 8]


def test_blocks_are_added_up_and_drafts_put_in_a_row():
    one = {"x": {"passes": [1, 2], "same": 2, "fed": 5, "right": [0, 1]}, "y": {"bits": [0.5]}}
    two = {"x": {"passes": [4], "same": 1, "fed": 9, "right": [1, 1]}}
    together = {"x": {"passes": [1, 2, 4], "same": 3, "fed": 14, "right": [1, 2]}, "y": {"bits": [0.5]}}
    assert leaps.joined({"blocks": [one, two]}) == together
    assert json.loads(leaps.written({"seed": 1, "blocks": [one, two]})) == {"seed": 1, "blocks": [one, two]}


def test_the_page_says_what_its_data_say():
    assert leaps.main(["--check"]) == 0


def test_no_cell_of_the_data_is_unknown_and_tokens_are_the_same():
    data = json.loads(leaps.DATA.read_text())
    every = {leaps.named(cell) for part in leaps.PARTS.values() for cell in part}
    assert data["blocks"]
    assert all(set(block) <= every for block in data["blocks"])
    cells = [cell for cell in leaps.joined(data).values() if "same" in cell]
    drafts, same = sum(len(cell["passes"]) for cell in cells), sum(cell["same"] for cell in cells)
    assert 0 <= drafts - same <= drafts / 200  # numbers on the very boundary between two tokens, which rounding moves


def test_a_page_that_says_something_else_is_noticed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "leaps.md"
    page.write_text(leaps.PAGE.read_text().replace("| Gumbel noise |", "| Gumbel's noise |"))
    monkeypatch.setattr(leaps, "PAGE", page)
    assert leaps.main(["--check"]) == 1
    assert "run python tools/leaps.py" in capsys.readouterr().err
    assert leaps.main([]) == 0
    assert leaps.main(["--check"]) == 0


def test_what_was_not_measured_is_said_to_be_so():
    page = "<!-- leaps windows -->\n<!-- end -->\n<!-- leaps places-right-lab-1 -->\n<!-- end -->\n"
    found = leaps.filled(page, {"blocks": []})
    assert found.count("not measured") == len(leaps.COLUMNS) * len(leaps.WINDOWS) + 1


def test_a_name_that_is_no_table_is_an_error():
    with pytest.raises(KeyError):
        leaps.filled("<!-- leaps nothing -->\n<!-- end -->", {"blocks": []})


def test_an_interval_is_of_prompts_and_a_ratio_is_paired():
    mean, low, high = leaps.interval([10.0, 20.0] * 32)
    assert mean == 15.0
    assert 13.0 < low < 14.5 < 15.5 < high < 17.0
    assert leaps.interval([5.0, 10.0] * 32, [10.0, 20.0] * 32) == (0.5, 0.5, 0.5)
