"""Closes connections whose sender does not finish a request's head: uvicorn itself waits for one for ever.

A few dozen sockets with half a header would hold all the places that a server has. Slow bodies are the service's own
business (it knows which it wants), and idle connections after a reply are uvicorn's.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from milr.critics.remote import wire

HEAD_SECONDS = 10.0  # a head has some hundred bytes; whoever is honest sends it at once


class Deadline(H11Protocol):
    """uvicorn's HTTP/1.1, with a time by which the head of a request must be there.

    It runs from when the connection is made, and again from the end of each reply; single bytes do not lengthen it.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _late(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return  # the head has come
        begun, _ = self.conn.trailing_data
        if begun and self.conn.our_state is h11.IDLE:
            self._refuse()
        self.transport.close()

    def _refuse(self) -> None:
        said = wire.write_error("slow", f"The head of the request did not arrive within {HEAD_SECONDS:g} seconds.")
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(said))), ("connection", "close"),
        ]  # fmt: skip
        events: list[Any] = [h11.Response(status_code=408, headers=headers), h11.Data(data=said), h11.EndOfMessage()]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
