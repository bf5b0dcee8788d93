"""Transports: how gradients reach the server, in one process, over TCP, over RPC, or by UDP datagrams."""
