"""Memory stays flat over thousands of drafts: images and trajectories go to disk, not into lists."""

import gc
import json
import subprocess
import sys
import weakref

import pytest

from command import ROOT
from milr.drafts import Task
from milr.runs.bench import Terms, bench
from milr.runs.methods import Method
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone

BEST = (Method("best", "best-of-n"),)


class Counting(ToyBackbone):
    """Counts how many of its drafts are still held by somebody."""

    def __init__(self):
        super().__init__()
        self.images, self.most_alive, self.drawn = [], 0, 0

    def draw(self, orders):
        gc.collect()
        self.images = [image for image in self.images if image() is not None]
        self.most_alive = max(self.most_alive, len(self.images))
        found = super().draw(orders)
        self.images += [weakref.ref(one.image) for one in found]
        self.drawn += len(found)
        return found


def test_what_is_written_is_let_go(tmp_path, monkeypatch):
    """Pictures in memory are those of the searches that are under way, however many there were before."""
    install_redness(monkeypatch)
    model = Counting()
    tasks = [Task(f"slow fox {number}", f"fox-{number}") for number in range(60)]  # never satisfied: 5 drafts each
    bench(model, tasks, tmp_path / "run", Terms(budget=5, critic="redness"), batch=4, methods=BEST)
    assert model.drawn == 300
    assert model.most_alive <= 2 * 4 * 5


CHILD = """
import json, sys
from pathlib import Path
from pytest import MonkeyPatch
from milr.runs.bench import Terms, bench
from milr.runs.methods import Method
from runs_toy import install_redness
from toy_milr.backbone import ToyBackbone
from milr.drafts import Task

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

install_redness(MonkeyPatch())
seen = []
drafts = 0

class Sized(ToyBackbone):
    def draw(self, orders):
        global drafts
        drafts += len(orders)
        seen.append((drafts, resident()))
        return super().draw(orders)

tasks = [Task(f"slow fox {number}", f"fox-{number}") for number in range(1040)]  # never satisfied: 5 drafts each
bench(Sized(), tasks, Path(sys.argv[1]), Terms(budget=5, critic="redness"), batch=16,
      methods=(Method("best", "best-of-n"),))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_memory_is_flat_over_5000_drafts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "run")],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seen = json.loads(done.stdout.splitlines()[-1])
    early = max(bytes_used for drafts, bytes_used in seen if drafts <= 1500)
    late = max(bytes_used for drafts, bytes_used in seen if drafts > 5000)
    assert seen[-1][0] > 5000
    # Images alone, kept, would be 3 kB each: 11 MB for 3,500 of them.
    assert late - early < 8e6, f"{early / 1e6:.1f} MB, later {late / 1e6:.1f} MB"
