"""A real Ray cluster of two nodes on this machine: same results as local, whatever is lost while it runs."""

import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from stub_judge import stub_judge

from command import ROOT, Milr, install_toy
from milr.critics.base import Place
from milr.critics.remote import chat
from milr.critics.remote.purse import Purse
from milr.drafts import Task, UserError
from milr.reports.reading import write_report
from milr.runs import cluster as module
from milr.runs import journal as journal_module
from milr.runs.bench import Local, Terms, bench
from milr.runs.cluster import Cluster
from milr.runs.journal import read_lines
from milr.runs.methods import METHODS
from milr.runs.shared import RemoteCritic
from runs_toy import without_machines
from toy_milr.backbone import ToyBackbone, paint
from toy_milr.benchmark import tasks

ray = pytest.importorskip("ray")

FEW = (METHODS[2], METHODS[7])
TERMS = Terms(budget=6, seeds=2, critic="noise", held_out=("self",))
SINGLE = METHODS[:1]
AT_ONCE = 8  # searches side by side of the toy model on the cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    site = install_toy(tmp_path_factory.mktemp("site"))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(site)])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOY_SECONDS", "0.05")
        patch.setenv("TOY_MAX_BATCH", str(AT_ONCE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else anything that runs beside the tests starves them
        # A node that is gone refuses its checks at once, so many in a row take 5 s; a busy one only delays them.
        checks = {"health_check_period_ms": 500, "health_check_failure_threshold": 10}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": checks}
        made = Nodes(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        patch.setenv("TOY_SECONDS", "0")  # here; the cluster's processes have theirs
        patch.delenv("TOY_MAX_BATCH")
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def address(nodes):
    """Of the cluster, with its two nodes."""
    while len(nodes.worker_nodes) > 1:
        nodes.remove_node(next(iter(nodes.worker_nodes)))
    if not nodes.worker_nodes:
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    return nodes.address


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "run"
    bench(ToyBackbone(), tasks(8, 3), folder, TERMS, methods=FEW, baseline=FEW[0].name)
    write_report(folder)
    return left(folder)


def left(folder):
    """Report (without the machines that drew), lines (without when and in which order; of a picture that was judged
    later the last one), images."""
    kept = {}
    for number, line in enumerate(read_lines(folder)):
        if "started" not in line:
            draft = line.get("draft")
            search = number if draft is None else (line["method"], line["task"], line["seed_index"], draft["number"])
            kept[search] = {key: value for key, value in line.items() if key != "at"}
    lines = sorted(json.dumps(line) for line in kept.values())
    return without_machines(folder), lines, sorted(f.name for f in (folder / "images").rglob("*.png"))


def run(address, folder, meanwhile=None, together=False, **options):
    """The run that `local` is. `meanwhile(cluster, progress)` is called at each of the head's rounds; `together`:
    it begins when all workers are ready, else a quick one may do it all."""
    with Cluster("toy", TERMS, **{"batch": 3, "address": address, **options}) as cluster:
        while together and any(slot.stage != "ready" for slot in cluster.slots):
            cluster._hear()
        bench(
            cluster, tasks(8, 3), folder, TERMS, methods=FEW, baseline=FEW[0].name,
            tell=lambda progress: meanwhile and meanwhile(cluster, progress),
        )  # fmt: skip
    write_report(folder)


def process_of(slot):
    return ray.get(slot.actor.hello.remote())


def working(cluster):
    """Slots whose worker has jobs, not the head's own node first."""
    return [slot for slot in cluster.slots if slot.held and slot.stage == "ready"]


@contextmanager
def all_cpus_taken():
    class Holder:
        def hold(self):
            pass

    holders = [ray.remote(Holder).options(num_cpus=1).remote() for _ in range(2)]
    ray.get([one.hold.remote() for one in holders])
    try:
        yield
    finally:
        for one in holders:
            ray.kill(one)


# --- the same as one process ------------------------------------------------------------------------------------


def test_two_nodes_draw_what_one_process_draws(address, local, tmp_path, monkeypatch):
    """And encode it: the head only writes."""
    both = set()

    def encode(image):
        raise AssertionError("the head encodes a picture")

    monkeypatch.setattr(journal_module, "encode", encode)

    def look(cluster, progress):
        both.update(slot for slot in cluster.slots if slot.held)

    run(address, tmp_path / "run", look, workers=3)  # a third finds no room, and holds nobody up
    assert len(both) == 2
    assert left(tmp_path / "run") == local


def test_the_default_batch_ends_whatever_fits(address, tmp_path):
    """Workers say how much they hold; feeding 32 to each that had room for more stood still for ever."""
    terms = Terms(budget=2, critic="noise")
    with Cluster("toy", terms, address=address) as cluster:
        for n in (2 * AT_ONCE - 1, 2 * AT_ONCE, 2 * AT_ONCE + 1, 70, 1):
            folder = tmp_path / str(n)
            bench(cluster, tasks(n, 3), folder, terms, methods=METHODS[:2], baseline=METHODS[0].name)
            assert [row["n"] for row in write_report(folder)["searches"].values()] == [n, n]


def test_a_run_goes_on_with_other_workers_and_another_batch(address, local, tmp_path):
    class Enough(Exception):
        pass

    def stop(cluster, progress):
        if progress.drafts >= 20:
            raise Enough

    with pytest.raises(Enough):
        run(address, tmp_path / "run", stop)
    run(address, tmp_path / "run", workers=1, batch=None)
    assert left(tmp_path / "run") == local


# --- losses -----------------------------------------------------------------------------------------------------


def test_a_killed_workers_prompts_are_taken_over(address, local, tmp_path):
    killed = []

    def kill_one(cluster, progress):
        if not killed and progress.drafts >= 20 and len(working(cluster)) == 2:
            killed.append(process_of(next(slot for slot in working(cluster) if slot.answer is None)))
            os.kill(killed[0], signal.SIGKILL)

    run(address, tmp_path / "run", kill_one, together=True)
    assert killed
    assert left(tmp_path / "run") == local


def test_a_node_that_is_gone_costs_nothing_but_time(nodes, address, local, tmp_path):
    """Nobody waits for the worker that would replace the lost one: there is no room for it."""
    removed = []

    def remove(cluster, progress):
        if not removed and progress.drafts >= 20 and len(working(cluster)) == 2:
            removed.append(nodes.worker_nodes.copy().pop())
            nodes.remove_node(removed[0], allow_graceful=False)

    run(address, tmp_path / "run", remove, together=True)
    assert removed
    assert left(tmp_path / "run") == local


def test_nodes_come_and_go_through_a_whole_run(nodes, address, local, tmp_path):
    there, marks = [*nodes.worker_nodes, nodes.add_node(num_cpus=1)], [15, 60, 100]

    def replace_one(cluster, progress):
        if marks and len(list(read_lines(tmp_path / "run"))) >= marks[0] and len(working(cluster)) >= 2:
            del marks[0]
            nodes.remove_node(there.pop(0))
            there.append(nodes.add_node(num_cpus=1))

    run(address, tmp_path / "run", replace_one, together=True, workers=3)
    assert len(marks) <= 1, "at least two nodes were lost"
    assert left(tmp_path / "run") == local


def test_no_room_for_any_worker_is_said(address, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    with all_cpus_taken(), pytest.raises(UserError, match=r"free CPU for a worker for . seconds.*on record"):
        run(address, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workers_that_die_again_and_again_stop_the_run_with_the_reason(address, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOSSES", 0)

    def kill_all(cluster, progress):
        for slot in working(cluster):  # both at once, or one after the other: they need not begin together
            ray.kill(slot.actor)

    with pytest.raises(UserError, match=r"Every worker was lost.*goes on from what is on record"):
        run(address, tmp_path / "run", kill_all, together=True)


def test_an_error_of_a_worker_ends_the_run_with_its_sentence(address, tmp_path):
    for model, terms, said in (
        ("no-such-model", TERMS, "no-such-model"),
        ("toy", Terms(critic="judge:general,url=http://127.0.0.1:1/v1,key=NO_SUCH_KEY"), "NO_SUCH_KEY"),
    ):
        with pytest.raises(UserError, match=said), Cluster(model, terms, workers=1, address=address) as cluster:
            bench(cluster, tasks(2, 3), tmp_path / "run", terms, methods=SINGLE, baseline=SINGLE[0].name)


# --- critics ----------------------------------------------------------------------------------------------------


def test_a_slow_critic_is_many_and_what_it_says_comes_in_order(address):
    images = [paint([number % 12] * 16) for number in range(12)]
    prompts = [Task("x", id=str(number)) for number in range(12)]
    with Cluster("toy", Terms(critic="slow"), workers=1, address=address) as cluster:
        critic = RemoteCritic("slow", cluster.critics["slow"])
        first = critic.score(images, prompts)
        judges = {score.reason for score in first}
        assert len(judges) == 2
        killer = threading.Timer(0.1, os.kill, (int(first[0].reason), signal.SIGKILL))
        killer.start()
        second = critic.score(images, prompts)
        killer.join()
        third = critic.score(images[:1], prompts[:1])
        with pytest.raises(RuntimeError, match="lost 3 times"):  # else it would start critics for ever
            critic.score(images[:1], [Task("die", id="1")])
    values = [score.value for score in first]
    assert len(set(values)) == 12
    assert [score.value for score in second] == values
    assert third[0].value == values[0]


# --- one purse, one till ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["judge:general,SETTINGS", "mix:0.5*[judge:general,SETTINGS]+0.5*self"])
def test_one_purse_for_all_processes_and_starts(address, tmp_path, monkeypatch, critic):
    """The judge alone is an actor; in a mix with the model's own answer there is one in each worker."""
    monkeypatch.setattr(chat, "PURSE", Purse())
    folder, methods = tmp_path / "run", METHODS[2:3]
    with stub_judge() as stub:
        name = critic.replace("SETTINGS", f"url={stub.url},key=none,price_in=2.5,price_out=10")  # 0.003 a reply
        terms = Terms(budget=3, critic=name)

        def start(folder, limit, executor):
            with executor(Place(folder, limit)) as one:
                bench(one, tasks(6, 3), folder, terms, methods=methods, baseline=methods[0].name)
            write_report(folder)

        @contextmanager
        def here(place):
            yield Local(ToyBackbone(), 2, place)

        def there(place):
            return Cluster("toy", terms, batch=2, address=address, place=place)

        start(tmp_path / "local", None, here)
        asked = len(stub.seen)
        assert asked == 18
        stub.seen.clear()
        monkeypatch.setattr(chat, "PURSE", Purse())
        with pytest.raises(UserError, match=r"have spent 0\.015 of 0\.0171 dollars"):
            start(folder, 0.0171, there)
        assert len(stub.seen) == 5
        assert chat.PURSE.spent == pytest.approx(0.015), "the next run of a recipe begins with it"
        monkeypatch.setattr(chat, "PURSE", Purse())
        with pytest.raises(UserError, match=r"have spent 0\.027 of 0\.0291 dollars"):
            start(folder, 0.0291, here)
        assert len(stub.seen) == 9
        start(folder, 1.0, there)
        assert len(stub.seen) == asked, "nothing is paid for twice"
        assert left(folder) == left(tmp_path / "local")


# --- joining ----------------------------------------------------------------------------------------------------


@contextmanager
def listener():
    """Takes connections and says nothing."""
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))
        one.listen()
        yield one.getsockname()[1]


def test_a_dead_address_is_said_at_once(monkeypatch):
    with listener() as port:
        pass
    never = SimpleNamespace(init=lambda **options: pytest.fail("Ray would try for minutes"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for wrong, said in (
        (f"127.0.0.1:{port}", f"No Ray cluster answers at .*{port}.*ray start --head"),
        (f"[::1]:{port}", "No Ray cluster answers"),
        ("no-such-host.invalid:6379", "no-such-host"),
        ("ray://127.0.0.1:10001", "--address auto"),
        ("127.0.0.1:99999", "127.0.0.1:99999"),
        ("nonsense", "nonsense"),
    ):
        with pytest.raises(UserError, match=said):
            module._join(never, wrong)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    for asked in (None, "auto"):
        with pytest.raises(UserError, match="RAY_ADDRESS"):
            module._join(never, asked)


def test_what_listens_and_is_not_ray_is_told(monkeypatch):
    monkeypatch.setattr(module, "ANSWERED", 0.5)
    never = SimpleNamespace(init=lambda **options: pytest.fail("Ray would try for minutes"))
    with listener() as port, pytest.raises(UserError, match="does not speak Ray's language"):
        module._join(never, f"127.0.0.1:{port}")


def test_a_cluster_of_before_is_not_waited_for(monkeypatch):
    """Ray leaves a note where its last cluster was."""
    with listener() as port:
        pass
    joined = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "_find", lambda asked: f"127.0.0.1:{port}")
    module._join(SimpleNamespace(init=lambda **options: joined.append(options["address"])), None)
    assert joined == ["local"]
    with pytest.raises(UserError, match="No Ray cluster answers"):
        module._join(SimpleNamespace(), "auto")


def test_on_the_command_line_with_a_cluster_of_its_own(tmp_path):
    milr = Milr(tmp_path)
    arguments = ("bench", "toys", "--model", "toy", "--reward", "redness", "--limit", "3", "--budget", "3",
                 "--search", "repair")  # fmt: skip
    there = milr(*arguments, "--out", "r", "--executor", "ray", "--workers", "1", "--address", "local")
    assert there.returncode == 0, there.stderr
    here = milr(*arguments, "--out", "l")
    assert there.stdout.replace("r/", "l/") == here.stdout
    dead = milr(*arguments, "--out", "x", "--executor", "ray", RAY_ADDRESS="127.0.0.1:1")
    assert dead.returncode == 2
    assert "No Ray cluster answers" in dead.stderr
    wrong = milr(*arguments, "--out", "x", "--executor", "slurm")
    assert wrong.returncode == 2
    assert "it is local or ray" in wrong.stderr
