import json
import logging
import os
import re
import socket
import subprocess
import sys
import types
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import tenacity.nap
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from stub_judge import gray, stub_judge

from command import wait_until
from milr.critics.base import Place
from milr.critics.remote import chat
from milr.critics.remote.chat import Chat, ChatSettings, Purse, Question, Reply, as_data
from milr.drafts import UserError

CANARY = "MILR_CANARY_k3y/4+zero"
FORM = 'with these keys in this order:\n  "request": exactly "abc"\n  "light": a number from 0 to 1'


@pytest.fixture(autouse=True)
def own_purse_and_key(monkeypatch):
    monkeypatch.setattr(chat, "PURSE", Purse())
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for name in ("MILR_PRICE_IN", "MILR_PRICE_OUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def waits(monkeypatch):
    """How long each retry would have slept; nothing sleeps."""
    slept = []
    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=slept.append))
    return slept


def client(stub, **settings):
    return Chat(ChatSettings(url=stub.url, **settings))


def question(level=100):
    return Question(FORM, gray(level))


def light(reply):
    return json.loads(reply.text)["light"]


def faults(*first):
    """These faults one after the other, then none."""
    return lambda number: first[number] if number < len(first) else ""


def written(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


# --- what is sent -----------------------------------------------------------------------------------------------


def test_a_request_is_a_chat_completion_with_the_picture_and_the_key_in_its_header_only():
    with stub_judge() as stub:
        asked = Question(FORM, gray(51), system="Be exact.", schema={"type": "object"})
        (reply,) = client(stub, max_tokens=70).ask_all([asked])
    assert light(reply) == pytest.approx(0.2)
    (body,) = stub.seen
    assert stub.keys == [f"Bearer {CANARY}"]
    assert CANARY not in json.dumps(body)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["temperature"] == 0
    assert body["max_tokens"] == 70
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_some_servers_refuse_can_be_left_out(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with stub_judge() as stub:
        settings = {"schema": False, "temperature": None, "limit_name": "max_completion_tokens"}
        client(stub, **settings).ask_all([Question(FORM, gray(1), schema={"type": "object"})])
    (body,) = stub.seen
    assert sorted(body) == ["max_completion_tokens", "messages", "model"]
    assert stub.keys == [None]


def test_a_picture_goes_without_what_its_file_said_of_it(tmp_path):
    text = PngInfo()
    text.add_text("comment", "made by me")
    gray(9).save(tmp_path / "a.png", pnginfo=text, icc_profile=b"profile")
    with Image.open(tmp_path / "a.png") as image, stub_judge() as stub:
        client(stub).ask_all([Question(FORM, image), question(9)])
    assert len(stub.seen) == 1  # equal pictures are one question


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["429", "429-after", "429-date", "500", "503", "529", "408", "409", "425", "torn", "empty", "body-<html>"]
)
def test_a_passing_fault_is_waited_for(fault, waits):
    with stub_judge(faults(fault, fault)) as stub:
        (reply,) = client(stub).ask_all([question(51)])
    assert light(reply) == pytest.approx(0.2)
    assert len(stub.seen) == 3
    assert len(waits) == 2
    if fault in ("429-after", "429-date"):  # an hour was asked for
        assert waits == [30, 30]
    else:  # longer each time, with jitter
        assert 0.5 <= waits[0] <= 1.5
        assert 1 <= waits[1] <= 2


def test_a_short_retry_after_is_honoured_and_spread(waits, monkeypatch):
    with stub_judge(faults(*["429-after"] * 4)) as stub:
        client(stub, max_wait=5000.0).ask_all([question()])
    assert all(3600 <= wait <= 3601 for wait in waits)
    assert len(set(waits)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("0.5", 0.5), ("-3", None), ("soon", None), ("", None), (None, None), ("9" * 40, None)],
)
def test_retry_after_as_seconds(text, expected):
    assert chat._seconds(text) == expected


def test_retry_after_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert chat._seconds(format_datetime(later, usegmt=True)) == pytest.approx(100, abs=2)
    assert chat._seconds(format_datetime(later.replace(tzinfo=None))) == pytest.approx(100, abs=2)
    assert chat._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("fault", "requests", "reason"),
    [
        ("500", 3, "answered 500: this is 500"),
        ("429-after", 3, "answered 429: slow down"),
        ("hang", 3, r"no answer from 127.0.0.1:\d+ within 0.2 s"),
        ("drip", 3, "did not finish within 0.2 s"),
        ("torn", 3, "broke"),
        ("empty", 3, "an empty body"),
        ("body-[]", 3, "no chat completion"),
        ('body-{"error": {"message": "overloaded"}}', 3, "no chat completion: overloaded"),
        ('body-[{"error": {"message": "overloaded"}}]', 3, "no chat completion: overloaded"),
        ('body-{"choices": [{"message": {"content": 7}}]}', 3, "no chat completion"),
        ("body-" + "[" * 100_000, 3, "no chat completion"),
        ("400", 1, "answered 400: this is 400"),
        ("422", 1, "answered 422"),
        ("huge", 1, "more than 1,048,576 bytes"),
        ("redirect", 1, "redirects .307., which is not followed"),
    ],
)
def test_what_does_not_pass_ends_with_a_reason(fault, requests, reason, waits):
    with stub_judge(lambda number: fault) as stub:
        # Only what must be waited for is: a busy machine may need longer than that for an honest answer.
        limit = 0.2 if fault in ("hang", "drip") else 60
        (reply,) = client(stub, attempts=3, timeout=limit).ask_all([question()])
    assert reply.text is None
    assert len(stub.seen) == requests
    assert len(waits) == requests - 1
    assert max(waits, default=0) <= 30
    with pytest.raises(AssertionError, match=reason):  # so that a failure shows the reason
        raise AssertionError(reply.reason)
    assert "\n" not in reply.reason
    assert len(reply.reason) < 300


def test_a_server_that_is_not_there(waits):
    with stub_judge() as stub:
        asks = client(stub, attempts=2)
    (reply,) = asks.ask_all([question()])
    assert reply.reason.startswith("cannot reach 127.0.0.1:")
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "refused the key .401: this is 401.; check the variable OPENAI_API_KEY"),
        ("refuse-403-Invalid API key", "refused the key .403: Invalid API key."),
        ("refuse-403-Your account was blocked: usage policy", "refused the key .403: Your account"),
        ("402", "no credit left"),
        ("quota", "account of OPENAI_API_KEY at .* has no credit left"),
        ("404", "no such model or address .404: this is 404.; check 'model' and 'url'"),
    ],
)
def test_what_the_user_must_put_right_ends_the_work(fault, message):
    with stub_judge(faults("", "", fault)) as stub:
        asks = client(stub, concurrency=1)
        with pytest.raises(UserError, match=message) as caught:
            asks.ask_all([question(level) for level in range(50)])
        assert len(stub.seen) == 3  # nothing is asked after that
        assert asks.ask_all([question(0), question(1)])  # what came before is kept
        assert len(stub.seen) == 3
    assert CANARY not in str(caught.value)


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with (
        stub_judge(lambda number: "401") as stub,
        pytest.raises(UserError, match=r"KEY [(]which is not set"),
    ):
        client(stub).ask_all([question()])


# --- order and how much at once ---------------------------------------------------------------------------------


def test_replies_that_come_in_reverse_order_sit_at_their_own_pictures():
    levels = list(range(0, 240, 30))

    def after_all_that_came_later(number):
        wait_until(lambda: len(stub.order) == 7 - number)
        return 0.0

    with stub_judge(delay=after_all_that_came_later) as stub:
        replies = client(stub, concurrency=8).ask_all([question(level) for level in levels])
    assert stub.order == sorted(stub.order, reverse=True)
    assert [light(reply) for reply in replies] == pytest.approx([level / 255 for level in levels])


def test_no_more_requests_at_once_than_allowed():
    def until_three_are_here(number):
        wait_until(lambda: stub.busiest >= 3)
        return 0.01  # in which a fourth would come

    with stub_judge(delay=until_three_are_here) as stub:
        client(stub, concurrency=3).ask_all([question(level) for level in range(30)])
    assert stub.busiest == 3


# --- money ------------------------------------------------------------------------------------------------------


def test_the_meter_is_exact(waits):
    with stub_judge(faults("500", "", "torn")) as stub:
        asks = client(stub, price_in=2.5, price_out=10.0)
        assert asks.dollars() == 0
        asks.ask_all([question(level) for level in range(7)])
        asks.ask_all([question(level) for level in range(9)])
    assert asks.spent == chat.Spent(replies=9, tokens_in=9000, tokens_out=450)
    assert asks.dollars() == pytest.approx((9000 * 2.5 + 450 * 10) / 1e6, rel=1e-12)
    assert pytest.approx(asks.dollars(), rel=1e-12) == chat.PURSE.spent


def test_the_limit_holds_whatever_runs_at_once_and_what_was_paid_for_is_kept(tmp_path):
    place = Place(tmp_path, max_judge_cost=0.0171)  # a reply costs 0.003: five fit, a sixth does not
    with stub_judge(delay=lambda number: 0.005) as stub:
        asks = client(stub, concurrency=16, price_in=2.5, price_out=10.0)
        asks.settle(place)
        with pytest.raises(UserError, match=r"have spent 0.015 of 0.0171 dollars.* 0.003; give more with --max-judge"):
            asks.ask_all([question(level) for level in range(40)])
    assert len(stub.seen) == 5
    assert len(list((tmp_path / "replies").iterdir())) == 5


def test_a_limit_is_for_all_judges_of_the_process():
    with stub_judge() as stub:
        one, two = (client(stub, price_in=2.5, price_out=10.0, model=model) for model in ("a", "b"))
        for asks in (one, two):
            asks.settle(Place(max_judge_cost=0.007))
        one.ask_all([question(), question(1)])
        two.ask_all([question()])
        with pytest.raises(UserError, match=r"have spent 0\.009"):
            two.ask_all([question(1)])


def test_a_limit_of_nothing_asks_nothing():
    with stub_judge() as stub:
        asks = client(stub, price_in=1.0, price_out=1.0)
        asks.settle(Place(max_judge_cost=0.0))
        with pytest.raises(UserError, match="spent 0 of 0"):
            asks.ask_all([question()])
    assert not stub.seen


def test_a_limit_needs_prices(monkeypatch):
    with stub_judge() as stub:
        with pytest.raises(UserError, match="price_in and price_out"):
            client(stub, price_in=1.0).settle(Place(max_judge_cost=1.0))
        assert client(stub).dollars() is None
        monkeypatch.setenv("MILR_PRICE_IN", "2.5")
        monkeypatch.setenv("MILR_PRICE_OUT", "10")
        asks = client(stub)
        asks.settle(Place(max_judge_cost=1.0))
        asks.ask_all([question()])
        assert asks.dollars() == pytest.approx(0.003)
        monkeypatch.setenv("MILR_PRICE_OUT", "nan")
        with pytest.raises(UserError, match="MILR_PRICE_OUT must be a price"):
            client(stub)


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 5}, [3], {"prompt_tokens": True}]
)
def test_a_limit_needs_a_server_that_counts(usage):
    with stub_judge() as stub:
        stub.usage = usage
        client(stub).ask_all([question()])  # without a limit it does not matter
        asks = client(stub, price_in=1.0, price_out=1.0)
        asks.settle(Place(max_judge_cost=1.0))
        with pytest.raises(UserError, match="does not say how many tokens"):
            asks.ask_all([question()])
        free = client(stub, price_in=0.0, price_out=0.0)
        free.settle(Place(max_judge_cost=1.0))
        assert free.ask_all([question()])[0].text


# --- replies that are kept --------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(tmp_path, monkeypatch):
    questions = [question(level) for level in range(5)]
    with stub_judge() as stub:
        first = client(stub)
        first.settle(Place(tmp_path))
        replies = first.ask_all(questions)
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        second = client(stub, timeout=5.0, concurrency=2)
        second.settle(Place(tmp_path))
        assert second.ask_all(questions[::-1]) == replies[::-1]
        assert len(stub.seen) == 5
        assert second.spent == chat.Spent()
        other = client(stub, model="another")
        other.settle(Place(tmp_path))
        other.ask_all(questions)
        assert len(stub.seen) == 10
    assert sorted(file.suffix for file in (tmp_path / "replies").iterdir()) == [".json"] * 10
    assert CANARY.encode() not in written(tmp_path)
    assert b"PNG" not in written(tmp_path)
    assert b"iVBOR" not in written(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"text": "x"}',
        b'{"text": 1, "first": []}',
        b'{"text": "x", "first": [[1]]}',
        b'{"text": "x", "first": [["Yes", NaN]]}',
    ],
)
def test_a_broken_file_is_replaced(tmp_path, broken):
    with stub_judge() as stub:
        asks = client(stub)
        asks.settle(Place(tmp_path))
        first = asks.ask_all([question()])
        (file,) = (tmp_path / "replies").iterdir()
        whole = file.read_bytes()
        file.write_bytes(broken)
        assert asks.ask_all([question()]) == first
        assert file.read_bytes() == whole
    assert len(stub.seen) == 2


def test_without_a_folder_replies_are_kept_in_memory_and_equal_questions_asked_once():
    with stub_judge() as stub:
        asks = client(stub)
        asks.ask_all([question(), question(), question(1)])
        asks.ask_all([question(1), question()])
    assert len(stub.seen) == 2


def test_a_folder_that_cannot_be_written_ends_the_work(tmp_path):
    (tmp_path / "replies").write_text("a file")
    with stub_judge() as stub:
        asks = client(stub)
        asks.settle(Place(tmp_path))
        with pytest.raises(UserError, match="Cannot keep the judge's reply"):
            asks.ask_all([question()])


# --- the key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200", "307", "400", "401", "403", "404", "402", "429", "500"])
@pytest.mark.parametrize("key", [CANARY, "MILR_CANARY_plain"])
def test_a_key_that_the_server_sends_back_is_nowhere(status, key, tmp_path, caplog, capfd, waits, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setattr(logging.getLogger("stamina"), "level", logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    with stub_judge(lambda number: f"echo-{status}") as stub:
        asks = client(stub, attempts=2)
        asks.settle(Place(tmp_path))
        try:
            (reply,) = asks.ask_all([question()])
            said = repr(reply)
        except UserError as error:
            chain = [error, error.__cause__, error.__context__]
            said = repr([(one, vars(one)) for one in chain if one])
    assert stub.keys[0] == f"Bearer {key}"
    logged = "".join(repr(vars(record)) + record.getMessage() for record in caplog.records)
    out, err = capfd.readouterr()
    assert "HTTP Request" in logged  # the log of httpx was on
    for place in (said, logged, out, err, written(tmp_path).decode()):
        assert "CANARY" not in place
        assert "k3y" not in place
    assert "CANARY" not in repr(vars(asks))


def test_a_stand_in_for_a_key_is_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with stub_judge(lambda number: "says-a fox") as stub:
        assert client(stub).ask_all([question()]) == [Reply("a fox")]


@pytest.mark.parametrize("key", ["sk-abc", "AIzaSyABC", "my key", "geheim", "A-B", "1A"])
def test_a_key_in_place_of_its_name_is_refused_and_not_repeated(key):
    with pytest.raises(UserError, match="NAME of an environment variable") as caught:
        ChatSettings(key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ"])
def test_a_variable_that_holds_no_key_is_not_repeated(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with stub_judge() as stub, pytest.raises(UserError, match="OPENAI_API_KEY holds no key") as caught:
        client(stub).ask_all([question()])
    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_OWN_KEY"])
def test_no_key_goes_unencrypted_to_another_machine(name, monkeypatch):
    monkeypatch.setenv(name, CANARY)
    asks = Chat(ChatSettings(url="http://judge.example/v1", key=name))
    with pytest.raises(UserError, match=rf"key in {name} would go to judge\.example unencrypted"):
        asks.ask_all([question()])


def test_no_key_is_sent_where_none_is_named():
    with stub_judge() as stub:
        client(stub, key="none").ask_all([question()])
    assert stub.keys == [None]


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:geheim@host/v1", "no user name, password or query"),
        ("https://geheim@host/v1", "no user name, password or query"),
        ("https://host/v1?key=geheim", "no user name, password or query"),
        ("https://host/v1#geheim", "no user name, password or query"),
        ("ftp://host/v1", "must be an address"),
        ("host:8000", "must be an address"),
        ("file:///etc/passwd", "must be an address"),
        ("http://", "must be an address"),
        ("http://host:port", "must be an address"),
        ("http://[::1", "must be an address"),
        ("http://host/v1/chat/completions", "ends before"),
        ("", "must be an address"),
    ],
)
def test_addresses_that_are_refused(url, message, monkeypatch):
    with pytest.raises(UserError, match=message) as caught:
        ChatSettings(url=url)
    assert "geheim" not in str(caught.value)
    monkeypatch.setenv("JUDGE_URL", url)
    with pytest.raises(UserError):
        Chat(ChatSettings(url="$JUDGE_URL"))


def test_an_address_may_stand_in_the_environment(monkeypatch):
    with stub_judge() as stub:
        monkeypatch.setenv("JUDGE_URL", stub.url + "/")
        assert Chat(ChatSettings(url="$JUDGE_URL")).ask_all([question()])[0].text
    monkeypatch.delenv("JUDGE_URL")
    with pytest.raises(UserError, match="JUDGE_URL should hold the judge's address and is not set"):
        Chat(ChatSettings(url="$JUDGE_URL"))


# --- yes or no --------------------------------------------------------------------------------------------------


def test_p_yes_of_the_first_token():
    levels = (0, 51, 255)
    with stub_judge() as stub:
        found = client(stub).yes_probabilities([gray(level) for level in levels], ["Is it light?"] * 3)
    # The stub spreads 0.9 x light over two spellings of yes, 0.9 x (1 - light) over two of no.
    assert [value for value, _ in found] == pytest.approx([0, 0.2, 1])
    body = stub.seen[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    assert "response_format" not in body


@pytest.mark.parametrize(
    ("logprobs", "expected", "reason"),
    [
        ([("Yes", -0.1)], 1.0, ""),
        ([("Yesterday", -0.1), ("no", -2.9)], 0.0, ""),
        ([("So", -0.0001), ("yes", -13.1), ("no", -16.0)], None, "yes and no hold 2e-06 .*=0.05 .*begins with 'So'"),
        ([("So", -0.1), ("yes", -3.0)], None, "hold 0.05 of the probability"),
        ([("The", -0.1), ("Ja", -2.0)], None, "neither yes nor no"),
        ([("<think>", 0.0)], None, "neither yes nor no"),
        ([], None, "no log-probabilities"),
        (None, None, "no log-probabilities"),
    ],
)
def test_odd_alternatives(logprobs, expected, reason, waits):
    top = None if logprobs is None else [{"token": token, "logprob": number} for token, number in logprobs]
    content = {"content": [{**top[0], "top_logprobs": top}]} if top else None
    body = json.dumps({"choices": [{"message": {"content": "Yes"}, "logprobs": content}]})
    with stub_judge(lambda number: f"body-{body}") as stub:
        ((value, why),) = client(stub).yes_probabilities([gray(1)], ["Is it light?"])
    assert value == expected
    assert re.search(reason, why)


@pytest.mark.parametrize("number", [float("nan"), 3.0, "0"])
def test_a_server_whose_probabilities_are_none_is_the_users_to_change(number, waits):
    content = {"content": [{"token": "yes", "logprob": number}]}
    body = json.dumps({"choices": [{"message": {"content": "Yes"}, "logprobs": content}]})
    with stub_judge(lambda _: f"body-{body}") as stub, pytest.raises(UserError, match="no chat completion"):
        client(stub).yes_probabilities([gray(1)], ["Is it light?"])


def test_probabilities_are_kept_as_well(tmp_path):
    with stub_judge() as stub:
        for _ in range(2):
            asks = client(stub)
            asks.settle(Place(tmp_path))
            assert asks.yes_probabilities([gray(51)], ["Is it light?"])[0][0] == pytest.approx(0.2)
        assert asks.yes_probabilities([], []) == []
    assert len(stub.seen) == 1


# --- the rest ---------------------------------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_as_data_is_one_line_that_says_the_same(text):
    line = as_data(text)
    assert json.loads(line) == text
    assert line.isprintable()
    assert "<" not in line
    assert ">" not in line


def test_words_of_other_languages_stay_readable():
    assert as_data("ein Fuchs 狐狸 👍") == '"ein Fuchs 狐狸 👍"'
    assert as_data("\udc00<\u202e\U000e0067") == '"\\udc00\\u003c\\u202e\\udb40\\udc67"'


def test_a_missing_package_is_named(monkeypatch):
    chat._packages.cache_clear()
    monkeypatch.setitem(sys.modules, "stamina", None)
    with pytest.raises(UserError, match=r"needs stamina; run pip install 'milr\[critics\]'"):
        Chat(ChatSettings())


def test_nothing_heavy_is_imported_with_the_file():
    code = "import sys, milr.critics.judge; print(*{'httpx', 'stamina', 'torch', 'yaml', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ""


def test_an_empty_batch_connects_to_nobody(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    assert Chat(ChatSettings(url="http://192.0.2.1/v1")).ask_all([]) == []


def test_a_refusal_is_a_reason_and_costs_what_it_costs():
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    body = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot"}}], "usage": usage})
    with stub_judge(lambda number: f"body-{body}") as stub:
        asks = client(stub)
        (reply,) = asks.ask_all([question()])
    assert (reply.text, reply.reason, reply.fault) == (None, "the model would not answer: I cannot", "flagged")
    assert asks.spent.tokens_in == 9


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a fox"}],
        [{"type": "thinking", "thinking": "a dog?"}, {"type": "text", "text": "a "}, {"type": "text", "text": "fox"}],
        [{"type": "reasoning", "text": "a dog"}, {"type": "output_text", "text": "a fox"}],
        ["a fox"],
    ],
)
def test_a_reply_in_parts_is_the_text_of_its_parts(content):
    body = json.dumps({"choices": [{"message": {"content": content}}]})
    with stub_judge(lambda number: f"body-{body}") as stub:
        assert client(stub).ask_all([question()]) == [Reply("a fox")]
