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

from fa.training.transport import LOOPBACK

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


@contextmanager
def agent(store: Store, host: str, server: bool) -> Iterator[None]:
    """This process takes part while the context lasts; leaving it waits for nobody."""
    with _interface(host):
        store = PrefixStore("fa", store)
        number = 0 if server else store.add("joined", 1)  # one that comes back is somebody new
        name = SERVER if server else f"worker{number}"
        options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=4, rpc_timeout=0)
        _init_autograd(number)
        started = TensorPipeAgent(store, name, number, None, options, {}, [])
        if not server:
            started._update_group_membership(WorkerInfo(SERVER, 0), [], {}, True)
        rpc.api._init_rpc_states(started)
    try:
        yield
    finally:
        rpc.shutdown(graceful=False)


def ask(function: Any, *arguments: Any) -> Any:
    """What `function` returns at the server, however long that takes. RuntimeError once the server is gone."""
    return rpc.rpc_sync(SERVER, function, args=arguments, timeout=0)


@contextmanager
def _interface(host: str) -> Iterator[None]:
    """TensorPipe listens on the interface that this variable names, else on what the host's name resolves to."""
    name = "TP_SOCKET_IFNAME"
    own = host == LOOPBACK and name not in os.environ
    if own:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if own:
            del os.environ[name]
