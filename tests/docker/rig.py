#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test rig: containers that behave like machines, with systemd, sshd and a firewall of their own.

    rig.py up         a Docker engine: the one that answers, else Debian's own, started by hand
    rig.py wheels     fill .cache/wheels with what requirements.txt and the tools name; the nodes install from there
    rig.py prepare    what nodes share: these wheels, their keys, their image; `create` makes what is missing, too
    rig.py create thunderhead-default node0=198.18.10.10 node1=198.18.10.11 (--ipv6: fd00:198:18:10::10 and ::11 too)
    rig.py reboot thunderhead-default node0=198.18.10.10
    rig.py remove thunderhead-default
    rig.py down       end the engine that `up` started, and nothing else

Needs no image registry: the image comes from mmdebstrap and `docker import`, and is built again when its recipe
changes. Nodes are reached with `ssh -F .cache/ssh/config ADDRESS`; they reach nothing but each other and this machine.
"""

import argparse
import hashlib
import ipaddress
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = REPOSITORY / ".cache"
ENGINE = CACHE / "docker"
PIDFILE = ENGINE / "dockerd.pid"
SSH = CACHE / "ssh"
WHEELS = CACHE / "wheels"

NODE_PYTHON = "3.11"  # which the wheels are for: Debian 12's; what is tried on Debian 13 needs no package
NODE_GLIBC_MINOR = 36  # likewise: 2.36
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

NODE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "sudo"),
    *("nftables", "iproute2", "procps", "iputils-ping", "netbase", "ca-certificates"),
    *("firewalld", "ufw", "iptables"),  # there, and off: see customize.sh
)
IMAGES = {
    "debian12": ("bookworm", NODE_PACKAGES),
    "debian13": ("trixie", NODE_PACKAGES),
    "bench": ("bookworm", (*NODE_PACKAGES, "openmpi-bin")),
}
"""Debian's release and the packages of each kind of node."""

# Named rights, where all of the host's would be easier: a test node must not be able to touch this machine's disks,
# clock or devices. The host's cgroup namespace, so that systemd finds its own place in the mounted tree and stays in it
# on version 1 and 2 alike; in a namespace of its own it would take the host's root for its own on version 2.
NODE_OPTIONS = (
    *("--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--cgroupns", "host"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--env", "container=docker", "--stop-signal", "SIGRTMIN+3"),
    "--tty",  # where systemd tells `docker logs` why it cannot boot
)
NODE_START_SECONDS = 90
ENGINE_START_SECONDS = 60
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_NEEDED = 1024  # each systemd takes about six; the usual 128 end at some 20 nodes


def call(*command: str | Path) -> str:
    """Run a command that has to succeed and return what it printed; its own words are the error."""
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"`{' '.join(map(str, command))}` failed:\n{result.stdout}{result.stderr}".rstrip())
    return result.stdout.strip()


def succeeds(*command: str | Path) -> bool:
    """Whether a command exits with 0; what it prints is dropped."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def say(text: str) -> None:
    """Tell the user what takes the time, on standard error: standard output is for results."""
    print(f"rig: {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ tools and engine


def provide(**packages: str) -> None:
    """Install the Debian packages whose command (the argument's name) is missing, or say which they are."""
    missing = sorted({package for command, package in packages.items() if not shutil.which(command)})
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not shutil.which("apt-get"):
        sys.exit(f"{', '.join(missing)} (so Debian calls it) is missing for the test rig; install it")
    if os.geteuid() != 0:
        sys.exit(f"{', '.join(missing)} is missing for the test rig; install it as root: {' '.join(install)}")
    say(f"installing {', '.join(missing)}")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    call("apt-get", "update")
    call(*install)


def engine_answers() -> bool:
    """Whether there is a Docker engine that this user may talk to."""
    return bool(shutil.which("docker")) and succeeds("docker", "version")


def up() -> None:
    """Have an engine: the one that answers, else Debian's, started here."""
    if not engine_answers():
        start_engine()
    raise_inotify_limit()


def start_engine() -> None:
    """Start dockerd with its data below .cache/, on the usual socket, where every client looks."""
    if host := os.environ.get("DOCKER_HOST"):
        sys.exit(f"no Docker engine answers at DOCKER_HOST={host}; start that one, or unset DOCKER_HOST")
    if os.geteuid() != 0:
        sys.exit("no Docker engine answers; start one that this user may use (group docker), or be root on Debian")
    release = platform.freedesktop_os_release()
    # From Debian 13 the client is a package of its own.
    client = "docker-cli" if release["ID"] == "debian" and int(release.get("VERSION_ID", 99)) >= 13 else "docker.io"
    provide(dockerd="docker.io", docker=client, iptables="iptables")
    if engine_answers():  # where systemd runs, the package starts its service
        return
    say("starting dockerd")
    ENGINE.mkdir(parents=True, exist_ok=True)
    log = ENGINE / "dockerd.log"
    with log.open("wb") as output:
        dockerd = subprocess.Popen(
            ["dockerd", "--data-root", ENGINE / "data", "--pidfile", PIDFILE],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + ENGINE_START_SECONDS
    while not engine_answers():
        if dockerd.poll() is not None or time.monotonic() > deadline:
            dockerd.terminate()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(f"dockerd did not come up within {ENGINE_START_SECONDS} s; see {log}, which ends with:\n{tail}")
        time.sleep(0.2)


def raise_inotify_limit() -> None:
    """Allow as many inotify instances as 100 nodes need, where we may; `down` puts the old limit back."""
    limit = int(INOTIFY_INSTANCES.read_text())
    if limit < INOTIFY_NEEDED and os.access(INOTIFY_INSTANCES, os.W_OK):
        ENGINE.mkdir(parents=True, exist_ok=True)
        (ENGINE / "inotify").write_text(str(limit))
        INOTIFY_INSTANCES.write_text(str(INOTIFY_NEEDED))


def down() -> None:
    """Take down exactly what `up` put up; an engine that was there before stays as it is."""
    if PIDFILE.exists():
        pid = int(PIDFILE.read_text())
        command_line = Path(f"/proc/{pid}/cmdline")
        # After a power cut the number may be somebody else's.
        if command_line.exists() and str(PIDFILE).encode() in command_line.read_bytes():
            if containers := call("docker", "ps", "--all", "--quiet").split():
                call("docker", "rm", "--force", "--volumes", *containers)
            call("docker", "network", "prune", "--force")
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + ENGINE_START_SECONDS
            while PIDFILE.exists():  # its last act is to remove it
                if time.monotonic() > deadline:
                    sys.exit(f"dockerd ({pid}) does not end; see {ENGINE / 'dockerd.log'}")
                time.sleep(0.1)
        PIDFILE.unlink(missing_ok=True)
    limit = ENGINE / "inotify"
    if limit.exists():
        INOTIFY_INSTANCES.write_text(limit.read_text())
        limit.unlink()


# ------------------------------------------------------------------------------------------------- keys and image


def keys() -> None:
    """Make, once, the keys of the nodes and of their user, and the ssh configuration that everything here uses."""
    if (SSH / "config").exists():
        return
    provide(**{"ssh-keygen": "openssh-client"})
    node = SSH / "node"
    shutil.rmtree(SSH, ignore_errors=True)
    node.mkdir(parents=True, mode=0o755)
    for name in ("id_ed25519", "node/host_key"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "thunderhead tests", "-f", SSH / name)
    shutil.copy(SSH / "id_ed25519.pub", node / "authorized_keys")
    (SSH / "known_hosts").write_text(f"198.18.*,198.19.* {(node / 'host_key.pub').read_text()}")
    (SSH / "config").write_text(
        "# Every node of the tests; they share one host key.\n"
        "Host 198.18.* 198.19.*\n"
        "    User admin\n"
        f'    IdentityFile "{SSH}/id_ed25519"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{SSH}/known_hosts"\n'
        "    StrictHostKeyChecking yes\n"
        "    BatchMode yes\n"
        "    ConnectTimeout 10\n"
    )


def image(name: str) -> str:
    """The image called `name` (see IMAGES) as docker knows it, built first where its recipe is new."""
    hook = HERE / "customize.sh"
    release, packages = IMAGES[name]
    build = [
        *("mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}"),
        *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"),
        *("--dpkgopt=path-exclude=/usr/share/locale/*", release),
    ]
    recipe = hashlib.sha256("\0".join([*build, hook.read_text()]).encode()).hexdigest()
    tag = f"thunderhead/{name}:{recipe[:12]}"
    if not succeeds("docker", "image", "inspect", tag):
        provide(mmdebstrap="mmdebstrap")
        say(f"building {tag}")
        archive = CACHE / f"{name}.tar"
        call(*build, archive, f"--customize-hook='{hook}' \"$1\"")
        call("docker", "import", "--change", 'CMD ["/sbin/init"]', archive, tag)
        archive.unlink()
    return tag


# ----------------------------------------------------------------------------------------------------------- nodes


def create(network: str, nodes: dict[str, str], image_name: str, volumes: Iterable[str], ipv6: bool) -> None:
    """Start nodes ({host name: address}) on a /24 of their own; return when sshd answers on all of them."""
    keys()
    WHEELS.mkdir(parents=True, exist_ok=True)
    tag = image(image_name)
    remove(network)
    first = next(iter(nodes.values()))
    subnets = ["--subnet", str(ipaddress.ip_network(f"{first}/24", strict=False))]
    if ipv6:
        subnets += ["--ipv6", "--subnet", str(ipaddress.ip_network(f"{in_ipv6(first)}/64", strict=False))]
    # Internal: no way out, so that a test cannot depend on, or bother, anything but these nodes.
    call("docker", "network", "create", "--internal", *subnets, "--label", f"thunderhead={network}", network)
    mounts = [f"{SSH / 'node'}:/etc/node:ro", f"{WHEELS}:/wheels:ro", *volumes]

    def start(name: str) -> str | None:
        container = f"{network}-{name}"
        call(
            *("docker", "run", "--detach", "--name", container, "--label", f"thunderhead={network}", *NODE_OPTIONS),
            *("--hostname", name, "--network", network, "--ip", nodes[name]),
            *(("--ip6", in_ipv6(nodes[name])) if ipv6 else ()),
            *("--add-host", f"{name}:127.0.1.1"),  # as Debian's installer does; gloo trips over it
            *(option for mount in mounts for option in ("--volume", mount)),
            tag,
        )
        return None if ssh_answers(nodes[name]) else container

    with ThreadPoolExecutor(len(nodes)) as threads:
        failed = [container for container in threads.map(start, nodes) if container]
    explain(failed)


def in_ipv6(address: str) -> str:
    """Return the IPv6 address of a node with this IPv4 address: its numbers, read as hexadecimal ones."""
    *net, host = address.split(".")
    return f"fd00:{':'.join(net)}::{host}"


def reboot(network: str, nodes: dict[str, str]) -> None:
    """Shut these nodes down and start them again; return when sshd answers on all of them."""

    def restart(name: str) -> str | None:
        container = f"{network}-{name}"
        call("docker", "restart", container)
        return None if ssh_answers(nodes[name]) else container

    with ThreadPoolExecutor(len(nodes)) as threads:
        explain([container for container in threads.map(restart, nodes) if container])


def explain(failed: Iterable[str]) -> None:
    """Show what is known of containers without sshd, and give up, if there are any."""
    for container in failed:
        say(f"{container} did not answer on port 22 within {NODE_START_SECONDS} s; its console and its journal:")
        subprocess.run(["docker", "logs", "--tail", "30", container], check=False, stdout=sys.stderr)
        journal = ["docker", "exec", container, "journalctl", "--no-pager", "--lines", "60"]
        subprocess.run(journal, check=False, stdout=sys.stderr)
    if failed:
        sys.exit(f"no sshd on {', '.join(failed)}; they are left for a look, `rig.py remove NETWORK` removes them")


def ssh_answers(address: str) -> bool:
    """Whether an SSH server introduces itself at the address before the time is over."""
    deadline = time.monotonic() + NODE_START_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, 22), timeout=2) as connection:
                if connection.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def remove(network: str) -> None:
    """Remove the network and its nodes, where there are any."""
    mine = f"label=thunderhead={network}"
    if containers := call("docker", "ps", "--all", "--quiet", "--filter", mine).split():
        call("docker", "rm", "--force", "--volumes", *containers)
    if networks := call("docker", "network", "ls", "--quiet", "--filter", mine).split():
        call("docker", "network", "rm", *networks)


# ---------------------------------------------------------------------------------------------------------- wheels


def wheels() -> None:
    """Fill .cache/wheels for the nodes' Python, whatever this one is; again only when these lists change."""
    requirements = REPOSITORY / "requirements.txt"
    stamp = WHEELS / "requirements.sha256"
    tools = REPOSITORY / "roles" / "python_env" / "files" / "tools.txt"
    digest = hashlib.sha256(requirements.read_bytes() + tools.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("downloading the wheels that requirements.txt names")
    # The folder itself stays: containers that were made before mount it.
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.iterdir():
        old.unlink()
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(NODE_GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]
    download: list[str | Path] = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", WHEELS),
        *("--only-binary=:all:", "--python-version", NODE_PYTHON, *(f"--platform={name}" for name in platforms)),
    ]
    torch = re.search(r"^torch==[^\s;#]+", requirements.read_text(), re.MULTILINE)
    # A wheel folder that pip was told of (PIP_FIND_LINKS) may hold torch for the CPU; the usual index has only CUDA's.
    local = torch and succeeds(*download, "--no-index", "--no-deps", torch[0])
    index = [] if local else ["--extra-index-url", TORCH_CPU_INDEX]
    # Apart: pip wants a hash for all packages, or for none.
    lists: list[list[str | Path]] = [[*index, "--requirement", requirements], ["--requirement", tools]]
    if any(subprocess.run([*download, *one], check=False).returncode for one in lists):
        sys.exit("the nodes' wheels could not be downloaded, see above")
    stamp.write_text(digest)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="up|down|wheels|prepare|create|reboot|remove"
    )
    for name in ("up", "down", "wheels", "prepare"):
        commands.add_parser(name)
    creation = commands.add_parser("create")
    creation.add_argument("network")
    creation.add_argument("nodes", nargs="+", metavar="HOSTNAME=ADDRESS")
    creation.add_argument("--image", choices=IMAGES, default="debian12")
    creation.add_argument("--volume", action="append", default=[], metavar="FROM:TO", help="as for `docker run`")
    creation.add_argument("--ipv6", action="store_true", help="an IPv6 address for each node besides")
    rebooting = commands.add_parser("reboot")
    rebooting.add_argument("network")
    rebooting.add_argument("nodes", nargs="+", metavar="HOSTNAME=ADDRESS")
    commands.add_parser("remove").add_argument("network")
    options = parser.parse_args()
    if options.command == "create":
        nodes = dict(node.split("=", 1) for node in options.nodes)
        create(options.network, nodes, options.image, options.volume, options.ipv6)
    elif options.command == "reboot":
        reboot(options.network, dict(node.split("=", 1) for node in options.nodes))
    elif options.command == "remove":
        remove(options.network)
    elif options.command == "prepare":
        wheels()
        keys()
        image("debian12")
    else:
        {"up": up, "down": down, "wheels": wheels}[options.command]()


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # root's PATH after `su` has no dockerd and no iptables
    main()
