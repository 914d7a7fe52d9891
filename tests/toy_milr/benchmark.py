"""Ten prompts, for tests."""

from milr.drafts import Task

NAME = "toys"
SUMMARY = "toy prompts, for tests"


def tasks(n, seed):
    return [Task(f"toy number {number} of {seed}", id=f"{seed}-{number}", category="toy") for number in range(n)]
