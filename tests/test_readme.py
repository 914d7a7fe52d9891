"""What the pages say must be true of the code: commands, options, names, links and examples."""

import ast
import re
import shlex
import subprocess
import sys

import pytest

from command import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = {
    (page.relative_to(ROOT).as_posix(), line.split("#")[0].strip())
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("milr ")
}


def test_tables_say_what_their_data_say():
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "results_page.py"), "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_commands_to_check():
    assert ("README.md", 'milr generate "two red foxes above a blue car"') in COMMANDS


@pytest.mark.parametrize(("page", "line"), sorted(COMMANDS))
def test_commands_on_the_pages_exist_with_their_options(page, line):
    words = shlex.split(line)[1:]
    command = [word for word in words[:2] if word.isalpha() and word.islower() and not word.startswith("-")]
    command = command[: 2 if command[:1] in (["lab"], ["critic"]) else 1]
    shown = help_of(tuple(command))
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", shown), f"{page}: {line}"


def help_of(command, known={}):  # noqa: B006 - a cache for the module
    if command not in known:
        run = subprocess.run(
            [sys.executable, "-m", "milr", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "NO_COLOR": "1"},
        )
        known[command] = run.stdout
    return known[command]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_on_the_pages_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert target in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


def examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding-parts.md").read_text(), re.DOTALL)


def test_the_examples_of_parts_work(tmp_path):
    """The very text of docs/adding-parts.md, saved as modules and used."""
    import milr
    from milr.settings import settings_from

    modules = [namespace(code) for code in examples()]
    critic, search, benchmark = modules
    for code in examples():
        names = {node.targets[0].id for node in ast.parse(code).body if isinstance(node, ast.Assign)}
        assert {"NAME", "SUMMARY"} <= names
    from toy_milr.backbone import ToyBackbone

    model = ToyBackbone()
    result = milr.generate(model, "a fox", reward=critic["make"](model), search="best-of-n", budget=2)
    assert 0 < result.reward < 1
    settings = settings_from(search["SETTINGS"], search["PRESETS"]["default"], {"step": "0.5"})
    (trajectory,) = milr.drive(
        model, critic["make"](model), benchmark["tasks"](1, 0), search["search"], settings, budget=3
    )
    assert [draft.ask.text.temperature for draft in trajectory.drafts[1:]] == [1.0, 1.5]


def namespace(code):
    found = {"__name__": "example"}
    exec(compile(code, "adding-parts.md", "exec"), found)
    sys.modules["example"] = type(sys)("example")
    return found


def test_the_python_example_of_the_readme_uses_public_names():
    import milr

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "milr"
    }
    assert used == {"load", "generate"} <= set(milr.__all__)


def test_no_page_and_no_module_names_a_machine():
    """Paths and hosts of whoever wrote it have no business in what everybody reads."""
    for file in [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.html"), ROOT / "Makefile"]:
        text = file.read_text()
        for trace in ("/home/", "/root/", "/work/", "/opt/", "localhost:"):
            assert trace not in text, f"{file.relative_to(ROOT)} holds {trace}"
