"""report.html: what is on it, and that nothing of it runs or leaves."""

import json
import re
import shutil
import subprocess

import pytest
from markupsafe import escape
from test_page import HOSTILE, Page

from milr.drafts import Task
from milr.reports.reading import read_run, report_of
from milr.reports.report import leading
from milr.reports.report_page import render_report
from milr.runs.bench import Terms, bench
from milr.runs.methods import METHODS, choose_methods
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone
from toy_milr.critic import Redness

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")
ATTACK = (
    f"{HOSTILE}<script>document.title='PWNED'</script>"
    "<img src='http://evil.example/x.png' onerror=\"document.title='PWNED'\">"
)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of a run whose every text is hostile: (its text, its report)."""
    install_redness(monkeypatch)
    monkeypatch.setattr(Redness, "why_not", lambda self, prompt: None)
    monkeypatch.setattr(ToyBackbone, "decode_text", lambda self, tokens: f"{len(tokens)} {ATTACK}")
    tasks = [Task(f"slow {number} {ATTACK}", id=str(number), category=f"{number % 2} {ATTACK}") for number in range(8)]
    score = Redness._score

    def hostile(self, pixels, prompt):
        found = score(self, pixels, prompt)
        return type(found)(found.value, tuple(type(c)(c.text + ATTACK, c.passed, c.boxes) for c in found.checks))

    monkeypatch.setattr(Redness, "_score", hostile)
    bench(
        ToyBackbone(), tasks, tmp_path / "run", Terms(budget=4, critic="redness", held_out=("self",)),
        methods=METHODS[1:3], about={"benchmark": ATTACK},
    )  # fmt: skip
    readings = [read_run(tmp_path / "run")]
    report = report_of(readings)
    report["warnings"].append(ATTACK)
    return render_report(report, readings), report


def test_the_page_shows_the_run(page):
    text, report = page
    shown = Page(text)
    words = " ".join(shown.text.split())
    titles = ("The answer", "After so many calls", "Held out", "By category", "All comparisons", "Signs of trouble")
    places = [words.index(title) for title in titles]
    assert places == sorted(places), "first the answer"
    assert "Failures of" in words
    for sentence in leading(report):
        assert words.index(" ".join(sentence.split())) < places[1]
    folded = text[text.index("<details") : text.index("</details>")]
    assert all(str(escape(pair["verdict"])) in folded for pair in report["pairs"])
    pictures = [attributes["src"] for tag, attributes in shown.tags if tag == "img"]
    assert len(pictures) > 3
    assert all(picture.startswith("data:image/") for picture in pictures)


def test_nothing_in_it_is_anything_but_text(page):
    tags = Page(page[0]).tags
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
def test_a_real_browser_runs_nothing_and_asks_nobody(page, tmp_path):
    file, log = tmp_path / "report.html", tmp_path / "net.json"
    file.write_text(page[0])
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--disable-background-networking", "--disable-component-update", "--no-first-run", f"--log-net-log={log}",
         "--virtual-time-budget=2000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "The answer" in shown.stdout
    assert "<title>PWNED" not in shown.stdout
    assert "evil" not in json.dumps([event.get("params") for event in json.loads(log.read_text())["events"]])


WIDTHS = """
<script>
const words = [...document.querySelectorAll("th, td.name")].flatMap(cell => {
  const node = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
  while (node.nextNode()) for (const match of node.currentNode.data.matchAll(/[\\w]+/g)) {
    const range = document.createRange();
    range.setStart(node.currentNode, match.index); range.setEnd(node.currentNode, match.index + match[0].length);
    if (range.getClientRects().length > 1) found.push(match[0]);
  }
  return found;
});
document.title = "broken: " + words.join(" ") + "; wider by " + (document.documentElement.scrollWidth - innerWidth);
</script>
"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 420])
def test_no_word_of_a_table_breaks_and_the_page_is_no_wider_than_the_screen(tmp_path, monkeypatch, width):
    install_redness(monkeypatch)
    kinds = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "3d_spatial", "composition")
    tasks = [Task(f"prompt {number}", id=str(number), category=kinds[number]) for number in range(8)]
    methods = choose_methods(["best-of-n:sampled-text,image_temperature=0.7,guidance=1.5", "repair", "single"])
    bench(ToyBackbone(), tasks, tmp_path / "run", Terms(budget=2, critic="redness", held_out=("self",)),
          methods=methods, about={"benchmark": "geneval"})  # fmt: skip
    readings = [read_run(tmp_path / "run")]
    text = render_report(report_of(readings), readings).replace("default-src 'none'", "script-src 'unsafe-inline'")
    (tmp_path / "report.html").write_text(text.replace("<details", "<details open") + WIDTHS)
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--no-first-run", f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert re.search(r"<title>broken: ; wider by (0|-\d+)</title>", shown.stdout), re.findall("<title>.*", shown.stdout)
