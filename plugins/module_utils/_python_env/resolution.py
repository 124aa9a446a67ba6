# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Resolve requirements once, for every kind of node, into locks with hashes; build a wheel of what has no hash."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import lzma
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import uv_platform
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import (
    NO_SOLUTION,
    PYPI,
    REACH_SECONDS,
    Failure,
    Uv,
    because,
    built_by,
    default_index,
    lacks_torch,
    more_indexes,
    redacted,
    toml,
    wants_torch,
    without_credentials,
)

SOURCES = "${THUNDERHEAD_SOURCES}"
"""Stands in lines for the folder with copies of what lies on the controller."""
WHEELS = "${THUNDERHEAD_WHEELS}"
"""Stands in a lock for the folder of the wheels that were built."""
MALWARE = {name: ("2.6.2", "2.6.3") for name in ("lightning", "pytorch-lightning")}
"""Versions of packages that were malware (GHSA-w37p-236h-pfx3)."""
BARRED = "".join(f"{name}!={',!='.join(versions)}\n" for name, versions in MALWARE.items())
ENTRY = re.compile(r"(?m)^(\S.*?)(?: \\)?$((?:\n[ \t]+\S.*)*)")
OTHERWISE = "uv finds no set of packages that meets the requirements; correct them, or python_env_index_url"
INDEXED = re.compile(r"[A-Za-z0-9][\w.-]*(?!.*://)")
UNMET = {
    "was not found in the package registry|no versions of": "no index has such a package",
    "there is no version of": "no index has this version",
    "has no wheels with a matching": "it has no wheel for {}; take another version, or Python (python_env_python)",
}
"""What uv says of one requirement, and what that means."""
MISSING = re.compile(r"was not found in|no versions? of|only \S+ is available|only the following versions")
"""In what uv says where an index lacks something, which another may have."""
ASKED_AT_ONCE = 8
OLDEST_IN_ZIP = "315532800"
"""1980-01-01, in seconds since 1970: a zip file, which a wheel is, has no earlier time."""
GIT_URL = re.compile(r"(git\+[a-z]+://[^\s/#]*/[^\s#@]*)(?:@([^\s#]+))?")
"""A repository's URL, and what is taken of it."""
NAMED_FILE = re.compile(r"(?m)^\s*(?:-r|-c|--requirement|--constraint)\s*=?\s*['\"]?([^\s'\"]+)")
"""In requirements, another file of them."""


def resolve(request: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve.

    Args:
        request: uv (path), cache (its folder, or "" for the account's), folder (a workshop, with sources/ in it),
            project (folder of a pyproject.toml, or ""), arguments (for it), uv_settings (of it), lines, constraints,
            hashes (by package, those allowed), targets (by name: python, platform, machine, backend, driver),
            variables (of the environment, that lines name), settings (see uv.Uv), needs_torch (packages whose build
            needs it), takes_prereleases, preferred (a lock whose versions are taken where they fit, or ""), commits (by
            URL of a git repository, the one that is taken whatever its branch has), builder (executable, python,
            machine and platform of the Python that resolves and builds; empty for this one).

    Returns:
        locks (by target), backends (of torch, by target), indexes (that the packages come from; the default first, or
        ""), find_links (likewise, URLs that the inventory does not name), needs_torch, wheels (names of the files in
        folder/wheels), commits (likewise), warnings.

    Raises:
        Failure: why it cannot be done.
    """
    resolution = Resolution(request)
    try:
        return resolution.result()
    except Failure as failure:
        is_missing = failure.why == OTHERWISE and MISSING.search(failure.output) is not None
        may_matter = is_missing or "certificate" in failure.why
        remarks = resolution.uv.machine.not_taken() if may_matter else []
        raise Failure("; besides, ".join([failure.why, *remarks]), failure.output, failure.unmet) from None


class Resolution:
    """One of them."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.folder = request["folder"]
        self.wheels = os.path.join(self.folder, "wheels")
        os.makedirs(self.wheels, exist_ok=True)
        self.uv = Uv(request["uv"], request["settings"], self.folder, request["cache"], project=request["uv_settings"])
        self.builder = request["builder"] or {
            "executable": sys.executable,
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "machine": platform.machine(),
            "platform": uv_platform(sys.platform, platform.machine(), platform.libc_ver()),
        }
        is_project = request["arguments"][:1] == ["pyproject.toml"]
        self.cwd = request["project"] if is_project else "/"  # where uv finds settings
        self.uv.environment.update(request["variables"])
        self.uv.environment.setdefault("SOURCE_DATE_EPOCH", OLDEST_IN_ZIP)  # the same sources, the same wheel
        self.commits: dict[str, set[str]] = {}
        self.needs_torch = list(request["needs_torch"])
        self.indexes: list[str] = []
        self.built: dict[str, str] = {}
        self.backends: dict[str, str] = {}
        self.links: list[str] = []
        self.find_links: list[str] = []
        self.torch = "torch"
        self.from_where: dict[str, str] = {}
        self.named: list[str] = []
        self.unhashed: set[str] = set()  # in a uv.lock, of indexes that give no hashes
        self.preferred: str = request["preferred"]
        self.pinned: dict[str, dict[str, str]] = {}

    def result(self) -> dict[str, Any]:
        """Return what ``resolve`` does."""
        targets = self.request["targets"]
        lines = self._text(self.request["lines"])
        if self.request["arguments"][:1] == ["uv.lock"]:
            lines = self._exported()
        for name, version in re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*==\s*([^\s;,\\]+)", lines):
            self.pinned.setdefault(normalized(name), {})[_short(version)] = version
        torch = re.search(r"(?im)^torch(?![-_.a-z0-9])[^\\\n;@]*", lines)
        self.torch = torch[0].strip() if torch else "torch"
        self._write("requirements.in", lines)
        given = [path_of(one) for one in re.findall(r"(?m)^--find-links (?!(?!file:)\w+://)(\S.*)", lines)]
        self.from_where = self._variables(lines)
        own = [path_of(one) for one in self.uv.own_links if one and one not in self.uv.settings["find_links"]]
        self.links = [*given, *own]
        self._write("constraints.in", self._text(self.request["constraints"]) + BARRED)
        if lines.strip() or self.request["arguments"]:
            self._require_indexes()
        self._require_no_hashes(lines + self._text(self.request["constraints"]))
        # The oldest Python first: its versions are more often fit for the others than theirs for it.
        oldest_first = sorted(targets.items(), key=lambda one: [int(part) for part in one[1]["python"].split(".")])
        locks = {name: self._lock(name, target, lines) for name, target in oldest_first}
        return {
            "locks": locks,
            "backends": self.backends,
            "indexes": self.indexes,
            "find_links": self.find_links,
            "needs_torch": self.needs_torch,
            "wheels": sorted(os.listdir(self.wheels)),
            "commits": {url: commits.pop() for url, commits in self.commits.items() if len(commits) == 1},
            "warnings": self.uv.machine.not_taken(),
        }

    def _require_indexes(self) -> None:
        """Raise Failure, within seconds, if an index that will be asked is not reached."""
        known = self.uv.indexes("")
        if self.from_where.get("UV_DEFAULT_INDEX", PYPI).rstrip("/") != PYPI:
            known = [one for one in known if one != PYPI]
        self.uv.require_reachable(known, [one for one in self.named if one not in known])

    def _require_no_hashes(self, lines: str) -> None:
        """Raise Failure if a file that lines name by its URL has what uv, which reads it, ignores there."""
        urls = self._named_files("", lines)
        for url in urls:  # which grows
            try:
                text = re.sub(r"(?m)(^|\s)#.*", "", re.sub(r"\\\r?\n", " ", self._text_at(url)))
            except (OSError, ValueError) as error:
                raise Failure(
                    f"{redacted(url)} cannot be fetched ({redacted(str(error))}), so whether it has hashes is not "
                    "known; correct that line, or fetch that file and name it by its path"
                ) from None
            if re.search(r"(?m)(^|\s)--(hash|require-hashes)\b|^[ \t]*-.*[ \t]-", text):
                raise Failure(
                    f"{redacted(url)}, a file of requirements that is named by its URL, has hashes or several options "
                    "on one line, which count only in a file on the controller; fetch that file and name it by its path"
                )
            urls += [one for one in self._named_files(url, text) if one not in urls]

    def _named_files(self, base: str, lines: str) -> list[str]:
        known = self.uv.environment
        found = [urljoin(base, one) for one in NAMED_FILE.findall(lines)]
        return [re.sub(r"\$\{(\w+)\}", lambda name: known.get(name[1], name[0]), one) for one in found]

    def _text_at(self, url: str) -> str:
        """Return the content at a URL, asked as uv asks.

        Raises:
            OSError: it cannot be fetched.
            ValueError: it is no URL that can be asked.
        """
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(parts._replace(netloc=host).geturl())
        if at:
            secret = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {secret}")
        proxy = self.uv.proxy_for(url)
        context = ssl.create_default_context(cafile=self.uv.environment.get("SSL_CERT_FILE") or None)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {}),
            urllib.request.HTTPSHandler(context=context),
        )
        with opener.open(request, timeout=REACH_SECONDS) as answer:
            content: bytes = answer.read()
        return content.decode("utf-8", "replace")

    def _variables(self, lines: str) -> dict[str, str]:
        """Return the indexes and folders of lines as variables for a build: process lists show arguments."""
        known = self.uv.environment

        def given(option: str) -> list[str]:
            values: list[str] = re.findall(rf"(?m)^--{option} (\S.*)", lines)
            return [re.sub(r"\$\{(\w+)\}", lambda found: known.get(found[1], found[0]), one.strip()) for one in values]

        # uv asks the machine's or the inventory's in place of theirs; and a uv.lock always names PyPI.
        is_set = known.get("UV_DEFAULT_INDEX") or known.get("UV_INDEX_URL")
        default = [] if is_set else given("index-url")[-1:]
        # Of a pyproject.toml uv reads them itself.
        project = {name: one for name, one in self.uv.project.items() if name not in self.uv.settings["uv_settings"]}
        theirs = [*([] if is_set else [default_index(project)]), *more_indexes(project)]
        named = [*default, *given("extra-index-url"), *theirs]
        self.named = [one for one in named if one and one.rstrip("/") != PYPI]
        indexes = [*given("extra-index-url"), *known.get("UV_INDEX", "").split()]
        folders = [*given("find-links"), *known.get("UV_FIND_LINKS", "").split(",")]
        found = {
            "UV_DEFAULT_INDEX": "".join(default),
            "UV_INDEX": " ".join(dict.fromkeys(indexes)),
            "UV_FIND_LINKS": ",".join(dict.fromkeys(one for one in folders if one)),
        }
        return {name: value for name, value in found.items() if value}

    def _text(self, lines: list[str]) -> str:
        text = "".join(f"{line}\n" for line in lines).replace(SOURCES, os.path.join(self.folder, "sources"))
        known = self.request["commits"]
        return GIT_URL.sub(lambda found: f"{found[1]}@{known[found[1]]}" if found[1] in known else found[0], text)

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self.folder, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)

    def _exported(self) -> str:
        """Return a uv.lock as requirements with hashes."""
        options = ["export", "--quiet", "--frozen", "--no-emit-project", "--no-header", "--no-annotate"]
        options += ["--emit-index-url", "--emit-find-links", "--no-editable", "--no-default-groups"]
        text, _errors = self.uv.run(*options, *self.request["arguments"][1:], cwd=self.request["project"])
        self.hashes.clear()
        for head, below in ENTRY.findall(text):
            name = re.match(r"([A-Za-z0-9][\w.-]*)==", head)
            if name:
                self.hashes.setdefault(normalized(name[1]), []).extend(re.findall(r"--hash=(\S+)", below))
        text = self._without_unused_indexes(text)
        without = [one for one in self._locked() if 'source = { registry = "http' in one and 'hash = "' not in one]
        self.unhashed = {normalized(name) for name in re.findall(r'(?m)^name = "([^"]+)"', "".join(without))}
        # a path in it is relative to the project
        path = re.compile(r"(?m)^(--(?:(?:extra-)?index-url|find-links) (?!\w+://)|(?=\.{1,2}/))(\S+)")
        return path.sub(
            lambda found: found[1] + os.path.normpath(os.path.join(self.request["project"], found[2])), text
        )

    def _locked(self) -> list[str]:
        """Return what a uv.lock has of each package."""
        with open(os.path.join(self.request["project"], "uv.lock"), encoding="utf-8") as file:
            return file.read().split("[[package]]")

    def _without_unused_indexes(self, text: str) -> str:
        """Return what uv exports of a uv.lock with only the additional indexes that one of the packages comes from."""
        taken = set(re.findall(r"--hash=(\S+)", text))
        is_used: dict[str, bool] = {}
        for entry in self._locked():
            if found := re.search(r'(?m)^source = \{ registry = "([^"]+)" \}', entry):
                place = self._place(found[1])
                is_taken = taken.issuperset(re.findall(r'hash = "([^"]+)"', entry))
                is_used[place] = is_used.get(place, False) or is_taken
        option = "--extra-index-url "
        lines = text.splitlines(keepends=True)
        return "".join(
            one
            for one in lines
            if not one.startswith(option) or is_used.get(self._place(one.removeprefix(option).strip()), True)
        )

    def _place(self, index: str) -> str:
        """Return what all spellings of an index in a uv.lock have in common."""
        parts = urlsplit(index)
        if parts.scheme in ("", "file"):
            return os.path.normpath(os.path.join(self.request["project"], path_of(index)))
        return without_credentials(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}")

    @property
    def hashes(self) -> dict[str, list[str]]:
        """Return by package the hashes that are allowed; empty if there are none."""
        found: dict[str, list[str]] = self.request["hashes"]
        return found

    # ------------------------------------------------------------------------------------------------------- one target

    def _lock(self, name: str, target: Mapping[str, str], lines: str) -> str:
        backend = self.backends[name] = self._backend(target, lines)
        if re.search(r"(?im)^torch", lines):  # else nothing may be asked of torch's index
            self.uv.require_reachable([url for url in self.uv.indexes(backend) if url not in self.uv.indexes("")])
        arguments = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
        arguments += [
            "--emit-index-url",
            "--emit-find-links",
            "--emit-build-options",
            "--python",
            self.builder["executable"],
            *self._for(target),
        ]
        if self.request["takes_prereleases"]:
            arguments.append("--prerelease=allow")
        if backend != "none":
            arguments.append(f"--torch-backend={backend}")
        arguments += ["--constraints", os.path.join(self.folder, "constraints.in")]
        is_file = self.cwd == "/"
        arguments += [os.path.join(self.folder, "requirements.in")] if is_file else self.request["arguments"]
        if self.uv.index == "none":
            arguments.append("--no-index")
        # The first lock's versions serve the others too, where they can: nodes that train together need the same.
        self._write("lock.txt", "".join(f"{one}\n" for one in re.findall(r"(?m)^[\w.-]+==[^\s\\]+", self.preferred)))
        arguments += ["--output-file", os.path.join(self.folder, "lock.txt")]
        try:
            self._compile_with_hashes(arguments, target)
        except Failure as failure:
            if failure.why != OTHERWISE:
                raise
            raise Failure(failure.why, failure.output, self._unmet(target, backend)) from None
        with open(os.path.join(self.folder, "lock.txt"), encoding="utf-8") as file:
            lock = "".join(self._entry(head, below, target) for head, below in ENTRY.findall(file.read()))
        if not re.search(r"(?m)^torch", lock):
            self.backends[name] = "none"
        self.preferred = self.preferred or lock
        return lock

    @staticmethod
    def _for(target: Mapping[str, str]) -> list[str]:
        return ["--python-version", target["python"], "--python-platform", target["platform"]]

    def _of_all_indexes(self) -> list[str]:
        """Return the options that have versions of all indexes count, where hashes say of each which package it is."""
        is_set = "index-strategy" in self.request["settings"]["uv_settings"]
        return ["--index-strategy=unsafe-best-match"] if self.hashes and not self.unhashed and not is_set else []

    def _compile_with_hashes(self, arguments: list[str], target: Mapping[str, str]) -> None:
        """Compile; where the first index that has a package lacks the version, and hashes protect, of all indexes.

        Then nothing is built: what a build needs has no hash, and anybody's package of a higher version would run here.
        """
        try:
            self._compile(arguments, target)
        except Failure as failure:
            if not is_contradiction(failure.output) or built_by(failure.output) or not self._of_all_indexes():
                raise
            try:
                self._compile([*arguments, *self._of_all_indexes(), "--no-build"], target)
            except Failure:
                raise failure from None

    def _compile(self, arguments: list[str], target: Mapping[str, str]) -> None:
        more = {"UV_CUDA_DRIVER_VERSION": target["driver"]} if target["driver"] else {}
        more |= {"cwd": self.cwd, "otherwise": OTHERWISE}
        try:
            self.uv.run_building(*arguments, torch=self.torch, needs=self.needs_torch, **more)
        except Failure as failure:
            if wants_torch(failure.output) or not lacks_torch(failure.output) or not self._declare_torch():
                raise
            self._compile(arguments, target)

    def _unmet(self, target: Mapping[str, str], backend: str) -> list[tuple[str, str]]:
        """Return the lines that cannot be met each by itself: uv reports one at a time."""
        lines = self.request["lines"]
        pins = [line for line in lines if INDEXED.match(line)]
        options = [line for line in self._text(lines).splitlines() if line.startswith(("--index", "--extra", "--find"))]
        arguments = ["pip", "compile", "--quiet", "--no-header", "--no-deps", "--no-build", *self._for(target)]
        arguments += [*self._of_all_indexes(), *(["--no-index"] if self.uv.index == "none" else [])]
        arguments += [f"--torch-backend={backend}"] if backend != "none" else []

        def reason(number: int) -> str:
            self._write(f"pin{number}.in", "\n".join([*options, pins[number]]))
            try:
                self.uv.run(*arguments, os.path.join(self.folder, f"pin{number}.in"))
            except Failure as failure:
                return next((words for pattern, words in UNMET.items() if re.search(pattern, failure.output)), "")
            return ""

        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            reasons = list(pool.map(reason, range(len(pins))))
        about = f"Python {target['python']} on {target['machine']}"
        return [(pin, words.format(about)) for pin, words in zip(pins, reasons) if words]

    def _declare_torch(self) -> bool:
        """Have the local projects without a pyproject.toml declare that their build needs torch.

        Returns:
            Whether there are any.
        """
        sources = os.path.join(self.folder, "sources")
        found = False
        for number in os.listdir(sources):
            place = os.path.join(sources, number, *os.listdir(os.path.join(sources, number)))
            path = os.path.join(place, "pyproject.toml")
            is_old = os.path.exists(os.path.join(place, "setup.py")) and not os.path.exists(path)
            if is_old and not os.path.islink(place):
                self._declare(place, [self.torch])
                found = True
        return found

    def _backend(self, target: Mapping[str, str], lines: str) -> str:
        """Return the torch backend: none where the requirements or a wheel at hand say which build it is.

        Of wheels any will do, but no CPU build where there is an NVIDIA driver, and where a GPU build was asked for by
        name only that build.
        """
        backend = target["backend"]
        torches = re.findall(r"(?im)^torch(?![-_.a-z0-9])[^\\\n]*", lines)
        if backend == "none" or self.hashes or "download.pytorch.org" in lines:
            return "none"
        if label := re.search(r"\+(cpu|cu\d+|rocm[\d.]+)\b", " ".join(torches)):
            if self.uv.extra_index_urls or re.search(r"(?m)^--(extra-)?index-url", lines):
                return "none"
            backend = label[1]
        if "UV_FIND_LINKS" not in self.uv.environment and "--find-links" not in lines:
            return backend
        links = "".join(f"{line}\n" for line in lines.splitlines() if line.startswith("--find-links"))
        self._write("torch.in", links + "\n".join(torches or ["torch"]))
        options = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps", "--no-index"]
        try:
            found = self.uv.run(*options, *self._for(target), os.path.join(self.folder, "torch.in"))[0]
        except Failure:
            return backend
        pattern = {"cpu": r"^torch==", "auto": r"^torch==(?!.*[+]cpu)"}.get(backend, rf"^torch==.*[+]{backend}")
        return "none" if re.search(pattern, found, re.MULTILINE) else backend

    # -------------------------------------------------------------------------------------------------------- one entry

    def _entry(self, head: str, below: str, target: Mapping[str, str]) -> str:
        """Return an entry of the lock as nodes get it."""
        option = re.match(r"--(extra-)?index-url (\S+)", head)
        if option:
            url = without_credentials(option[2])
            if option[1]:
                self.indexes = [*(self.indexes or [""]), *([url] if url not in self.indexes else [])]
            elif url.rstrip("/") != PYPI:
                self.indexes = [url, *self.indexes[1:]]
            return ""
        if head.startswith("--find-links "):
            self._add_link(without_credentials(head.partition(" ")[2]))
            return ""
        if head.startswith("--"):  # --no-binary, --only-binary
            return f"{head}\n"
        hashes = re.findall(r"--hash=(\S+)", below)
        name, at, location = head.partition(" @ ")
        if not at:
            pinned = re.match(r"([A-Za-z0-9][\w.-]*)==([^\s;]+)", head)
            if pinned:
                allowed = self._allowed(pinned[1], hashes, pinned[2])
                self._take_along(normalized(pinned[1]), allowed)
                return _written(head, allowed)
            name, location = "", head.removeprefix("-e ")
        if re.match(r"https?://", location):
            return _written(head, self._allowed(name, hashes))
        if (git := GIT_URL.match(location)) and git[2]:
            self.commits.setdefault(git[1], set()).add(git[2])
        file = self._wheel(name.partition("[")[0], location, target)
        with open(os.path.join(self.wheels, file), "rb") as wheel:
            digest = hashlib.sha256(wheel.read()).hexdigest()
        name = name.partition("[")[0] or file.partition("-")[0].replace("_", "-")
        return _written(f"{name} @ file://{WHEELS}/{file}", [f"sha256:{digest}"])

    def _add_link(self, place: str) -> None:
        """Have a page of links go to the nodes by its URL, and what lies in a folder here by its files."""
        on_nodes = (*self.uv.settings["find_links"], *(self.uv.settings["uv_settings"].get("find-links") or ()))
        if place in map(without_credentials, on_nodes):
            return
        if re.match("https?://", place):
            place = place.replace(" ", "%20").replace(",", "%2C")  # a comma ends a URL in uv's variable
            self.find_links += [place] if place not in self.find_links else []
        else:
            self.links.append(os.path.join(self.cwd, path_of(place)))

    def _take_along(self, name: str, hashes: list[str]) -> None:
        """Have the files of a package that lie here, and not on the nodes, go to the nodes."""
        for digest, path in self._files(name, self.links).items():
            if digest in hashes:
                shutil.copy(path, self.wheels)

    @staticmethod
    def _files(name: str, folders: list[str]) -> dict[str, str]:
        """Return the files of a package in folders, by their hashes."""
        found = {}
        for folder in folders:
            for file in os.listdir(folder) if os.path.isdir(folder) else ():
                if normalized(file).startswith(f"{name}-") and file.endswith((".whl", ".tar.gz")):
                    path = os.path.join(folder, file)
                    with open(path, "rb") as package:
                        found[f"sha256:{hashlib.sha256(package.read()).hexdigest()}"] = path
        return found

    def _allowed(self, name: str, hashes: list[str], version: str = "") -> list[str]:
        """Return of the hashes those that the requirements allow: all if they give none.

        Raises:
            Failure: none is left, or a package has none there.
        """
        if not self.hashes:
            return hashes
        allowed = self.hashes.get(normalized(name))
        if allowed == [] and normalized(name) in self.unhashed:
            return hashes
        if allowed == []:  # a uv.lock has none for the files of a folder: those, and no others of that name
            files = self._files(normalized(name), [*self.links, *self.uv.settings["find_links"]])
            allowed = [one for one in files if one in hashes]
        if not allowed:
            raise Failure(
                f"the requirements give hashes, and none for {name}, which is needed besides; where one has a hash all "
                "must have one: uv pip compile --generate-hashes writes such a file"
            )
        kept = [one for one in hashes if one in allowed]
        pinned = self.pinned.get(normalized(name), {})
        if not kept and version and pinned and _short(version) not in pinned:
            known = " and ".join(sorted(pinned.values()))
            raise Failure(
                f"the requirements give hashes for {name} {known}, and {version} is needed: a "
                "marker, or python_env_uv_settings, leads to another version; lock them again, for this Python and "
                "with what those settings change"
            )
        if not kept:
            raise Failure(
                f"{name} is not the package whose hash the requirements give (Hash mismatch): it was changed on its "
                "way or at its source, or the hash is of another file; find out which, correct the hash only if you "
                "know the package"
            )
        return kept

    def _wheel(self, name: str, location: str, target: Mapping[str, str]) -> str:
        """Return the name of the wheel of a folder, an archive or a git repository, made if need be."""
        if location not in self.built:
            self.built[location] = self._made(name, location)
        file = self.built[location]
        if file.endswith("-none-any.whl") or location.partition("#")[0].endswith(".whl"):  # which uv has checked
            return file
        mine = (self.builder["python"], self.builder["machine"])
        if mine != (target["python"], target["machine"]):
            raise Failure(
                f"{file} has code that is compiled, for Python {mine[0]} on {mine[1]}, and a node has "
                f"Python {target['python']} on {target['machine']}; set python_env_resolve_on to that node"
            )
        glibc = re.search(r"manylinux_2_(\d+)$", target["platform"])
        needed = glibc_minor(os.path.join(self.wheels, file))
        if self.builder["platform"] != target["platform"] and needed > (int(glibc[1]) if glibc else 0):
            raise Failure(
                f"{file} has code that is compiled, for glibc 2.{needed}, and a node is {target['platform']}; set "
                "python_env_resolve_on to that node"
            )
        return file

    def _made(self, name: str, location: str) -> str:
        path, fragment = self._fetched(location)
        if path.endswith(".whl"):
            shutil.copy(path, self.wheels)
            return os.path.basename(path)
        if path.endswith((".zip", ".tar.bz2", ".tar.xz", ".tgz")):
            unpacked = os.path.join(self.folder, f"unpacked{len(self.built)}")
            try:
                shutil.unpack_archive(path, unpacked)
            except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError) as error:
                raise Failure(
                    f"the archive {redacted(location)} cannot be unpacked ({error}); fetch or make it again"
                ) from None
            inside = os.listdir(unpacked)
            path = os.path.join(unpacked, inside[0]) if len(inside) == 1 else unpacked
        folder = os.path.join(self.folder, f"made{len(self.built)}")
        source = os.path.join(path, fragment) if fragment else path
        self._build(name, location, source, folder)
        file = next((one for one in os.listdir(folder) if one.endswith(".whl")), "")
        if not file:
            raise Failure(f"the build of {redacted(os.path.basename(location))} leaves no wheel; correct its backend")
        shutil.move(os.path.join(folder, file), os.path.join(self.wheels, file))
        return file

    def _build(self, name: str, location: str, source: str, folder: str) -> None:
        called = name or os.path.basename(location.rstrip("/"))
        for _round in range(2):
            self.uv.extra_build = {one: [self.torch] for one in self.needs_torch}
            self._declare(source, self._build_needs(name))
            try:
                self.uv.run(
                    *("build", "--wheel", "--no-create-gitignore", "--python", self.builder["executable"]),
                    *("--out-dir", folder, source),
                    otherwise=f"{redacted(called)} cannot be built; see what its build says",
                    package=name,
                    cwd=self.cwd,
                    **self.from_where,
                )
                return
            except Failure as failure:
                needs = wants_torch(failure.output) or (name if lacks_torch(failure.output) else "")
                if not needs or needs in self.needs_torch:
                    raise
                self.needs_torch.append(needs)

    def _build_needs(self, name: str) -> list[str]:
        """Return what else the settings, or an earlier failure, say that the build of a package needs."""
        given = self.uv.build_needs
        known = [one for package, needs in given.items() if normalized(package) == normalized(name) for one in needs]
        found = [str(one["requirement"] if isinstance(one, Mapping) else one) for one in known]
        return [*found, *([self.torch] if normalized(name) in map(normalized, self.needs_torch) else [])]

    def _declare(self, project: str, needs: list[str]) -> None:
        """Have the copy of a project whose name only its build says declare what it needs: uv goes by the name."""
        path = os.path.realpath(os.path.join(project, "pyproject.toml"))
        if not needs or not path.startswith(f"{os.path.realpath(self.folder)}/"):
            return
        text = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        if re.search(r"(?m)^\[project\]", text):
            return
        listing = ", ".join(map(toml, needs))
        if re.search(r"(?m)^\[build-system\]", text):
            head = re.compile(r"(?ms)^(\[build-system\].*?^\s*requires\s*=\s*\[)")
            text = head.sub(lambda found: f"{found[1]}{listing}, ", text, count=1)
        else:
            text += f'\n[build-system]\nrequires = ["setuptools", "wheel", {listing}]\n'
            text += 'build-backend = "setuptools.build_meta:__legacy__"\n'
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        if os.path.relpath(path, os.path.realpath(self.folder)).startswith("git"):  # a clone, which is nobody's
            with contextlib.suppress(Failure):  # a file that git does not track is no change to it
                self._git("-C", project, "update-index", "--assume-unchanged", path)

    def _fetched(self, location: str) -> tuple[str, str]:
        """Return a folder or archive, and the folder in it that counts."""
        place, _hash, rest = location.partition("#")
        subdirectory = next((one[13:] for one in rest.split("&") if one.startswith("subdirectory=")), "")
        if not place.startswith("git+"):
            return os.path.abspath(os.path.join(self.request["project"], path_of(place))), subdirectory
        url, _at, commit = place[4:].rpartition("@")
        folder = os.path.join(self.folder, f"git{len(self.built)}")
        self._git("clone", "--quiet", "--no-checkout", url, folder)
        try:
            self._git("-C", folder, "checkout", "--quiet", commit)
        except Failure:  # of no branch or tag: of a pull request, or of a branch that was overwritten
            self._git("-C", folder, "fetch", "--quiet", "origin", commit)
            self._git("-C", folder, "checkout", "--quiet", commit)
        self._git("-C", folder, "submodule", "--quiet", "update", "--init", "--recursive")
        return folder, subdirectory

    def _git(self, *arguments: str) -> None:
        env = {**self.uv.environment, "GIT_TERMINAL_PROMPT": "0"}
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function
                ["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False
            )
        except OSError as error:
            raise Failure(because(str(error), f"git cannot be run there: {error.strerror}")) from None
        if done.returncode != 0:
            raise Failure(because(done.stderr, "git could not fetch a requirement"), done.stderr)


def _written(head: str, hashes: list[str]) -> str:
    return " \\\n    ".join([head, *(f"--hash={one}" for one in hashes)]) + "\n"


def path_of(place: str) -> str:
    """Return the path in a file URL; anything else as it is."""
    return unquote(place[5:].removeprefix("//")) if place.startswith("file:") else place


def glibc_minor(path: str) -> int:
    """Return x of the newest glibc 2.x whose functions a wheel's compiled code asks for, 0 if it asks for none."""
    with zipfile.ZipFile(path) as wheel:
        code = [wheel.read(name) for name in wheel.namelist()]
    found = [re.findall(rb"\0GLIBC_2\.(\d+)", one) for one in code if one.startswith(b"\x7fELF")]
    return max((int(minor) for minors in found for minor in minors), default=0)


def _short(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version)


def normalized(name: str) -> str:
    """Return a package's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_contradiction(output: str) -> bool:
    """Return whether uv says that the requirements cannot be met together."""
    return NO_SOLUTION.search(output) is not None
