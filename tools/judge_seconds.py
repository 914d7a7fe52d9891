"""Does anything wait while a judge thinks? Drafts a second of drawing alone, of judging alone, and of both at once.

    python tools/judge_seconds.py [--searches 96] [--lanes 32] [--budget 4] [--latency 3] [--at-once 32]

The embedded model draws; the judge is a stub behind HTTP on this machine, which answers each picture after so many
seconds, `--at-once` of them side by side, and never says that a picture is right. Judging alone asks it about pictures
that are drawn already. All three are done by the same driver in the same run, one after the other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.request import Request, urlopen

from milr.backbones import load
from milr.backbones.base import Backbone
from milr.drafts import Drawn, Order, Score, Task
from milr.lab.curriculum import tasks
from milr.searches.best_of_n import PRESETS, best_of_n
from milr.searches.driver import drive


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    latency = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.latency)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # connections that may wait to be taken: with Python's 5 most would come a second late


def serve(latency: float, said: Connection) -> None:
    """In a process of its own: a judge takes no time of the one that draws."""
    Handler.latency = latency
    server = Server(("127.0.0.1", 0), Handler)
    said.send(server.server_port)
    server.serve_forever()


class Stub:
    """A critic that waits for the server."""

    name, waits = "stub", True

    def __init__(self, address: str, at_once: int) -> None:
        self.address, self.places = address, threading.BoundedSemaphore(at_once)

    def score(self, images: Sequence[Any], asked: Sequence[Task]) -> list[Score]:
        with ThreadPoolExecutor(max(1, len(images))) as threads:
            return list(threads.map(self._ask, images))

    def _ask(self, image: Any) -> Score:
        with self.places, urlopen(Request(self.address, data=image.tobytes()), timeout=60):
            return Score(0.5)


class AtOnce:
    """A critic that takes no time."""

    name = "stub"

    def score(self, images: Sequence[Any], asked: Sequence[Task]) -> list[Score]:
        return [Score(0.5) for _ in images]


class Shown:
    """The model, but each picture is drawn already."""

    def __init__(self, backbone: Backbone, drawn: Drawn) -> None:
        self.backbone, self.drawn = backbone, drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        return [self.drawn] * len(orders)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--searches", type=int, default=96)
    parser.add_argument("--lanes", type=int, default=32, help="searches drawn at a time")
    parser.add_argument("--budget", type=int, default=4)
    parser.add_argument("--latency", type=float, default=3.0, help="seconds the judge thinks over a picture")
    parser.add_argument("--at-once", type=int, default=32, help="pictures it thinks over side by side")
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    heard, said = processes.Pipe()
    server = processes.Process(target=serve, args=(options.latency, said), daemon=True)
    server.start()
    try:
        stub: Any = Stub(f"http://127.0.0.1:{heard.recv()}", options.at_once)
        lab = load("lab")
        asked = tasks(options.searches, seed=986)
        (drawn,) = lab.draw([Order(asked[0].prompt, next(best_of_n(None, PRESETS["sampled-text"])), 0)])  # type: ignore[arg-type]
        shown: Any = Shown(lab, drawn)
        alone = Stub(stub.address, options.at_once)
        alone.waits = False  # one group after the other, as drawing alone is
        kinds = {
            "drawing alone": (lab, AtOnce()),
            "judging alone": (shown, alone),
            "both at once": (lab, stub),
        }
        seconds = {}
        for kind, (backbone, critic) in kinds.items():
            began = time.perf_counter()
            found = drive(
                backbone, critic, asked, best_of_n, PRESETS["sampled-text"], budget=options.budget, batch=options.lanes
            )
            seconds[kind] = time.perf_counter() - began
            drafts = sum(len(one.drafts) for one in found)
            print(
                f"{kind}: {drafts} drafts in {seconds[kind]:.1f} s, {drafts / seconds[kind]:.2f} a second", flush=True
            )
        slower = max(seconds["drawing alone"], seconds["judging alone"])
        print(f"both at once reach {slower / seconds['both at once']:.2f} of the slower one alone")
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
