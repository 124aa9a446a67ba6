"""Fabric that starts its processes itself."""

from lightning_fabric import Fabric

fabric = Fabric(accelerator="cpu", devices=1)
fabric.launch()
print(f"{fabric.global_rank} of {fabric.world_size}", flush=True)
