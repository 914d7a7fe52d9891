"""Many devices and machines: one worker a device with its own model, prompts handed out one by one, one journal writer.

Built on Ray (`pip install milr[ray]`). The process that runs `milr bench --executor ray` is the head: it alone writes
the journal. Each worker is an actor with a model of its own and a batch of searches side by side; as one ends it is
given the next prompt, since early stops make searches uneven. A worker waits after each round until its drafts are on
disk. Where a worker is lost, its prompts go on elsewhere from the drafts that are on record, and another worker takes
its place. Critics without a model are actors too, shared by all; one with a model of its own sits beside each
worker, on its device.

Nothing here decides a result: a draft depends on its order alone, so the run ends as on one machine (up to ties between
floats). Ray passes Python objects between its own processes; use it in a network that you trust, as Ray says itself.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from milr.critics import naming
from milr.critics.base import NOWHERE, Place
from milr.drafts import Draft, Score, Task, UserError
from milr.runs.bench import (
    SEARCHES_AT_ONCE,
    Keeper,
    Local,
    Terms,
    critics_of,
    machine_of,
    outcome_of,
    search_jobs,
    searches_at_once,
)
from milr.runs.methods import Method
from milr.searches.driver import DraftScored, Event, Job, RoundEnded

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSES = 3  # workers that may be lost for each one that was asked for, before the run gives up

Drafts = list[tuple[str, int, Draft]]  # task id, seed index, draft


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network
    try:
        import ray
    except ImportError as error:
        raise UserError("The executor 'ray' needs Ray: pip install 'milr[ray]'.") from error
    return ray


# --- What runs on the workers --------------------------------------------------------------------------------------


class RemoteCritic:
    """A critic that lives in an actor of its own."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self.actor = name, actor

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        found: list[Score] = _ray().get(self.actor.score.remote(list(images), list(tasks)))
        return found


class CriticActor:
    """Judges for all workers; has no model."""

    def __init__(self, name: str, place: Place) -> None:
        self.critic = naming.make(name, None, place)

    def score(self, images: list[Image], tasks: list[Task]) -> list[Score]:
        return list(self.critic.score(images, tasks))


class Worker:
    """A model on one device, and the searches that it does side by side."""

    def __init__(
        self, model: str, device: str, dtype: str, batch: int | None, critics: Mapping[str, Any], place: Place = NOWHERE
    ) -> None:
        import torch

        from milr.backbones import load

        if not torch.cuda.is_available():
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as many workers as cores
        self.backbone = load(model, device=device, dtype=dtype)
        self.batch, self.place = batch or searches_at_once(self.backbone), place
        self.critics: dict[str, Any] = {name: RemoteCritic(name, actor) for name, actor in critics.items()}
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.said: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self.acknowledged: queue.Queue[None] = queue.Queue()

    def identity(self) -> dict[str, str]:
        return dict(Local(self.backbone).identity())

    def machine(self) -> dict[str, Any]:
        return machine_of(self.backbone, self.batch)

    def process(self) -> int:
        return os.getpid()

    def feed(self, jobs: Sequence[Job], more: bool) -> None:
        """Jobs to do; `more` says whether others may follow."""
        for job in jobs:
            self.jobs.put(job)
        if not more:
            self.jobs.put(None)

    def acknowledge(self) -> None:
        """What was said last is on disk, and the next jobs are here."""
        self.acknowledged.put(None)

    def work(self, method: Method, terms: Terms) -> Iterator[tuple[str, Any]]:
        """Do jobs until there are none. Yields ('drafts', ...) after each round and ('outcome', ...) for each end, and
        the searches go on only when that is acknowledged."""
        thread = threading.Thread(target=self._loop, args=(method, terms), daemon=True)
        thread.start()
        while (said := self.said.get()) is not None:
            yield said
        thread.join()

    def _loop(self, method: Method, terms: Terms) -> None:
        drafts: Drafts = []

        def hear(event: Event) -> None:
            if isinstance(event, DraftScored) and not event.recorded:
                drafts.append((event.task.id, event.seed_index, event.draft))
            elif isinstance(event, RoundEnded) and drafts:
                self._say("drafts", list(drafts))
                drafts.clear()

        try:
            critic, *held_out = critics_of(terms, self.backbone, self.critics, self.place)
            jobs = iter(self.jobs.get, None)
            for trajectory in search_jobs(self.backbone, critic, held_out, method, terms, jobs, self.batch, hear):
                self._say("outcome", outcome_of(method, trajectory))
        except Exception as error:
            self.said.put(("error", error))
        finally:
            self.said.put(None)

    def _say(self, kind: str, what: Any) -> None:
        self.said.put((kind, what))
        self.acknowledged.get()


# --- The head -------------------------------------------------------------------------------------------------------


@dataclass
class _Slot:
    """A worker, what it says, and the jobs that it holds, with their drafts on record so far."""

    actor: Any
    stream: Any = None
    was_told_all: bool = False  # that no more jobs come: said once in a stream, or the next one would end at once
    held: dict[tuple[str, int], Job] = field(default_factory=dict)


class Cluster:
    """Draws on all devices of a Ray cluster. Use it as a context manager: it lets go of the workers at the end."""

    def __init__(
        self,
        model: str,
        terms: Terms,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch: int | None = None,
        workers: int | None = None,
        address: str | None = None,
        place: Place = NOWHERE,
    ) -> None:
        """Join the cluster at `address` (None: the one of RAY_ADDRESS or one that runs here, 'local': a new one on
        this machine), and start `workers` of them (None: one a GPU, else one a CPU)."""
        self.ray = _ray()
        self.model, self.device, self.dtype, self.batch = model, device, dtype, batch
        self.place = replace(place, folder=None)  # a folder of this machine is not there on another
        if not self.ray.is_initialized():
            self.ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.each = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        count = workers or gpus or int(resources.get("CPU", 1))
        critic = self.ray.remote(CriticActor)
        self.critics = {
            name: critic.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(name, self.place)
            for name in terms.critics
            if naming.stands_alone(name)
        }
        self.losses_left = LOSSES * count
        self.slots = [_Slot(self._hire()) for _ in range(count)]
        self._identity: dict[str, str] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            self.ray.kill(slot.actor)
        for actor in self.critics.values():
            self.ray.kill(actor)

    def identity(self) -> Mapping[str, str]:
        if not self._identity:
            try:
                found = self.ray.get([slot.actor.identity.remote() for slot in self.slots])
            except self.ray.exceptions.RayTaskError as error:  # what went wrong in a worker, e.g. no such model
                raise error.cause from error
            except self.ray.exceptions.RayActorError as error:
                raise UserError(f"A worker could not be started: {str(error).splitlines()[0]}") from error
            for other in found[1:]:
                self._check(found[0], other)
            self._identity = found[0]
        return self._identity

    def machine(self) -> Mapping[str, Any]:
        """That of the first worker; all have the same model and number format (see `identity`)."""
        self.identity()
        found: Mapping[str, Any] = self.ray.get(self.slots[0].actor.machine.remote())
        return {**found, "workers": len(self.slots)}

    def processes(self) -> list[int]:
        """The process ids of the workers."""
        return list(self.ray.get([slot.actor.process.remote() for slot in self.slots]))

    def run(self, method: Method, terms: Terms, jobs: Iterator[Job], keeper: Keeper) -> None:
        """See `Executor`."""
        waiting = deque(jobs)
        for slot in self.slots:
            self._start(slot, method, terms, waiting)
        while working := {slot.stream: slot for slot in self.slots if slot.stream is not None}:
            (ready, *_), _ = self.ray.wait(list(working), num_returns=1)
            slot = working[ready]
            try:
                kind, what = self.ray.get(next(ready))
            except StopIteration:
                slot.stream = None
            except self.ray.exceptions.RayActorError:
                self._replace(slot, waiting)
            else:
                self._heard(slot, kind, what, waiting, keeper)
            for idle in self.slots:  # a lost worker's jobs may have come back
                if idle.stream is None and waiting:
                    self._start(idle, method, terms, waiting)

    def _start(self, slot: _Slot, method: Method, terms: Terms, waiting: deque[Job]) -> None:
        if waiting:
            slot.was_told_all = False
            self._feed(slot, waiting, self.batch or SEARCHES_AT_ONCE)
            slot.stream = slot.actor.work.options(num_returns="streaming").remote(method, terms)

    def _feed(self, slot: _Slot, waiting: deque[Job], most: int) -> None:
        """Hand out up to so many jobs, and say once when there are no more."""
        if slot.was_told_all:
            return
        given = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        slot.held |= {(job.task.id, job.seed_index): job for job in given}
        slot.was_told_all = len(given) < most
        slot.actor.feed.remote(given, more=not slot.was_told_all)

    def _heard(self, slot: _Slot, kind: str, what: Any, waiting: deque[Job], keeper: Keeper) -> None:
        if kind == "error":
            raise what
        if kind == "drafts":
            for task, seed_index, draft in what:
                keeper.add_draft(task, seed_index, draft)
                job = slot.held[task, seed_index]
                # A draft drawn anew takes the place of those on record from its number on.
                slot.held[task, seed_index] = replace(job, recorded=(*job.recorded[: draft.number], draft))
            keeper.sync()
        else:
            keeper.keep(what)
            del slot.held[what.task, what.seed_index]
            self._feed(slot, waiting, 1)
        slot.actor.acknowledge.remote()

    def _replace(self, slot: _Slot, waiting: deque[Job]) -> None:
        """A worker is gone: its jobs are first in the queue again, and another takes its place."""
        waiting.extendleft(reversed(slot.held.values()))
        self.losses_left -= 1
        if self.losses_left < 0:
            raise UserError("Workers are lost again and again; see Ray's logs for why, then run the same again.")
        slot.actor, slot.stream, slot.held = self._hire(), None, {}
        self._check(self._identity, self.ray.get(slot.actor.identity.remote()))

    def _hire(self) -> Any:
        worker = self.ray.remote(Worker).options(max_concurrency=4, **self.each)
        return worker.remote(self.model, self.device, self.dtype, self.batch, self.critics, self.place)

    @staticmethod
    def _check(known: Mapping[str, str], other: Mapping[str, str]) -> None:
        differs = next((key for key, value in known.items() if other.get(key) != value), None)
        if differs is not None:
            raise UserError(
                f"Workers have another {differs} ({known[differs]} and {other.get(differs)}); install the same model "
                "and the same milr on every machine."
            )
