from collections import Counter

from milr.benchmarks.scenes import CATEGORIES, FILE, tasks
from milr.lab.curriculum import is_test_prompt, prompt_records
from milr.lab.language import parse


def test_the_fixed_set_holds_600_prompts_evenly_and_none_of_training():
    found = tasks()
    assert len(found) == len({task.prompt for task in found}) == len({task.id for task in found}) == 600
    assert set(Counter(task.category for task in found).values()) == {75}
    assert all(is_test_prompt(task.prompt) for task in found)
    assert all(parse(task.prompt).meaning is not None for task in found)


def test_a_part_of_it_is_even_and_a_longer_part_holds_the_shorter():
    some, more = tasks(16), tasks(40)
    assert Counter(task.category for task in some) == dict.fromkeys(CATEGORIES, 2)
    assert {task.id for task in some} < {task.id for task in more}
    assert {task.category for task in tasks(5, categories=("riddle",))} == {"riddle"}


def test_a_seed_gives_fresh_prompts():
    assert len(tasks(None, 5, ("riddle",))) == 600
    assert not {task.prompt for task in tasks(80, 5, ("composition",))} & {task.prompt for task in tasks()}


def test_the_command_that_made_the_set_is_as_documented():
    """Fails when the generator changes: then the docstring of the benchmark must say that it did."""
    import json

    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert lines == prompt_records(600, 31100)
