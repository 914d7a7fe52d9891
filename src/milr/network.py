"""How other machines are reached: proxies and certificates from the environment, and what is this machine itself.

Libraries read the same variables, each in its own way, and fall over what they cannot read. Here they are read once
and by hand: what is wrong in one is a sentence that names it (and never shows its value, which may hold a password),
and what runs on this machine is never asked through a proxy.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from milr.drafts import UserError

if TYPE_CHECKING:
    import httpx

SOCKS = ("socks5", "socks5h")
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")  # what answers is no TLS at all
SHORTEST_SECRET = 8  # letters; local servers are given stand-ins such as "x", which any reply may hold


@dataclass(frozen=True)
class Proxy:
    """Where requests go first, and who says so: a variable's name, or the system's settings."""

    named_by: str
    address: str  # may hold a password: for no eye


def is_loopback(host: str) -> bool:
    """Whether a host (a name, or an address without brackets) is this machine by its very name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback


def proxy_for(url: str) -> Proxy | None:
    """The proxy for an address, None where it is reached directly. Raises UserError for one that cannot be used."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    said = urllib.request.getproxies()
    scheme = next((scheme for scheme in (parts.scheme, "all") if said.get(scheme)), None)
    if scheme is None or is_loopback(host) or _is_exempt(host, parts.port, said.get("no", "")):
        return None
    written = (scheme + "_proxy", (scheme + "_proxy").upper())
    variable = next((name for name in written if os.environ.get(name)), None)
    if variable is None and urllib.request.proxy_bypass(host):  # the system's own list
        return None
    named_by = f"the variable {variable}" if variable else "the system's settings"
    address = said[scheme] if "://" in said[scheme] else f"http://{said[scheme]}"
    mend = f"correct it, or put {host} into NO_PROXY"
    try:
        proxy = urlsplit(address)
        proxy.port  # noqa: B018 - raises ValueError for a port that is none
        fits = proxy.scheme in ("http", "https", *SOCKS) and bool(proxy.hostname) and address.isascii()
    except ValueError:
        fits = False
    if not fits or not address.isprintable() or " " in address:
        raise UserError(f"The proxy in {named_by} is no address such as http://HOST:PORT; {mend}.")
    if urlsplit(address).scheme in SOCKS and importlib.util.find_spec("socksio") is None:
        raise UserError(
            f"The proxy in {named_by} is a SOCKS proxy, which needs the package socksio; run pip install socksio, or "
            f"{mend}."
        )
    return Proxy(named_by, address)


def connect(url: str, timeout: float, at_once: int = 8) -> httpx.Client:
    """A client for one address alone. Follows no redirect, which could carry a key to another host. Raises UserError
    where a variable of the environment stands in the way."""
    import httpx

    proxy = proxy_for(url)
    encrypted = url.startswith("https:") or (proxy is not None and proxy.address.startswith("https:"))
    return httpx.Client(
        verify=certificates() if encrypted else False,
        proxy=None if proxy is None else proxy.address,
        timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
        limits=httpx.Limits(max_connections=at_once),
        follow_redirects=False,
        trust_env=False,
    )


def certificates() -> ssl.SSLContext:
    """Whom to trust: SSL_CERT_FILE or SSL_CERT_DIR, else the list of the package certifi. Raises UserError."""
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    if file:
        if not Path(file).is_file():
            raise UserError(f"The variable SSL_CERT_FILE names {file}, which is no file; correct it or unset it.")
        try:
            return ssl.create_default_context(cafile=file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise UserError(
                f"The variable SSL_CERT_FILE names {file}, which holds no certificates; correct it or unset it."
            ) from error
    if folder:
        if not Path(folder).is_dir():
            raise UserError(f"The variable SSL_CERT_DIR names {folder}, which is no folder; correct it or unset it.")
        return ssl.create_default_context(capath=folder)
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def check(url: str) -> None:
    """Raise UserError where a variable of the environment is what keeps an address from being reached."""
    proxy_for(url)
    if url.startswith("https:"):
        certificates()


def unreadable_exemption() -> str | None:
    """The variable NO_PROXY where it holds a range of IPv6 addresses, which httpx itself does not read (here it is
    read); else None."""
    name = next((name for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)), None)
    return name if name and ":" in os.environ[name] and "/" in os.environ[name] else None


def trouble(error: BaseException) -> str:
    """What went wrong on the way, in a few words that hold no address and no secret."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return one.verify_message or "its certificate cannot be verified"
        if isinstance(one, ssl.SSLError):
            return (one.reason or "TLS failed").replace("_", " ").lower()
        if isinstance(one, OSError) and one.errno is not None and one.strerror:
            return one.strerror
    return type(error).__name__


def certificate_complaint(error: BaseException, host: str) -> str | None:
    """A sentence where an error means that a server's certificate cannot be trusted or that it speaks no https at all:
    asking again helps nobody. Else None."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {host} cannot be verified ({one.verify_message or 'unknown'}); if you trust it, "
                "name the file with its authority in SSL_CERT_FILE."
            )
        if isinstance(one, ssl.SSLError) and one.reason in NO_TLS:
            return f"{host} does not speak https; write http:// in its address, or ask its keeper."
    return None


def refuse_open(variable: str, url: str, instead: str) -> None:
    """Raise UserError where what a variable holds would go over a network in the clear."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UserError(
            f"The key in {variable} would go to {parts.hostname} unencrypted; use https, or an SSH tunnel to a port of "
            f"this machine, or {instead}."
        )


def holds(secret: str, *texts: str) -> bool:
    """Whether texts hold a secret, also one torn by spaces or escapes."""
    letters = _letters(secret)
    return len(letters) >= SHORTEST_SECRET and letters in _letters("".join(texts))


def _letters(text: str) -> str:
    return "".join(sign for sign in text if sign.isalnum())


def _is_exempt(host: str, port: int | None, listed: str) -> bool:
    """Whether NO_PROXY names a host: as it is, by the end of its name, as a range of addresses, or all with a *."""
    host = host.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in listed.lower().replace(",", " ").split():
        entry = entry.rpartition("://")[2]
        if entry == "*":
            return True
        try:
            network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:  # a name, perhaps with a port
            name, colon, number = entry.rpartition(":")
        else:
            if address is not None and address in network:
                return True
            continue
        if colon and number.isdecimal():
            if port is not None and int(number) != port:
                continue
            entry = name.strip("[]")
        entry = entry.removeprefix("*").strip(".")
        if entry and (host == entry or host.endswith(f".{entry}")):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
