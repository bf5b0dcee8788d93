"""TensorPipe agents in a star around the server, instead of the full mesh that `init_rpc` makes.

`init_rpc` connects every member to every other one, and hangs or fails if one of them is dead. Its graceful shutdown
waits for all members. Here each process starts its own agent, and a worker's agent knows the server alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

from torch._C._distributed_autograd import _init as _init_autograd
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch._C._distributed_rpc import TensorPipeAgent, WorkerInfo
from torch.distributed import rpc

from fa.utils.addresses import create_listener, format_address, interface_towards

SERVER = "server"
TIMEOUT = 60.0  # seconds of the store, and so for a server that starts later than its workers


def create_store(host: str, port: int) -> tuple[TCPStore, int]:
    """Create the store through which workers find the server.

    Args:
        host: The one interface at which it listens.
        port: Its port; 0 for any free port.

    Returns:
        The store, and its port.
    """
    listener = create_listener(host, port)
    port = listener.getsockname()[1]
    fd = listener.detach()  # the store closes it
    limit = timedelta(seconds=TIMEOUT)
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=limit, master_listen_fd=fd, use_libuv=False
    )
    return store, port


def connect_store(host: str, port: int, timeout: float = TIMEOUT) -> TCPStore:
    """Connect to the store of another process.

    Args:
        host: Host of the server.
        port: Port of its store.
        timeout: Seconds to wait for an answer, and then for a value in the store.

    Returns:
        The store.

    Raises:
        ConnectionError: No store answers in time. Something else may listen there, and be silent.
    """
    answer: SimpleQueue[TCPStore | RuntimeError] = SimpleQueue()
    limit = timedelta(seconds=timeout)

    def connect() -> None:
        try:
            answer.put(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit, use_libuv=False))
        except RuntimeError as error:
            answer.put(error)

    threading.Thread(target=connect, daemon=True).start()  # torch may take several times the timeout
    reason: RuntimeError | None = None
    with suppress(Empty):
        store = answer.get(timeout=timeout + 1)
        if not isinstance(store, RuntimeError):
            return store
        reason = store
    address = format_address(host, port)
    raise ConnectionError(f"no server answers at {address}, after {timeout:g} s") from reason


@contextmanager
def rpc_agent(store: TCPStore, host: str, server: bool) -> Iterator[None]:
    """Run this process's agent while the context lasts; its end waits for no other process.

    Args:
        store: The store of `create_store` or `connect_store`.
        host: Host of the server.
        server: True in the server's process.

    Raises:
        ConnectionError: No server starts within the store's timeout.
    """
    with _interface(host):
        limit = store.timeout.total_seconds()  # type: ignore[attr-defined]  # missing in torch's stubs
        # torchrun keeps one store over restarts.
        prefixed = PrefixStore(f"fa{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)
        number = 0 if server else prefixed.add("joined", 1)  # a process that returns is a new member
        name = SERVER if server else f"worker{number}"
        options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=4, rpc_timeout=0)
        _init_autograd(number)
        try:
            agent = TensorPipeAgent(prefixed, name, number, None, options, {}, [])
            if not server:
                agent._update_group_membership(WorkerInfo(SERVER, 0), [], {}, True)
        except RuntimeError as error:
            raise ConnectionError(f"no server started within {limit:g} s: {_first_line(error)}") from error
        try:
            rpc.api._init_rpc_states(agent)
        except RuntimeError as error:  # too little memory, or too few threads
            raise ConnectionError(f"RPC cannot start its threads: {_first_line(error)}") from error
    try:
        yield
    finally:
        rpc.shutdown(graceful=False)


def call_server(function: Any, *arguments: Any, timeout: float = 0) -> Any:
    """Call a function in the server's process.

    Args:
        function: A function of a module that both processes import.
        *arguments: Its arguments.
        timeout: Seconds to wait; 0 for any time.

    Returns:
        Its result.

    Raises:
        ConnectionError: The server is gone, or does not answer in time.
        ValueError: The function raised one.
    """
    try:
        return rpc.rpc_sync(SERVER, function, args=arguments, timeout=timeout)
    except ValueError as error:
        raise ValueError(_remote_message(error)) from error
    except RuntimeError as error:
        raise ConnectionError(f"the server is gone: {_first_line(error)}") from error


def _remote_message(error: ValueError) -> str:
    """Return the message of a ValueError in the server, which torch passes as the text of a traceback."""
    lines = [line for line in str(error).splitlines() if line.startswith("ValueError: ")]
    return lines[-1].removeprefix("ValueError: ") if lines else _first_line(error)


def _first_line(error: Exception) -> str:
    """Shorten torch's messages, which span many lines."""
    return str(error).splitlines()[0]


@contextmanager
def _interface(host: str) -> Iterator[None]:
    """Bind TensorPipe's ports to the interface that reaches the server, unless the variable names another one.

    Otherwise TensorPipe would resolve this host's name, possibly to a public address.
    """
    name = "TP_SOCKET_IFNAME"
    interface = None if name in os.environ else interface_towards(host)
    if interface is not None:
        os.environ[name] = interface
    try:
        yield
    finally:
        if interface is not None:
            del os.environ[name]
