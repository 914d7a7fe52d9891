"""Which draft to hand to the user when none is solved: not always the one of highest reward.

A critic that errs likes some wrong pictures, and whoever draws many unlikely ones finds them (reward hacking). Two
things speak against such a draft before anybody looks at it: its reasoning is one that the model hardly believed, and
other pictures of the same reasoning were liked less. Taking a reward for the chance that the picture is right, Bayes'
rule weighs all three, with the reward R and the mean R_t of all drafts of the same text:

    score(draft) = logit((1 - shrink) R + shrink R_t) + caution log prior(plan)

`caution` is a likelihood penalty (0: none); `shrink` 1 is averaging over redraws (0: each reward as it is).
A critic that says what is wrong (checks) gives shares, not chances; it is taken at its word, and its best draft is
returned.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from milr.drafts import Draft, reaches

SUREST = 1e-6  # a reward is taken for a chance of at most one minus this, and at least this


def most_credible(
    drafts: Sequence[Draft],
    *,
    threshold: float,
    shrink: float,
    caution: float = 0.0,
    priors: Sequence[float] | None = None,
) -> int | None:
    """The number of the draft of highest score; of equals the one of higher reward, then the earliest.

    `priors`: of each draft's plan, in (0, 1]; 1 for all where none are given. Returns None, for the draft of highest
    reward as usual, where one reaches the threshold, where the critic gives checks, and where no draft has a reward.
    """
    solved = any(reaches(draft.reward, threshold) for draft in drafts)
    if solved or any(draft.score.checks for draft in drafts):
        return None
    rewards: defaultdict[tuple[int, ...], list[float]] = defaultdict(list)
    for draft in drafts:
        if draft.reward is not None:
            rewards[draft.drawn.text_tokens].append(draft.reward)

    def score(draft: Draft, prior: float) -> tuple[float, float, int]:
        assert draft.reward is not None
        of_text = rewards[draft.drawn.text_tokens]
        chance = (1 - shrink) * draft.reward + shrink * sum(of_text) / len(of_text)
        chance = min(max(chance, SUREST), 1 - SUREST)
        return math.log(chance / (1 - chance)) + caution * math.log(prior), draft.reward, -draft.number

    scored = [
        (score(draft, prior), draft.number)
        for draft, prior in zip(drafts, priors or [1.0] * len(drafts), strict=True)
        if draft.reward is not None
    ]
    return max(scored)[1] if scored else None
