"""The parameter server and its workers as processes, on one host or several, over torch.distributed.rpc (TensorPipe).

Connections form a star: a worker knows the server alone, and the server calls no worker. A worker sends its gradient
and receives the next parameters in one call. A worker that dies, hangs or returns affects one connection, and no
barrier or shutdown waits for it.
"""
