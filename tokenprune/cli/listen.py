"""Where a command listens."""

from __future__ import annotations

import socket

from tokenprune.errors import BadInput


def check_port(host: str, port: int) -> None:
    """Raise `BadInput` where nobody can listen, before a model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"Cannot listen on {host}:{port} ({error.strerror}). Give another --port or --host."
            ) from error
