# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ``ansible-test sanity`` on the built collection, on a machine without Docker.

All its tests run, with no file of findings to ignore; a Python that this machine lacks is named, and left out.
Arguments are handed on to ansible-test: ``python tests/collection/sanity.py --test pylint``.
"""

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from built import ROOT, install

CACHE = ROOT / ".cache" / "sanity"
"""Taken for the home: ansible-test keeps its environments there."""
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
"""Those that nodes may have, as tests/config.yml says, and that ansible-test of the oldest ansible-core knows."""


def main() -> int:
    """Return the exit status."""
    prepare_home()
    # Importing takes as long as all else.
    shares = [sys.argv[1:]] if sys.argv[1:] else [["--test", "import"], ["--skip-test", "import"]]
    with tempfile.TemporaryDirectory(prefix="thunderhead-sanity-") as name:
        install(Path(name, "0"))
        for number in range(1, len(shares)):
            shutil.copytree(Path(name, "0"), Path(name, str(number)))
        started = [start(Path(name, str(number)), share) for number, share in enumerate(shares)]
        for process, log in started:
            process.wait()
            print(log.read_text(), end="", flush=True)
    missing = sorted(set(PYTHONS) - set(pythons()), key=PYTHONS.index)
    if missing:
        print(f"The tests compile and import were not tried with Python {', '.join(missing)}: this machine has none.")
    return max(process.returncode for process, _log in started)


def start(folder: Path, arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
    """Start ansible-test on what is installed there; return its process, and the file that it prints to."""
    collection = folder / "ansible_collections" / "thunderhead" / "cluster"
    (collection / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "config.yml", collection / "tests")
    path = os.pathsep.join([os.environ["PATH"], *map(str, pythons().values())])
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["ansible-test", "sanity", "--color", "no", *arguments],
            cwd=collection,
            env={**os.environ, "HOME": str(CACHE), "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, log


def prepare_home() -> None:
    """Have a home with the script that ansible-test would download, and pip's settings, of which it keeps none."""
    scripts = CACHE / ".ansible" / "test" / "cache"
    scripts.mkdir(parents=True, exist_ok=True)
    text = (importlib.resources.files("ansible_test") / "_internal" / "python_requirements.py").read_text()
    (version,) = re.findall(r"^ +pip='([\d.]+)',$", text, re.MULTILINE)
    shutil.copy(Path(__file__).with_name("get_pip.py"), scripts / f"get_pip_{version.replace('.', '_')}.py")
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_CONFIG_FILE"}
    lines = [f"{name.removeprefix('PIP_').lower().replace('_', '-')} = {value}" for name, value in given.items()]
    (CACHE / ".pip").mkdir(exist_ok=True)
    (CACHE / ".pip" / "pip.conf").write_text("\n".join(["[global]", "quiet = 1", *lines, ""]))
    own = Path.home() / ".config" / "pip" / "pip.conf"
    if own.is_file():
        (CACHE / ".config" / "pip").mkdir(parents=True, exist_ok=True)
        shutil.copy(own, CACHE / ".config" / "pip")


def pythons(versions: Sequence[str] = PYTHONS) -> dict[str, Path]:
    """Return the folders of those Pythons that this machine has, by version.

    Those of pyenv are where it keeps them, because its commands on the search path start one version only.
    """
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found: dict[str, Path] = {}
    for version in versions:
        own = shutil.which(f"python{version}")
        for path in [*([Path(own)] if own else []), *sorted(kept.glob(f"{version}.*/bin/python{version}"))]:
            if version not in found and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                found[version] = path.parent
    return found


if __name__ == "__main__":
    sys.exit(main())
