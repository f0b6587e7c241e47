"""Media that a request names by an address, fetched within limits and never from private networks."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpcore
import httpx

from tokenprune.errors import BadInput

SECONDS = 10.0  # for one file in all
HOPS = 3  # redirects


class PublicOnly(httpcore.NetworkBackend):
    """Connections to public addresses alone: a name is resolved once, and what was checked is what is connected to."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Raise `BadInput` for a host that has no address, or one that is not public."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadInput(f"There is no host {host!r}.") from error
        addresses = [str(one[4][0]) for one in found]
        if not all(is_public(address) for address in addresses):
            raise BadInput(f"{host!r} is no public address; this server fetches from public ones alone.")
        return self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Refuse."""
        raise BadInput("This server fetches over http and https alone.")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, in whatever way it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)


def fetch(url: str, most_bytes: int) -> bytes:
    """The file at an http(s) address. Raises `BadInput` for one that is too large, too slow, private, or not there."""
    began, parts, size = monotonic(), [], 0
    transport = httpx.HTTPTransport(trust_env=False)
    transport._pool = httpcore.ConnectionPool(network_backend=PublicOnly())
    try:
        with (
            httpx.Client(transport=transport, timeout=SECONDS, follow_redirects=True, max_redirects=HOPS) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise BadInput(f"The address answers {response.status_code}.")
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > most_bytes:
                    raise BadInput(f"The file at the address has more than {most_bytes:,} bytes, this server's limit.")
                if monotonic() - began > SECONDS:
                    raise BadInput(f"The address takes longer than {SECONDS:.0f} seconds.")
    except (httpx.HTTPError, httpx.InvalidURL, httpcore.NetworkError, httpcore.TimeoutException) as error:
        raise BadInput(f"The address cannot be read: {error or type(error).__name__}.") from error
    return b"".join(parts)
