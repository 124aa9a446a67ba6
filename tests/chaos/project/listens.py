"""Listens on MASTER_PORT on rank 0, as torch's store does; the others wait for ever for one that never comes."""

import os
import socket
import time

print("ready")
if os.environ["NODE_RANK"] == "0":
    socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
time.sleep(3600)
