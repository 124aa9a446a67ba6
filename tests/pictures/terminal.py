# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the pictures of a terminal in the README: what real commands print, on two nodes on this machine.

    python tests/pictures/terminal.py

Each command runs on a terminal, as it is typed, with the script in ``project/``. What is another each time (ids, times,
folders, the port) is replaced by what is always the same, so that a picture changes only if the output does.
"""

import functools
import io
import os
import pty
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import (  # noqa: E402
    cluster_directory,
    find_cluster_directory,
)

PICTURES = ROOT / "docs" / "images"
HOME = "/home/you"
"""What the pictures show instead of the folder that the commands run in."""
COLUMNS = 120
WIDE = 130
RUN = "ansible-playbook run.yml -e script=train.py -e project_dir=~/line -e launcher=python"
COMMANDS = {
    "run": (RUN, COLUMNS),
    "failure": (f"{RUN} -e script_args=new.csv", COLUMNS),
    "status": ("ansible-playbook status.yml", WIDE),
}
"""By the name of the picture, with the columns of the terminal; they run in this order."""
FIXED = {
    r"\b\d{8}-\d{6}-train-[0-9a-f]{4}\b": ["20261122-173005-train-1a2b", "20261122-173142-train-3c4d"],
    r"\b\d\d-\d\d \d\d:\d\d:\d\d\b": ["11-22 17:31:43", "11-22 17:30:07"],
    r"(?<=MASTER_PORT )\d+": ["29500"],
    r"(?<=after )\d+(?= s\b)": ["1"],
}
"""Patterns of what is another each time, and what is shown instead: the first one found is the first in the list."""
# Jobs belong to user@machine; whoever draws the pictures is not to be in them.
AS_YOU = """\
import os, runpy
found = os.uname()
os.uname = lambda: os.uname_result((found.sysname, "laptop", *found[2:]))
runpy.run_module("ansible", run_name="__main__")
"""
COLORS = "4b4e55 ff7b72 7ee787 f2cc60 79c0ff d2a8ff 76e3ea c5c8c6"
"""Black, red, green, yellow, blue, magenta, cyan, white, all but the first readable on the picture's own background."""
# As rich has it, but for the font, which it has browsers download: a picture in a page may load nothing.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass
class Desk:
    """A folder with a project and an inventory of two nodes on this machine, to run commands in."""

    home: Path
    seen: dict[str, list[str]] = field(default_factory=dict)
    """What was found of each pattern, in the order in which it came."""

    def __post_init__(self) -> None:
        """Set up the nodes, as far as a script without torch needs it."""
        self.folder.mkdir()
        shutil.copytree(Path(__file__).parent / "project", self.home / "line")
        nodes = self.folder / ".nodes"
        variables = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "cluster_dir": f"{nodes}/{{{{ inventory_hostname }}}}",
            "cluster_master_port": free_port(),
            "job_user": "",
            "firewall_provider": "none",
        }
        hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(2)}
        inventory = {"cluster": {"hosts": hosts, "vars": variables}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        for host in hosts:
            for name in ("env/bin", "jobs", "bundles"):
                (nodes / host / name).mkdir(parents=True)
            (nodes / host / find_cluster_directory.MARKER).write_bytes(cluster_directory.MARKER_TEXT)
            (nodes / host / "env" / "bin" / "python").symlink_to(sys.executable)

    @property
    def folder(self) -> Path:
        """Where the commands run, as in a checkout."""
        return self.home / "thunderhead"

    def run(self, command: str, columns: int) -> tuple[int, str]:
        """Run a command on a terminal; return its exit status, and what it prints, with escape sequences."""
        _program, playbook, *words = shlex.split(command.replace("~", str(self.home)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "NO_COLOR"))}
        own = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_INVENTORY": "hosts.yml",
            "COLUMNS": str(columns),
            "LOGNAME": "you",
            "TERM": "xterm-256color",
        }
        main, side = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", AS_YOU, "playbook", ROOT / playbook, *words],
            cwd=self.folder,
            env={**kept, **own},
            stdin=subprocess.DEVNULL,
            stdout=side,
            stderr=side,
        )
        os.close(side)
        printed = b"".join(read(main))
        os.close(main)
        return process.wait(), printed.decode().replace("\r\n", "\n")

    def fixed(self, text: str) -> str:
        """Return a text with what is another each time replaced."""
        text = text.replace(str(self.home), HOME)
        for pattern, instead in FIXED.items():
            seen = self.seen.setdefault(pattern, [])
            seen += [word for word in dict.fromkeys(re.findall(pattern, text)) if word not in seen]
            # One that is too many is shown as it is, and makes the picture another each time.
            fixed = dict(zip(seen, [*instead, *seen[len(instead) :]], strict=False))
            text = re.sub(pattern, functools.partial(replaced, fixed), text)
        return text


def replaced(fixed: Mapping[str, str], found: re.Match[str]) -> str:
    """Return what is shown instead of what was found."""
    return fixed[found[0]]


def read(terminal: int) -> Iterator[bytes]:
    """Yield what is printed until nobody can print any more."""
    while True:
        try:
            yield os.read(terminal, 65536)
        except OSError:  # EIO: all have closed it
            return


def free_port() -> int:
    """Return a free TCP port outside the range that outgoing connections take theirs from."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(low - 1, 1024, -1):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise SystemExit(f"no port below {low} is free")


def drawn(name: str, command: str, printed: str, columns: int) -> str:
    """Return a picture of a terminal that shows a command and what it printed, as SVG."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, highlight=False)
    for line in [f"\x1b[1m$ {command}\x1b[0m", *printed.splitlines()]:
        text = Text.from_ansi(line)
        for part in text.divide(range(columns, len(text), columns)):  # as a terminal does: not between words
            console.print(part, no_wrap=True, overflow="crop")
    colors = [(one[0], one[1], one[2]) for one in map(bytes.fromhex, COLORS.split())]
    theme = TerminalTheme((41, 41, 41), (230, 230, 230), colors)
    return console.export_svg(title="", theme=theme, code_format=SVG, unique_id=name)


def draw() -> dict[str, str]:
    """Return the pictures by their names."""
    # In a folder of its own, around which no git repository decides what belongs to the project.
    with tempfile.TemporaryDirectory(prefix="thunderhead-pictures-") as name:
        desk = Desk(Path(name))
        return {
            one: drawn(one, command, desk.fixed(desk.run(command, columns)[1]), columns)
            for one, (command, columns) in COMMANDS.items()
        }


def main() -> None:
    """Put the pictures where the README shows them."""
    PICTURES.mkdir(exist_ok=True)
    for name, picture in draw().items():
        (PICTURES / f"{name}.svg").write_text(picture)


if __name__ == "__main__":
    main()
