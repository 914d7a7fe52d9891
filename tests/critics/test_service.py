"""The critic that asks a service: the same scores as the critic beside it, and no lie when the service fails."""

import gzip
import json
import logging
import re
import shutil
import subprocess
import threading
import time
import traceback
from pathlib import Path

import httpx
import pytest
from PIL import Image

import milr
from command import LONG
from milr.critics import naming
from milr.critics.base import judge
from milr.critics.remote import wire
from milr.critics.scene import SceneCritic
from milr.critics.service import Service
from milr.drafts import Check, Score, Task, UserError
from serving import INFO, as_json, scenes, serving, serving_process, stub

TOKEN = "canary-5f1c9d2e77"
PICTURE = Image.new("RGB", (8, 8))
GOOD = {"value": 0.5, "reason": "so so", "checks": [{"text": "a fox", "passed": False, "boxes": [[0, 1, 2, 3.5]]}]}


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("MILR_CRITIC_TOKEN", raising=False)


def critic_at(url, **settings):
    named = f"service,url={url}"
    for name, value in {"attempts": 3, "max_wait": 5, "timeout": 10, **settings}.items():
        named += f",{name}={value}"
    return naming.make(named, None)


def ask(critic, count=1):
    return critic.score([PICTURE] * count, [Task(f"prompt {number}") for number in range(count)])


# --- The same as beside it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [wire.Limits(), wire.Limits(items=3), wire.Limits(bytes=40_000), wire.Limits(pixels=50_000)]
)
def test_what_a_service_says_is_what_its_critic_says(limits):
    images, tasks = scenes(40)
    expected = judge(SceneCritic(), images, tasks)
    assert any(check.boxes for score in expected for check in score.checks)
    with serving(SceneCritic(), limits=limits) as url:
        critic = naming.make(url, None)
        assert critic.name == url
        assert critic.score(images, [*tasks[:-1], Task("the Eiffel tower")])[:-1] == expected[:-1]
        (last,) = critic.score(images[:1], [Task("the Eiffel tower")])
        assert (last.value, last.reason) == (None, SceneCritic.why_not("the Eiffel tower"))


def test_a_proxy_for_the_world_is_not_asked_for_this_machine(monkeypatch):
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    images, tasks = scenes(1)
    with serving(SceneCritic()) as url:
        assert critic_at(url).score(images, tasks) == SceneCritic().score(images, tasks)


def test_category_metadata_and_every_pixel_arrive():
    class Looks:
        name = "looks"

        def score(self, images, tasks):
            seen.extend(zip(images, tasks, strict=True))
            return [Score(1.0, (Check("naïve ✓", True),), "«gut»")] * len(images)

    seen = []
    images, tasks = scenes(2)
    images = [images[0], images[1].convert("RGBA")]
    with serving(Looks()) as url:
        assert critic_at(url).score(images, tasks) == [Score(1.0, (Check("naïve ✓", True),), "«gut»")] * 2
    for (image, task), sent, wanted in zip(seen, images, tasks, strict=True):
        assert image.tobytes() == sent.convert("RGB").tobytes()
        assert (task.prompt, task.category, task.metadata) == (wanted.prompt, wanted.category, wanted.metadata)


def test_a_search_climbs_a_service():
    with serving(SceneCritic()) as url:
        for reward in (url, f"mix:0.5*{url}+0.5*scene"):
            there = milr.generate("lab", "two red foxes", reward=reward, budget=2, seed=1)
            here = milr.generate("lab", "two red foxes", reward="scene", budget=2, seed=1)
            assert there.trajectory.critic == reward
            rewards = [draft.reward for draft in there.trajectory.drafts]
            assert rewards == pytest.approx([draft.reward for draft in here.trajectory.drafts])


@pytest.mark.parametrize(
    ("limits", "requests"),
    [
        ({"items": 9, "bytes": 10**6, "pixels": 10**6}, [4, 4, 2]),  # the critic's own setting
        ({"items": 3, "bytes": 10**6, "pixels": 10**6}, [3, 3, 3, 1]),
        ({"items": 9, "bytes": 10**6, "pixels": 3 * 64}, [3, 3, 3, 1]),
        ({"items": 9, "bytes": 2 * len(wire.write_item(PICTURE, Task("prompt 0"))) + 20, "pixels": 10**6}, [2] * 5),
    ],
)
def test_requests_keep_to_the_limits(limits, requests):
    def answer(path, body):
        if path == wire.INFO:
            return as_json({"name": "stub", "limits": limits})
        assert len(body) <= limits["bytes"]
        sizes.append(len(json.loads(body)["items"]))
        return saying(*[GOOD] * sizes[-1])

    sizes = []
    with stub(answer) as url:
        assert [score.value for score in ask(critic_at(url, batch=4), 10)] == [0.5] * 10
    assert sizes == requests


def test_pictures_that_no_request_may_hold_cost_only_themselves():
    large = Image.effect_noise((200, 200), 90).convert("RGB")
    for limits in (wire.Limits(pixels=20_000), wire.Limits(bytes=20_000)):
        with serving(SceneCritic(), limits=limits) as url:
            images, tasks = [scenes(1)[0][0], large, scenes(1)[0][0]], [Task("a fox")] * 3
            scores = critic_at(url).score(images, tasks)
            assert [score.abstained for score in scores] == [False, True, False]
            assert "larger than the critic" in scores[1].reason


def test_an_item_that_is_refused_costs_only_itself():
    with serving(SceneCritic()) as url:
        scores = critic_at(url).score([scenes(1)[0][0]] * 3, [Task("a fox"), Task("x" * 5000), Task("a fox")])
    assert [score.abstained for score in scores] == [False, True, False]
    assert "5,000 characters" in scores[1].reason


# --- Replies that break the contract --------------------------------------------------------------------------


def saying(*scores):
    return as_json({"critic": "stub", "scores": list(scores)})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (saying(), "0 scores for 1"),
        (saying(GOOD, GOOD), "2 scores for 1"),
        (saying({**GOOD, "value": float("nan")}), r"nan, not a number in \[0, 1\]"),
        (saying({**GOOD, "value": 1.5}), r"1.5, not a number in \[0, 1\]"),
        (saying({**GOOD, "value": -0.1}), "-0.1, not a number"),
        (saying({**GOOD, "value": 10**400}), "not a number"),
        (saying({**GOOD, "value": "0.5"}), "0.5, not a number"),
        (saying({**GOOD, "value": True}), "True, not a number"),
        (saying({**GOOD, "value": None, "reason": ""}), "without a reason"),
        (saying({**GOOD, "reason": 7}), "reason is no text"),
        (saying({**GOOD, "checks": 7}), "checks"),
        (saying({**GOOD, "checks": ["a fox"]}), "checks"),
        (saying({**GOOD, "checks": [{"text": "a fox", "passed": "no"}]}), "checks"),
        (saying({**GOOD, "checks": [{"text": "a fox", "passed": False, "boxes": [[1, 2, 3]]}]}), "checks"),
        (saying({**GOOD, "checks": [{"text": "a", "passed": False, "boxes": [[1, 2, 3, float("inf")]]}]}), "checks"),
        (saying(3), "no object"),
        (as_json([]), "no JSON object"),
        (as_json({"scores": "good"}), "no list"),
        ((200, {}, b"<html>"), "not JSON"),
        ((200, {}, b"[" * 100_000), "not JSON"),
        ((200, {}, b" " * (16 * 2**20 + 1)), "more than 16,777,216 bytes"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**8)), "not JSON"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "HTTP 302"),
        (as_json({"error": {"code": "bad_request", "message": "no\nfox"}}, 422), "HTTP 422: no fox"),
        ((404, {}, b"nothing here"), "HTTP 404: it is no critic any more"),
        ((500, {}, b"oops"), r"does not answer \(HTTP 500"),
    ],
)  # fmt: skip
def test_a_reply_that_breaks_the_contract_is_an_abstention(reply, reason):
    with stub(lambda path, body: INFO if path == wire.INFO else reply) as url:
        (score,) = ask(critic_at(url, attempts=1))
    assert score.value is None
    assert re.search(reason, score.reason), score.reason


def test_one_bad_score_does_not_cost_the_others_theirs():
    with stub(lambda path, body: INFO if path == wire.INFO else saying(GOOD, {**GOOD, "value": 9}, GOOD)) as url:
        scores = ask(critic_at(url), 3)
    assert [score.value for score in scores] == [0.5, None, 0.5]
    assert scores[0] == Score(0.5, (Check("a fox", False, ((0, 1, 2, 3.5),)),), "so so")


def test_a_text_with_half_a_character_can_be_written_down():
    broken = b'{"scores": [{"value": 1, "reason": "\\ud800", "checks": [{"text": "\\udfff", "passed": true}]}]}'
    with stub(lambda path, body: INFO if path == wire.INFO else (200, {}, broken)) as url:
        (score,) = ask(critic_at(url))
    assert (score.value, score.reason, score.checks[0].text) == (1.0, "?", "?")


# --- Services that are busy, gone, or somebody else's ---------------------------------------------------------


def answers(*replies):
    """A stub's answer: these in turn, the last one for good; and the times at which it was asked."""
    left, times = list(replies), []

    def answer(path, body):
        if path == wire.INFO:
            return INFO
        times.append(time.monotonic())
        return left.pop(0) if len(left) > 1 else left[0]

    return answer, times


def test_a_busy_service_is_asked_again_when_it_says():
    busy = as_json({"error": {"code": "busy", "message": "come again"}}, 429, **{"Retry-After": "1"})
    answer, times = answers(busy, (502, {}, b""), saying(GOOD))
    with stub(answer) as url:
        (score,) = ask(critic_at(url))
    assert score.value == 0.5
    assert times[1] - times[0] >= 1
    assert len(times) == 3


def test_nobody_waits_for_ever():
    answer, times = answers(as_json({}, 429, **{"Retry-After": "999999"}))
    started = time.monotonic()
    with stub(answer) as url:
        scores = ask(critic_at(url, max_wait=1, batch=1), 3)
    assert time.monotonic() - started < LONG  # not the eleven days that were asked for
    assert [score.value for score in scores] == [None] * 3
    assert "HTTP 429" in scores[2].reason
    # No wait is longer than max_wait; one failure is enough for the whole batch, and one look at what is the cause.
    assert len(times) == 3
    assert all(score.outage for score in scores)


def test_a_hanging_service_is_left():
    def answer(path, body):
        if path == wire.INFO:
            return INFO
        over.wait(LONG)
        return saying(GOOD)

    over = threading.Event()
    with stub(answer) as url:
        (score,) = ask(critic_at(url, timeout=1, attempts=2))
        over.set()
    assert "ReadTimeout" in score.reason


def test_a_service_that_never_was_there_is_the_users_to_start():
    critic = naming.make("service,url=http://127.0.0.1:9,attempts=2", None)
    with pytest.raises(UserError, match=r"No critic answers at http://127\.0\.0\.1:9 .*milr critic serve"):
        ask(critic)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {}, b"<html>"), "is no critic of milr .*not JSON"),
        (as_json({"name": "x"}), "is no critic of milr"),
        (as_json({"name": "x", "limits": {"items": 0, "bytes": 1, "pixels": 1}}), "is no critic of milr"),
        ((404, {}, b""), "is no critic of milr .*HTTP 404"),
        ((301, {"Location": "http://127.0.0.1:9/v1/info"}, b""), "No critic answers .*HTTP 301: it redirects"),
        (as_json({"error": {"code": "forbidden_host", "message": "Not by this name."}}, 403), "Not by this name"),
    ],
)  # fmt: skip
def test_what_is_no_service_is_the_users_to_correct(reply, message):
    with stub(lambda path, body: reply) as url, pytest.raises(UserError, match=message):
        ask(critic_at(url))


def test_a_critic_whose_user_must_act_ends_the_work():
    class Spent:
        name = "spent"

        def score(self, images, tasks):
            raise UserError("The budget of 1 $ is spent; allow more.")

    with serving(Spent()) as url, pytest.raises(UserError, match=r"The budget of 1 \$ is spent"):
        ask(critic_at(url))


def test_a_service_that_is_killed_abstains_and_goes_on_when_it_is_back():
    images, tasks = scenes(4)
    expected = judge(SceneCritic(), images, tasks)
    with serving_process() as (process, url):
        critic = critic_at(url, attempts=2)
        assert critic.score(images, tasks) == expected
        process.kill()
        process.wait()
        gone = critic.score(images, tasks)
        with pytest.raises(UserError, match=r"cannot be asked any more .*it goes on where it stopped"):
            judge(critic, images, tasks)
    assert [(score.value, score.outage) for score in gone] == [(None, True)] * 4
    assert f"the critic at {url} does not answer" in gone[0].reason
    with serving_process(port=int(url.rpartition(":")[2])):
        assert critic.score(images, tasks) == expected


# --- Tokens and addresses -------------------------------------------------------------------------------------


def test_the_token_is_sent_and_in_nothing_that_is_written(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    with serving(SceneCritic(), token=TOKEN) as url:
        for given in (None, f"{TOKEN}-wrong", f"{TOKEN}\nX-Evil: 1", f"{TOKEN}ü"):
            if given is not None:
                monkeypatch.setenv("MILR_CRITIC_TOKEN", given)
            with pytest.raises(UserError, match="MILR_CRITIC_TOKEN") as caught:
                ask(critic_at(url))
            said += traceback.format_exception(caught.value)
        monkeypatch.setenv("MY_TOKEN", TOKEN)
        critic = critic_at(url, token="MY_TOKEN")
        said += [repr(ask(critic)), critic.name, repr(vars(critic))]
        (image,), (task,) = scenes(1)
        assert not critic.score([image], [task])[0].abstained
    said.append(repr(ask(critic)))  # the service is gone
    assert "does not answer" in said[-1]
    assert caplog.records
    said += [repr(vars(record)) for record in caplog.records]
    assert TOKEN not in "".join(said)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("service", "needs an address"),
        ("http://", "is no address"),
        ("http://127.0.0.1:port", "is no address"),
        ("http://127.0.0.1:9000,batch=2", "is no address .*service,url="),
        ("http://127.0.0.1:9000/?key=1", "is no address"),
        ("service,url=ftp://127.0.0.1", "is no address"),
        ("service,url=127.0.0.1:9000", "is no address"),
        (f"http://me:{TOKEN}@127.0.0.1:9000", "must not hold a name or a password"),
        (f"service,url=http://127.0.0.1:9000,token={TOKEN}", "name of an environment variable"),
        ("http://gpu.example:9000", "can be read on the way.*insecure=true"),
        ("service,url=http://127.0.0.1:9000,batch=0", "'batch' must be"),
        ("service,url=http://127.0.0.1:9000,wait=1", "Unknown setting 'wait'"),
    ],
)
def test_addresses_and_settings_that_are_wrong(name, message):
    with pytest.raises(UserError, match=message) as caught:
        naming.make(name, None)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://[::1]:1/", "https://critic.example/judge/", "http://127.0.0.2"]
)
def test_addresses_that_are_right(url):
    assert naming.make(url, None).name == url


def test_http_to_another_machine_must_be_wanted():
    assert Service(url="http://gpu.example:9000", insecure=True)


# --- In another language --------------------------------------------------------------------------------------


def test_the_service_of_the_docs_in_another_language(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    page = (Path(__file__).parents[2] / "docs" / "critics" / "service.md").read_text()
    (tmp_path / "critic.mjs").write_text(re.search(r"```js\n(.*?)```", page, re.DOTALL)[1])
    process = subprocess.Popen([node, tmp_path / "critic.mjs", "0"], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[-1]
        scores = critic_at(url).score([PICTURE] * 3, [Task("a fox"), Task("a fox", category="x"), Task("no word")])
        assert all(score.value is None or 0 <= score.value <= 1 for score in scores)
        assert any(not score.abstained for score in scores)
        assert httpx.get(f"{url}/nothing", trust_env=False).status_code == 404
        assert json.loads(httpx.get(url + wire.HEALTH, trust_env=False).text) == {"status": "ok"}
    finally:
        process.kill()
        process.communicate()
