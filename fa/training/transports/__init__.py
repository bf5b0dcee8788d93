"""Transports: how gradients reach the server, in one process, over RPC, or by UDP datagrams."""
