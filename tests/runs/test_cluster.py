"""A real Ray cluster of two nodes on this machine: same results as local, also when a worker is killed."""

import json
import os
import signal
import threading
import time

import pytest

from command import ROOT, Milr, install_toy
from milr.drafts import UserError
from milr.reports.reading import write_report
from milr.runs.bench import Terms, bench
from milr.runs.journal import read_lines
from milr.runs.methods import METHODS
from toy_milr.backbone import ToyBackbone
from toy_milr.benchmark import tasks

ray = pytest.importorskip("ray")

FEW = (METHODS[2], METHODS[7])
TERMS = Terms(budget=6, seeds=2, critic="noise", held_out=("self",))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    site = install_toy(tmp_path_factory.mktemp("site"))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(site)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOY_SECONDS", "0.05")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else anything that runs beside the tests starves them
        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes.address
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    bench(ToyBackbone(), tasks(8, 3), folder, TERMS, methods=FEW, baseline=FEW[0].name)
    write_report(folder)
    return left(folder)


def left(folder):
    """Report (without the machines that drew), lines (without when and in which order), images."""
    lines = [{key: value for key, value in line.items() if key != "at"} for line in read_lines(folder)]
    lines = sorted(json.dumps(line) for line in lines if "started" not in line)
    report = {**json.loads((folder / "report.json").read_bytes()), "machines": None}
    return report, lines, sorted(f.name for f in (folder / "images").rglob("*.png"))


def run(address, folder, **options):
    from milr.runs.cluster import Cluster

    with Cluster("toy", TERMS, batch=3, address=address) as cluster:
        assert len(set(cluster.processes())) == 2
        options.get("meanwhile", lambda cluster: None)(cluster)
        bench(cluster, tasks(8, 3), folder, TERMS, methods=FEW, baseline=FEW[0].name)
    write_report(folder)


def test_two_nodes_draw_what_one_process_draws(address, local, tmp_path):
    run(address, tmp_path / "run")
    assert left(tmp_path / "run") == local


def test_a_killed_workers_prompts_are_taken_over(address, local, tmp_path):
    folder, killed = tmp_path / "run", []

    def kill_one(cluster):
        victim = cluster.processes()[1]

        def later():
            journal = folder / "journal.jsonl"
            while not journal.exists() or len(journal.read_bytes().splitlines()) < 20:
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

        threading.Thread(target=later, daemon=True).start()

    run(address, folder, meanwhile=kill_one)
    assert killed
    assert left(folder) == local


def test_one_worker_does_every_method_to_its_end(address, tmp_path):
    """As many searches as places: each method's end is said once, and is not the end of the next one."""
    from milr.runs.cluster import Cluster

    terms = Terms(budget=2, critic="noise")
    with Cluster("toy", terms, batch=4, workers=1, address=address) as cluster:
        bench(cluster, tasks(4, 3), tmp_path / "run", terms, methods=METHODS[:3], baseline=METHODS[0].name)
    report = write_report(tmp_path / "run")
    assert [row["n"] for row in report["searches"].values()] == [4, 4, 4]


def test_workers_that_die_again_and_again_stop_the_run_with_the_reason(address, tmp_path, monkeypatch):
    from milr.runs import cluster as module

    monkeypatch.setattr(module, "LOSSES", 0)
    folder = tmp_path / "run"

    def kill_one(cluster):
        victim = cluster.processes()[0]
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()

    with pytest.raises(UserError, match="lost again and again"):
        run(address, folder, meanwhile=kill_one)


def test_on_the_command_line_with_a_cluster_of_its_own(tmp_path):
    milr = Milr(tmp_path)
    arguments = ("bench", "toys", "--model", "toy", "--reward", "redness", "--limit", "3", "--budget", "3",
                 "--search", "repair")  # fmt: skip
    there = milr(*arguments, "--out", "r", "--executor", "ray", "--workers", "1", "--address", "local")
    assert there.returncode == 0, there.stderr
    here = milr(*arguments, "--out", "l")
    assert there.stdout.replace("r/", "l/") == here.stdout
    wrong = milr(*arguments, "--out", "x", "--executor", "slurm")
    assert wrong.returncode == 2
    assert "it is local or ray" in wrong.stderr
