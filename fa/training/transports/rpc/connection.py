"""TensorPipe agents in a star around the server, instead of the full mesh that `init_rpc` makes.

`init_rpc` has every member greet every other one, the dead among them, which then hangs or fails; and its graceful
shutdown waits for all. Here each process starts its own agent, and a worker's agent is told of the server alone.
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
WAIT = timedelta(seconds=60)  # for the store, and so for a server that is not there yet


def serve(host: str, port: int) -> tuple[TCPStore, int]:
    """The store at which workers find the server, listening on `host` alone, and its port, which 0 leaves open."""
    listener = socket.create_server((host, port))
    port = listener.getsockname()[1]
    fd = listener.detach()  # the store closes it
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=WAIT, master_listen_fd=fd, use_libuv=False
    )
    return store, port


def reach(host: str, port: int) -> TCPStore:
    """The store that somebody else keeps at host:port; ConnectionError where nobody does in time."""
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=WAIT, use_libuv=False)
    except RuntimeError as error:
        raise ConnectionError(f"nobody answers at {host}:{port}, after {WAIT.seconds} s") from error


@contextmanager
def agent(store: Store, host: str, server: bool) -> Iterator[None]:
    """This process takes part while the context lasts; leaving it waits for nobody."""
    with _interface(host):
        store = PrefixStore(f"fa{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)  # torchrun keeps it
        number = 0 if server else store.add("joined", 1)  # one that comes back is somebody new
        name = SERVER if server else f"worker{number}"
        options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=4, rpc_timeout=0)
        _init_autograd(number)
        try:
            started = TensorPipeAgent(store, name, number, None, options, {}, [])
            if not server:
                started._update_group_membership(WorkerInfo(SERVER, 0), [], {}, True)
        except RuntimeError as error:
            raise ConnectionError(f"no server came within {WAIT.seconds} s: {_first_line(error)}") from error
        rpc.api._init_rpc_states(started)
    try:
        yield
    finally:
        rpc.shutdown(graceful=False)


def ask(function: Any, *arguments: Any) -> Any:
    """What `function` returns at the server, however long that takes. ConnectionError once the server is gone, and
    ValueError for what it refuses.
    """
    try:
        return rpc.rpc_sync(SERVER, function, args=arguments, timeout=0)
    except ValueError as error:  # the server's own words are the last of its traceback, which torch hands on as a text
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error
    except RuntimeError as error:
        raise ConnectionError(f"the server is gone: {_first_line(error)}") from error


def _first_line(error: RuntimeError) -> str:
    """Torch's own messages take many."""
    return str(error).splitlines()[0]


@contextmanager
def _interface(host: str) -> Iterator[None]:
    """TensorPipe listens on the interface that this variable names, else on what the host's name resolves to."""
    name = "TP_SOCKET_IFNAME"
    own = host in (LOOPBACK, "localhost") and name not in os.environ
    if own:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if own:
            del os.environ[name]
