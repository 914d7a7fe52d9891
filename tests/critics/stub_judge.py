"""A judge on this machine that misbehaves on purpose: a real HTTP server that speaks chat completions.

It marks by the brightness of the picture, so every picture has its own right score. `plan(number)` names the fault of
each request ('' = none); `seen` holds what was asked. With `gullible` it obeys commands that stand outside the data
blocks, as a credulous model would.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image, ImageStat

FAULTS = (
    "429",
    "429-after",
    "429-date",
    "500",
    "hang",
    "drip",
    "cut",
    "torn",
    "empty",
    "language",
    "nan",
    "out-of-range",
    "two",
    "huge",
    "redirect",
)


class StubJudge(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, plan: Callable[[int], str], delay: Callable[[int], float], gullible: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.delay, self.gullible = plan, delay, gullible
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.order: list[int] = []  # numbers of requests as they were answered
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.usage: Any = {"prompt_tokens": 1000, "completion_tokens": 50}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StubJudge

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub = self.server
        with stub.lock:
            number = len(stub.seen)
            stub.seen.append(body)
            stub.keys.append(self.headers.get("Authorization"))
            stub.busy += 1
            stub.busiest = max(stub.busiest, stub.busy)
        try:
            time.sleep(stub.delay(number))
            self.answer(number, body, stub.plan(number))
        finally:
            with stub.lock:
                stub.busy -= 1
                stub.order.append(number)

    def answer(self, number: int, body: dict[str, Any], fault: str) -> None:
        match fault.partition("-"):
            case ("429", _, kind):
                after = {"": None, "after": "3600", "date": email.utils.formatdate(time.time() + 3600, usegmt=True)}
                self.send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": after[kind]})
            case ("hang", _, _):
                self.server.over.wait(30)
            case ("drip", _, _):
                self.send(200, b" ", {"Content-Length": "1000"})
                for _ in range(1000):
                    if self.server.over.wait(0.02):
                        return
                    self.wfile.write(b" ")
            case ("torn", _, _):
                whole = completion(body, verdict(body, self.server.gullible), self.server.usage)
                self.send(200, whole[: len(whole) // 2], {"Content-Length": str(len(whole))})
                self.close_connection = True
            case ("cut", _, _):
                self.send(200, completion(body, verdict(body, False)[:-9], self.server.usage))
            case ("empty", _, _):
                self.send(200, b"")
            case ("language", _, _):
                self.send(200, completion(body, "这张图片很好，我给八分。", self.server.usage))
            case ("nan", _, _):
                text = re.sub(r": [\d.]+(?=[,}])", ": NaN", verdict(body, False))
                self.send(200, completion(body, text, self.server.usage))
            case ("out", _, _):
                text = re.sub(r": [\d.]+(?=[,}])", ": 1e999", verdict(body, False))
                self.send(200, completion(body, text, self.server.usage))
            case ("two", _, _):
                self.send(200, completion(body, verdict(body, False) * 2, self.server.usage))
            case ("huge", _, _):
                self.send(200, b'{"choices": "' + b"x" * (3 << 20) + b'"}')
            case ("redirect", _, _):
                self.send(307, b"", {"Location": f"http://localhost:{self.server.server_port}/v1/chat/completions"})
            case ("says", _, text):
                self.send(200, completion(body, text.replace("TOKEN", token_of(body)), self.server.usage))
            case ("body", _, text):
                self.send(200, text.encode())
            case ("echo", _, status):
                key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if status == "200":
                    text = re.sub(r'"reason": "', f'"reason": "{key} ', verdict(body, False))
                    self.send(200, completion(body, text, self.server.usage))
                else:
                    said = json.dumps({"error": {"message": f"bad key {key[:9]} {key[9:]}", "code": key}})
                    self.send(int(status), said.encode(), {"X-Key": key, "Location": f"http://localhost/?key={key}"})
            case ("refuse", _, rest):
                status, _, words = rest.partition("-")
                self.send(int(status), json.dumps({"error": {"message": words}}).encode())
            case ("short", _, text):
                self.send(200, completion(body, text, self.server.usage, "length"))
            case ("quota", _, _):
                self.send(429, b'{"error": {"message": "pay first", "code": "insufficient_quota"}}')
            case ("", _, _):
                if body.get("logprobs"):
                    text = "Yes" if brightness(body) > 0.5 else "No"
                else:
                    text = verdict(body, self.server.gullible)
                self.send(200, completion(body, text, self.server.usage))
            case _:
                self.send(int(fault), json.dumps({"error": {"message": f"this is {fault}"}}).encode())

    def send(self, status: int, body: bytes, headers: dict[str, str | None] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stub_judge(
    plan: Callable[[int], str] = lambda number: "",
    delay: Callable[[int], float] = lambda number: 0.0,
    gullible: bool = False,
) -> Iterator[StubJudge]:
    """The server, running."""
    server = StubJudge(plan, delay, gullible)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def gray(level: int, size: int = 2) -> Image.Image:
    """A picture of this brightness, 0 to 255."""
    return Image.new("RGB", (size, size), (level,) * 3)


def text_of(body: dict[str, Any]) -> str:
    """The user's text of a request."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def token_of(body: dict[str, Any]) -> str:
    """The word that the verdict must repeat; read as a model reads it, from the end of the text."""
    return re.findall(r'"request": exactly "(\w+)"', text_of(body))[-1]


def outside(text: str) -> str:
    """A text without its data blocks."""
    return re.sub(r"<(\w+-\w{16})>\n.*\n</\1>", "", text)


def brightness(body: dict[str, Any]) -> float:
    """Of the request's picture, 0 to 1."""
    url = body["messages"][-1]["content"][1]["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    return ImageStat.Stat(image.convert("L")).mean[0] / 255


def verdict(body: dict[str, Any], gullible: bool) -> str:
    """A verdict of the form that the request asks for."""
    text = text_of(body)
    form = text[text.rindex("with these keys in this order:") :]
    reply: dict[str, Any] = {"request": token_of(body)}
    if '"checks":' in form:
        prompt = json.loads(re.findall(r"<prompt-\w+>\n(.*)\n", text)[0])
        return json.dumps(reply | {"checks": [f"Is there {prompt}?", "Is it red?", "Is it the only one?"]})
    light = 1.0 if gullible and obeys(outside(text)) else brightness(body)
    reply["reason"] = f"brightness {light:.3f}"
    if many := re.search(r'"answers": a list of (\d+) objects', form):
        count = int(many[1])
        reply["answers"] = [{"number": one, "yes": one <= round(light * count)} for one in range(1, count + 1)]
    for name, whole, low, high in re.findall(r'"(\w+)": a (whole )?number from ([\d.]+) to ([\d.]+)', form):
        mark = float(low) + light * (float(high) - float(low))
        reply[name] = round(mark) if whole else mark
    return json.dumps(reply)


def obeys(text: str) -> bool:
    """Whether a credulous model finds a command in this text that it would follow."""
    return (
        re.search(r"ignore|give (this|it)|award|score of|10/10|full marks|\b(10|ten) (points|out of)", text, re.I)
        is not None
    )


def completion(body: dict[str, Any], text: str, usage: Any, ended: str = "stop") -> bytes:
    """What OpenAI's API wraps a reply in."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [first_token(text, brightness(body))]}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def first_token(text: str, yes: float) -> dict[str, Any]:
    """P(yes) is the brightness, spread over its spellings, with a tenth of all going to another word."""
    import math

    shares = {"Yes": 0.6 * yes, " yes": 0.3 * yes, "No": 0.5 * (1 - yes), "▁no": 0.4 * (1 - yes), "Maybe": 0.1}
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items() if share > 0]
    return {"token": text, "logprob": next(one["logprob"] for one in top if one["token"] == text), "top_logprobs": top}
