"""Whether this machine can listen on a port, asked before a server starts that would not say."""

import errno
import os
import socket


def check_port(host: str, port: int) -> None:
    """Refuse an address that a server could not listen on; Ray Serve would retry without an end.

    Raises:
        ValueError: If the port is taken or forbidden, or the host is not of this machine.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is not from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use: choose another with --port"
            raise ValueError(message) from error
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ValueError(f"cannot listen on {host} port {port}: {reason}") from error
