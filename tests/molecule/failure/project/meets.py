"""Rank 1 reaches rank 0 at MASTER_PORT, as in a rendezvous, but without torch, which is not installed there."""

import os
import platform
import socket
import time

address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["NODE_RANK"] == "0":
    with socket.create_server(address) as server:
        connection, _peer = server.accept()
        print(connection.makefile().readline(), flush=True)
else:
    for _attempt in range(30):
        try:
            with socket.create_connection(address, timeout=5) as connection:
                text = f"met by rank 1 of {os.environ['WORLD_SIZE']}, Python {platform.python_version()}\n"
                connection.sendall(text.encode())
            break
        except ConnectionRefusedError:
            time.sleep(0.5)
    else:
        raise SystemExit("nobody listens at MASTER_PORT")
