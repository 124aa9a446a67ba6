# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Install a lock into a new environment beside the present one, then switch to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import is_complete, link_of
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure, Uv

MEBIBYTE = 2**20
OTHERWISE = "uv could not install the lock"
NO_WHEEL = re.compile(r"Wheels are required for `([^`]+)` because building from source is disabled")
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system says that has no locks."""


class Environment:
    """A virtual environment below a cluster directory.

    Args:
        directory: the cluster directory.
        target: the environment's folder, relative to it.
        uv: with its settings.
        executable: the Python that it is made from.
        compiles: whether bytecode is to be written: a job user cannot write it beside root's files.
    """

    def __init__(self, directory: str, target: str, uv: Uv, executable: str, compiles: bool) -> None:
        self.directory = directory
        self.target = target
        self.path = os.path.join(directory, target)
        self.uv = uv
        self.executable = executable
        self.compiles = compiles

    def make(self, lock: str, backend: str, needs_torch: list[str], wheels: str, folder: str, record: str) -> None:
        """Install the lock into it, unless it is complete.

        Args:
            lock: every package, with hashes.
            backend: of torch, "none" for the indexes' own.
            needs_torch: packages whose build needs it.
            wheels: folder of those that were built on the controller.
            folder: for temporary files.
            record: the text of its requirements.txt.

        Raises:
            Failure: it cannot be done; nothing is left of it.
        """
        if is_complete(self.directory, self.target):
            return
        try:
            self.uv.run("venv", "--quiet", "--clear", "--no-project", "--python", self.executable, self.path)
            output = self._install(lock, backend, needs_torch, wheels, folder) if lock.strip() else ""
            open_to_all(self.path)
            write(os.path.join(self.path, "requirements.txt"), record)
            installed = re.findall(r"(?m)^ \+ (\S+)", output)
            write(os.path.join(self.path, "installed.txt"), "".join(f"{one}\n" for one in installed))
        except (Failure, OSError):
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _install(self, lock: str, backend: str, needs_torch: list[str], wheels: str, folder: str) -> str:
        path = os.path.join(folder, "lock.txt")
        arguments = ["pip", "install", "--python", os.path.join(self.path, "bin", "python"), "--no-deps"]
        arguments += ["--require-hashes", "--requirements", path]
        if backend != "none":
            arguments.append(f"--torch-backend={backend}")
        if self.compiles:
            arguments.append("--compile-bytecode")
        if self.uv.index == "none":
            arguments.append("--no-index")
        variables = {"THUNDERHEAD_WHEELS": wheels}
        if os.path.isdir(wheels) and os.listdir(wheels):
            # An argument would take the place of the other folders.
            links = [self.uv.environment.get("UV_FIND_LINKS", ""), pathlib.Path(wheels).as_uri()]
            variables["UV_FIND_LINKS"] = ",".join(filter(None, links))
        more = {"otherwise": OTHERWISE, **variables}
        # Wheels come from all indexes: hashes say which one is meant. What a build needs has no hash.
        of_all_indexes = ["--index-strategy", "unsafe-best-match", "--no-build"]
        entries = {re.split(r"[ =@]", entry, maxsplit=1)[0]: entry for entry in re.split(r"\n(?=\S)", lock.strip())}
        without: list[str] = []
        while True:
            write(path, "\n".join(entry for name, entry in entries.items() if name not in without))
            try:
                output = self.uv.run(*arguments, *of_all_indexes, **more)[1] if len(without) < len(entries) else ""
                break
            except Failure as failure:
                found = set(NO_WHEEL.findall(failure.output)) & entries.keys() - set(without)
                if not found:
                    raise
                without += found
        if without:  # for this node they have no wheel, and are built with the very torch that they will run with
            write(path, "\n".join(entries[name] for name in without))
            torch = re.search(r"(?m)^torch==[^\s\\]+", lock)
            needs = list(needs_torch)
            output += self.uv.run_building(*arguments, torch=torch[0] if torch else "", needs=needs, **more)[1]
        return output

    def switch(self, link: str, leads_to: str) -> None:
        """Point a link in the cluster directory at it, in one step."""
        place = os.path.join(self.directory, link)
        if link_of(place) == leads_to:
            return
        part = f"{place}.part"
        if os.path.lexists(part):
            os.unlink(part)
        os.symlink(leads_to, part)
        os.replace(part, place)


@contextlib.contextmanager
def alone(directory: str, uv: Uv) -> Iterator[None]:
    """Keep other setups from installing in a cluster directory while this process, or a uv that it started, lives.

    On a file system that has no locks two setups are not kept apart.

    Raises:
        Failure: another one installs, perhaps one whose ansible-playbook has ended meanwhile.
        OSError: the folder of the cache is not there.
    """
    lock = os.open(os.path.join(directory, "cache", "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"another setup.yml installs in {directory} at this moment; wait until it has ended, or if it was "
                f"broken off, end what is left of it there: pkill -f {shlex.quote(uv.binary)}, and run setup again"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        uv.passed = (lock,)
        yield
    finally:
        os.close(lock)


def write(path: str, text: str) -> None:
    """Write a file that all may read, in one step."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(f"{path}.part", 0o644)
    os.replace(f"{path}.part", path)


def recorded(lock: str, name: str, digest: str) -> str:
    """Return the text of an environment's requirements.txt: the pinned packages, without hashes."""
    packages = re.sub(r" \\\n[ \t]+--hash=\S+", "", lock)
    packages = re.sub(r"(?m)^(\S+) @ file://\S*/([^-/\s]+)-([^-/\s]+)-\S+$", r"\1==\3", packages)
    return f"# requirements {digest[:16]}, resolved by setup.yml from {name}\n{packages}"


def open_to_all(path: str) -> None:
    """Let every account read an environment: a strict umask, now or when uv's cache was filled, would keep jobs out.

    Raises:
        Failure: chmod failed.
    """
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(["chmod", "-R", "u=rwX,go=rX", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(
            f"its files in {path} cannot be opened to all accounts; see that the file system there keeps modes",
            done.stderr.strip(),
        )


def bound_cache(uv: Uv, cache: str, most_mb: int) -> None:
    """Empty uv's cache if it holds more than it may; files that an environment has too take no room there."""
    total = 0
    for folder, _folders, files in os.walk(cache):
        for name in files:
            found = os.lstat(os.path.join(folder, name))
            total += found.st_blocks * 512 if found.st_nlink == 1 else 0
    if total > most_mb * MEBIBYTE:
        uv.run("cache", "clean", "--quiet")


def explained(failure: Failure) -> str:
    """Return why it failed, with the end of uv's output."""
    output = failure.output
    return f"{failure.why}.\nThe end of uv's output:\n\n{output[-1500:]}" if output else f"{failure.why}."
