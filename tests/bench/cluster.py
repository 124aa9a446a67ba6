# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: nodes of the test rig, this project's playbooks on them, and a lock."""

import contextlib
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RIG = REPOSITORY / "tests" / "docker" / "rig.py"
SSH_CONFIG = REPOSITORY / ".cache" / "ssh" / "config"
FOLDER = REPOSITORY / ".cache" / "bench"
RUNS = FOLDER / "runs"
PROJECT = Path(__file__).resolve().parent
"""The folder of the scripts that the benchmarks launch."""
LIMIT_SECONDS = 300


class Cluster:
    """Nodes of the test rig.

    Attributes:
        network: name of theirs; a node's container is NETWORK-HOST.
        nodes: host name to address.
        control: folder of the SSH connections that stay open.
    """

    def __init__(self, network: str, subnet: str, count: int, control: Path) -> None:
        self.network = network
        self.nodes = {f"node{number:02}": f"{subnet}.{10 + number}" for number in range(count)}
        self.control = control

    def create(self, *options: str) -> None:
        """Start the nodes; return when sshd answers on all of them."""
        begin = time.monotonic()
        rig("create", self.network, *options, *(f"{name}={address}" for name, address in self.nodes.items()))
        print(f"{len(self.nodes)} nodes answer after {time.monotonic() - begin:.1f} s", flush=True)

    def set_up(self) -> None:
        """Run setup.yml, with nothing to install: what is measured needs no libraries."""
        requirements = FOLDER / "requirements.txt"
        requirements.write_text("# nothing\n")
        run([*self.playbook("setup.yml"), "-e", f"python_env_requirements={requirements}"])

    def playbook(self, name: str) -> list[str]:
        """An `ansible-playbook` on the nodes, with the settings of the repository's ansible.cfg."""
        inventory = FOLDER / "inventory.json"
        hosts = {name: {"ansible_host": address} for name, address in self.nodes.items()}
        inventory.write_text(json.dumps({"cluster": {"hosts": hosts, "vars": {"job_runs_dir": str(RUNS)}}}))
        ssh_args = f"ANSIBLE_SSH_ARGS=-F '{SSH_CONFIG}' -o ControlMaster=auto -o ControlPersist=600"
        tool = Path(sys.executable).parent / "ansible-playbook"
        return [
            *("env", "-u", "PYTHONDONTWRITEBYTECODE"),  # a user's Python keeps what it has compiled
            *(ssh_args, f"ANSIBLE_SSH_CONTROL_PATH_DIR={self.control}"),
            *(str(tool), "-i", str(inventory), name),
        ]

    def disconnect(self) -> None:
        """Close every SSH connection that was left open."""
        for connection in self.control.iterdir():
            address = next(iter(self.nodes.values()))
            close = ["ssh", "-F", str(SSH_CONFIG), "-o", f"ControlPath={connection}", "-O", "exit", address]
            subprocess.run(close, check=False, capture_output=True)

    def remove(self) -> None:
        """Remove the nodes."""
        self.disconnect()
        rig("remove", self.network)


@contextlib.contextmanager
def cluster(
    network: str,
    subnet: str,
    count: int,
    *options: str,
    set_up: Callable[[Cluster], None] = Cluster.set_up,
) -> Iterator[Cluster]:
    """Nodes that were set up, as long as they are needed, and no other benchmark beside them.

    Args:
        network: its name.
        subnet: first three numbers of its addresses.
        count: how many nodes.
        options: of `rig.py create`.
        set_up: what makes them nodes.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A short path: the name of a socket is limited to some hundred characters.
    control = tempfile.TemporaryDirectory(prefix="thunderhead-", ignore_cleanup_errors=True)
    with (FOLDER / "lock").open("w") as lock, control as folder:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another benchmark runs in this checkout; two at once would measure each other")
        one = Cluster(network, subnet, count, Path(folder))
        one.create(*options)
        try:
            set_up(one)
            yield one
        finally:
            one.remove()


@contextlib.contextmanager
def versions(before: str | None) -> Iterator[dict[str, Path]]:
    """What is compared, as long as it is needed: name to folder of this project, here and maybe at a commit."""
    if not before:
        yield {"thunderhead": REPOSITORY}
        return
    parse = ["git", "-C", str(REPOSITORY), "rev-parse", "--verify", "--quiet", "--end-of-options"]
    found = subprocess.run([*parse, f"{before}^{{commit}}"], check=False, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"--before is {before}, which is no commit of {REPOSITORY}; give one that git log shows there")
    with tempfile.TemporaryDirectory() as folder:
        run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(REPOSITORY), folder])
        run(["git", "-C", folder, "checkout", "--quiet", "--detach", found.stdout.strip()])
        yield {"before": Path(folder), "thunderhead": REPOSITORY}


def run(command: list[str]) -> None:
    """Run a command that has to succeed; otherwise show what it said and end."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            process = subprocess.run(
                command,
                check=False,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=LIMIT_SECONDS,
            )
            end = f"exited with {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            end = f"did not end within {LIMIT_SECONDS} s"
        if end:
            output.seek(0)
            sys.exit(f"`{' '.join(command)}` {end}:\n{output.read()}")


def rig(*arguments: str) -> None:
    """Have the test rig do something; it says itself what goes wrong."""
    if subprocess.run([sys.executable, RIG, *arguments], check=False).returncode:
        sys.exit(1)
