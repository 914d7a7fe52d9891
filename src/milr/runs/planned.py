"""Runs of `milr bench`, checked before anything heavy is loaded: which prompts, which methods, who judges, on what.

A recipe and a command line become the same `RecipeRun`; `PlannedRun` finds everything that its words can get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr import registry
from milr.benchmarks.base import number_of, stops_at
from milr.critics import naming
from milr.drafts import Task, UserError

if TYPE_CHECKING:
    from milr.runs.bench import Progress, Terms
    from milr.runs.recipes import RecipeRun

FRESH = 300  # prompts of a benchmark that has no fixed set


@dataclass(frozen=True)
class Machine:
    """Which model draws, and on what. `batch` None: as many searches side by side as the model draws at once."""

    model: str = "lab"
    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None
    executor: str = "local"
    workers: int | None = None
    address: str | None = None
    max_judge_cost: float | None = None

    def executor_for(self, terms: Terms, folder: Path) -> Any:
        """A context manager that gives who draws, for the run in `folder`. Loads the model."""
        from milr.critics.base import Place

        place = Place(folder, self.max_judge_cost)
        if self.executor == "ray":
            from milr.runs.cluster import Cluster

            return Cluster(
                self.model, terms, device=self.device, dtype=self.dtype, batch=self.batch, workers=self.workers,
                address=self.address, place=place,
            )  # fmt: skip
        from milr.backbones import load
        from milr.runs.bench import Local

        return nullcontext(Local(load(self.model, device=self.device, dtype=self.dtype), self.batch, place))


class PlannedRun:
    """One run: everything that its words can get wrong raises UserError when it is made."""

    def __init__(
        self,
        wanted: RecipeRun,
        folder: Path,
        *,
        data: Path | None = None,
        max_abstain: float | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """`data`: the user's copy of the prompts; `about`: what else belongs in the report."""
        from milr.runs.bench import Terms, plan_of
        from milr.runs.methods import BASELINE, METHODS, choose_methods, without_twins

        self.folder = folder
        self.tasks = choose_tasks(wanted.benchmark, wanted.limit, wanted.prompt_seed, wanted.category, data)
        self.methods = choose_methods(wanted.searches) if wanted.searches else METHODS
        self.methods, self.notes = without_twins(self.methods, wanted.baseline)
        names = [method.name for method in self.methods]
        if wanted.baseline is not None and wanted.baseline not in names:
            baseline = registry.shorten(wanted.baseline)
            raise UserError(f"The baseline '{baseline}' is none of the methods: {', '.join(names)}.")
        self.baseline = wanted.baseline or (BASELINE if BASELINE in names else names[0])
        self.terms = Terms(
            wanted.budget, wanted.threshold, wanted.seed, wanted.seeds, wanted.reward, wanted.held_out
        )  # fmt: skip
        for method in self.methods:
            plan_of(method, self.terms)
        categories = {"categories": list(wanted.category)} if wanted.category else {}
        self.about = {
            "benchmark": wanted.benchmark, "number": number_of(module_of(wanted.benchmark)),
            "prompt_seed": wanted.prompt_seed, **categories,
            **({} if max_abstain is None else {"max_abstain": max_abstain}), **(about or {}),
        }  # fmt: skip

    def run(
        self,
        machine: Machine,
        tell: Callable[[Progress], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
        loading: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Load the model and do what the folder lacks (see `milr.runs.bench.bench`). `loading` is around the load."""
        from milr.runs.bench import bench

        with loading or nullcontext():
            executor_for_this_run = machine.executor_for(self.terms, self.folder)
        with executor_for_this_run as executor:
            bench(
                executor, self.tasks, self.folder, self.terms, methods=self.methods, baseline=self.baseline,
                about=self.about, tell=tell, note=note,
            )  # fmt: skip


# --- What it will take ---------------------------------------------------------------------------------------------


VERDICT_TOKENS = (1000, 200)  # read (a rubric and a picture) and written: what a judge's verdict is reckoned with
ALONE = ("single",)  # searches that are over after their first draft


@dataclass(frozen=True)
class Reckoned:
    """What a run takes at most, if no search stops early and nothing of it is on record. `hours` of drawing, None where
    nothing was measured; `dollars` of judges over HTTP, None where none has a price. `unpriced`: such judges that have
    none."""

    drafts: int
    verdicts: int
    hours: float | None
    dollars: float | None
    unpriced: tuple[str, ...] = ()


def reckon(planned: PlannedRun, seconds: float | None) -> Reckoned:
    """What this run takes at most, with so many seconds a draft."""
    terms = planned.terms
    searches = len(planned.tasks) * terms.seeds
    calls = [1 if method.search in ALONE else terms.budget for method in planned.methods]
    drafts = searches * sum(calls)
    asked = {terms.critic: drafts}
    for critic in terms.held_out:  # the returned draft, and the first one
        asked[critic] = asked.get(critic, 0) + searches * sum(min(2, count) for count in calls)
    dollars, unpriced = None, []
    for critic, verdicts in asked.items():
        for prices in naming.prices_of(critic):
            if None in prices:
                unpriced.append(critic)
                continue
            each = sum(price * count for price, count in zip(prices, VERDICT_TOKENS, strict=True) if price is not None)
            dollars = (dollars or 0.0) + verdicts * each / 1e6
    hours = None if seconds is None else drafts * seconds / 3600
    return Reckoned(drafts, sum(asked.values()), hours, dollars, tuple(dict.fromkeys(unpriced)))


def tell_reckoned(runs: Sequence[PlannedRun], machine: Machine) -> Iterator[str]:
    """What these runs take on this machine, a line each and one for all: from what 'milr speed' measured here."""
    known = None
    if machine.executor == "local":
        from milr.backbones.speed import reckoning_for

        known = reckoning_for(machine.model, machine.device, machine.dtype)
    found = [reckon(run, None if known is None else known.seconds) for run in runs]
    for run, one in zip(runs, found, strict=True):
        yield (
            f"{run.folder.name}: {_count(len(run.tasks), 'prompt')}, {_count(len(run.methods), 'method')}, up to "
            f"{one.drafts:,} drafts"
            + ("" if one.hours is None else f", {in_hours(one.hours)} of drawing")
            + ("" if one.dollars is None else f", about ${one.dollars:,.2f} for judges")
        )
    hours = [one.hours for one in found if one.hours is not None]
    dollars = [one.dollars for one in found if one.dollars is not None]
    if known is not None:
        yield (
            f"together at most {in_hours(sum(hours))} of drawing here ({known.seconds:.3g} s a draft in batches of "
            f"{known.images}, as 'milr speed' measured); less as searches stop early, more by what critics take"
        )
    elif machine.executor == "local":
        yield f"how long that takes here was not measured; 'milr speed {machine.model}' does, and remembers it"
    else:
        yield "how long that takes on a cluster is not reckoned; docs/performance.md has the arithmetic"
    if dollars:
        read, written = VERDICT_TOKENS
        yield (
            f"judges: at most about ${sum(dollars):,.2f}, if a verdict reads {read:,} tokens and writes {written:,} "
            "(an assumption); --max-judge-cost sets a limit that is kept"
        )
    for critic in dict.fromkeys(name for one in found for name in one.unpriced):
        yield f"what {registry.shorten(critic)} costs is not known: it has no price_in and price_out"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_hours(hours: float) -> str:
    """A time in the words of people."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


# --- Which prompts -------------------------------------------------------------------------------------------------


def module_of(benchmark: str) -> Any:
    """The module of a benchmark. Raises UserError where there is none of this name."""
    return registry.load(registry.find("benchmark", benchmark))


def reward_of(benchmark: str) -> str:
    """The critic that fits a benchmark."""
    return str(getattr(module_of(benchmark), "REWARD", "self"))


def threshold_of(benchmark: str) -> float:
    """The reward at which a search on it stops, where the user names none."""
    return stops_at(module_of(benchmark))


def choose_tasks(
    benchmark: str,
    limit: int | None = None,
    prompt_seed: int | None = None,
    categories: Sequence[str] = (),
    data: Path | None = None,
) -> Sequence[Task]:
    """The prompts that these options choose (`milr.benchmarks.base`: what a benchmark may offer). Raises UserError."""
    prompts = module_of(benchmark)
    takes_data = hasattr(prompts, "DATA_HELP")
    if data is not None and not takes_data:
        raise UserError(f"The benchmark '{benchmark}' has its prompts; leave --data out.")
    if categories and hasattr(prompts, "CATEGORIES"):
        check_categories(categories, prompts.CATEGORIES)
    elif categories and not takes_data:
        raise UserError(f"The benchmark '{benchmark}' has no categories; leave --category out.")
    is_fixed = getattr(prompts, "FIXED", takes_data)
    found: Sequence[Task] = prompts.tasks(
        limit if limit is not None or is_fixed else FRESH,
        prompt_seed if prompt_seed is not None or is_fixed else 0,
        *([tuple(categories)] if categories else ()),
        **({"data": data} if takes_data else {}),
    )
    if not found:
        raise UserError(f"No prompt of '{benchmark}' is left; ask for other categories.")
    return found


def check_categories(chosen: Iterable[str], there: Sequence[str]) -> None:
    """UserError for a category that is not there."""
    for name in chosen:
        if name not in there:
            raise UserError(
                f"Unknown category '{registry.shorten(name)}'.{registry.did_you_mean(name, there)} There are "
                f"{', '.join(there)}."
            )
