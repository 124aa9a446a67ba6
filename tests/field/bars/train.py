"""Draws progress bars, which on a terminal stay in one line each."""

from rich.progress import track
from tqdm import tqdm

for _batch in tqdm(range(2000), desc="tqdm"):
    pass
for _batch in track(range(2000), description="rich"):
    pass
print("drawn", flush=True)
