"""Asks a model with eyes over HTTP: any server that speaks OpenAI's chat completions.

What the real world does to such requests ends here: limits of rate, hanging and broken servers, budgets, replies out
of order, keys that must not be seen. Knows no rubric and no score: `judge` and other critics ask through it. A question
that gets no reply has the reason in its place; `UserError` means that only the user can put it right.

Replies are kept by content, in the run's folder where there is one, so nothing is paid for twice. Neither the key nor
the picture is ever written.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from milr import network
from milr.critics.base import LEAST_SHARE, NOWHERE, Outage, Place, Secret, yes_share
from milr.critics.remote.purse import Cashier, Purse, Till
from milr.drafts import UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

PAID_KEY = "OPENAI_API_KEY"
PAID_URL = "https://api.openai.com/v1"
LARGEST_REPLY = 1 << 20  # bytes of a response; a verdict has some hundred
LONGEST_REASON = 200  # characters of a reason
AGAIN = {408, 409, 425, 429}  # and 5xx: what may go well a little later
ALTERNATIVES = 20  # of the first token, with their probabilities; the most that servers give

# What providers write where a status alone does not say what is wrong. In this order: an account that was "blocked for
# violating our policies" is no picture that was.
NO_CREDIT = re.compile(
    r"insufficient[ _-]?(quota|balance|credit|fund)|credit balance|(out of|no|not enough|available) credits?\b"
    r"|exceeded_current_quota|hard[ _]limit|payment required|arrear|overdue|top up|recharge",
    re.IGNORECASE,
)
ACCOUNT = re.compile(
    r"(account|organi[sz]ation|project|workspace|api[ _-]?key|token|user)\b.{0,40}\b"
    r"(suspend|disabl|deactivat|banned|blocked|revoked|expired|restricted|terminated)",
    re.IGNORECASE | re.DOTALL,
)
MODERATION = re.compile(
    r"moderat|flagged|content[ _-]?(filter|polic|management|safety|check)|safety|responsible[ _]?ai|inappropriate"
    r"|sensitive|harmful|prohibited|usage polic|data_?inspection|violat|nsfw|explicit|disallowed",
    re.IGNORECASE,
)
KEY = re.compile(
    r"api[ _-]?key|credential|unauthori[sz]ed|authenti|permission|access|forbidden|not authori[sz]ed|token|region"
    r"|country|territor|scope|role",
    re.IGNORECASE,
)
CUT = ("length", "max_tokens", "max_output_tokens", "model_length")  # words for a reply that ran into its limit
HELD_BACK = ("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii", "refusal")

Fault = Literal["", "away", "busy", "failing", "refused", "flagged", "cut"]
OUTAGES = ("away", "busy", "failing")


@dataclass(frozen=True)
class ChatSettings:
    """Settings of every critic that asks over HTTP."""

    model: str = setting("gpt-4o", "the server's name of the model")
    url: str = setting(PAID_URL, "address without /chat/completions, or $NAME: an environment variable with it")
    key: str = setting(PAID_KEY, "NAME of the environment variable that holds the key; none: send no key")
    timeout: float = setting(60.0, "seconds that one request may take", low=0.01, high=3600)
    attempts: int = setting(5, "requests in all until a question counts as unanswered", low=1, high=100)
    max_wait: float = setting(30.0, "longest wait before the next attempt, whatever the server asks for", low=0)
    concurrency: int = setting(8, "requests at once", low=1, high=256)
    schema: bool = setting(True, "send the form of the reply as response_format (some servers refuse it)")
    max_tokens: int = setting(1000, "longest reply", low=1, high=100_000)
    limit_name: Literal["max_tokens", "max_completion_tokens"] = setting(
        "max_tokens", "what the server calls that limit (OpenAI's reasoning models: max_completion_tokens)"
    )
    temperature: float | None = setting(0.0, "none: do not send it (OpenAI's reasoning models refuse 0)", low=0, high=2)
    price_in: float | None = setting(None, "US dollars per million tokens read (none: $MILR_PRICE_IN)", low=0)
    price_out: float | None = setting(None, "US dollars per million tokens written (none: $MILR_PRICE_OUT)", low=0)

    def __post_init__(self) -> None:
        check(self)
        # Keys have small letters: one that is put here by mistake must not be taken for a name, and then be shown.
        if self.key not in ("", "none") and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key):
            raise UserError(
                f"Setting 'key' is the NAME of an environment variable in capital letters (such as {PAID_KEY}), "
                "never the key itself."
            )
        if not re.fullmatch(r"\$[A-Za-z_]\w*", self.url):
            _refuse_address(self.url)

    def prices(self) -> tuple[float | None, float | None] | None:
        """US dollars per million tokens read and written; None for a critic that asks no server."""
        if not self.url:
            return None
        return _price(self.price_in, "MILR_PRICE_IN"), _price(self.price_out, "MILR_PRICE_OUT")

    def secrets(self) -> list[Secret]:
        """The variables of the environment whose values leave this machine, and where they go."""
        if not self.url:  # a critic that can do without a server
            return []
        named = [Secret(self.url[1:], "a network", is_address=True)] if self.url.startswith("$") else []
        if self.key in ("", "none"):
            return named
        where = "wherever " + self.url if named else urlsplit(self.url).hostname or ""
        return [*named, Secret(self.key, where, at_home=self.key != PAID_KEY or where == urlsplit(PAID_URL).hostname)]


@dataclass(frozen=True)
class Question:
    """One request: texts, perhaps a picture, perhaps the JSON schema of the reply.

    `first_token` asks for the probabilities of the reply's first token alone.
    """

    user: str
    image: Image | None = None
    system: str = ""
    schema: Mapping[str, Any] | None = None
    first_token: bool = False


@dataclass(frozen=True)
class Reply:
    """What came back. `text` None is no reply, and `reason` says why; `first` are the first token's alternatives with
    their log-probabilities.

    `fault` is the kind of reason: nobody was there (away), too many asked (busy), the server broke down over it
    (failing), would not take the question (refused) or took offence at it (flagged); or the reply, whose text is there,
    ran into the limit on its length (cut).
    """

    text: str | None
    reason: str = ""
    first: tuple[tuple[str, float], ...] = ()
    fault: Fault = ""

    @property
    def why(self) -> str:
        """The reason, an `Outage` where asking later may help."""
        return Outage(self.reason) if self.fault in OUTAGES else self.reason


@dataclass(frozen=True)
class Spent:
    """What one client was served so far; replies that were kept cost nothing and do not count."""

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


PURSE = Purse()  # of this process


class _NoReply(Exception):
    """Why a request failed, in words that a user may see; `after` is how long the server asks to wait."""

    def __init__(self, reason: str, fault: Fault, *, again: bool = False, after: float | None = None) -> None:
        super().__init__(reason)
        self.fault, self.again, self.after = fault, again, after


class Chat:
    """One server and model. Its methods may be called from any thread."""

    def __init__(self, settings: ChatSettings) -> None:
        """Raises UserError where the address is none, or a variable that must hold it or the key is not set."""
        _packages()
        self.settings = settings
        self.spent = Spent()
        self._url = _address(settings.url)
        self._host = urlsplit(self._url).netloc
        self._proxy = network.proxy_for(self._url)
        self._prices = (
            _price(settings.price_in, "MILR_PRICE_IN"),
            _price(settings.price_out, "MILR_PRICE_OUT"),
        )
        self._check_key()
        self._judge = hashlib.sha256(f"{self._url} {settings.model}".encode()).hexdigest()[:12]
        self._till: Cashier = Till(None, PURSE)
        self._heard = False  # whether a reply ever came, now or in an earlier run
        self._whole = False  # whether one ever was not cut
        self._place = NOWHERE
        self._places = threading.BoundedSemaphore(settings.concurrency)  # requests at once, whoever calls
        self._lock = threading.Lock()
        self._asking: set[threading.Event] = set()  # of the batches that are being asked; set, they are to end

    def hurry(self) -> None:
        """Nobody waits any more: what is being asked now may be replied to, nothing is tried again."""
        for stop in tuple(self._asking):
            stop.set()

    def settle(self, place: Place) -> None:
        """Keep replies in the place's folder and keep to its limit. Raises UserError for a limit without prices."""
        if place.max_judge_cost is not None and None in self._prices:
            raise UserError(
                f"Nobody knows what {self.settings.model} costs, so --max-judge-cost cannot be kept; give price_in and "
                "price_out (US dollars per million tokens), or MILR_PRICE_IN and MILR_PRICE_OUT in the environment."
            )
        self._place = place
        self._till = place.till or Till(place.folder, PURSE)

    def dollars(self) -> float | None:
        """What this client's replies cost so far; None where prices are unknown."""
        return self._cost(self.spent.tokens_in, self.spent.tokens_out)

    def ask_all(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply, or the reason for none, for each question in order. Raises UserError where the user must act;
        replies that came by then are kept."""
        prepared = [self._prepare(question) for question in questions]
        replies: dict[str, Reply] = {}
        waiting: dict[str, tuple[Question, bytes | None]] = {}  # equal questions are asked once
        known = self._till.recall([name for name, _ in prepared])
        for question, (name, png) in zip(questions, prepared, strict=True):
            kept = _known(known.get(name))
            if kept is None:
                if name in known:
                    self._till.forget(name)
                waiting[name] = (question, png)
            else:
                replies[name] = kept
                self._heard = self._whole = True
        if waiting:
            stop = threading.Event()
            self._asking.add(stop)
            at_once = min(self.settings.concurrency, len(waiting))
            with self._client(at_once) as client, ThreadPoolExecutor(at_once) as pool:
                ask = functools.partial(self._ask, client, stop)
                asked = [(name, pool.submit(ask, name, *what)) for name, what in waiting.items()]
                try:
                    for name, one in asked:
                        replies[name] = one.result()
                except BaseException:
                    stop.set()
                    raise
                finally:
                    self._asking.discard(stop)
        return [replies[name] for name, _ in prepared]

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """`ask_all` for critics, which must tell what is about a picture from what is about the server.

        Where not one question got a reply, a grey square is asked about: only if that one gets a reply do the pictures
        have to do with it, and their faults are abstentions. Else every later question would fare the same, and
        thousands of drafts would be written down as not scored: UserError where the server refuses that too, or has
        never answered; an `Outage` where it did answer before (`critics.base.judge` then ends the work).
        """
        replies = self.ask_all(questions)
        if not replies or any(reply.text is not None for reply in replies):
            return replies
        worst, faults = replies[0], {reply.fault for reply in replies}
        if faults & {"failing", "refused"} or ("flagged" in faults and not self._heard):
            with self._client(1) as client:
                answer = self._ask(client, threading.Event(), *self._grey(questions[0]), attempts=1)
            if answer.text is not None:  # it is there, and takes such questions
                return [replace(one, fault="refused") if one.fault == "failing" else one for one in replies]
            if answer.fault == "refused":
                raise UserError(f"The judge refuses every question ({answer.reason}); correct its settings.")
            worst = answer if answer.fault in OUTAGES else worst
        if not self._heard and worst.fault in OUTAGES:
            raise UserError(f"The judge does not answer ({worst.reason}); start its server, or correct 'url'.")
        return replies

    def too_short(self, but_some: bool = False) -> str:
        """The reason for an abstention over a reply that was cut. Raises UserError as long as none ever was whole (and
        not even some of this batch could be used): then the limit is too small for this model."""
        cut = f"he reply of {shorten(self.settings.model)} was cut after {self.settings.max_tokens} tokens"
        if self._whole or but_some:
            return f"t{cut}; raise max_tokens"
        raise UserError(
            f"T{cut}: the limit is too small. Raise it in the critic's name (max_tokens="
            f"{4 * self.settings.max_tokens}), or have a model that thinks aloud think less, at its server."
        )

    def yes_probabilities(
        self, images: Sequence[Image], questions: Sequence[str], least_share: float = LEAST_SHARE
    ) -> list[tuple[float | None, str]]:
        """P(yes) / (P(yes) + P(no)) of the first token of each answer, or None and the reason."""
        asked = [Question(text, image, first_token=True) for image, text in zip(images, questions, strict=True)]
        return [self._yes(reply, least_share) for reply in self.ask(asked)]

    def _client(self, at_once: int) -> httpx.Client:
        """Connections for one batch: none stays open between batches, in a fork or at the end."""
        return network.connect(self._url, self.settings.timeout, at_once)

    def _grey(self, question: Question) -> tuple[str, Question, bytes | None]:
        """A question of the same form that nobody can take offence at, with its name and picture."""
        from PIL import Image

        image = None if question.image is None else Image.new("RGB", (64, 64), (128, 128, 128))
        harmless = replace(question, user="Is this square grey? Answer in the form that was asked for.", image=image)
        name, png = self._prepare(harmless)
        return name, harmless, png

    # --- one question -----------------------------------------------------------------------------------------

    def _body(self, question: Question, png: bytes | None) -> dict[str, Any]:
        content: Any = question.user
        if png is not None:
            picture = {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}
            content = [{"type": "text", "text": question.user}, {"type": "image_url", "image_url": picture}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if question.system:
            messages.insert(0, {"role": "system", "content": question.system})
        body: dict[str, Any] = {"model": self.settings.model, "messages": messages}
        body[self.settings.limit_name] = 1 if question.first_token else self.settings.max_tokens
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        if question.first_token:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        elif question.schema is not None and self.settings.schema:
            form = {"name": "verdict", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def _prepare(self, question: Question) -> tuple[str, bytes | None]:
        """The name under which its reply is kept (a hash of all that the reply depends on), and the picture as PNG."""
        png = None if question.image is None else _png(question.image)
        request = {"host": self._host, "body": self._body(question, None)}
        said = json.dumps(request, sort_keys=True).encode()
        return hashlib.sha256(hashlib.sha256(png or b"").digest() + said).hexdigest(), png

    def _ask(
        self,
        client: httpx.Client,
        stop: threading.Event,
        name: str,
        question: Question,
        png: bytes | None,
        attempts: int | None = None,
    ) -> Reply:
        """The reply to one question, after as many attempts as it takes and is allowed."""
        import stamina

        def wait(error: Exception) -> bool | float:
            if stop.is_set() or not isinstance(error, _NoReply) or not error.again:
                return False
            if error.after is None:
                return True  # stamina's own: longer each time, with jitter
            return min(self.settings.max_wait, error.after + random.uniform(0, 1))  # not all at the same moment

        content = json.dumps(self._body(question, png)).encode()
        try:
            for attempt in stamina.retry_context(
                on=wait,
                attempts=attempts or self.settings.attempts,
                timeout=None,
                wait_initial=0.5,
                wait_max=self.settings.max_wait,
            ):
                with attempt, self._places:
                    return self._send(client, stop, name, content)
        except _NoReply as error:
            return Reply(None, str(error), fault=error.fault)
        except BaseException:
            stop.set()
            raise
        raise AssertionError("an attempt either returns or raises")

    def _send(self, client: httpx.Client, stop: threading.Event, name: str, content: bytes) -> Reply:
        """One attempt: pay, keep, return. Raises _NoReply or UserError."""
        ticket = self._till.take(name, self._judge, self._place.max_judge_cost, self.settings.timeout)
        if not isinstance(ticket, str):  # others asked the same at the same time
            self._heard = self._whole = True
            return _reply_from(ticket)
        cost, kept = 0.0, None
        try:
            if stop.is_set():
                raise _NoReply("not asked: an earlier question ended the work", "away")
            answer = _parse(self._post(client, content), self._host, self._harmless)
            with self._lock:
                self.spent = Spent(
                    self.spent.replies + 1,
                    self.spent.tokens_in + answer.tokens_in,
                    self.spent.tokens_out + answer.tokens_out,
                )
                cost = self._cost(answer.tokens_in, answer.tokens_out) or 0.0
            if self._holds_key(answer.reply.text or "", *(token for token, _ in answer.reply.first)):
                raise _NoReply(f"{self._host} sent the key back, so its reply was thrown away", "refused")
            self._heard = True
            if answer.refusal:
                raise _NoReply(f"the model would not answer{self._harmless(answer.refusal)}", "flagged")
            if answer.reply.fault != "cut":  # half a reply is worth no file: with another limit it is another question
                self._whole = True
                kept = {"text": answer.reply.text, "first": answer.reply.first}
        finally:
            self._till.give_back(ticket, cost, name, kept)
        if self._place.max_judge_cost is not None and not answer.counted and any(self._prices):
            raise UserError(
                f"{self._host} does not say how many tokens a reply took, so --max-judge-cost cannot be kept; leave it "
                "out, or use another server."
            )
        return answer.reply

    def _post(self, client: httpx.Client, content: bytes) -> bytes:
        """The body of a 200. Raises _NoReply or UserError; neither holds the key or an exception that does."""
        import httpx

        ends = time.monotonic() + self.settings.timeout
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        body = bytearray()
        try:
            with client.stream("POST", f"{self._url}/chat/completions", content=content, headers=headers) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > LARGEST_REPLY:
                        raise _NoReply(f"{self._host} sent more than {LARGEST_REPLY:,} bytes", "refused")
                    if time.monotonic() > ends:  # a server that drips never runs into a read timeout
                        late = f"{self._host} did not finish within {self.settings.timeout:g} s"
                        raise _NoReply(late, "failing", again=True)
        except httpx.ConnectTimeout:
            raise _NoReply(f"cannot reach {self._host}{self._by_way} (no answer)", "away", again=True) from None
        except httpx.TimeoutException:
            late = f"no answer from {self._host}{self._by_way} within {self.settings.timeout:g} s"
            raise _NoReply(late, "failing", again=True) from None
        except httpx.ProxyError as error:
            said = self._harmless(str(error))
            if "407" in said:
                raise UserError(self._wants_password()) from None
            raise _NoReply(f"cannot reach {self._host}{self._by_way}{said}", "away", again=True) from None
        except httpx.ConnectError as error:
            if (complaint := network.certificate_complaint(error, self._host)) is not None:
                raise UserError(complaint) from None
            why = network.trouble(error)
            raise _NoReply(f"cannot reach {self._host}{self._by_way} ({why})", "away", again=True) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            broke = f"the connection to {self._host} broke ({type(error).__name__})"
            raise _NoReply(broke, "failing", again=True) from None
        if response.status_code != 200:
            self._refuse(response.status_code, response.headers.get("Retry-After"), bytes(body))
        if (status := _status_within(bytes(body))) is not None:  # some send every error as a success
            self._refuse(status, None, bytes(body))
        return bytes(body)

    @property
    def _by_way(self) -> str:
        """Which proxy a request goes through, for a reason."""
        return "" if self._proxy is None else f" through the proxy in {self._proxy.named_by}"

    def _wants_password(self) -> str:
        assert self._proxy is not None
        return f"The proxy in {self._proxy.named_by} wants a name and a password (407); put them into its address."

    def _refuse(self, status: int, retry_after: str | None, body: bytes) -> None:
        """Raise what a status other than 200 means."""
        code, words = _error_of(body)
        said, told = self._harmless(words), f"{code} {words}"
        variable = self.settings.key or "none"
        if 300 <= status < 400:
            raise _NoReply(f"{self._host} redirects ({status}), which is not followed: give the final url", "away")
        if status == 407 and self._proxy is not None:
            raise UserError(self._wants_password())
        if status == 402 or (status < 500 and NO_CREDIT.search(told)):
            raise UserError(f"The account of {variable} at {self._host} has no credit left ({status}{said}).")
        is_moderation = MODERATION.search(told) and not ACCOUNT.search(told)
        if status == 401 or (status == 403 and not is_moderation and (ACCOUNT.search(told) or KEY.search(told))):
            unset = "" if self._key() else " (which is not set)"
            raise UserError(f"{self._host} refused the key ({status}{said}); check the variable {variable}{unset}.")
        if status == 404:
            raise UserError(f"{self._host} knows no such model or address (404{said}); check 'model' and 'url'.")
        reason = f"{self._host} answered {status}{said}"
        if status in AGAIN or status >= 500:
            through = self._by_way if status in (502, 503, 504) else ""
            fault: Fault = "failing" if status >= 500 else "busy"
            raise _NoReply(reason + through, fault, again=True, after=_seconds(retry_after))
        raise _NoReply(reason, "flagged" if is_moderation else "refused")

    def _yes(self, reply: Reply, least_share: float) -> tuple[float | None, str]:
        if reply.text is None:
            return None, reply.why
        if not reply.first:
            return None, f"{self._host} gave no log-probabilities"
        chance = {"yes": 0.0, "no": 0.0}
        for token, log_probability in reply.first:
            word = token.strip(" \t\r\n▁Ġ").lower()  # the last two stand for a space in raw tokens
            if word in chance:
                chance[word] += math.exp(log_probability)
        begins = f"the answer begins with {shorten(reply.first[0][0], 20)!r}"
        if sum(chance.values()) == 0:
            return None, f"neither yes nor no is among the first tokens ({begins})"
        found, why = yes_share(chance["yes"], chance["no"], least_share)
        return found, why and f"{why} ({begins})"

    # --- key and prices ---------------------------------------------------------------------------------------

    def _check_key(self) -> None:
        """Raise UserError where a key is needed and its variable is not set: a user's own name of one always is,
        the usual one where it would go to OpenAI. Servers of one's own often want none."""
        name = self.settings.key
        is_needed = name != PAID_KEY or urlsplit(self._url).hostname == urlsplit(PAID_URL).hostname
        if name not in ("", "none") and is_needed and not os.environ.get(name, "").strip():
            raise UserError(
                f"The key for {self._host} should be in the variable {name}, which is not set; put it there, or write "
                "key=none (and url=...) for a server of your own that wants none."
            )

    def _key(self) -> str:
        """The key, read anew each time, so that no object here holds it. Raises UserError where it is none."""
        if self.settings.key in ("", "none"):
            return ""
        key = os.environ.get(self.settings.key, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise UserError(f"The variable {self.settings.key} holds no key (it has spaces or signs outside ASCII).")
        if key:
            network.refuse_open(self.settings.key, self._url, "write key=none to send no key")
        return key

    def _holds_key(self, *texts: str) -> bool:
        """Whether texts hold the key, also one torn by spaces or escapes."""
        return network.holds(self._key(), *texts)

    def _harmless(self, words: str) -> str:
        """A server's words for a reason; nothing where they hold the key."""
        return "" if not words or self._holds_key(words) else f": {shorten(words, LONGEST_REASON)}"

    def _cost(self, tokens_in: int, tokens_out: int) -> float | None:
        price_in, price_out = self._prices
        if price_in is None or price_out is None:
            return None
        return (tokens_in * price_in + tokens_out * price_out) / 1e6


def as_data(text: str) -> str:
    """A text of unknown origin as one line of JSON in which no control or format sign, no lone surrogate and no < or >
    stands raw: it cannot close what it stands in, nor look like another text."""
    line = json.dumps(text, ensure_ascii=False)
    return "".join(sign if sign.isprintable() and sign not in "<>" else _escape(sign) for sign in line)


def _escape(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if sign in "<>" else json.dumps(sign)[1:-1]


@dataclass(frozen=True)
class _Answer:
    reply: Reply
    tokens_in: int
    tokens_out: int
    counted: bool  # whether the server said so
    refusal: str = ""  # why the model, or a filter behind it, would not answer


def _parse(body: bytes, host: str, harmless: Callable[[str], str]) -> _Answer:
    """The answer in a response's body. Raises _NoReply; what is no chat completion may be one the next time."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = _text_of(message.get("content")), str(message.get("refusal") or "")
        first = _alternatives(choice.get("logprobs"))
        ended = str(choice.get("finish_reason") or "").lower()
        usage = found.get("usage")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        said = harmless(_error_of(body)[1])
        what = "an empty body" if not body.strip() else f"no chat completion{said}"
        raise _NoReply(f"{host} sent {what}", "failing", again=True) from None
    if ended in HELD_BACK:
        refusal = refusal or "a content filter held its reply back"
    reply = Reply(text, first=first, fault="cut" if ended in CUT and not first else "")
    refusal = "" if text and ended not in HELD_BACK else refusal
    counts = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(tokens_in) is int and type(tokens_out) is int and min(tokens_in, tokens_out) >= 0:
        return _Answer(reply, tokens_in, tokens_out, True, refusal)
    return _Answer(reply, 0, 0, False, refusal)


def _text_of(content: Any) -> str:
    """The text of a message: as it is, or of a list of parts those that hold text (not what the model thought). Raises
    TypeError for anything else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError
    said = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind in ("text", "output_text"):
            if not isinstance(text, str):
                raise TypeError
            said.append(text)
    return "".join(said)


def _status_within(body: bytes) -> int | None:
    """The status that an error in the body of a success names, None where there is no error."""
    try:
        found = json.loads(body)
        found = found[0] if isinstance(found, list) else found
        if "choices" in found:
            return None
        status = int(found["error"]["code"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return status if 400 <= status < 600 else None


def _alternatives(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """The first token and its alternatives, each once, from the `logprobs` of a choice."""
    if not logprobs or not logprobs.get("content"):
        return ()
    first = logprobs["content"][0]
    found = {one["token"]: one["logprob"] for one in [first, *(first.get("top_logprobs") or [])]}
    return _pairs(found.items())


def _pairs(items: Any) -> tuple[tuple[str, float], ...]:
    """Tokens with their log-probabilities. Raises ValueError where one is none."""
    pairs = tuple((token, number) for token, number in items)
    for token, number in pairs:
        # A little above 0 comes from rounding; NaN fails the comparison.
        if not isinstance(token, str) or type(number) not in (int, float) or not number <= 0.01:
            raise ValueError
    return pairs


def _known(kept: Any) -> Reply | None:
    """A kept reply; None where there is none, or one that is broken: then it is asked for and kept anew."""
    try:
        return _reply_from(kept)
    except (ValueError, RecursionError):
        return None


def _reply_from(kept: Any) -> Reply:
    """A reply as it was kept. Raises ValueError where it is none."""
    if not isinstance(kept, dict) or not isinstance(kept.get("text"), str):
        raise ValueError
    if not isinstance(kept.get("first"), (list, tuple)):
        raise ValueError
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in kept["first"]):
        raise ValueError
    return Reply(kept["text"], first=_pairs(kept["first"]))


def _error_of(body: bytes) -> tuple[str, str]:
    """Codes and message of an error body, '' where it has none."""
    try:
        found = json.loads(body)
        found = found[0] if isinstance(found, list) else found
        error = found.get("error") or found.get("detail") or found
        if not isinstance(error, dict):
            return "", str(error or "")
        kinds = [error.get(name) for name in ("code", "type", "status")]
        inner = error.get("innererror")
        kinds.append(inner.get("code") if isinstance(inner, dict) else None)
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return "", ""
    return " ".join(str(kind) for kind in kinds if kind), str(error.get("message") or "")


def _seconds(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait; None where it is missing or unreadable."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _png(image: Image) -> bytes:
    """The picture alone: no profile, no comment, so that equal pictures are equal bytes."""
    plain = image.convert("RGB")
    plain.info = {}
    file = io.BytesIO()
    plain.save(file, "PNG")
    return file.getvalue()


def _address(url: str) -> str:
    """The address that a setting means."""
    if url.startswith("$"):
        variable, url = url[1:], os.environ.get(url[1:], "").strip()
        if not url:
            raise UserError(f"The environment variable {variable} should hold the judge's address and is not set.")
        _refuse_address(url)
    return url.rstrip("/")


def _refuse_address(url: str) -> None:
    """Raise UserError unless this is a plain address. Does not repeat it: it may hold a secret."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError for a port that is none
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable()
    except ValueError:
        plain = False
    if not plain or " " in url:
        raise UserError("Setting 'url' must be an address such as https://api.openai.com/v1, or $NAME.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "Setting 'url' must hold no user name, password or query; the key belongs into the environment variable "
            "that 'key' names."
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise UserError("Setting 'url' ends before /chat/completions, e.g. http://127.0.0.1:8000/v1.")


def _price(given: float | None, variable: str) -> float | None:
    text = os.environ.get(variable, "").strip()
    if given is not None or not text:
        return given
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UserError(f"{variable} must be a price in US dollars per million tokens, not '{shorten(text)}'.")
    return price


@functools.cache
def _packages() -> None:
    """Check once that what this file asks with is installed, and keep it from telling more than milr does."""
    try:
        import httpx  # noqa: F401
        import stamina  # noqa: F401
    except ImportError as error:
        raise UserError(f"Asking over HTTP needs {error.name}; run pip install 'milr[critics]'.") from error
    for name, level in (
        ("httpcore", logging.INFO),  # its debug log shows response headers, in which a server may send the key back
        ("stamina", logging.ERROR),  # a warning for each wait would tear up the progress bar
    ):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(level)
