"""TensorPipe agents in a star around the server, instead of the full mesh that `init_rpc` makes.

`init_rpc` connects every member to every other one, and hangs or fails if one of them is dead. Its graceful shutdown
waits for all members. Here each process starts its own agent, and a worker's agent knows the server alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch._C._distributed_autograd import _init as _init_autograd
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch._C._distributed_rpc import TensorPipeAgent, WorkerInfo
from torch.distributed import rpc

from fa.training.transports.base import LOOPBACK

SERVER = "server"
TIMEOUT = timedelta(seconds=60)  # of the store, and so for a server that starts later than its workers


def create_store(host: str, port: int) -> tuple[TCPStore, int]:
    """Create the store through which workers find the server.

    Args:
        host: The one interface at which it listens.
        port: Its port; 0 for any free port.

    Returns:
        The store, and its port.
    """
    listener = socket.create_server((host, port))
    port = listener.getsockname()[1]
    fd = listener.detach()  # the store closes it
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=TIMEOUT, master_listen_fd=fd, use_libuv=False
    )
    return store, port


def connect_store(host: str, port: int) -> TCPStore:
    """Connect to the store of another process; raises ConnectionError if none answers within `TIMEOUT`."""
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=TIMEOUT, use_libuv=False)
    except RuntimeError as error:
        raise ConnectionError(f"no server answers at {host}:{port}, after {TIMEOUT.seconds} s") from error


@contextmanager
def rpc_agent(store: Store, host: str, server: bool) -> Iterator[None]:
    """Run this process's agent while the context lasts; its end waits for no other process.

    Args:
        store: The store of `create_store` or `connect_store`.
        host: Host of the server.
        server: True in the server's process.

    Raises:
        ConnectionError: No server starts within `TIMEOUT`.
    """
    with _interface(host):
        # torchrun keeps one store over restarts.
        store = PrefixStore(f"fa{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)
        number = 0 if server else store.add("joined", 1)  # a process that returns is a new member
        name = SERVER if server else f"worker{number}"
        options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=4, rpc_timeout=0)
        _init_autograd(number)
        try:
            agent = TensorPipeAgent(store, name, number, None, options, {}, [])
            if not server:
                agent._update_group_membership(WorkerInfo(SERVER, 0), [], {}, True)
        except RuntimeError as error:
            raise ConnectionError(f"no server started within {TIMEOUT.seconds} s: {_first_line(error)}") from error
        rpc.api._init_rpc_states(agent)
    try:
        yield
    finally:
        rpc.shutdown(graceful=False)


def call_server(function: Any, *arguments: Any) -> Any:
    """Call a function in the server's process, without a timeout.

    Args:
        function: A function of a module that both processes import.
        *arguments: Its arguments.

    Returns:
        Its result.

    Raises:
        ConnectionError: The server is gone.
        ValueError: The function raised one.
    """
    try:
        return rpc.rpc_sync(SERVER, function, args=arguments, timeout=0)
    except ValueError as error:  # torch passes the server's traceback as text; its last line is the message
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error
    except RuntimeError as error:
        raise ConnectionError(f"the server is gone: {_first_line(error)}") from error


def _first_line(error: RuntimeError) -> str:
    """Shorten torch's messages, which span many lines."""
    return str(error).splitlines()[0]


@contextmanager
def _interface(host: str) -> Iterator[None]:
    """Listen on loopback if the server does; otherwise TensorPipe resolves this host's name, or reads the variable."""
    name = "TP_SOCKET_IFNAME"
    local = host in (LOOPBACK, "localhost") and name not in os.environ
    if local:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if local:
            del os.environ[name]
