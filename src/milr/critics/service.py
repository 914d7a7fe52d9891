"""Asks a critic that runs elsewhere, over HTTP: 'milr critic serve', or any program that speaks the same contract.

Its address alone names it (`--reward http://127.0.0.1:9000`); with settings: `service,url=http://127.0.0.1:9000,batch=16`.
A service that cannot be asked at all is the user's to put right; one that goes away later abstains, and what it says is
believed only as far as it keeps to the contract (`wire.py`).
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from milr import network
from milr.critics.base import Critic, Outage, Secret, abstain
from milr.critics.remote import wire
from milr.drafts import Score, Task, UserError
from milr.registry import shorten
from milr.settings import check, setting

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

    from milr.backbones.base import Backbone

NAME = "service"
SUMMARY = "A critic that runs elsewhere, asked over HTTP; its address alone names it too"
NEEDS_BACKBONE = False
WAITS = True  # for a server; may be asked from several threads at once

TOKEN = "MILR_CRITIC_TOKEN"
REPLY_BYTES = 16 * 2**20
FIRST_ATTEMPTS = 4  # a wrong address is told within seconds
TOO_LARGE = b""  # in place of an item that no request may hold
LONGEST_WAIT = 30.0  # seconds between two attempts, whatever the service asks for


@dataclass(frozen=True)
class Service:
    """Settings of `service`."""

    url: str = setting("", "address of the critic, e.g. http://127.0.0.1:9000")
    token: str = setting(TOKEN, "environment variable that holds the token, if one is needed")
    timeout: float = setting(120.0, "seconds to wait for one reply", low=0.1, high=86_400)
    attempts: int = setting(8, "requests before a critic that fails or is busy counts as gone", low=1, high=1000)
    max_wait: float = setting(120.0, "seconds after which no further attempt is made", low=0.1, high=86_400)
    batch: int = setting(8, "pictures in one request, as far as the service allows", low=1, high=1024)
    insecure: bool = setting(False, "allow http to another machine: pictures can be read on the way; never a token")

    def __post_init__(self) -> None:
        check(self)
        check_variable(self.token)
        if self.url:
            self._check_url()

    def secrets(self) -> list[Secret]:
        """See ChatSettings."""
        return [Secret(self.token, urlsplit(self.url).hostname or "")]

    def _check_url(self) -> None:
        try:
            address = urlsplit(self.url)
            host, _ = address.hostname, address.port
        except ValueError:
            host = None
        if not host or address.scheme not in ("http", "https") or address.query or address.fragment:
            raise UserError(
                f"'{shorten(self.url.rpartition('@')[2])}' is no address of a critic; write http://HOST:PORT, "
                "or service,url=http://HOST:PORT,SETTING=VALUE."
            )
        if address.username is not None or address.password is not None:  # it would stand in every result
            raise UserError(f"A critic's address must not hold a name or a password; put a token into {TOKEN}.")
        if address.scheme == "http" and not network.is_loopback(host) and not self.insecure:
            raise UserError(
                f"http to {shorten(host)} can be read on the way; use https or an SSH tunnel, or write "
                f"service,url={shorten(self.url)},insecure=true where the network is yours."
            )


class ServiceCritic:
    """Says what the service says. Splits batches as the service's limits want it; connects at the first score."""

    name = NAME
    waits = True

    def __init__(self, settings: Service) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._client: httpx.Client | None = None
        self._info: wire.Info | None = None
        self._lock = threading.Lock()
        self._asking = 0  # calls of `score` under way
        self._is_over = False  # and nobody waits for them

    def hurry(self) -> None:
        """Nobody waits any more: what is being asked now may be replied to, nothing is tried again."""
        with self._lock:
            self._is_over = self._asking > 0

    def score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        """Abstains where the service does, breaks the contract, or is gone. Raises UserError where it never was there,
        refuses the token, or says that its user must act."""
        with self._lock:
            self._asking += 1
        try:
            return self._score(images, tasks)
        finally:
            with self._lock:
                self._asking -= 1
                self._is_over = self._is_over and self._asking > 0

    def _score(self, images: Sequence[Image], tasks: Sequence[Task]) -> list[Score]:
        limits = self._limits()
        scores: list[Score] = []
        for items in _requests(images, tasks, limits, min(self._settings.batch, limits.items)):
            try:
                scores += self._ask(items)
            except _Later as gone:  # it was asked often enough: no second wait for the rest of this batch
                reason: str = f"the critic at {self._url} does not answer ({gone})"
                # Unless it answers to another picture: then it fails over these.
                reason = reason if not scores and self._scores_grey() else Outage(reason)
                return scores + [abstain(reason)] * (len(images) - len(scores))
        return scores

    def _ask(self, items: Sequence[bytes]) -> list[Score]:
        """The scores of one request. Raises _Later."""
        if items == [TOO_LARGE]:
            return [Score(None, reason=f"the picture is larger than the critic at {self._url} allows")]
        try:
            return wire.read_scores(self._send("POST", wire.SCORE, wire.write_request(items)), len(items))
        except _Refused as error:
            if len(items) > 1:  # one bad picture must not cost the others their score
                return [score for item in items for score in self._ask([item])]
            reason: str = f"the critic at {self._url} refuses the picture: {error}"
        except ValueError as error:
            reason = Outage(f"the critic at {self._url} cannot be understood: {error}")
        return [abstain(reason)] * len(items)

    def _scores_grey(self) -> bool:
        """Whether the service scores a picture that nobody could fail over."""
        from PIL import Image

        grey = wire.write_item(Image.new("RGB", (64, 64), (128, 128, 128)), Task("a grey square"))
        try:
            wire.read_scores(self._send("POST", wire.SCORE, wire.write_request([grey]), attempts=1), 1)
        except (_Later, _Refused, ValueError):
            return False
        return True

    def _limits(self) -> wire.Limits:
        if self._info is None:
            try:
                self._info = wire.read_info(self._send("GET", wire.INFO, attempts=FIRST_ATTEMPTS))
            except _Later as error:
                raise UserError(
                    f"No critic answers at {self._url} ({error}); start it there with 'milr critic serve NAME', or "
                    "correct the address."
                ) from error
            except (_Refused, ValueError) as error:
                raise UserError(
                    f"What answers at {self._url} is no critic of milr ({error}); correct the address."
                ) from error
        return self._info.limits

    def _send(self, method: str, path: str, body: bytes | None = None, attempts: int = 1000) -> bytes:
        """The body of a good reply. Raises _Later once no attempt is left, _Refused, or UserError."""
        import stamina

        self._client = self._client or self._connect()
        for attempt in stamina.retry_context(
            on=self._wait_before,
            attempts=min(attempts, self._settings.attempts),
            timeout=self._settings.max_wait,
            wait_initial=0.2,
            wait_max=10,
        ):
            with attempt:
                return self._once(self._client, method, path, body)
        raise AssertionError("stamina raises the last error")

    def _once(self, client: httpx.Client, method: str, path: str, body: bytes | None) -> bytes:
        import httpx

        token = token_in(self._settings.token)
        if token:
            network.refuse_open(self._settings.token, self._url, f"unset {self._settings.token}")
        headers = {"Accept-Encoding": "identity"}  # a small compressed reply could be a huge one
        if body is not None:
            headers["Content-Type"] = "application/json"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with client.stream(method, self._url + path, content=body, headers=headers) as response:
                content = bytearray()
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > REPLY_BYTES:
                        raise _Refused(f"its reply has more than {REPLY_BYTES:,} bytes")
        except httpx.RequestError as error:
            if (complaint := network.certificate_complaint(error, urlsplit(self._url).netloc)) is not None:
                raise UserError(complaint) from error
            raise _Later(f"{type(error).__name__}: {network.trouble(error)}{self._by_way}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"'{shorten(self._url)}' is no address of a critic ({error}); correct it.") from error
        if token and network.holds(token, content.decode("utf-8", "replace")):
            raise _Refused("it sent the token back, so its reply was thrown away")
        if response.status_code == 200:
            return bytes(content)
        raise self._failure(
            path, response.status_code, response.headers.get("Retry-After", ""), bytes(content), token is not None
        )

    def _failure(self, path: str, status: int, retry_after: str, content: bytes, had_token: bool) -> Exception:
        """What a reply that is no success means."""
        code, said = wire.read_error(content)
        said = shorten(said, 300) or "no reason given"
        if status == 401:
            wrong = "does not accept the token in" if had_token else "wants a token; put it into the environment as"
            return UserError(f"The critic at {self._url} {wrong} {self._settings.token}.")
        if status == 403:
            return UserError(f"The critic at {self._url} refuses to answer: {said}")
        if 300 <= status < 400:
            return _Later(f"HTTP {status}: it redirects, which is not followed; give the final address", 0.0)
        if status in (404, 405, 410) and path == wire.SCORE:
            return _Later(f"HTTP {status}: it is no critic any more", 0.0)
        if code == wire.STOPPED:
            return UserError(f"The critic at {self._url} cannot go on: {said}")
        if status in (408, 429) or status >= 500:
            wait = float(retry_after) if re.fullmatch(r"\d{1,6}", retry_after) else None
            return _Later(f"HTTP {status}: {said}{self._by_way}", wait)
        return _Refused(f"HTTP {status}: {said}")

    def _wait_before(self, error: Exception) -> bool | float:
        """Whether to ask again after this, or in how many seconds."""
        if not isinstance(error, _Later) or self._is_over:
            return False
        return True if error.wait is None else min(error.wait, LONGEST_WAIT, self._settings.max_wait)

    @property
    def _by_way(self) -> str:
        proxy = network.proxy_for(self._url)
        return "" if proxy is None else f", through the proxy in {proxy.named_by}"

    def _connect(self) -> httpx.Client:
        client = network.connect(self._url, self._settings.timeout)
        weakref.finalize(self, client.close)
        return client


class _Later(Exception):
    """Not now; asking again may help, after `wait` seconds if the service said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """Not like this; asking again does not help."""


def _requests(images: Sequence[Image], tasks: Sequence[Task], limits: wire.Limits, batch: int) -> Iterator[list[bytes]]:
    """The items of each request. A picture that is too large for any is TOO_LARGE, alone."""
    items: list[bytes] = []
    size = pixels = 0
    envelope = len(wire.write_request([]))
    for image, task in zip(images, tasks, strict=True):
        area = image.width * image.height
        item = wire.write_item(image, task) if area <= limits.pixels else TOO_LARGE
        length = len(item) + len(", ")
        if length + envelope > limits.bytes:
            item = TOO_LARGE
        is_full = len(items) == batch or size + length + envelope > limits.bytes or pixels + area > limits.pixels
        if items and (is_full or not item):
            yield items
            items, size, pixels = [], 0, 0
        if not item:
            yield [item]
            continue
        items.append(item)
        size, pixels = size + length, pixels + area
    if items:
        yield items


def check_variable(name: str) -> None:
    """Raise UserError for what cannot be the name of a token's environment variable: it may be the token itself."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise UserError(
            f"A token is given as the name of an environment variable in capitals, e.g. {TOKEN}; write that, not the "
            "token itself."
        )


def token_in(variable: str) -> str | None:
    """The token in an environment variable. Raises UserError for one that no header can carry; never shows it."""
    token = os.environ.get(variable) or None
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"The token in {variable} must be of visible ASCII signs without spaces; correct it.")
    return token


def make(backbone: Backbone, settings: Service) -> Critic:
    """The client; nothing is sent yet."""
    if not settings.url:
        raise UserError("The critic 'service' needs an address; write e.g. http://127.0.0.1:9000 in its place.")
    try:
        import httpx  # noqa: F401
        import stamina  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"A critic over HTTP needs the package '{error.name}'; install it with pip install 'milr[critics]'."
        ) from error
    import logging

    network.proxy_for(settings.url)
    logging.getLogger("stamina").addHandler(logging.NullHandler())  # a retry is not news for the terminal
    return ServiceCritic(settings)


SETTINGS = Service
