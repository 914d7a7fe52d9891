"""What judges cost is known to every start of a run, and no question is paid for twice."""

import json
import threading

import pytest
from stub_judge import gray, stub_judge

from milr.critics.base import Place
from milr.critics.remote import chat, purse
from milr.critics.remote.chat import Chat, ChatSettings, Purse, Question
from milr.critics.remote.purse import Till
from milr.drafts import UserError

FORM = 'with these keys in this order:\n  "request": exactly "abc"\n  "light": a number from 0 to 1'
REPLY = {"text": "x", "first": []}
PRICES = {"price_in": 2.5, "price_out": 10.0}  # a reply of the stub costs 0.003 dollars


@pytest.fixture(autouse=True)
def own_purse(monkeypatch):
    monkeypatch.setattr(chat, "PURSE", Purse())


def asks(stub, place, **settings):
    made = Chat(ChatSettings(**{"url": stub.url, "key": "none", "attempts": 1, **PRICES, **settings}))
    made.settle(place)
    return made


def questions(*levels):
    return [Question(FORM, gray(level)) for level in levels]


def lines(folder):
    return [json.loads(line) for line in (folder / "spent.jsonl").read_bytes().splitlines()]


def test_the_next_start_knows_what_was_spent_and_what_a_reply_costs(tmp_path, monkeypatch):
    with stub_judge() as stub:
        asks(stub, Place(tmp_path)).ask_all(questions(1, 2, 3, 4))  # no limit was given then
        monkeypatch.setattr(chat, "PURSE", Purse())
        again = asks(stub, Place(tmp_path, 0.0171))
        with pytest.raises(UserError, match=r"have spent 0\.015 of 0\.0171 dollars.*0\.003"):
            again.ask_all(questions(5, 6, 7))
        assert len(stub.seen) == 5
        monkeypatch.setattr(chat, "PURSE", Purse())
        last = asks(stub, Place(tmp_path, 0.0179))  # had it to ask to know the price, this reply would be one too many
        with pytest.raises(UserError, match=r"have spent 0\.015 of 0\.0179"):
            last.ask_all(questions(8))
        assert len(stub.seen) == 5
    assert chat.PURSE.spent == pytest.approx(0.015, rel=1e-12)


def test_a_run_counts_once_in_a_process_and_several_runs_together(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with stub_judge() as stub:
        asks(stub, Place(one)).ask_all(questions(1, 2))
        asks(stub, Place(two)).ask_all(questions(3))
        asks(stub, Place(one)).ask_all(questions(4))
    assert chat.PURSE.spent == pytest.approx(0.012)
    assert chat.PURSE.spent_elsewhere(one) == pytest.approx(0.003)
    assert Purse().spent_elsewhere(one) == 0


def test_what_another_process_spends_is_counted_when_the_folder_is_opened_again(tmp_path):
    here, there = Purse(), Purse()
    for name in ("a", "b"):
        here.open(tmp_path)
        till = Till(tmp_path, there)
        till.give_back(till.take(name, "j", None, 1.0), 0.5, name, REPLY)
    here.open(tmp_path)
    assert here.spent == there.spent == 1.0


def test_a_request_whose_process_was_killed_counts_at_its_estimate(tmp_path):
    till = Till(tmp_path, Purse())
    till.give_back(till.take("a", "j", 1.0, 1.0), 0.25, "a", REPLY)
    till.take("b", "j", 1.0, 1.0)  # and nothing is heard of it again
    with open(tmp_path / "spent.jsonl", "ab") as stream:
        stream.write(b'{"paid": "torn')
    after = Purse()
    later = Till(tmp_path, after)
    assert after.spent == 0.5
    later.give_back(later.take("c", "j", 1.0, 1.0), 0.25, "c", REPLY)
    third = Purse()
    third.open(tmp_path)
    assert third.spent == 0.75, "the line after a torn one is whole"


def test_a_request_that_failed_costs_nothing(tmp_path):
    till = Till(tmp_path, Purse())
    till.give_back(till.take("a", "j", 1.0, 1.0), 0.25, "a", REPLY)
    till.give_back(till.take("b", "j", 1.0, 1.0), 0.0, "b", None)
    after = Purse()
    after.open(tmp_path)
    assert after.spent == 0.25
    assert sorted(till.recall(["a", "b"])) == ["a"]


def test_a_request_that_nobody_ends_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(purse, "SLACK", 0.0)
    shared = Purse()
    till = Till(None, shared)
    till.give_back(till.take("a", "j", 1.0, 1.0), 0.5, "a", REPLY)
    lost = till.take("b", "j", 1.0, 0.0)  # its process is killed
    with pytest.raises(UserError, match=r"have spent 1 of 1 "):
        till.take("b", "j", 1.0, 1.0)
    till.give_back(lost, 0.5, "b", None)
    assert shared.spent == 1.0, "it is not paid for twice when it comes back after all"


def test_a_question_that_is_under_way_is_not_asked_a_second_time(tmp_path):
    both = threading.Barrier(2)
    with stub_judge(delay=lambda number: 0.05) as stub:
        client, said = asks(stub, Place(tmp_path)), []

        def ask():
            both.wait()
            said.extend(client.ask_all(questions(9)))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stub.seen) == 1
    assert said[0] == said[1]
    assert said[0].text


def test_requests_at_once_are_those_of_all_who_call(tmp_path):
    with stub_judge(delay=lambda number: 0.02) as stub:
        client = asks(stub, Place(tmp_path), concurrency=2)
        threads = [
            threading.Thread(target=client.ask_all, args=(questions(*range(start, 40, 4)),)) for start in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stub.seen) == 40
        assert stub.busiest == 2


@pytest.mark.parametrize("junk", [b"[]", b"null", b"{}", b'{"paid": 1, "dollars": 2}', b'{"paid": "x", "dollars": NaN}',
                                  b'{"paid": "x", "dollars": -3}', b"\xff", b"[" * 100_000])  # fmt: skip
def test_lines_that_are_none_say_nothing(tmp_path, junk):
    (tmp_path / "spent.jsonl").write_bytes(junk + b'\n{"paid": "y", "dollars": 0.5}\n')
    found = Purse()
    found.open(tmp_path)
    assert found.spent == 0.5


def test_a_book_that_cannot_be_written_or_read_ends_the_work(tmp_path):
    till = Till(tmp_path, Purse())
    (tmp_path / "spent.jsonl").mkdir()
    with pytest.raises(UserError, match=r"Cannot note in .*make room"):
        till.give_back(till.take("a", "j", None, 1.0), 0.5, "a", REPLY)
    with pytest.raises(UserError, match="what judges have cost"):
        Purse().open(tmp_path)
