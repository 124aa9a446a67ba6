"""Fabric, to be started by its own command line, `fabric run`."""

import lightning as L

fabric = L.Fabric()
print(f"{fabric.global_rank} of {fabric.world_size}", flush=True)
