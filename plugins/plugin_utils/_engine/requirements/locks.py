# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the locks of resolved requirements on the controller, and have missing ones made.

What is kept lies in ``~/.cache/thunderhead/locks/<digest>/``: ``resolution.json`` with a lock for every kind of node,
and ``wheels/``. The digest is that of the files, the projects they name, the settings and uv's version: as long as
these are the same, a node that comes later gets what the others have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes, join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import key, wheel_platform
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import (
    MALWARE,
    is_contradiction,
    resolve,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import SETTINGS, TORCH_INDEX, Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import MOST_MB
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.check_lines import malware_among
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import secret_among
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.fetch_uv import fetch_into
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.lay_out import (
    lay_out,
    lay_out_project,
    place_of,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import file_digest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_pyproject import (
    explicit_indexes,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_requirements import read
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.uv_settings import require_usable

with contextlib.suppress(ImportError):  # ansible-core needs it too; its sanity tests do without
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

HERE = "localhost"
VARIABLES: dict[str, Any] = {
    "requirements": "",
    "extras": [],
    "groups": [],
    "index_url": "",
    "extra_index_urls": [],
    "find_links": [],
    "torch_backend": "auto",
    "build_needs_torch": [],
    "uv_settings": {},
    "proxy": "",
    "resolve_on": "auto",
    "uv_version": "",
}
"""What the role's variables are called, after python_env_, and what counts where there is none."""
DECISIVE = (
    "index_url",
    "extra_index_urls",
    "find_links",
    "torch_backend",
    "build_needs_torch",
    "uv_settings",
    "uv_version",
)
"""What decides the content of an environment, beside the files."""
BUILDER = ("executable", "python", "machine", "platform")
"""What a node that resolves receives about its own Python, from its own reply."""
NO_TORCH = (
    "{path} installs no torch, so no job can train with what setup has installed; add torch to it, or to what "
    "python_env_requirements names, and run setup again"
)

NEVER_INSTALLED = (
    "{name} {versions} were malware (GHSA-w37p-236h-pfx3), and neither is ever installed; ask for another version of "
    "what needs one of them"
)


@dataclass(frozen=True)
class Wanted:
    """One host's environment in the inventory: the values of VARIABLES, and how large a project may be."""

    values: dict[str, Any]
    max_mb: int

    @classmethod
    def of(cls, host: str, value: Callable[[str, str, Any], Any]) -> Wanted:
        """Read it; ``value`` returns a host's variable by its name.

        Raises:
            JobError: one is no mapping, or no number, that should be.
        """
        found = {}
        for name, default in VARIABLES.items():
            given = value(host, f"python_env_{name}", default)
            if isinstance(default, list):  # one given with -e is a string
                given = [str(one) for one in ([given] if isinstance(given, str) else given or []) if str(one)]
            elif isinstance(default, dict):
                try:
                    given = json.loads(given or "{}") if isinstance(given, str) else given or {}
                except ValueError:
                    given = None
                if not isinstance(given, Mapping):
                    raise JobError(
                        f"python_env_{name} of {host} is no mapping of settings to values; correct it in the "
                        "inventory, as in: {index-strategy: unsafe-best-match}"
                    )
                given = dict(given)
            else:
                given = str(given or "")
            found[name] = given
        found["requirements"] = os.path.realpath(os.path.expanduser(found["requirements"]))
        max_mb = str(value(host, "job_bundle_max_mb", MOST_MB))
        if not max_mb.isdecimal():
            raise JobError(f"job_bundle_max_mb of {host} is {max_mb}, no number of MB; correct it in the inventory")
        return cls(found, int(max_mb))

    def settings(self) -> dict[str, Any]:
        """Return what uv.Uv takes."""
        return {name: self.values[name] for name in SETTINGS}


class Kept:
    """A folder with the locks of one digest."""

    def __init__(self, digest: str) -> None:
        self.folder = cache() / "locks" / digest[:32]
        self.content: dict[str, Any] = {"locks": {}, "backends": {}, "commits": {}}
        self.content |= {"indexes": [], "find_links": [], "needs_torch": [], "wheels": []}
        with contextlib.suppress(OSError, ValueError):
            self.content |= json.loads((self.folder / "resolution.json").read_text(encoding="utf-8"))
        if not all((self.folder / "wheels" / name).is_file() for name in self.content["wheels"]):
            self.content["locks"] = {}

    @property
    def locks(self) -> dict[str, str]:
        """Return the locks by the kind of node."""
        found: dict[str, str] = self.content["locks"]
        return found

    def path(self, target: str) -> Path:
        """Return the file of one lock."""
        return self.folder / f"{target}.txt"

    def commits(self, resolver: str) -> dict[str, str]:
        """Return by git URL the commit that this one took: it is sent to no other, which would build what it names."""
        found: dict[str, str] = self.content["commits"].get(resolver, {})
        return found

    def add(self, resolution: Mapping[str, Any], workshop: Path, resolver: str) -> None:
        """Keep what was resolved, with the wheels that other locks have already: one built again has another hash."""
        (self.folder / "wheels").mkdir(parents=True, exist_ok=True)
        locks = dict(resolution["locks"])
        for name in resolution["wheels"]:
            built, kept = workshop / "wheels" / name, self.folder / "wheels" / name
            if name in self.content["wheels"] and self.locks:
                locks = {target: lock.replace(sha256(built), sha256(kept)) for target, lock in locks.items()}
            else:
                shutil.copy(built, kept)
        self.content = {
            "locks": self.locks | locks,
            "indexes": resolution["indexes"],
            "find_links": resolution["find_links"],
            "needs_torch": resolution["needs_torch"],
            "backends": self.content["backends"] | resolution["backends"],
            "wheels": sorted({*self.content["wheels"], *resolution["wheels"]}),
            "commits": {**self.content["commits"], resolver: resolution["commits"] | self.commits(resolver)},
        }
        for target, lock in self.locks.items():
            written(self.path(target), lock)
        written(self.folder / "resolution.json", json.dumps(self.content))


def sha256(path: Path) -> str:
    """Return a file's hash as a lock has it."""
    return f"sha256:{file_digest(path)}"


def written(path: Path, text: str) -> None:
    """Write a file in one step."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def explained(error: Exception) -> str:
    """Return the message about a file on the controller that could not be used."""
    path = str(getattr(error, "filename", None) or "")
    why = str(getattr(error, "strerror", None) or error)
    if isinstance(error, shutil.Error) and not path:
        path, why = "a folder that the requirements name", str(error)
    if path and (Path(path) in cache().parents or Path(path).is_relative_to(cache())):
        return (
            f"{path} on the controller cannot be used ({why}), and locks are kept in {cache()}; make room there or let "
            "your account write there, or set XDG_CACHE_HOME to another folder"
        )
    if path:
        return (
            f"{path} on the controller cannot be used ({why}); let your account read it, or take it out of what "
            "python_env_requirements names"
        )
    return (
        f"The requirements could not be resolved on the controller ({why}); correct what python_env_requirements names"
    )


def cache() -> Path:
    """Return where what can be made again is kept on the controller."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "thunderhead"


@dataclass
class Group:
    """Hosts with the same settings."""

    hosts: list[str]
    wanted: Wanted
    requirements: Requirements
    digest: str


class Plan:
    """What is to be installed on which host.

    Args:
        wanted: by host.

    Raises:
        JobError: requirements cannot be read, or not be installed.
    """

    def __init__(self, wanted: Mapping[str, Wanted]) -> None:
        self.groups: list[Group] = []
        self.uvs: dict[tuple[str, str], Path] = {}
        for host, one in wanted.items():
            for group in self.groups:
                if group.wanted == one:
                    group.hosts.append(host)
                    break
            else:
                values = one.values
                require_usable(values["uv_settings"], f"python_env_uv_settings of {host}")
                has_sources = not values["uv_settings"].get("no-sources")
                requirements = read(Path(values["requirements"]), values["extras"], values["groups"], has_sources)
                digest = requirements.digest({name: values[name] for name in DECISIVE}, one.max_mb)
                self.groups.append(Group([host], one, requirements, digest))

    def resolver(self) -> str:
        """Return who resolves for all: this machine, or a host where what it needs is there and not here.

        Raises:
            JobError: the inventory names several, or one that is no node.
        """
        named, *others = dict.fromkeys(str(group.wanted.values["resolve_on"]) for group in self.groups)
        if others:
            raise JobError(
                f"python_env_resolve_on is {' and '.join([named, *others])} on different hosts, and one machine "
                "resolves for all; set one value for group cluster"
            )
        if named == "auto":
            for group in self.groups:
                folders = [one for one in group.wanted.values["find_links"] if "://" not in one]
                if not all(map(os.path.exists, folders)):
                    return group.hosts[0]
            return HERE
        known = [host for group in self.groups for host in group.hosts]
        if named not in (HERE, *known):
            raise JobError(
                f"python_env_resolve_on is {named}, which is none of the nodes ({join_names(known)}); set it to one, "
                "to localhost, or to auto"
            )
        return named

    def read(self) -> dict[str, Any]:
        """Return what is known without asking any node."""
        warnings = [
            NO_TORCH.format(path=group.requirements.path)
            for group in self.groups
            if (found := Kept(group.digest).locks) and not any(map(has_torch, found.values()))
        ]
        hosts = {host: {"digest": group.digest} for group in self.groups for host in group.hosts}
        return {"hosts": hosts, "resolver": self.resolver(), **({"warnings": warnings} if warnings else {})}

    def resolve(
        self,
        nodes: Mapping[str, Mapping[str, Any]],
        there: Callable[[Path, Mapping[str, Any]], dict[str, Any]] | None,
        is_dry: bool,
    ) -> dict[str, Any]:
        """Have a lock for every node that lacks its environment.

        Args:
            nodes: by host, what modules/python_env_info says.
            there: resolves on another machine; None for here.
            is_dry: whether nodes will stay as they are.

        Returns:
            See modules/python_env_lock.

        Raises:
            JobError: it cannot be done.
        """
        require_python(self.groups, nodes)
        hosts: dict[str, Any] = {}
        diffs = []
        warnings: list[str] = []
        resolver = self.resolver()
        for group in self.groups:
            lacking = [host for host in group.hosts if host in nodes and not nodes[host]["complete"]]
            targets = {target_of(nodes[host]): nodes[host] for host in lacking}
            kept = Kept(group.digest)
            missing = {name: node for name, node in targets.items() if name not in kept.locks}
            if missing:
                node = nodes[resolver] if there and resolver in nodes else None
                warnings += self._make(group, missing, kept, there, node)
            for name in targets:
                diffs += difference(group, name, kept, is_dry)
            if kept.locks and not any(map(has_torch, kept.locks.values())):
                warnings.append(NO_TORCH.format(path=group.requirements.path))
            indexes = kept.content["indexes"]
            if not group.wanted.values["uv_settings"].get("no-sources"):
                explicit = explicit_indexes(group.requirements, "\n".join(kept.locks.values()))
                indexes = [*(indexes or [""]), *explicit] if explicit else indexes
            for host in group.hosts:
                if host not in nodes:
                    continue
                lacks = host in lacking
                target = target_of(nodes[host])
                hosts[host] = {
                    "digest": group.digest,
                    "requirements": group.requirements.path.name,
                    "lock": str(kept.path(target)) if lacks else "",
                    "torch_backend": kept.content["backends"].get(target, "none") if lacks else "none",
                    "indexes": indexes,
                    "links": kept.content["find_links"],
                    "written_indexes": group.requirements.indexes,
                    "needs_torch": kept.content["needs_torch"],
                    "wheels": [str(kept.folder / "wheels" / name) for name in kept.content["wheels"]] if lacks else [],
                    # Two setups at once may bring different wheels of one name.
                    "wheels_folder": key([kept.locks[target]]) if lacks else "",
                    "uv": self._uv(group, nodes[host]),
                }
        require_room(hosts, nodes)
        return {"changed": bool(diffs), "hosts": hosts, "diff": diffs, **({"warnings": warnings} if warnings else {})}

    def _uv(self, group: Group, node: Mapping[str, Any]) -> str:
        """Return the path of a uv for a node, "" if it has it."""
        version = group.wanted.values["uv_version"]
        return "" if node["uv"] == version else str(self._fetched(group, node["wheel_platform"]))

    def _fetched(self, group: Group, platform_name: str) -> Path:
        """Return a uv for a platform, asked for once however many hosts need it."""
        version = group.wanted.values["uv_version"]
        if (version, platform_name) not in self.uvs:
            self.uvs[version, platform_name] = fetch_into(cache(), version, platform_name, group.wanted.settings())
        return self.uvs[version, platform_name]

    def _require_own(self, group: Group) -> None:
        """Raise JobError if a node would resolve for others whose settings, with their passwords, are not its own."""
        resolver = self.resolver()
        own = next(one for one in self.groups if resolver in one.hosts)
        if own.wanted.settings() != group.wanted.settings():
            raise JobError(
                f"{resolver} would resolve for {join_names(group.hosts)} too, whose python_env_ variables (indexes, "
                "proxy, settings of uv) are not its own, and would receive their passwords; set python_env_resolve_on: "
                "localhost, give all nodes the same, or run setup.yml for those of one kind at a time, with --limit "
                "and one of them as python_env_resolve_on"
            )

    def _make(
        self,
        group: Group,
        targets: Mapping[str, Mapping[str, Any]],
        kept: Kept,
        there: Callable[[Path, Mapping[str, Any]], dict[str, Any]] | None,
        node: Mapping[str, Any] | None,
    ) -> list[str]:
        """Resolve for these targets; return warnings."""
        if there:
            self._require_own(group)
        values, requirements = group.wanted.values, group.requirements
        uv = self._fetched(group, node["wheel_platform"] if node else wheel_platform(sys.platform, platform.machine()))
        with tempfile.TemporaryDirectory(dir=cache(), prefix="resolution.") as folder:
            workshop = Path(folder)
            (workshop / "sources").mkdir()
            lay_out(requirements, workshop / "sources", has_history=not there)
            if there:
                (workshop / "uv").symlink_to(uv)
                (workshop / "project").mkdir()
                if requirements.arguments:
                    lay_out_project(requirements, workshop / "project")
            request = {
                "uv": str(uv),
                "cache": "",
                "folder": folder,
                "project": str(requirements.path.parent) if requirements.arguments else "",
                "arguments": requirements.arguments,
                "uv_settings": requirements.uv_settings,
                "lines": requirements.lines,
                "constraints": requirements.constraints,
                "hashes": requirements.hashes,
                "targets": {name: {**one} for name, one in targets.items()},
                "variables": requirements.variables(),
                "settings": group.wanted.settings(),
                "needs_torch": values["build_needs_torch"],
                "takes_prereleases": requirements.takes_prereleases,
                "preferred": next(iter(kept.locks.values()), ""),
                "commits": kept.commits(self.resolver() if there else HERE),
                "builder": {name: node[name] for name in BUILDER} if node else {},
            }
            where = "On the controller" if not there else f"On {self.resolver()}"
            try:
                resolution = there(workshop, request) if there else resolve(request)
            except Failure as failure:
                raise JobError(unresolved(requirements, where, failure, folder)) from None
            for lock in resolution["locks"].values():
                if sentence := malware_among(lock) or secret_among(lock):
                    raise JobError(f"{requirements.path} {sentence}")
            kept.add(resolution, workshop, self.resolver() if there else HERE)
        found: list[str] = resolution["warnings"]
        return found


def unresolved(requirements: Requirements, where: str, failure: Failure, folder: str) -> str:
    """Return the message about requirements that could not be resolved; ``folder`` had the copies of sources."""
    why, output = failure.why, failure.output
    for number, path in enumerate(requirements.sources):
        copy = f"{folder}/sources/{place_of(number, path)}"
        why, output = why.replace(copy, str(path)), output.replace(copy, str(path))
    lines = [f"{requirements.path} could not be resolved, and nothing was changed on any node. {where}, {why}."]
    lines += [f"{requirements.places.get(text, text)} asks for {text}: {reason}" for text, reason in failure.unmet]
    for name, versions in MALWARE.items():
        if re.search(rf"(?<![\w-]){name}>{',<'.join(map(re.escape, versions))}\b", output):  # what the bar has left
            lines.append(NEVER_INSTALLED.format(name=name, versions=" and ".join(versions)))
    if is_contradiction(output) or failure.unmet or TORCH_INDEX in why:
        lines += requirements.soft
    return "\n".join([*lines, *(["The end of uv's output:", "", output[-1500:]] if output else [])])


def require_python(groups: Sequence[Group], nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise JobError if a project is not for a node's Python, which uv does not report for a project's own line."""
    errors = []
    for group in groups:
        wanted = group.requirements.requires_python
        for python in sorted({nodes[host]["python"] for host in group.hosts if host in nodes}):
            if not is_met(wanted, python):
                hosts = [host for host in group.hosts if host in nodes and nodes[host]["python"] == python]
                errors.append(
                    JobError(
                        f"{group.requirements.path.with_name('pyproject.toml')} is for Python {wanted} "
                        f"(requires-python), and {join_names(hosts)} would use {python}; set python_env_python in the "
                        "inventory to another Python there, or correct that line"
                    )
                )
    if errors:
        raise join_errors(errors, "Nothing was changed on any node.")


def is_met(requires_python: str, python: str) -> bool:
    """Return whether a release of a Python, such as 3.11, is wanted; True for an invalid specifier: uv reports that."""
    with contextlib.suppress(InvalidSpecifier):
        wanted = SpecifierSet(requires_python)
        return any(wanted.contains(f"{python}.{micro}") for micro in range(100))
    return True


def require_room(hosts: Mapping[str, Mapping[str, Any]], nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise JobError if the disk of a node is too small for what is copied there, before anything is."""
    errors = []
    for host, one in hosts.items():
        needed = sum(os.path.getsize(path) for path in (one["uv"], *one["wheels"]) if path)
        free = int(nodes[host]["free"])
        if needed > free:
            errors.append(
                JobError(
                    f"{host} has {format_bytes(free)} free where its cluster_dir lies, and uv and the wheels that "
                    f"setup copies there take {format_bytes(needed)}; make room there, or set cluster_dir in the "
                    "inventory to a folder on a larger disk"
                )
            )
    if errors:
        raise join_errors(errors, "Nothing was changed on any node.")


def has_torch(lock: str) -> bool:
    """Return whether a lock installs torch."""
    return re.search(r"(?m)^torch(==| @ )", lock) is not None


def target_of(node: Mapping[str, Any]) -> str:
    """Return the name of the kind of a node: nodes of one kind have one lock."""
    parts = [node["python"], node["platform"], node["backend"], node["driver"] if node["backend"] == "auto" else ""]
    return "-".join(re.sub(r"[^\w.]", "_", part) for part in parts if part)


def difference(group: Group, target: str, kept: Kept, is_dry: bool) -> list[dict[str, str]]:
    """Return what the lock changes against the last one of this file, for ``--diff``; an empty list if nothing."""
    name = hashlib.sha256(f"{group.requirements.path}\0{target}".encode()).hexdigest()[:32]
    path = cache() / "locks" / f"{name}.last"
    lock = kept.locks[target]
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if before == lock:
        return []
    if not is_dry:
        written(path, lock)
    header = f"{group.requirements.path} for {target}"
    return [{"before": before, "after": lock, "before_header": header, "after_header": header}]
