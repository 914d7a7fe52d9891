"""Real servers for the tests of critics over HTTP: on a free port, in a thread or a process of their own."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import uvicorn

from milr.drafts import Task
from milr.lab.curriculum import CATEGORIES, contradict, make_item
from milr.lab.world import lay_out, render, to_image
from milr.serve.critic import configure, create_app


@contextlib.contextmanager
def serving(critic, uvicorns=MappingProxyType({}), **options):
    """The address of a service of this critic, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(configure(create_app(critic, **options), **uvicorns))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(300)
        listening.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def serving_process(critic="scene", port=0, prelude="", **environment):
    """A process that serves by `milr.serve.critic.serve`, and its address."""
    code = f"{prelude}\nfrom milr.serve.critic import serve\n"
    code += f"serve({critic!r}, port={port}, tell=lambda line: print(line, flush=True))"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert " answers at " in line, process.communicate()[1]
        yield process, line.split(" answers at ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def stub(answer):
    """The address of a server that is not ours: `answer(path, body)` gives (status, headers, content)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = answer(self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # a client need not read to the end
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def as_json(said, status=200, **headers):
    """An answer of `stub`."""
    return status, headers, json.dumps(said).encode()


INFO = as_json({"name": "stub", "summary": "", "version": "0", "limits": {"items": 4, "bytes": 10**6, "pixels": 10**7}})


def scenes(count, seed="scenes"):
    """Pages of the lab world and prompts, of which every other one is wrong for its page."""
    rng = random.Random(seed)
    images, tasks = [], []
    for number in range(count):
        item = make_item(CATEGORIES[number % len(CATEGORIES)], rng)
        meaning = item.meaning if number % 2 else contradict(item.meaning, rng)
        images.append(to_image(render(lay_out(meaning, rng))))
        tasks.append(Task(item.prompt, id=f"scene-{number}", category=item.category, metadata={"number": number}))
    return images, tasks
