"""Many devices and machines: one worker a device with its own model, prompts handed out one by one, one journal writer.

Built on Ray (`pip install milr[ray]`). The process that runs `milr bench --executor ray` is the head: it alone writes
the journal. Everything else is an actor, and answers one question at a time:

    worker   hello -> its process; load -> the model's identity; begin(method) and go_on(jobs) -> what it `Said`
    critic   score(pictures) -> scores; only critics without a model, several of each: they are shared by all workers
    till     what judges over HTTP cost, and the replies that were paid for (`milr.critics.remote.purse`)

A worker draws as many searches side by side as fit. After every round, and as a search ends, it says so together with
how many more jobs it has room for, and goes on when the head has that on disk and sends `go_on`, with jobs or without.
So a worker that has searches under way never waits for jobs, and one that has none waits for nothing else.

The head waits for whoever answers first, never for one alone. The answer of a worker that is lost is an error: its jobs
go to the others, with their drafts on record, and another worker is asked for. Until that is placed, loaded and found
to be of the same model, it is one more pending answer; where no machine has room for it, it stays one. A critic that
is lost comes back elsewhere (Ray restarts it) and is asked again. A critic with a model of its own, or with the
drawing one, sits in each worker.

Nothing here decides a result: a draft depends on its order alone, so the run ends as on one machine (up to ties between
floats). Ray passes Python objects between its own processes; use it in a network that you trust, as Ray says itself.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from milr.critics import naming
from milr.critics.base import NOWHERE, Place
from milr.critics.remote import chat
from milr.drafts import Draft, UserError
from milr.registry import shorten
from milr.runs.bench import (
    Keeper,
    Local,
    Terms,
    critics_of,
    machine_of,
    outcome_of,
    search_jobs,
    searches_at_once,
)
from milr.runs.journal import Beside, Outcome, Picture, encode, put_in_order
from milr.runs.methods import Method
from milr.runs.shared import (
    ANSWERED,
    PATIENCE,
    CriticActor,
    RemoteCritic,
    RemoteTill,
    TillActor,
    import_ray,
    result_of,
)
from milr.searches.driver import DraftScored, DraftsDrawn, Event, Job, RoundEnded

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSES = 3  # times in a row that a worker may be lost before it has brought a draft; then it is not replaced
NO_DEVICE = 30.0  # the same where no machine that is left has such a device at all
GRACE = 5.0  # seconds in which the others may end their round when an error ends the run
REACHED = 5.0  # seconds in which a cluster's address must take a connection
CRITICS = 4  # actors of one critic for each worker, as far as there are CPUs

# Task id, seed index, the draft without its image, and that as PNG: encoding is the worker's work.
Drafts = Sequence[tuple[str, int, Draft, Picture]]


# --- What runs on the workers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a worker says: the drafts of a round or a search that ended, and for how many more jobs it has room."""

    room: int
    drafts: Drafts = ()
    outcome: Outcome | None = None


class _Over(Exception):
    """The worker's searches are no longer wanted."""


class Worker:
    """A model on one device, and the searches that it does side by side, in a thread of their own."""

    def __init__(
        self, model: str, device: str, dtype: str, batch: int | None, critics: Mapping[str, Any], place: Place = NOWHERE
    ) -> None:
        self.model, self.device, self.dtype, self.batch, self.place = model, device, dtype, batch or 0, place
        self.critics: dict[str, Any] = {name: RemoteCritic(name, actors) for name, actors in critics.items()}
        self.backbone: Any = None
        self.thread: threading.Thread | None = None
        self.given: deque[Job] = deque()  # not yet begun
        self.running = 0  # searches that are begun and have not ended
        self.said: queue.Queue[Said | Exception] = queue.Queue()
        self.told: queue.Queue[Sequence[Job] | None] = queue.Queue()
        self.pictures = Beside(encode)

    def hello(self) -> int:
        """The process, as soon as the worker has a place."""
        return os.getpid()

    def load(self) -> tuple[dict[str, str], dict[str, Any]]:
        """The identity of the model and its machine (see `Executor`), once it is loaded."""
        import torch

        from milr.backbones import load

        if not torch.cuda.is_available():
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as many workers as cores
        self.backbone = load(self.model, device=self.device, dtype=self.dtype)
        self.batch = self.batch or searches_at_once(self.backbone)
        return dict(Local(self.backbone).identity()), machine_of(self.backbone, self.batch)

    def begin(self, method: Method, terms: Terms) -> Said:
        """Be ready for jobs of this method, and say for how many."""
        if self.thread is not None:
            self.told.put(None)
            self.thread.join()
        self.given.clear()
        self.running = 0
        self.thread = threading.Thread(target=self._draw, args=(method, terms), daemon=True)
        self.thread.start()
        return self._next_word()

    def go_on(self, jobs: Sequence[Job]) -> Said:
        """What was said last is on disk, and here are more jobs, perhaps none. Returns what is said next."""
        self.told.put(jobs)
        return self._next_word()

    def _next_word(self) -> Said:
        said = self.said.get()
        if isinstance(said, Exception):
            raise said
        return said

    def _draw(self, method: Method, terms: Terms) -> None:
        drafts: list[tuple[str, int, Draft, Future[Picture]]] = []

        def hear(event: Event) -> None:
            if isinstance(event, DraftsDrawn):
                for image in event.images:
                    self.pictures.foresee(image)
            elif isinstance(event, DraftScored) and not event.recorded:
                encoded = self.pictures.wanted(event.draft.drawn.image)
                drafts.append((event.task.id, event.seed_index, _with_image(event.draft, None), encoded))
            elif isinstance(event, RoundEnded) and drafts:
                said = [(task, seed_index, draft, encoded.result()) for task, seed_index, draft, encoded in drafts]
                drafts.clear()
                self._say(drafts=said)

        try:
            for one in self.critics.values():
                if isinstance(one, RemoteCritic):
                    one.prepare()
            critic, *held_out = critics_of(terms, self.backbone, self.critics, self.place)
            for trajectory in search_jobs(
                self.backbone, critic, held_out, method, terms, self._jobs(), self.batch, hear
            ):
                self.running -= 1
                self._say(outcome=outcome_of(method, trajectory))
        except _Over:
            pass
        except Exception as error:
            self.said.put(error)
        except BaseException as error:  # it must not leave the head waiting
            self.said.put(RuntimeError(f"a worker's searches were ended by {type(error).__name__}"))

    def _jobs(self) -> Iterator[Job | None]:
        """Jobs as they are given; None, which the driver takes for "none now", while others are under way."""
        while True:
            if self.given:
                self.running += 1
                yield self.given.popleft()
            elif self.running:
                yield None
            else:
                self._say()

    def _say(self, drafts: Drafts = (), outcome: Outcome | None = None) -> None:
        """Say it, and wait until it is on disk and the head sends us on."""
        self.said.put(Said(self.batch - self.running - len(self.given), drafts, outcome))
        jobs = self.told.get()
        if jobs is None:
            raise _Over
        self.given.extend(jobs)


# --- The head -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Slot:
    """One of the workers that were asked for, and those that take its place.

    `answer` is the call that is pending, None for a worker that has nothing to do, and for a slot that is given up.
    """

    actor: Any = None
    client: str = ""  # what the till calls it
    answer: Any = None
    stage: Literal["placing", "loading", "ready", "given up"] = "placing"
    begun: tuple[Method, Terms] | None = None
    room: int = 0
    held: dict[tuple[str, int], Job] = field(default_factory=dict)  # jobs, with their drafts on record so far
    losses: int = 0  # since it brought a draft


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
        this machine), and ask for `workers` of them (None: one a GPU, else one a CPU). Raises UserError where nothing
        answers there."""
        self.ray = import_ray()
        if not self.ray.is_initialized():
            _join(self.ray, address)
        resources = self.ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.each = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        count = workers or gpus or cpus
        self.folder = None if place.folder is None else place.folder.resolve()
        self.place = place
        self.till = None if self.folder is None and place.max_judge_cost is None else self._open_till()
        self.critics = {name: self._pool(name, count, cpus) for name in terms.critics if naming.stands_alone(name)}
        self.model = (model, device, dtype, batch)
        self.slots = [_Slot() for _ in range(count)]
        for slot in self.slots:
            self._hire(slot)
        self._identity: dict[str, str] = {}
        self._machine: dict[str, Any] = {}
        self._waiting: deque[Job] = deque()
        self._last_placed = time.monotonic()  # when some worker was last seen to have a place

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        pools = itertools.chain.from_iterable(self.critics.values())
        till = [] if self.till is None else [self.till]
        for actor in [*(slot.actor for slot in self.slots if slot.actor is not None), *pools, *till]:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor)
        if self.folder is not None:
            with contextlib.suppress(UserError):  # the next run will say so
                chat.PURSE.open(self.folder)  # what was spent here counts in the next run of this process

    def identity(self) -> Mapping[str, str]:
        """Of the first worker that is ready; the others are compared with it when they are."""
        while not self._identity:
            self._hear()
        return self._identity

    def machine(self) -> Mapping[str, Any]:
        """That of the first worker; all have the same model and number format (see `identity`)."""
        self.identity()
        return {**self._machine, "workers": len(self.slots)}

    def run(self, method: Method, terms: Terms, jobs: Iterator[Job], keeper: Keeper) -> None:
        """See `Executor`."""
        self._waiting.clear()
        try:
            while len(keeper.finished) < keeper.searches:
                for slot in self.slots:
                    if slot.stage == "ready" and slot.answer is None:
                        self._send_on(slot, (method, terms), jobs, keeper)
                self._hear(keeper)
        except UserError:
            self._hear_the_rest(keeper)
            raise

    # What the head hears

    def _hear(self, keeper: Keeper | None = None) -> None:
        """Take in the next answer, whose ever it is; return within a second where none comes. Raises UserError where
        no worker is left."""
        answers = {slot.answer: slot for slot in self.slots if slot.answer is not None}
        if not answers:
            raise UserError(
                "Every worker was lost several times before it brought a draft; see Ray's logs for why (the machines' "
                "memory, as a rule), then run the same again: it goes on from what is on record."
            )
        if any(slot.stage in ("loading", "ready") for slot in answers.values()):
            self._last_placed = time.monotonic()
        else:
            self._look_for_room()
        ready, _ = self.ray.wait(list(answers), num_returns=1, timeout=1.0)
        if ready:
            self._take_in(answers[ready[0]], keeper)

    def _look_for_room(self) -> None:
        """No worker has a place. Raises UserError once that has lasted for too long."""
        wanted = "GPU" if "num_gpus" in self.each else "CPU"
        waited = time.monotonic() - self._last_placed
        is_there = waited <= NO_DEVICE or self.ray.cluster_resources().get(wanted, 0) >= 1
        if waited > (PATIENCE if is_there else NO_DEVICE):
            raise UserError(
                f"No machine of the Ray cluster has had a free {wanted} for a worker for {waited:.0f} seconds; see "
                "'ray status', start machines or end what holds them, then run the same again: it goes on from what "
                "is on record."
            )

    def _take_in(self, slot: _Slot, keeper: Keeper | None) -> None:
        answer, slot.answer = slot.answer, None
        try:
            found = result_of(answer, timeout=PATIENCE)  # it is here; the limit is for what Ray may think of
        except UserError:
            raise
        except Exception as error:
            # Its process, its node or what it said is gone; a RayTaskError is an error in it that cannot travel.
            is_gone = isinstance(error, self.ray.exceptions.RayError)
            is_gone = is_gone and not isinstance(error, self.ray.exceptions.RayTaskError)
            if not is_gone and slot.stage != "loading":
                raise
            self._lose(slot, error)  # a GPU's memory may still be held by a worker that was lost
            return
        if slot.stage == "placing":
            slot.stage, slot.answer = "loading", slot.actor.load.remote()
        elif slot.stage == "loading":
            identity, machine = found
            self._identity, self._machine = self._identity or identity, self._machine or machine
            _check(self._identity, identity)
            slot.stage = "ready"
        elif keeper is not None:
            self._keep(slot, found, keeper)

    def _keep(self, slot: _Slot, said: Said, keeper: Keeper) -> None:
        slot.room = said.room
        for task, seed_index, bare, picture in said.drafts:
            slot.losses = 0
            draft = _with_image(bare, picture.open())
            keeper.add_draft(task, seed_index, draft, picture)
            recorded = slot.held[task, seed_index].recorded
            assert isinstance(recorded, list), "see `_send_on`"
            put_in_order(recorded, draft.number, draft, _is_there(draft, recorded))
        if said.drafts:
            keeper.sync()
        if said.outcome is not None:
            keeper.keep(said.outcome)
            del slot.held[said.outcome.task, said.outcome.seed_index]

    def _hear_the_rest(self, keeper: Keeper) -> None:
        """An error ends the run: keep the rounds of the others that end soon."""
        ends = time.monotonic() + GRACE
        while busy := {slot.answer: slot for slot in self.slots if slot.answer is not None and slot.held}:
            ready, _ = self.ray.wait(list(busy), num_returns=1, timeout=max(0.0, ends - time.monotonic()))
            if not ready:
                return
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._take_in(busy[ready[0]], keeper)

    def _lose(self, slot: _Slot, why: Exception) -> None:
        """A worker is gone: its jobs are first in the queue again, and another is asked for."""
        self._waiting.extendleft(reversed(slot.held.values()))
        slot.held = {}
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(slot.actor)  # where it is only out of reach, it must not hold its device
        if self.till is not None:
            self.till.lost.remote(slot.client)
        slot.losses += 1
        if slot.losses <= LOSSES:
            self._hire(slot)
            return
        slot.actor, slot.stage = None, "given up"
        if all(other.stage == "given up" for other in self.slots) and not isinstance(why, self.ray.exceptions.RayError):
            raise why  # no worker can load the model

    # What the head says

    def _send_on(self, slot: _Slot, work: tuple[Method, Terms], jobs: Iterator[Job], keeper: Keeper) -> None:
        """Tell a worker that waits what to do next, if there is anything."""
        if slot.begun != work:
            slot.begun, slot.room = work, 0
            slot.answer = slot.actor.begin.remote(*work)
            return
        # No more than its share, so that the last jobs do not all lie with one while others have none.
        there = sum(other.stage != "given up" for other in self.slots)
        to_do = keeper.searches - len(keeper.finished) - sum(len(other.held) for other in self.slots)
        given = list(itertools.islice(self._next_jobs(jobs), min(slot.room, -(-to_do // there))))
        if given or slot.held:
            # A list of its own, which grows with every draft.
            held = [replace(job, recorded=list(job.recorded)) for job in given]
            slot.held |= {(job.task.id, job.seed_index): job for job in held}
            slot.answer = slot.actor.go_on.remote(given)

    def _next_jobs(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Those of lost workers, then new ones. One by one: a job may hold the pictures of its drafts on record."""
        while self._waiting:
            yield self._waiting.popleft()
        for job in jobs:  # noqa: UP028 - 'yield from' would close `jobs` with this generator
            yield job

    def _hire(self, slot: _Slot) -> None:
        worker = self.ray.remote(Worker).options(**self.each)
        slot.client = uuid.uuid4().hex
        slot.actor = worker.remote(*self.model, self.critics, self._place_for(slot.client))
        slot.stage, slot.begun, slot.answer = "placing", None, slot.actor.hello.remote()

    def _pool(self, name: str, workers: int, cpus: int) -> list[Any]:
        """The actors of a critic. One that only waits for a server is one, so that its 'concurrency' is what it says,
        and serves all workers at once; others judge side by side on all CPUs."""
        waits = naming.waits(name)
        actor = self.ray.remote(CriticActor).options(
            num_cpus=0, max_restarts=-1, max_concurrency=workers + 4, scheduling_strategy="SPREAD"
        )
        many = 1 if waits else min(max(cpus, 1), CRITICS * workers)
        return [actor.remote(name, self._place_for(f"{name} {number}"), waits) for number in range(many)]

    def _open_till(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        till = self.ray.remote(TillActor).options(
            num_cpus=0, max_concurrency=8, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        elsewhere = chat.PURSE.spent if self.folder is None else chat.PURSE.spent_elsewhere(self.folder)
        return till.remote(self.folder, elsewhere)

    def _place_for(self, client: str) -> Place:
        """Where an actor works: the folder is not there on other machines, the till stands for it."""
        return replace(self.place, folder=None, till=self.till and RemoteTill(self.till, client))


def _with_image(draft: Draft, image: Image | None) -> Draft:
    """The draft with another image; None for the way between two processes, on which the image goes as PNG."""
    return replace(draft, drawn=replace(draft.drawn, image=cast("Image", image)))


def _is_there(draft: Draft, recorded: Sequence[Draft]) -> bool:
    """Whether this very picture is on record under its number (then it was judged again, not drawn again)."""
    if draft.number >= len(recorded):
        return False
    drawn, before = draft.drawn, recorded[draft.number].drawn
    return (drawn.text_tokens, drawn.image_tokens) == (before.text_tokens, before.image_tokens)


def _check(known: Mapping[str, str], other: Mapping[str, str]) -> None:
    differs = next((key for key, value in known.items() if other.get(key) != value), None)
    if differs is not None:
        raise UserError(
            f"Workers have another {differs} ({known[differs]} and {other.get(differs)}); install the same model "
            "and the same milr on every machine."
        )


# --- Joining a cluster ----------------------------------------------------------------------------------------------


def _join(ray: Any, address: str | None) -> None:
    """`ray.init`, which by itself tries a dead address for minutes without a word. Raises UserError."""
    asked = address or os.environ.get("RAY_ADDRESS", "") or None
    if asked != "local":
        found = _find(asked)
        if found is not None and (silence := _silence(found)) is not None:
            if asked is not None:
                raise UserError(_no_ray(f"at {shorten(found)} ({silence})", asked, address))
            found = None  # a cluster of before, of which Ray's note is left
        if found is None and asked is not None:
            raise UserError(_no_ray("on this machine", asked, address))
        address = found or "local"
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"Cannot join the Ray cluster at {shorten(address or 'local')}: {said}") from error


def _no_ray(where: str, asked: str, option: str | None) -> str:
    is_set = option in (None, "", "auto") and os.environ.get("RAY_ADDRESS")  # Ray, too, puts it above 'auto'
    variable = " (the variable RAY_ADDRESS says where)" if is_set else ""
    return (
        f"No Ray cluster answers {where}, asked for as '{shorten(asked)}'{variable}; start one ('ray start --head'), "
        "give its HOST:PORT, or --address local for a new one on this machine."
    )


def _find(asked: str | None) -> str | None:
    """HOST:PORT of the cluster that is asked for, None where there is none. Raises UserError for what is no address."""
    services: Any = importlib.import_module("ray._private.services")
    if asked is not None and "://" in asked:
        raise UserError(
            f"'{shorten(asked)}' is an address of Ray's client; milr writes its run on a machine of the cluster: start "
            "it there, with --address auto."
        )
    try:
        found: str | None = services.canonicalize_bootstrap_address(asked)
    except ConnectionError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(
            f"'{shorten(asked or '')}' is no address of a Ray cluster; give HOST:PORT (6379 as a rule), auto or local."
        ) from error
    return found


def _silence(address: str) -> str | None:
    """Why nothing that is Ray answers at HOST:PORT; None where it does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(getattr(error, "strerror", None) or error)
    answered = threading.Event()

    def ask() -> None:
        raylet: Any = importlib.import_module("ray._raylet")
        with contextlib.suppress(Exception):
            raylet.GcsClient(address=address)
            answered.set()

    threading.Thread(target=ask, daemon=True).start()  # it tries for longer than one would wait, and cannot be told
    return None if answered.wait(ANSWERED) else "something listens there, but it does not speak Ray's language"
