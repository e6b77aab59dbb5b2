"""Find a port for a web page."""

import errno
import socket
from contextlib import suppress

from segsweep.errors import ConfigError


def available(host: str, port: int, command: str) -> int:
    """Return the port, or any free one for 0; `command` is what to type with another port.

    Raises ConfigError: it cannot be listened at.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            why = error.strerror or str(error)  # of an unknown host, errno is none of the system's
            raise ConfigError(f"--host {host} --port {port}: cannot listen there: {why}.") from error
    for other in [*range(port + 1, min(port + 20, 65536)), 0]:
        with suppress(OSError):
            free = _bound(host, other)
            break
    raise ConfigError(f"--port {port}: in use by another program. Try: {command} --port {free}")


def _bound(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        return int(listening.getsockname()[1])
