"""The parameter server and its workers as processes, on one host or several, over torch.distributed.rpc (TensorPipe).

A star: each worker knows the server, and nobody knows anybody else. A worker asks the server, by one call, for the
next parameters, and hands over its gradient with the same call; the server calls nobody. So a worker that dies, hangs
or comes back concerns one connection, and no barrier or shutdown waits for it.
"""
