"""One call from prompts to results: look up the parts by name, check everything, search, write.

`prepare` does all that can go wrong without a model, so that a mistake is found before ten gigabytes are loaded.
`run` does the rest. The command line and `milr.generate` both come through here.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milr import registry
from milr.critics import naming
from milr.critics.base import NOWHERE, Place
from milr.drafts import Draft, Score, Task, Trajectory, UserError
from milr.runs.output import Folder, claim
from milr.runs.record import to_record

if TYPE_CHECKING:
    from PIL.Image import Image

    from milr.backbones.base import Backbone
    from milr.critics.base import Critic
    from milr.searches.driver import Event

MAX_PROMPT_CHARACTERS = 4000
MAX_BUDGET = 10_000
PROMPTS_AT_ONCE = 16  # searches side by side; a result does not depend on it
FALLBACK_CRITIC = "self"
LAB = "lab"


@dataclass(frozen=True)
class Request:
    """What to do with a prompt: everything that decides a result, but the model and the prompt.

    `reward` and `held_out` name critics (or are some); None is 'scene' for the embedded model and 'self' for others.
    `settings` are those of the search, as text (`--set`) or values; they win over `preset`. `width` is how many drafts
    the search asks for at once: a number, 'auto' for as many as the model draws here in less than twice the time of one
    (where the search has that setting and `settings` do not say it), None for what the settings say.
    """

    search: str = "repair"
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reward: str | Critic | None = None
    held_out: Sequence[str | Critic] = ()
    budget: int = 20
    threshold: float = 1.0
    seed: int = 0
    width: int | str | None = None


@dataclass(frozen=True)
class Plan:
    """A request whose every word has been checked, with the search and its settings at hand. `preset` is the name of
    the settings but for their width, `finds_width` whether the width is left to the model and the machine."""

    request: Request
    search: Callable[..., Any]
    settings: Any
    preset: str | None
    reward: Critic | naming.Named | None
    held_out: tuple[Critic | naming.Named, ...]
    finds_width: bool = False


@dataclass(frozen=True)
class Result:
    """What came out for one prompt. `trajectory` holds every draft; the rest is read off it.

    `folder` is where it was written, if it was; `save` writes it later.
    """

    trajectory: Trajectory
    record: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    @property
    def best(self) -> Draft:
        return self.trajectory.best_draft

    @property
    def image(self) -> Image:
        return self.best.drawn.image

    @property
    def prompt(self) -> str:
        return self.trajectory.task.prompt

    @property
    def reasoning(self) -> str:
        return self.best.drawn.reasoning

    @property
    def reward(self) -> float | None:
        return self.best.reward

    @property
    def held_out(self) -> Mapping[str, Score]:
        return self.trajectory.held_out

    @property
    def notes(self) -> tuple[str, ...]:
        return self.trajectory.notes

    @property
    def width(self) -> int:
        """How many drafts the search asked for at once."""
        return int(self.trajectory.settings.get("width", 1))

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False, mark: bool = True) -> Path:
        """Write image.png, drafts/, trajectory.json and trajectory.html into an empty (or new) folder. With `mark` the
        pictures say in their XMP that a model made them."""
        claimed = replace(claim(Path(folder), overwrite), marks=mark)
        self.write(claimed)
        return claimed.path

    def write(self, folder: Folder) -> None:
        """`save`, into a folder that is claimed already."""
        folder.save_result(self.record, [draft.drawn.image for draft in self.trajectory.drafts])

    def to_json(self) -> dict[str, Any]:
        """The object that `milr generate --json` prints. Paths are None where nothing was written."""
        folder = None if self.folder is None else Folder(self.folder)
        cost = self.trajectory.cost
        return {
            "prompt": self.prompt,
            "reasoning": self.reasoning,
            "reward": self.reward,
            "critic": self.trajectory.critic,
            "held_out": {name: score.value for name, score in self.held_out.items()},
            "calls": cost.reward_calls,
            "decoded_tokens": cost.decoded_tokens,
            "passes": cost.passes,
            "evaluations": cost.evaluations,
            "work": cost.work,
            "seconds": round(cost.seconds, 3),
            "critic_seconds": round(cost.critic_seconds, 3),
            "search_seconds": round(cost.search_seconds, 3),
            "seed": self.trajectory.seed,
            "model": self.trajectory.model,
            "search": self.trajectory.search,
            "preset": self.record["preset"],
            "width": self.width,
            "stopped": self.trajectory.stopped,
            "notes": list(self.notes),
            "image": None if folder is None else str(folder.image),
            "trajectory": None if folder is None else str(folder.trajectory),
            "page": None if folder is None else str(folder.page),
        }


def generate(
    model: Backbone | str,
    prompt: str,
    *,
    search: str = "repair",
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    reward: str | Critic | None = None,
    held_out: Sequence[str | Critic] = (),
    budget: int = 20,
    threshold: float = 1.0,
    seed: int = 0,
    width: int | str | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    mark: bool = True,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Draw `prompt` and search for a better picture within the budget. The same as `milr generate`, in Python.

    Args:
        model: what `milr.load` returned, or a name to load.
        search, preset, settings: the strategy, one of its named settings, and single settings that win over it.
        reward: the critic that the search climbs, by name or as an object; None: 'scene' for the embedded model,
            'self' for others. held_out: critics that score the chosen image afterwards and are never climbed.
        budget: reward calls, the first draft included. threshold: stop at this reward.
        seed: the same seed, prompt, model and width give the same drafts, whatever else is drawn beside them.
        width: drafts that the search asks for at once, 'auto' as the command does; None is what its settings say (1).
        out: folder to write image, drafts, record and page into; None writes nothing.
        mark: let the written pictures say in their XMP that a model made them.
        on_event: hears Started, DraftScored and Finished (milr.searches.driver) as they happen.
    Raises UserError for whatever the caller can put right.
    """
    plan = prepare(
        Request(
            search=search,
            preset=preset,
            settings=settings or {},
            reward=reward,
            held_out=held_out,
            budget=budget,
            threshold=threshold,
            seed=seed,
            width=width,
        )
    )
    (task,) = tasks_of([prompt])
    folder = None if out is None else replace(claim(Path(out), overwrite), marks=mark)
    try:
        if isinstance(model, str):
            from milr.backbones import load

            model = load(model)
        (result,) = run(model, plan, [task], {} if folder is None else {task.id: folder}, on_event)
    except BaseException:
        if folder is not None:
            folder.release()
        raise
    return result


def prepare(request: Request) -> Plan:
    """Check every name and number, and import the search. UserError says what to put right. No model is loaded."""
    check_numbers(request)
    search = registry.find("search", request.search)
    reward = None if request.reward is None else _named(request.reward)
    held_out = tuple(_named(critic) for critic in request.held_out)
    meant = [_meant(critic) for critic in held_out]
    if reward is not None and _meant(reward) in meant:
        raise UserError(f"'{reward.name}' is the reward, so it cannot be held out; name another critic.")
    if any(one in meant[:number] for number, one in enumerate(meant)):
        raise UserError("A held-out critic is named twice; name each once.")

    from milr.settings import find_preset, preset_name, settings_from

    module = registry.load(search)
    chosen = None if request.preset is None else find_preset(module.PRESETS, request.preset)
    texts = {key: value if isinstance(value, str) else str(value) for key, value in request.settings.items()}
    settings = settings_from(module.SETTINGS, chosen, texts)
    preset = preset_name(module.PRESETS, replace(settings, width=1) if hasattr(settings, "width") else settings)
    said = any(key.strip() == "width" for key in request.settings)
    if isinstance(request.width, int):
        settings = _with_width(request.search, settings, request.width, said)
    return Plan(
        request=request,
        search=module.search,
        settings=settings,
        preset=preset,
        reward=reward,
        held_out=held_out,
        finds_width=request.width == "auto" and not said and hasattr(settings, "width"),
    )


def _with_width(search: str, settings: Any, width: int, said: bool) -> Any:
    """The settings with this width. UserError where the search has none, or its settings say another."""
    known = getattr(settings, "width", 1)
    if said and known != width:
        raise UserError(f"The width is {known} in the settings and {width} beside them; say it once.")
    if width != 1 and not hasattr(settings, "width"):
        raise UserError(f"The search '{search}' asks for one draft at a time; leave the width out.")
    return replace(settings, width=width) if hasattr(settings, "width") else settings


def with_good_width(plan: Plan, backbone: Backbone) -> Plan:
    """The plan with the width that this model has on this machine, where that was left open."""
    if not plan.finds_width:
        return plan
    from milr.backbones import speed

    width = speed.good_width(backbone)
    return replace(plan, settings=replace(plan.settings, width=width), finds_width=False)


def check_prompt(prompt: str) -> str:
    """The prompt itself, if it can be drawn."""
    if not prompt.strip():
        raise UserError('The prompt is empty; say what to draw, e.g. milr generate "two red foxes above a blue car".')
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read, so shorten it."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("The prompt is not valid UTF-8 text; check the encoding of your terminal or file.") from error
    return prompt


def tasks_of(prompts: Sequence[str]) -> list[Task]:
    """One task a prompt. The id comes from the prompt alone, so its drafts are the same in any company."""
    seen: dict[str, int] = {}
    tasks = []
    for prompt in prompts:
        name = hashlib.sha256(check_prompt(prompt).encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        tasks.append(Task(prompt, id=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return tasks


def run(
    backbone: Backbone,
    plan: Plan,
    tasks: Sequence[Task],
    folders: Mapping[str, Folder],
    on_event: Callable[[Event], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    place: Place = NOWHERE,
) -> Iterator[Result]:
    """Search every task and yield the results as they are done; drafts go to the task's folder as they are scored.

    `on_note` hears at once what a user should know before waiting; every note is in its result, too.
    On Ctrl-C, what there is of each search is written and yielded (stopped: 'interrupted') before KeyboardInterrupt
    goes on its way.
    """
    from milr.searches.driver import DraftScored, Interrupted, Started, drive_lazily

    def hear(event: Event) -> None:
        if isinstance(event, Started) and event.task.id in folders:
            folders[event.task.id].clear()
        if isinstance(event, DraftScored) and event.task.id in folders:
            folders[event.task.id].save_draft(event.draft)
        if on_event is not None:
            on_event(event)

    def finish(trajectory: Trajectory, notes: tuple[str, ...]) -> Result:
        trajectory = replace(trajectory, notes=(*notes, *trajectory.notes))
        folder = folders.get(trajectory.task.id)
        record = to_record(trajectory, backbone, plan.preset)
        result = Result(trajectory, record, None if folder is None else folder.path)
        if folder is not None:
            result.write(folder)
        return result

    plan = with_good_width(plan, backbone)
    request = plan.request
    held_out = [_make(critic, backbone, place) for critic in plan.held_out]
    for critic, notes, judged in _critics_for(backbone, plan, tasks, place):
        for note in dict.fromkeys(note for task in judged for note in notes[task.id]):
            on_note(note)
        try:
            for trajectory in drive_lazily(
                backbone,
                critic,
                judged,
                plan.search,
                plan.settings,
                name=request.search,
                budget=request.budget,
                threshold=request.threshold,
                seed=request.seed,
                held_out=[other for other in held_out if other.name != critic.name],
                judge_first=False,  # nobody reads it here, and a judge may have its price
                batch=PROMPTS_AT_ONCE,
                on_event=hear,
            ):
                yield finish(trajectory, notes[trajectory.task.id])
        except Interrupted as stop:
            for trajectory in stop.trajectories:
                yield finish(trajectory, notes[trajectory.task.id])
            raise


Judged = tuple["Critic", dict[str, tuple[str, ...]], list[Task]]


def _critics_for(backbone: Backbone, plan: Plan, tasks: Sequence[Task], place: Place) -> list[Judged]:
    """Which critic judges which tasks: the chosen one, or `self` where that one cannot say anything of the prompt."""
    chosen = plan.reward
    if chosen is None:
        chosen = naming.find("scene" if backbone.info.name == LAB else FALLBACK_CRITIC)
    critic = _make(chosen, backbone, place)
    why_not = getattr(critic, "why_not", None)
    reasons = {task.id: why_not(task.prompt) if why_not is not None else None for task in tasks}
    groups: list[Judged] = []
    judged = [task for task in tasks if reasons[task.id] is None]
    if judged:
        groups.append((critic, {task.id: () for task in judged}, judged))
    others = [task for task in tasks if reasons[task.id] is not None]
    if others:
        fallback = naming.make(FALLBACK_CRITIC, backbone)
        notes = {task.id: _fallback_notes(critic.name, str(reasons[task.id]), backbone) for task in others}
        groups.append((fallback, notes, others))
    return groups


def _fallback_notes(critic: str, reason: str, backbone: Backbone) -> tuple[str, ...]:
    note = (
        f"The critic '{critic}' cannot judge this prompt ({reason.rstrip('.')}), "
        f"so '{FALLBACK_CRITIC}', the model's own answer, judges it."
    )
    if backbone.info.name != LAB:
        return (note,)
    from milr.lab.world import COLOURS, NOUNS

    return (
        f"{note} The embedded model only knows scenes of 1 to 4 emoji ({len(NOUNS)} nouns such as "
        f"{', '.join(NOUNS[:3])}; {len(COLOURS)} colours); for anything else use a real checkpoint: "
        "--model janus-pro-1b.",
    )


def _named(critic: str | Critic) -> Critic | naming.Named:
    """A critic by name, with settings that are checked; an object as it is."""
    if not isinstance(critic, str):
        return critic
    named = naming.find(critic)
    naming.settings_of(named)
    return named


def _meant(critic: Critic | naming.Named) -> object:
    """The same for two texts that mean one critic: 'judge' and 'judge:general'."""
    return (critic.part.name, naming.settings_of(critic)) if isinstance(critic, naming.Named) else critic.name


def _make(critic: Critic | naming.Named, backbone: Backbone, place: Place) -> Critic:
    return naming.make(critic, backbone, place) if isinstance(critic, naming.Named) else critic


def check_numbers(request: Request) -> None:
    """UserError for a budget, threshold, seed or width out of range."""
    budget, threshold, seed, width = request.budget, request.threshold, request.seed, request.width
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= MAX_BUDGET:
        raise UserError(f"The budget must be a whole number of reward calls from 1 to {MAX_BUDGET:,}, not {budget}.")
    if not isinstance(threshold, (int, float)) or not math.isfinite(threshold) or not 0 < threshold <= 1:
        raise UserError(f"The threshold must be a reward above 0 and up to 1, not {threshold}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"The seed must be a whole number from 0 to 2^63 - 1, not {seed}.")
    if width not in (None, "auto") and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise UserError(f"The width is auto or a whole number of drafts from 1 on, not {width!r:.60}.")
