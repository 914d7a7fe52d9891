"""How many threads, how they wait, and that what the user chose stays."""

import os
import subprocess
import sys

import pytest

from command import ROOT
from milr import threads

LAB, LARGE = 7_300_000, 2_000_000_000


@pytest.mark.parametrize(
    ("parameters", "cores", "variables", "number"),
    [
        (LAB, 1, {}, 1),
        (LAB, 2, {}, 2),
        (LAB, 64, {}, 2),  # a layer is over before 64 threads are awake
        (LARGE, 1, {}, 1),
        (LARGE, 64, {}, 64),
        (None, 8, {}, 8),  # a model that does not say how large it is
        (threads.SMALL, 8, {}, 8),
        (LAB, 8, {"OMP_NUM_THREADS": "7"}, None),
        (LARGE, 8, {"MKL_NUM_THREADS": "7"}, None),
        (LAB, 8, {"OMP_NUM_THREADS": " "}, 2),  # set to nothing says nothing
    ],
)
def test_the_number_fits_the_model_and_the_machine(parameters, cores, variables, number):
    assert threads.number_for(parameters, cores, variables) == number


@pytest.mark.parametrize(
    ("variables", "torch_is_loaded", "quiet", "origin"),
    [
        ({}, False, True, "milr's choice"),
        ({}, True, False, "torch was imported before milr"),
        ({"OMP_WAIT_POLICY": "passive"}, True, True, "the variable OMP_WAIT_POLICY=passive"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, False, False, "the variable OMP_WAIT_POLICY=ACTIVE"),
        ({"GOMP_SPINCOUNT": "100"}, False, False, "the variable GOMP_SPINCOUNT=100"),
        ({"GOMP_SPINCOUNT": "0"}, False, True, "the variable GOMP_SPINCOUNT=0"),
        ({"KMP_BLOCKTIME": "200"}, False, False, "the variable KMP_BLOCKTIME=200"),
        ({"KMP_BLOCKTIME": ""}, False, True, "milr's choice"),
    ],
)
def test_how_threads_wait_and_who_said_so(variables, torch_is_loaded, quiet, origin):
    assert threads.waiting_of(variables, torch_is_loaded) == threads.Waiting(quiet, origin)


def python(code, **variables):
    """A process of its own, with no variable about threads but these."""
    theirs = {*threads.WAITS, *threads.NUMBERS}
    kept = {name: value for name, value in os.environ.items() if name not in theirs}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_a_real_process_waits_quietly_with_two_threads_at_most():
    code = (
        "import milr, torch\n"
        "own = torch.get_num_threads()\n"
        "milr.load('lab')\n"
        "import os; print(os.environ['OMP_WAIT_POLICY'], torch.get_num_threads(), min(2, own))"
    )
    policy, number, expected = python(code)
    assert policy == "PASSIVE"
    assert number == expected


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP")
@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "'0'"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "'30000000000'"), ({"GOMP_SPINCOUNT": "9"}, "'9'")],
)
def test_openmp_reads_it_when_torch_is_loaded(variables, spins):
    """The library itself says what it will do, in its own words, as it is loaded."""
    ran = subprocess.run(
        [sys.executable, "-c", "import milr; from milr.drafts import UserError; import torch"],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_DISPLAY_ENV": "VERBOSE", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = {spins}" in ran.stderr


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "1"}, {"MKL_NUM_THREADS": "1"}])
def test_what_a_variable_says_stays(variables):
    code = "import milr, torch; own = torch.get_num_threads(); milr.load('lab'); print(own, torch.get_num_threads())"
    before, after = python(code, **variables)
    assert before == after == "1"


def test_what_the_caller_said_stays():
    code = (
        "import milr, torch\n"
        "from milr import threads\n"
        "torch.set_num_threads(7); print(threads.fit(7_300_000), torch.get_num_threads())\n"
    )
    assert python(code) == ["7", "7"]
    code = (
        "import milr, torch\n"
        "from milr import threads\n"
        "threads.fit(7_300_000); torch.set_num_threads(7); print(threads.fit(None), torch.get_num_threads())\n"
    )
    assert python(code) == ["7", "7"]


def test_the_model_that_needs_most_decides(monkeypatch):
    import torch

    had = torch.get_num_threads()
    for name in threads.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (("_own", 4), ("_given", 4)):
        monkeypatch.setattr(threads, name, value)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    torch.set_num_threads(4)
    try:
        assert threads.fit(LARGE) == 4
        assert threads.fit(LAB) == 4 == torch.get_num_threads()
        monkeypatch.setattr(threads, "_given", None)
        monkeypatch.setattr(threads, "_is_set_by_caller", lambda now: False)
        assert threads.fit(LAB, "cuda:0") == 4  # on a GPU: nothing is changed
        assert threads.fit(LAB, "cpu") == 2 == torch.get_num_threads()
        assert threads.fit(LARGE, "cpu") == 4 == torch.get_num_threads()
    finally:
        torch.set_num_threads(had)


def test_a_milr_that_comes_after_torch_changes_nothing():
    code = (
        "import torch, os; import milr; from milr import threads\n"
        "print(os.environ.get('OMP_WAIT_POLICY'), threads.QUIET.is_quiet)"
    )
    assert python(code) == ["None", "False"]


# --- What a process may use ----------------------------------------------------------------------------------------


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(("text", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("nonsense\n", None)])
def test_a_containers_quota_version_2(tmp_path, text, quota):
    own = tmp_path / "own"
    own.write_text("0::/docker/x\n")
    group(tmp_path / "root" / "docker" / "x", cpu__max=text)
    assert threads.quota_of(tmp_path / "root", own) == quota


def test_the_narrowest_group_above_counts(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    group(tmp_path / "root" / "a" / "b", cpu__max="max 100000\n")
    group(tmp_path / "root" / "a", cpu__max="300000 100000\n")
    group(tmp_path / "root", cpu__max="800000 100000\n")
    group(tmp_path, cpu__max="1 100000\n")  # above the mount: not ours
    assert threads.quota_of(tmp_path / "root", own) == 3


def test_a_containers_quota_version_1_whose_path_is_the_hosts(tmp_path):
    own = tmp_path / "own"
    own.write_text("4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n2:cpuset:/\n0::/\n")
    group(tmp_path / "root" / "cpu,cpuacct", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")
    assert threads.quota_of(tmp_path / "root", own) == 2.5
    group(tmp_path / "root" / "cpu,cpuacct", cpu__cfs_quota_us="-1\n")
    assert threads.quota_of(tmp_path / "root", own) is None
    assert threads.quota_of(tmp_path / "root", tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (1.5, 1), (0.2, 1), (3.9, 3), (64.0, 8)])
def test_no_more_cores_than_the_quota_pays_for(quota, cores, monkeypatch):
    monkeypatch.setattr(threads, "quota_of", lambda: quota)
    monkeypatch.setattr(threads, "_physical", lambda cpus: 8)
    assert threads.usable_cores() == cores


def test_two_processors_of_one_core_count_once(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        group(tmp_path / f"cpu{cpu}" / "topology", thread_siblings_list=siblings + "\n")
    assert threads._physical(range(4), tmp_path) == 2
    assert threads._physical([0, 2], tmp_path) == 1
    assert threads._physical([5, 6], tmp_path) == 2  # a system that tells nothing


def test_doctor_says_how_many_how_and_who_said_so(monkeypatch):
    for name in threads.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(threads, "QUIET", threads.Waiting(True, "milr's choice"))
    assert threads.describe(torch_has=6) == (
        "2 for small models like lab, 6 for others (milr's choice); they sleep while they wait (milr's choice)"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "QUIET", threads.waiting_of({"OMP_WAIT_POLICY": "ACTIVE"}))
    assert threads.describe(torch_has=3) == (
        "3 for every model (the variable OMP_NUM_THREADS=3); they spin while they wait, slow beside other programs "
        "(the variable OMP_WAIT_POLICY=ACTIVE)"
    )
