"""The parameter server and its workers as processes that exchange numbers and nothing else, over TCP or TLS.

A message is a header of fixed size and raw bytes, whose number follows from the model. Nothing is unpickled. A peer
that sends anything else loses its connection, and changes nothing. docs/security.md has the threat model.

`messages` is the format, `keys` the certificates, `link` the worker's end, and `connection` the server's end of one
connection. `server` runs the rounds, and `launch` starts it with its workers.
"""
