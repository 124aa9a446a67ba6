#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Feed what reads untrusted bytes with bytes that reach new code, and keep those that did.

fuzz.py [TARGET ...] [--runs 1000000]     all targets of targets.py, one after the other

The corpus of each target is a zip file in tests/fuzz/corpus; the unit tests read it too. A finding lies in
.cache/fuzz/<target>/ as crash-…; the exit status is 1 then. Needs atheris (dependency group fuzz), Python 3.11.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import atheris

CORPUS = Path(__file__).resolve().parent / "corpus"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "fuzz"
LONGEST = 4096
"""Bytes of an input."""
SLOWEST_SECONDS = 10
"""One input that takes longer is a finding."""


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Fuzz a target in this process, which ends with it."""
    with atheris.instrument_imports(include=["ansible_collections"]):
        from targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def fuzz(target: str, runs: int) -> bool:
    """Fuzz a target from its corpus on, and keep what has reached new code; return whether nothing was found."""
    folder, found = CACHE / target, CACHE / target / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    archive = CORPUS / f"{target}.zip"
    if archive.exists():
        zipfile.ZipFile(archive).extractall(found)
    own = [sys.executable, __file__, "--target", target]
    limits = [f"-max_len={LONGEST}", f"-timeout={SLOWEST_SECONDS}", f"-artifact_prefix={folder}/"]
    ended = subprocess.run([*own, str(found), f"-runs={runs}", "-print_final_stats=1", *limits])
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(found.iterdir()):
            packed.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return ended.returncode == 0


def main() -> int:
    """Read the command line and do what it says."""
    if sys.argv[1:2] == ["--target"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=1_000_000)
    options = parser.parse_args()
    from targets import TARGETS

    good = [fuzz(target, options.runs) for target in options.targets or TARGETS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
