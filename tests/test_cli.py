"""The command through its real entry, often in processes of its own. Toy model and critic join by entry points."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest

from command import LONG, ROOT, Milr

TOY = ("--model", "toy", "--reward", "redness")
DRAW = ("generate", *TOY, "--search", "best-of-n")


@pytest.fixture
def milr(tmp_path):
    with Milr(tmp_path) as milr:
        yield milr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["list"], ["--version"], ["replay", "nothing"]]
)
def test_light_commands_do_not_import_torch(arguments):
    code = (
        "import sys; from milr.cli import main\n"
        f"sys.argv = ['milr', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_generate_writes_what_it_names(milr):
    run = milr(*DRAW, "two red foxes", "--budget", "3", "--held-out", "broken")
    assert run.returncode == 2
    assert "broken" in run.stderr
    assert os.listdir(milr.folder / "milr-out") == []

    run = milr(*DRAW, "two slow foxes", "--budget", "3")
    assert run.returncode == 0, run.stderr
    for name in ("image.png", "trajectory.html", "trajectory.json", "drafts"):
        (named,) = re.findall(rf"\S*/{name}", run.stdout)
        assert (milr.folder / named).exists()
    assert "call 3 of 3: reward" in run.stderr
    assert "\x1b" not in run.stdout + run.stderr, "no terminal, no colours"
    assert [path.name for path in milr.folder.glob("milr-out/*")] == ["two-slow-foxes-0"]


def test_json_is_one_object_a_prompt_and_nothing_else(milr):
    (milr.folder / "prompts.txt").write_text("a blue car\n\n  a 🦊 <b>\n", encoding="utf-8")
    run = milr(*DRAW, "two red foxes", "--prompts", "prompts.txt", "--budget", "2", "--json", "--out", "o", "--no-mark")
    assert run.returncode == 0, run.stderr
    objects = [json.loads(line) for line in run.stdout.splitlines()]
    assert {said["prompt"] for said in objects} == {"two red foxes", "a blue car", "a 🦊 <b>"}
    for said in objects:
        assert {
            "reasoning",
            "reward",
            "held_out",
            "calls",
            "decoded_tokens",
            "seconds",
            "seed",
            "model",
            "search",
        } <= set(said)
        assert said["calls"] <= 2
        assert b"trainedAlgorithmicMedia" not in (milr.folder / said["image"]).read_bytes()
        assert (milr.folder / said["trajectory"]).exists()
    assert sorted(path.name for path in (milr.folder / "o").iterdir()) == ["1-two-red-foxes", "2-a-blue-car", "3-a-b"]


BAD = [
    ([""], "prompt is empty"),
    ([], "Give at least one prompt"),
    (["x" * 100_000], "100,000 characters"),
    (["fox", "--budget", "0"], "budget must be"),
    (["fox", "--budget", "1000000000"], "budget must be"),
    (["fox", "--budget", "many"], "integer"),
    (["fox", "--threshold", "nan"], "threshold must be"),
    (["fox", "--threshold", "inf"], "threshold must be"),
    (["fox", "--seed", "-1"], "seed must be"),
    (["fox", "--width", "0"], "width is auto or a whole number"),
    (["fox", "--width", "wide"], "--width is auto or a whole number"),
    (["fox", "--search", "mlir"], "Did you mean 'milr'"),
    (["fox", "--model", "lap"], "Did you mean 'lab'"),
    (["fox", "--reward", "rednes"], "Did you mean 'redness'"),
    (["fox", "--held-out", "rednes"], "Did you mean 'redness'"),
    (["fox", "--set", "learning_rate"], "NAME=VALUE"),
    (["fox", "--prompts", "nothing.txt"], "Cannot read the prompts file"),
    (["fox", "--buget", "3"], "No such option"),
    (["fox", "--out", "full"], "is not empty"),
    (["fox", "--out", "file"], "is not a folder"),
    (["fox", "--out", "file/below"], "is not a folder"),
]


@pytest.mark.parametrize(("arguments", "complaint"), BAD, ids=[complaint for _, complaint in BAD])
def test_bad_input_is_one_clear_sentence(milr, arguments, complaint):
    (milr.folder / "full").mkdir()
    (milr.folder / "full" / "image.png").write_text("precious")
    (milr.folder / "file").write_text("")
    run = milr.here("generate", *arguments)
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert complaint in re.sub(r"[\s│]+", " ", run.stderr)
    assert "Traceback" not in run.stderr
    if run.stderr.startswith("milr: "):
        assert run.stderr.count("\n") == 1
    assert (milr.folder / "full" / "image.png").read_text() == "precious"
    assert sorted(os.listdir(milr.folder)) == ["file", "full"], "nothing was left behind"


def test_what_only_the_model_knows_is_one_clear_sentence_too(milr):
    run = milr(*DRAW, "a fox", "--quiet", "--dtype", "float16")
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
    assert "float16 is for GPUs" in run.stderr
    assert list(milr.folder.glob("milr-out/*")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(milr):
    (milr.folder / "locked").mkdir(mode=0o500)
    run = milr("generate", "a fox", "--out", "locked/x")
    assert run.returncode == 2
    assert "Cannot write to locked" in run.stderr


def test_ctrl_c_keeps_the_finished_drafts(milr):
    process = milr.start_and_wait(*DRAW, "a slow fox", "--seed", "7", rounds=2)
    folder = milr.folder / "milr-out" / "a-slow-fox-7"
    assert (folder / "drafts" / "01.png").exists()
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=LONG)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "stopped by Ctrl-C; finished drafts are in milr-out/a-slow-fox-7" in said
    record = json.loads((folder / "trajectory.json").read_text())
    assert record["stopped"] == "interrupted"
    assert len(record["drafts"]) == len(list(folder.glob("drafts/*.png"))) >= 2
    assert not list(folder.rglob("*.tmp"))
    assert "reward" in out


def test_a_kill_leaves_whole_drafts_only(milr):
    process = milr.start_and_wait(*DRAW, "a slow fox", "--seed", "7", rounds=3)
    folder = milr.folder / "milr-out" / "a-slow-fox-7"
    process.kill()
    process.communicate(timeout=LONG)
    assert not (folder / "image.png").exists()
    from PIL import Image

    for draft in folder.glob("drafts/[0-9]*.png"):
        with Image.open(draft) as image:
            image.load()
    run = milr(*DRAW, "a slow fox", "--seed", "7", "--budget", "2", "--out", str(folder), "--overwrite", "-q")
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in folder.glob("drafts/*")) == ["00.png", "01.png"]


def test_replay_verifies_and_names_what_differs(milr):
    assert milr(*DRAW, "a slow fox", "--budget", "4", "--out", "foxes", "-q").returncode == 0
    same = milr("replay", "foxes")
    assert (same.returncode, same.stdout) == (0, "The same: all 4 drafts have the recorded tokens.\n"), same.stderr
    other = milr("replay", "foxes", "--json", TOY_WEIGHTS="6")
    assert other.returncode == 1
    said = json.loads(other.stdout)
    assert said["same"] is False
    assert "fingerprint" in said["refused"]
    (milr.folder / "foxes" / "trajectory.json").write_text("{}")
    bad = milr("replay", "foxes")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("milr: foxes/trajectory.json is not a trajectory")


def test_list_shows_what_others_bring(milr):
    said = milr("list").stdout
    for line in ("likes red corners, for tests [toy-milr]", "presets: paper, official", "lab "):
        assert line in said
    objects = [json.loads(line) for line in milr("list", "critics", "--json").stdout.splitlines()]
    assert {"kind": "critic", "name": "redness", "presets": [], "package": "toy-milr",
            "summary": "likes red corners, for tests"} in objects  # fmt: skip
    assert "learning_rate" in milr("list", "searches", "milr").stdout
    wrong = milr("list", "searchs")
    assert wrong.returncode == 2
    assert "Did you mean 'searches'" in wrong.stderr


def test_doctor_finds_what_is_broken_and_goes_on(milr):
    run = milr("doctor")
    assert run.returncode in (0, 1)
    assert "Traceback" not in run.stdout + run.stderr
    assert re.search(r"no +broken +.*toy-milr", run.stdout)
    assert re.search(r"ok +redness +loads", run.stdout)
    assert re.search(r"ok +torch +\d", run.stdout)
    assert "memory" in run.stdout


def test_bench_on_the_command_line(milr):
    run = milr("bench", "toys", "--limit", "3", "--budget", "2", *TOY, "--search", "single",
                 "--search", "best-of-n sampled text", "--out", "c")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "| best-of-n sampled text |" in run.stdout
    report = json.loads((milr.folder / "c" / "report.json").read_text())
    assert report["prompts"] == 3
    assert math.isclose(report["searches"]["single"]["calls"], 1)


@pytest.mark.parametrize("benchmark", [["geneval"], ["t2i-compbench"], ["custom", "--data", "products"]])
def test_bench_runs_prompts_of_others(milr, benchmark):
    run = milr.here("bench", *benchmark, "--limit", "2", "--budget", "2", *TOY, "--search", "single", "--out", "c")
    assert run.returncode == 0, run.stderr
    assert json.loads((milr.folder / "c" / "report.json").read_text())["prompts"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toys", "--category", "toy"], "has no categories; leave --category out"),
        (["scenes", "--category", "ridle"], "Did you mean 'riddle'"),
        (["wise"], "may not ship"),
        (["scenes", "--data", "x.txt"], "leave --data out"),
        (
            ["custom", "--data", "product"],
            "Cannot read product (there is no such file or pack). Did you mean 'products'?",
        ),
        (["custom", "--data", "products", "--category", "ships"], "no prompt"),
    ],
)
def test_bench_refuses_prompts_that_are_not_there(milr, arguments, said):
    run = milr.here("bench", *arguments, *TOY, "--out", "c")
    assert run.returncode == 2
    assert said in run.stderr
    assert not (milr.folder / "c").exists()


def test_a_run_is_reported_exported_and_scored_on_the_command_line(milr):
    made = milr("bench", "geneval", "--limit", "3", "--budget", "2", *TOY, "--search", "single", "--out", "run")
    assert made.returncode == 0, made.stderr
    page = milr.here("report", "run", "--out", "report.html", "--json")
    assert page.returncode == 0, page.stderr
    assert json.loads(page.stdout)["prompts"] == 3
    assert (milr.folder / "report.html").read_text().startswith("<!doctype html>")
    assert "| single |" in milr.here("report", "run", "--markdown").stdout
    standing = json.loads(milr.here("runs", "run", "--json").stdout)
    assert standing["methods"][0]["done"] == 3
    out = milr.here("export", "run", "--layout", "geneval", "--out", "pictures")
    assert (out.returncode, out.stdout) == (0, "written: 3 pictures in pictures\n"), out.stderr
    scored = milr.here("score", "pictures", "--benchmark", "geneval", "--critic", "redness", "--critic", "noise",
                       "--out", "scores.json", "--json")  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert json.loads((milr.folder / "scores.json").read_text()) == found
    in_run = json.loads((milr.folder / "run" / "report.json").read_text())["searches"]["single"]["optimised"]["reward"]
    assert math.isclose(found["critics"]["redness"]["score"], in_run)
    assert found["critics"]["noise"]["n"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "nowhere", "--benchmark", "geneval", "--critic", "noise"], "is not a folder"),
        (["score", ".", "--benchmark", "scenes", "--critic", "noise"], "no layout of its own"),
        (["score", ".", "--benchmark", "geneval", "--critic", "nose"], "Did you mean 'noise'"),
        (["export", "nowhere", "--layout", "geneval", "--out", "x"], "is no run of milr"),
        (["export", "nowhere", "--layout", "genevil", "--out", "x"], "There is no layout"),
        (["report", "nowhere"], "is no run of milr"),
        (["runs", "nowhere"], "is no run of milr"),
        (["bench", "scenes", "--batch", "many", "--out", "x"], "--batch is auto or a whole number"),
        (["bench", "scenes", "--reward", "mix:scene", "--out", "x"], "is no formula of critics"),
        (["generate", "a fox", "--held-out", "mix:0.5*scene+0.5*slef"], "Did you mean 'self'"),
    ],
)
def test_wrong_words_to_the_commands_about_runs(milr, arguments, said):
    run = milr.here(*arguments)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert not (milr.folder / "x").exists()


def test_doctor_says_what_a_critic_would_fetch(milr):
    run = milr("doctor", "--critic", "scene", "--critic", "mix:0.5*clip+0.5*self", HF_HUB_CACHE="cache")
    assert run.returncode == 0, run.stderr
    assert re.search(r"ok +scene +needs no download", run.stdout)
    assert re.search(r"mix:\S+ +fetches \d\.\d GB when first used: openai/clip", run.stdout)
    wrong = milr.here("doctor", "--critic", "sceen")
    assert (wrong.returncode, "Did you mean 'scene'" in wrong.stderr) == (2, True)


def test_a_terminal_sees_what_is_going_on_before_torch_is_imported(milr):
    """A process on a terminal of its own, which gives up where torch would be imported."""
    import pty

    code = (
        "import sys, importlib.abc\n"
        "class Torch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            sys.stderr.flush(); raise KeyboardInterrupt\n"  # the user has seen enough
        "sys.meta_path.insert(0, Torch())\n"
        "from milr.cli import main\n"
        "main()"
    )
    for command in (["generate", "a fox"], ["bench", "scenes", "--limit", "1"], ["lab", "train", "--out", "t"],
                    ["lab", "sheet"], ["critic", "serve", "self"], ["critic", "calibrate", "learned"]):  # fmt: skip
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *command],
                cwd=milr.folder,
                env={**milr.environment, "TERM": "xterm", "COLUMNS": "100"},
                stdout=subprocess.DEVNULL,
                stderr=theirs,
            )
            milr.started.append(process)
            os.close(theirs)
            said = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while part := os.read(ours, 4096):
                    said += part
            assert process.wait(LONG) == 130, said
        finally:
            os.close(ours)
        assert b"loading " in said, command


def test_elsewhere_one_line_says_so_and_quiet_says_nothing(milr):
    said = milr(*DRAW, "a fox", "--budget", "1").stderr
    assert said.startswith("loading toy ...\n")
    assert milr(*DRAW, "a dog", "--budget", "1", "--quiet").stderr == ""
