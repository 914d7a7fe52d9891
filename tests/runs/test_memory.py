"""Memory stays flat over thousands of drafts: images and trajectories go to disk, not into lists."""

import json
import subprocess
import sys

from command import ROOT

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


def test_memory_is_flat_over_5000_drafts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "run")],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": ""},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seen = json.loads(done.stdout.splitlines()[-1])
    early = max(bytes_used for drafts, bytes_used in seen if drafts <= 1500)
    late = max(bytes_used for drafts, bytes_used in seen if drafts > 5000)
    assert seen[-1][0] > 5000
    # Images alone, kept, would be 3 kB each: 11 MB for 3,500 of them.
    assert late - early < 8e6, f"{early / 1e6:.1f} MB, later {late / 1e6:.1f} MB"
