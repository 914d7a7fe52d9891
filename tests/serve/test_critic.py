"""Any critic as a service: what it answers, what it refuses, and that nothing brings it down."""

import asyncio
import base64
import contextlib
import io
import json
import re
import signal
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pytest
from PIL import Image

from command import LONG, wait_until
from milr.critics import naming
from milr.critics.remote import wire
from milr.critics.scene import SceneCritic
from milr.drafts import Score, UserError
from milr.serve import critic as service
from milr.serve import deadline
from milr.serve.critic import create_app, needs_backbone, serve
from serving import scenes, serving, serving_process

TOKEN = "canary-5f1c9d2e77"
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


class Shade:
    """Score = the red of the first pixel: which picture was scored can be read off it. With a gate (an Event) it
    scores nothing before that is set."""

    name = "shade"

    def __init__(self, gate=None):
        self.gate, self.inside, self.most_inside, self.calls = gate, 0, 0, 0

    def score(self, images, tasks):
        self.inside += 1
        self.calls += 1
        self.most_inside = max(self.most_inside, self.inside)
        assert self.gate is None or self.gate.wait(LONG)
        self.inside -= 1
        if any(task.prompt == "crash" for task in tasks):
            raise RuntimeError("out of paper")
        if any(task.prompt == "act" for task in tasks):
            raise UserError("The key is wrong; correct it.")
        return [
            Score(image.getpixel((0, 0))[0] / 255, reason=task.prompt)
            for image, task in zip(images, tasks, strict=True)
        ]


def file_of(shade=0, size=(8, 8), kind="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, (shade, 0, 0) if mode == "RGB" else shade).save(file, kind)
    return file.getvalue()


def item(image=None, prompt="a fox", **more):
    content = file_of() if image is None else image
    return {"prompt": prompt, "image": base64.b64encode(content).decode(), **more}


def png_that_claims(width, height):
    """A PNG of a few bytes whose header promises many pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def shade():
    with serving(Shade(), limits=wire.Limits(items=4, bytes=200_000, pixels=100_000)) as url:
        yield url


def post(url, said, **headers):
    content = said if isinstance(said, bytes) else json.dumps(said).encode()
    headers = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{url}{wire.SCORE}", content=content, headers=headers, trust_env=False, timeout=60)


def error_of(reply):
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"code", "message"}
    return reply.json()["error"]["code"], reply.json()["error"]["message"]


def test_scores_come_in_order_for_every_kind_of_file(shade):
    files = [file_of(51), file_of(102, kind="JPEG"), file_of(153, kind="WEBP"), file_of(204, mode="L")]
    reply = post(shade, {"items": [item(file, f"prompt {n}") for n, file in enumerate(files)], "later": 1})
    assert reply.status_code == 200
    assert [score["value"] for score in reply.json()["scores"]] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.02)
    assert [score["reason"] for score in reply.json()["scores"]] == [f"prompt {n}" for n in range(4)]


BROKEN = file_of(size=(40, 40))[:-30]
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def jpeg_cut():
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "JPEG")
    return file.getvalue()[:1500]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "bad_json", "not JSON"),
        (b"\xff\xfe", 400, "bad_json", "not JSON"),
        (b"[" * 100_000, 400, "bad_json", "not JSON"),
        (b'{"items": [NaN]}', 400, "bad_json", "NaN"),
        (b"[]", 422, "bad_request", "items"),
        ({"items": []}, 422, "bad_request", "at least one"),
        ({"items": {}}, 422, "bad_request", "items"),
        ({"items": [item(), 3]}, 422, "bad_request", r"items\[1\] must be an object"),
        ({"items": [{"image": "AAAA"}]}, 422, "bad_request", r"items\[0\].prompt must be text"),
        ({"items": [item(prompt=" \n")]}, 422, "bad_request", r"items\[0\].prompt must be text"),
        ({"items": [item(prompt=["a fox"])]}, 422, "bad_request", r"items\[0\].prompt must be text"),
        ({"items": [item(prompt="x" * 5000)]}, 422, "bad_request", "5,000 characters"),
        ({"items": [item(), {"prompt": "a fox"}]}, 422, "bad_request", r"items\[1\].image must be text"),
        ({"items": [item(category=3)]}, 422, "bad_request", r"items\[0\].category"),
        ({"items": [item(metadata=[1])]}, 422, "bad_request", r"items\[0\].metadata"),
        ({"items": [item(), {"prompt": "a", "image": "a fox!"}]}, 422, "bad_image", r"items\[1\].image is not base64"),
        ({"items": [{"prompt": "a", "image": ""}]}, 422, "bad_image", r"items\[0\].image is no PNG"),
        ({"items": [item(b"<svg/>")]}, 422, "bad_image", r"items\[0\].image is no PNG"),
        ({"items": [item(file_of(kind="GIF"))]}, 422, "bad_image", r"items\[0\].image is no PNG"),
        ({"items": [item(file_of(kind="TIFF"))]}, 422, "bad_image", r"items\[0\].image is no PNG"),
        ({"items": [item(), item(), item(BROKEN)]}, 422, "bad_image", r"items\[2\].image is a broken"),
        ({"items": [item(jpeg_cut())]}, 422, "bad_image", r"items\[0\].image is a broken"),
        ({"items": [item()] * 5}, 413, "too_large", "5 items; the most is 4"),
        ({"items": [item(png_that_claims(400, 300))]}, 413, "too_large", "120,000 pixels"),
        ({"items": [item(file_of(size=(200, 200)))] * 3}, 413, "too_large", "120,000 pixels together"),
        ({"items": [item(png_that_claims(10_000, 10_000))]}, 413, "too_large", "100,000,000 pixels"),
        ({"items": [item(png_that_claims(65_535, 65_535))]}, 422, "bad_image", "is no PNG"),
        (b" " * 200_001, 413, "too_large", "200,000 bytes"),
    ],
)  # fmt: skip
def test_wrong_bodies_are_refused_with_what_is_wrong(shade, body, status, code, words):
    reply = post(shade, body)
    found, message = error_of(reply)
    assert (reply.status_code, found) == (status, code)
    assert re.search(words, message), message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_whatever_is_wrong_with_a_file_is_refused(kind):
    rng, whole, outcomes = np.random.default_rng(1), io.BytesIO(), set()
    Image.fromarray(NOISE).save(whole, kind)
    for _ in range(150):
        content = np.frombuffer(whole.getvalue(), np.uint8).copy()
        places = rng.integers(0, len(content) if rng.random() < 0.5 else 60, rng.integers(1, 6))
        content[places] = rng.integers(0, 256, len(places))
        body = json.dumps({"items": [item(content[: rng.integers(1, len(content) + 1)].tobytes())]}).encode()
        try:
            wire.read_request(body, wire.Limits())
            outcomes.add("read")
        except wire.Refused as refused:
            outcomes.add(refused.code)
    assert outcomes <= {"read", "bad_image", "too_large"}
    assert "bad_image" in outcomes


def test_a_body_without_a_length_is_limited_too(shade):
    def endless():
        for _ in range(50):
            yield b" " * 10_000

    reply = httpx.post(
        f"{shade}{wire.SCORE}", content=endless(), headers={"Content-Type": "application/json"}, trust_env=False
    )
    assert reply.status_code == 413


def test_half_a_character_neither_stops_the_service_nor_its_reply(shade):
    reply = post(shade, b'{"items": [{"prompt": "\\ud800 fox", "image": "%s"}]}' % item()["image"].encode())
    assert reply.json()["scores"][0]["reason"] == "? fox"


def test_no_address_is_fetched(shade):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/fox.png"
        for text in (address, f"file://{__file__}", "data:image/png;base64,AAAA"):
            code, _ = error_of(post(shade, {"items": [{"prompt": address, "image": text}]}))
            assert code == "bad_image"
        with pytest.raises(TimeoutError):
            trap.accept()


def test_unknown_paths_methods_kinds_and_names(shade):
    for method, path, status in [("GET", "/", 404), ("GET", "/docs", 404), ("GET", wire.SCORE, 405),
                                 ("OPTIONS", wire.SCORE, 405), ("POST", "/v1/score/", 404)]:  # fmt: skip
        reply = httpx.request(method, shade + path, trust_env=False)
        assert reply.status_code == status
        assert error_of(reply)[0] in ("not_found", "method_not_allowed")
    assert error_of(post(shade, {"items": [item()]}, **{"Content-Type": "text/plain"}))[0] == "unsupported_media_type"
    for host in ("evil.example", "evil.example:9000", "127.0.0.1.evil.example", "10.0.0.1", ""):
        reply = httpx.get(shade + wire.INFO, headers={"Host": host}, trust_env=False)
        assert (reply.status_code, error_of(reply)[0]) == (403, "forbidden_host")
    for host in ("localhost:1", "127.0.0.1", "[::1]:9000", "127.1.2.3:80"):
        assert httpx.get(shade + wire.INFO, headers={"Host": host}, trust_env=False).status_code == 200


def test_a_token_is_asked_of_everything_but_the_health_check():
    with serving(Shade(), token=TOKEN) as url:
        for given in (None, "", "Bearer", f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN}x", TOKEN, "Bearer é"):
            headers = {} if given is None else {"Authorization": given.encode()}
            for path in (wire.INFO, wire.SCHEMA, "/nothing"):
                reply = httpx.get(url + path, headers=headers, trust_env=False)
                assert (reply.status_code, error_of(reply)[0]) == (401, "unauthorized")
                assert TOKEN not in reply.text + str(reply.headers)
            assert post(url, {"items": [item()]}, **headers).status_code == 401
        right = {"Authorization": f"bearer {TOKEN}", "Host": "critic.example"}
        assert httpx.get(url + wire.INFO, headers=right, trust_env=False).status_code == 200
        assert post(url, {"items": [item()]}, **right).status_code == 200
        assert httpx.get(url + wire.HEALTH, trust_env=False).json() == {"status": "ok"}
        assert "token" in httpx.get(url + wire.SCHEMA, headers=right).json()["components"]["securitySchemes"]


def test_a_critic_that_fails_abstains_and_one_whose_user_must_act_says_so(shade):
    reply = post(shade, {"items": [item(file_of(255)), item(prompt="crash")]}).json()
    assert [score["value"] for score in reply["scores"]] == [1.0, None]
    assert "out of paper" in reply["scores"][1]["reason"]
    reply = post(shade, {"items": [item(prompt="act")]})
    assert (reply.status_code, error_of(reply)) == (503, ("critic_stopped", "The key is wrong; correct it."))


def test_everything_is_as_the_schema_says():
    images, tasks = scenes(6)
    body = json.loads(wire.write_request([*map(wire.write_item, images, tasks)]))
    with serving(SceneCritic(), summary="the oracle") as url:
        said = httpx.get(url + wire.SCHEMA, trust_env=False).json()
        scores, info, error = post(url, body).json(), httpx.get(url + wire.INFO).json(), httpx.get(url + "/x").json()
    assert info["summary"] == "the oracle"
    assert set(said["paths"]) == {wire.HEALTH, wire.INFO, wire.SCORE}
    for found, name in [(body, "Request"), (scores, "Scores"), (info, "Info"), (error, "Error")]:
        whole = {"$ref": f"#/components/schemas/{name}", "components": said["components"]}
        jsonschema.Draft202012Validator.check_schema(said["components"]["schemas"][name])
        jsonschema.validate(found, whole, jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"items": [{"prompt": "a fox"}]}, {**whole, "$ref": "#/components/schemas/Request"})
    assert any(check["boxes"] for score in scores["scores"] for check in score["checks"])


# --- Many at once ---------------------------------------------------------------------------------------------


def burst(url, count, file=None, refused=None):
    """(shade asked for, reply) of so many requests at the same time; the event `refused` is set when one is."""

    async def ask(client, number):
        said = {"items": [item(file or file_of(number % 256), f"prompt {number}")]}
        reply = await client.post(f"{url}{wire.SCORE}", json=said, timeout=LONG)
        if refused is not None and reply.status_code == 429:
            refused.set()
        return number, reply

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(count)))

    return asyncio.run(all_of_them())


def test_two_hundred_at_once_are_answered_and_never_mixed():
    refused = threading.Event()
    critic = Shade(refused)  # however slow the senders are: nothing is scored before the places are full
    with serving(critic, waiting=8) as url:
        replies = burst(url, 200, refused=refused)
        assert {reply.status_code for _, reply in replies} == {200, 429}
        good = [(number, reply.json()["scores"][0]) for number, reply in replies if reply.status_code == 200]
        assert len(good) >= 9
        for number, score in good:
            assert (score["value"], score["reason"]) == (number % 256 / 255, f"prompt {number}")
        for _, reply in replies:
            if reply.status_code == 429:
                assert error_of(reply)[0] == "busy"
                assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert critic.most_inside == 1
        assert post(url, {"items": [item(file_of(255))]}).json()["scores"][0]["value"] == 1.0


def memory_of(process, kind):
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat():
    picture = io.BytesIO()
    Image.fromarray(NOISE).resize((400, 400)).save(picture, "PNG")  # a body of half a megabyte
    with serving_process(MALLOC_ARENA_MAX="2") as (process, url):  # else a pool for each thread on a large machine
        burst(url, 150, picture.getvalue())  # arenas and pools have grown to their size after this
        before, most_before = memory_of(process, "VmRSS"), memory_of(process, "VmHWM")
        for _ in range(3):  # 450 bodies of half a megabyte, kept, would be 225 MB
            burst(url, 150, picture.getvalue())
        assert memory_of(process, "VmRSS") - before < 20e6
        assert memory_of(process, "VmHWM") - most_before < 20e6
        for claims in (5_900, 13_000, 60_000):  # 35 million pixels and more: 100 MB if they were decoded
            assert post(url, {"items": [item(png_that_claims(claims, claims))]}).status_code in (413, 422)
        assert memory_of(process, "VmHWM") - most_before < 20e6


def test_clients_that_go_away_leave_their_places():
    with serving(Shade(), waiting=2) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        whole = json.dumps({"items": [item()]}).encode()
        for sent in (b"", whole[:50], whole):
            for _ in range(8):
                with socket.create_connection(address) as gone:
                    gone.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(whole) + sent)
        replies = []
        wait_until(lambda: replies.append(post(url, {"items": [item(file_of(51))]})) or replies[-1].status_code != 429)
        assert replies[-1].json()["scores"][0]["value"] == 0.2
        with socket.create_connection(address) as rude:
            rude.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert post(url, {"items": [item(file_of(51))]}).status_code == 200


def test_nothing_is_scored_for_nobody():
    gate = threading.Event()
    critic = Shade(gate)
    with serving(critic) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, {"items": [item()]})
        wait_until(lambda: critic.inside)
        whole = json.dumps({"items": [item()]}).encode()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as gone:
                gone.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(whole) + whole)
        for _ in range(3):  # what is answered after them has seen them go
            assert httpx.get(url + wire.HEALTH, trust_env=False).status_code == 200
        gate.set()
        assert post(url, {"items": [item(file_of(51))]}).status_code == first.result().status_code == 200
    assert critic.calls == 2


def test_a_slow_sender_loses_its_place(monkeypatch):
    monkeypatch.setattr(service, "BODY_SECONDS", 1.0)
    with (
        serving(Shade(), waiting=0) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow,
    ):
        slow.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
        slow.settimeout(LONG)
        assert b" 408 " in slow.recv(100)
        assert post(url, {"items": [item()]}).status_code == 200


# --- The command ----------------------------------------------------------------------------------------------

SLOW = """
import time
from milr.critics.scene import SceneCritic
quick = SceneCritic.score
def slow(self, images, tasks):
    print("scoring", flush=True)
    time.sleep(1)
    return quick(self, images, tasks)
SceneCritic.score = slow
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_what_is_scored_be_finished(sign):
    with serving_process(prelude=SLOW) as (process, url), ThreadPoolExecutor(1) as pool:
        reply = pool.submit(post, url, {"items": [item()]})
        assert process.stdout.readline() == "scoring\n"
        process.send_signal(sign)
        assert reply.result().status_code == 200
        process.wait(LONG)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + wire.HEALTH, trust_env=False)


def test_what_must_be_put_right_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.delenv("MILR_CRITIC_TOKEN", raising=False)
    monkeypatch.setattr("milr.backbones.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"0\.0\.0\.0.* needs a token.*MILR_CRITIC_TOKEN"):
        serve("self", host="0.0.0.0")
    with pytest.raises(UserError, match="Did you mean 'scene'"):
        serve("scen")
    with pytest.raises(UserError, match="has no settings"):
        serve("scene,a=1")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"Cannot listen .* choose another"),
    ):
        serve("self", port=taken.getsockname()[1])
    with pytest.raises(UserError, match="no port 70000"):
        serve("self", port=70_000)
    monkeypatch.setenv("MILR_CRITIC_TOKEN", "x")
    for host, port in [("no.such.host.invalid", 0), ("::zz", 0), ("x" * 100, 0)]:
        with pytest.raises(UserError, match="Cannot listen"):
            serve("self", host=host, port=port)
    monkeypatch.setenv("MY_TOKEN", f"{TOKEN} {TOKEN}")
    with pytest.raises(UserError, match="MY_TOKEN must be of visible") as caught:
        serve("scene", token_env="MY_TOKEN")
    assert TOKEN not in str(caught.value)
    with pytest.raises(UserError, match="name of an environment variable") as caught:
        serve("scene", token_env=TOKEN)
    assert TOKEN not in str(caught.value)
    with pytest.raises(UserError, match="NOT_THERE is not set"):
        serve("scene", token_env="NOT_THERE")


def test_which_critics_need_the_model_that_draws():
    assert needs_backbone("self")
    assert not needs_backbone("scene")
    assert needs_backbone("mix:0.5*scene+0.5*self")
    assert not needs_backbone("mix:0.5*scene+0.5*noise")
    assert not needs_backbone(naming.find("http://127.0.0.1:9000"))


def test_the_model_that_draws_can_be_served():
    with serving_process("self") as (_, url):
        (image,), _ = scenes(1)
        reply = post(url, {"items": [json.loads(wire.write_item(image, scenes(1)[1][0]))]})
        assert 0 <= reply.json()["scores"][0]["value"] <= 1


def test_no_token_is_in_anything_a_service_says():
    with serving_process(MILR_CRITIC_TOKEN=TOKEN) as (process, url):
        for given in (TOKEN, f"{TOKEN}x"):
            post(url, {"items": [item()]}, Authorization=f"Bearer {given}")
        post(url, b"[", Authorization=f"Bearer {TOKEN}")
        process.send_signal(signal.SIGTERM)
        said = "".join(process.communicate(timeout=LONG))
    assert TOKEN not in said


def test_threads_of_a_service_end_with_it():
    before = threading.active_count()
    with serving(Shade()) as url:
        assert post(url, {"items": [item()]}).status_code == 200
    wait_until(lambda: threading.active_count() <= before)
    assert create_app(Shade()).openapi()["info"]["title"] == "milr critic 'shade'"


# --- What a request may hold, and how long its head may take ----------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"metadata": {"checks": ["Is it?"] * 65}}, r"items\[0\].metadata.checks has 65 questions; the most is 64"),
        ({"metadata": {"checks": "Is it?"}}, r"items\[0\].metadata.checks must be a list of texts"),
        ({"metadata": {"checks": ["Is it?", 3]}}, r"metadata.checks must be a list of texts"),
        ({"metadata": {"checks": ["x" * 5000]}}, r"has a text of 5,000 characters"),
        ({"metadata": {"text": "x" * 5000}}, r"has a text of 5,000 characters"),
        ({"metadata": {"text": ["x" * 3000] * 12}}, r"has more than 32,000 characters"),
        ({"metadata": {"x" * 5000: 1}}, r"has a text of 5,000 characters"),
        ({"metadata": {"include": [{}] * 600}}, r"has more than 500 keys and values"),
        ({"metadata": {"a": [[[[[[[1]]]]]]]}}, r"nested more than 6 deep"),
        ({"category": "x" * 300}, r"items\[0\].category has 300 characters"),
    ],
)
def test_metadata_without_measure_is_refused(shade, more, words):
    reply = post(shade, {"items": [item(**more)]})
    assert (reply.status_code, error_of(reply)[0]) == (422, "bad_request")
    assert re.search(words, error_of(reply)[1]), error_of(reply)


def test_metadata_of_benchmarks_is_taken(shade):
    said = {"checks": ["Is there a fox?"] * 64, "include": [{"class": "fox", "position": ["left of", 0]}], "n": None}
    assert post(shade, {"items": [item(metadata=said)]}).status_code == 200


def test_pictures_are_scored_as_people_see_them_and_it_is_said(shade):
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down: the last pixel is the first
    lying, file = Image.new("RGB", (8, 8), (51, 0, 0)), io.BytesIO()
    lying.putpixel((7, 7), (255, 0, 0))
    lying.save(file, "PNG", exif=turned)
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    plain, *odd = post(shade, {"items": [item(), item(file.getvalue()), item(clear.getvalue())]}).json()["scores"]
    assert "notes" not in plain
    assert [score["value"] for score in odd] == [1.0, 1.0]
    assert [score["notes"] for score in odd] == [
        ["turned by 180 degrees, as its EXIF says"], ["transparent parts on white"],
    ]  # fmt: skip


def test_half_a_header_shuts_nobody_out(monkeypatch):
    monkeypatch.setattr(deadline, "HEAD_SECONDS", 0.3)
    with serving(Shade(), uvicorns={"limit_concurrency": 5}) as url, contextlib.ExitStack() as held:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        slow = [held.enter_context(socket.create_connection(address, timeout=30)) for _ in range(7)]
        for one in slow[:6]:
            one.sendall(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        for one in slow[:6]:  # the server says why and closes, whenever that is; without a deadline this waits for ever
            said = b"".join(iter(lambda one=one: one.recv(4096), b""))
            assert said.startswith(b"HTTP/1.1 408 ")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "slow"
        assert slow[6].recv(4096) == b""  # and who says nothing at all is left without a word
        assert post(url, {"items": [item(file_of(51))]}).json()["scores"][0]["value"] == 0.2


def test_a_connection_that_is_kept_has_the_deadline_again(monkeypatch):
    monkeypatch.setattr(deadline, "HEAD_SECONDS", 0.3)
    whole = b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with serving(Shade()) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as kept:
            kept.sendall(whole)
            assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
            kept.sendall(whole[:-4])
            said = b"".join(iter(lambda: kept.recv(4096), b""))
        assert b" 408 " in said.partition(b"\r\n")[0] or b"HTTP/1.1 408 " in said


def test_a_slow_critic_is_not_cut_off_by_the_deadline(monkeypatch):
    monkeypatch.setattr(deadline, "HEAD_SECONDS", 0.05)
    gate = threading.Event()
    threading.Timer(0.5, gate.set).start()  # ten deadlines later
    with serving(Shade(gate)) as url:
        assert post(url, {"items": [item(file_of(51))]}).json()["scores"][0]["value"] == 0.2
