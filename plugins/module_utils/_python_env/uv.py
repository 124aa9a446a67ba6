# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Run uv with the settings of the inventory and of the machine, and say why it failed."""

from __future__ import annotations

import configparser
import json
import os
import queue
import re
import shlex
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

CREDENTIALS = re.compile(r"(?i)(https?://)[^/\s\"'`]+@")
"""In a URL; a password may have an @ itself."""
PYPI = "https://pypi.org/simple"
TORCH_INDEX = "https://download.pytorch.org/whl"
MOST_BUILDS = 8
"""How many packages may turn out to need torch for their build."""
REACH_SECONDS = 10
"""How long an index may take to take a connection: then a network is dead, and uv would try for a minute."""
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PIP_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
UV_FILES = ("/etc/uv/uv.toml", "/etc/xdg/uv/uv.toml", "~/.config/uv/uv.toml")
SETTINGS = ("index_url", "extra_index_urls", "find_links", "proxy", "uv_settings")
"""What the inventory says of indexes and of uv; it may hold passwords."""
NOT_TAKEN = ("extra-index-url", "trusted-host", "constraint", "no-index")
"""Settings of pip that are not taken over: each changes what is installed, or whom it is believed."""
INDEX_REMEDY = "set python_env_index_url in the inventory to an index that it reaches, or python_env_proxy to the proxy"
NAMED_INDEX_REMEDY = f"{INDEX_REMEDY}; if the requirements name what is not reached, correct them"
GIT_REMEDY = (
    "set python_env_proxy to the proxy, or python_env_resolve_on to a node that reaches it, or take the package from "
    "an index or an archive"
)
TORCH_INDEX_REMEDY = (
    "set python_env_torch_backend: none to take torch from the package index, a folder with torch's wheel in "
    "python_env_find_links, or python_env_proxy to the proxy"
)

CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Hash mismatch",
        "a package is not the one whose hash the lock has: it was changed on its way or at its source; find out which, "
        "and take another hash only if you know the package",
    ),
    (
        r"No space left on device|os error 28\b",
        "the disk is full ({line}); make room there, or set cluster_dir in the inventory to a folder on a larger one",
    ),
    (
        r"UnknownIssuer|invalid peer certificate|SSL certificate problem|certificate verify failed",
        "it does not trust the index's certificate ({line}); put your company's CA into the system's store there "
        "(update-ca-certificates, update-ca-trust), or name its file there: python_env_uv_settings: {{cert: /path}}",
    ),
    (
        r"407 Proxy Authentication Required|HTTP code 407|response 407",
        "the proxy wants a name and a password; give them in python_env_proxy, from a vault",
    ),
    (
        r"Failed to parse:? `?\S*/settings/uv\.toml",
        "python_env_uv_settings has what no uv.toml may have (uv says below what); correct it in the inventory",
    ),
    (
        r"401 Unauthorized|HTTP status client error \(401",
        "the index wants other credentials ({line}); correct them in python_env_index_url or "
        "python_env_extra_index_urls, from a vault",
    ),
    (
        r"403 Forbidden|HTTP status client error \(403",
        "the index refuses this ({line}); see that the credentials in python_env_index_url may read it, or that no "
        "proxy forbids it",
    ),
    (
        r"No \S+ host key is known for|Host key verification failed",
        "ssh does not know the key of a repository's host ({line}); add it to ~/.ssh/known_hosts on the machine that "
        "resolves (ssh-keyscan prints it), after comparing it with the one that the host's owner publishes",
    ),
    (
        r"fatal: could not read (Username|Password) for|fatal: Authentication failed for|Permission denied \(publickey"
        r"|Repository not found|fatal: repository '.*' (not found|does not exist)|URL returned error: 40[134]",
        "git finds no repository that it may read ({line}); correct the URL in the requirements, or give git what it "
        "needs on the machine that resolves: a credential helper, ~/.netrc, or a key for git+ssh://",
    ),
    (
        r"fatal: unable to access '|ssh: (Could not resolve|connect to host)",
        "git does not reach a repository ({line}); " + GIT_REMEDY,
    ),
    (
        r"failed to find branch, tag, or commit|couldn't find remote ref|upload-pack: not our ref",
        "a repository has no such branch, tag or commit ({line}); correct what stands after the @ in its URL",
    ),
    (
        r"failed to lookup address|dns error|Name or service not known|Could not resolve host|"
        r"Temporary failure in name",
        "a name does not resolve ({line}); " + NAMED_INDEX_REMEDY,
    ),
    (
        r"Network is unreachable|No route to host|Connection refused|tcp connect error|operation timed out|"
        r"Failed to connect|Connection reset",
        "it does not reach the index ({line}); " + NAMED_INDEX_REMEDY,
    ),
    (
        r"[Gg]it executable not found|No such file or directory: 'git'",
        "a requirement comes from git, and there is no git; install git there",
    ),
    (
        r"command '?[\w./-]*(gcc|cc|clang|g\+\+|c\+\+)'? failed: No such|[Uu]nable to find.*compiler|C(XX)?_COMPILER"
        r"|No such file or directory: '[\w./-]*(gcc|cc|g\+\+)'|can't find Rust compiler|Python\.h: No such file",
        "a package has no wheel for this Python and platform, and to build it a compiler is missing there ({line}); "
        "take a version that has a wheel, or install a compiler and Python's headers (build-essential and python3-dev, "
        "or gcc-c++ and python3-devel), or set python_env_resolve_on to a node that has them",
    ),
    (
        r"command '?[\w./-]*(gcc|cc|clang|g\+\+|c\+\+)'? failed with exit",
        "the compiler fails in the build of {package} ({line}); see below what it says, and install the headers that "
        "it lacks, or take a version of it that has a wheel; a project of your own, correct",
    ),
    (
        r"ModuleNotFoundError: No module named '?torch\b",
        "the build of {package} needs torch, and does not declare it; set python_env_build_needs_torch: "
        "[{package}]{name_it}; of a project of your own, add it to build-system.requires in its pyproject.toml",
    ),
    (
        r"ModuleNotFoundError: No module named '?pkg_resources\b",
        "the build of {package} needs pkg_resources, which newer versions of setuptools lack ({line}); set "
        "python_env_uv_settings: {{extra-build-dependencies: {{{package}: ['setuptools<81']}}}}{name_it}, or take a "
        "newer version of the package",
    ),
    (
        r"ModuleNotFoundError: No module named '?(distutils|imp)\b",
        "the build of {package} needs the module {module}, which newer Pythons lack ({line}); take a newer version of "
        "the package, or an older Python: python_env_python of the node and, if that is not what builds, "
        "python_env_resolve_on: its name",
    ),
    (
        r"ModuleNotFoundError: No module named ",
        "the build of {package} needs another package, and does not declare it ({line}); set python_env_uv_settings: "
        "{{extra-build-dependencies: {{{package}: [{module}]}}}} (in place of {module}, the package that has the "
        "module {module}){name_it}; of a project of your own, add it to build-system.requires in its pyproject.toml",
    ),
    (
        r"CUDA_HOME|nvcc.*not found",
        "a package is built with CUDA, and there is no CUDA toolkit ({line}); take a version that has a wheel, or "
        "install the toolkit there",
    ),
    (
        r"Permission denied|os error 13\b",
        "a program could not be run, or a file not be written there ({line}); see the mount's options (noexec) and "
        "modes",
    ),
    (
        r"index-strategy|first index that contains|unsafe-best-match",
        "no version fits: of a package that several indexes have, only the first index counts, so that nobody can put "
        "another in its place; if you trust all of them, set python_env_uv_settings: "
        "{{index-strategy: unsafe-best-match}}",
    ),
    (
        r"Git operation failed",
        "git could not fetch a repository; see below what it says, and correct its URL in the requirements",
    ),
    (
        r"Failed to (download and )?build `|The build backend returned an error",
        "the build of {package} fails; see below what it says, and take a version of it that has a wheel, or another "
        "package in its place; a project of your own, correct",
    ),
)
"""Patterns in what uv says, and what they mean: clauses without the machine's name. The first that fits counts."""
NO_SOLUTION = re.compile(r"No solution found|was not found in the package registry|no version of|there are no versions")


class Failure(Exception):
    """Why something cannot be done: a clause without the machine's name, and uv's output.

    ``unmet`` has the requirements that cannot be met each by itself, and why.
    """

    def __init__(self, why: str, output: str = "", unmet: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.output = redacted(output)
        self.unmet = unmet


def redacted(text: str) -> str:
    """Return a text that shows of the credentials in its URLs only that there are some."""
    return CREDENTIALS.sub(r"\1…@", text)


def without_credentials(text: str) -> str:
    """Return a text without the credentials in its URLs."""
    return CREDENTIALS.sub(r"\1", text)


def because(output: str, otherwise: str, package: str = "") -> str:
    """Return what uv's words mean, with a remedy; ``otherwise`` if they are not known.

    ``package`` is the one that is built, unless that of another failed, which it needs.
    """
    lines = output.splitlines()
    package = built_by(output) or package
    name_it = "" if package else ", and where the requirements have only a URL, write PACKAGE @ URL"
    package = package or "PACKAGE"
    for pattern, words in CAUSES:
        for number, line in enumerate(lines):
            if re.search(pattern, line):
                url = next((one for one in lines[: number + 1][::-1] if "://" in one), "")
                shown = line.strip().removeprefix("cause: ").strip()
                address = re.search(r"https?://\S+", url)
                if address and address[0] not in shown:
                    shown = f"{shown}: {address[0].rstrip(').`')}"
                module = re.search(r"No module named '?(\w+)", line)
                other = module[1] if module else ""
                return redacted(words.format(line=shown[:300], package=package, module=other, name_it=name_it))
    return otherwise


def toml(value: Any) -> str:
    """Return a value as TOML has it; a mapping as an inline table. TOML has no null: one in it is left out."""
    if isinstance(value, Mapping):
        given = ((key, one) for key, one in value.items() if one is not None)
        return "{" + ", ".join(f"{toml(str(key))} = {toml(one)}" for key, one in given) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(one) for one in value if one is not None) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")


def uv_toml(settings: Mapping[str, Any]) -> str:
    """Return a uv.toml."""
    return "".join(f"{toml(str(key))} = {toml(value)}\n" for key, value in settings.items() if value is not None)


class Machine:
    """What this machine has set for whoever fetches packages: /etc/environment, pip.conf, uv.toml.

    Attributes:
        proxies: variables of the environment.
        pip: settings of pip.
        files: by setting of pip, where it stands.
        has_uv_index: whether uv's own files name an index in PyPI's place.
    """

    def __init__(self, root: str = "/", home: str = "") -> None:
        self.proxies = self._proxies(os.path.join(root, "etc/environment"))
        self.pip: dict[str, str] = {}
        self.files: dict[str, str] = {}
        for path in [*PIP_FILES, os.environ.get("PIP_CONFIG_FILE", "")]:
            self._read_pip(self._place(path, root, home))
        self.has_uv_index = any(self._names_index(self._place(path, root, home)) for path in UV_FILES)

    @staticmethod
    def _place(path: str, root: str, home: str) -> str:
        if path.startswith("~"):
            return os.path.join(home or os.path.expanduser("~"), path[2:])
        return os.path.join(root, path.lstrip("/")) if path else ""

    @staticmethod
    def _proxies(path: str) -> dict[str, str]:
        found = {}
        try:
            with open(path, errors="replace") as file:
                for line in file:
                    name, equals, value = line.strip().removeprefix("export ").partition("=")
                    if equals and name.lower() in PROXY_VARIABLES:
                        found[name.lower()] = " ".join(shlex.split(value, comments=True))
        except (OSError, ValueError):
            pass
        return found

    def _read_pip(self, path: str) -> None:
        parser = configparser.RawConfigParser(strict=False)
        try:
            if not path or not parser.read(path):
                return
        except (configparser.Error, UnicodeDecodeError):
            return
        for section in ("global", "install"):
            for name, value in parser.items(section) if parser.has_section(section) else ():
                self.pip[name.replace("_", "-")] = value.strip()
                self.files[name.replace("_", "-")] = path

    @staticmethod
    def _names_index(path: str) -> bool:
        try:
            with open(path, errors="replace") as file:
                return (
                    re.search(r"(?m)^\s*(index-url|offline)\b|^[^#\n]*\bdefault\s*=\s*true\b", file.read()) is not None
                )
        except OSError:
            return False

    def not_taken(self) -> list[str]:
        """Return sentences about settings of pip that are not taken over."""
        instead = {
            "extra-index-url": "python_env_extra_index_urls",
            "trusted-host": "python_env_uv_settings: {allow-insecure-host: [...]}",
            "constraint": "a line -c in the requirements",
            "no-index": "python_env_index_url: none",
        }
        return [
            f"{self.files[name]} sets {name}, which is not taken over; if packages depend on it, set {instead[name]}"
            for name in NOT_TAKEN
            if name in self.pip
        ]


class Uv:
    """A uv with its settings.

    Args:
        binary: path.
        settings: those that SETTINGS names, as the inventory has them.
        folder: its own, for a file of settings: readable by nobody else.
        cache: folder, or "" for the account's own.
        machine: whose settings count where the inventory has none.
        is_locked: whether hashes say which packages are meant: then another index can do no harm.
        project: settings of a pyproject.toml that is resolved, which those of the inventory are added to.
    """

    def __init__(
        self,
        binary: str,
        settings: Mapping[str, Any],
        folder: str,
        cache: str = "",
        machine: Machine | None = None,
        is_locked: bool = False,
        project: Mapping[str, Any] | None = None,
    ) -> None:
        self.binary = binary
        self.folder = folder
        self.settings = settings
        self.machine = machine or Machine()
        self.project = project or {}
        self.extra_build: dict[str, list[str]] = {}
        self.passed: tuple[int, ...] = ()
        self.extra_index_urls = list(settings["extra_index_urls"])
        if is_locked:
            self.extra_index_urls += self.machine.pip.get("extra-index-url", "").split()
        self.environment = self._environment(cache)

    def _environment(self, cache: str) -> dict[str, str]:
        pip = self.machine.pip
        dropped = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME"]
        dropped += ["UV_PYTHON", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "COLUMNS"]  # to which it would break its lines
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        env.update({"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"})
        if not env.get("SSL_CERT_FILE"):
            env.setdefault("UV_SYSTEM_CERTS", "true")
        if cache:
            env["UV_CACHE_DIR"] = cache
        proxies = dict(self.machine.proxies)
        if "proxy" in pip:
            proxies.update(dict.fromkeys(("http_proxy", "https_proxy"), pip["proxy"]))
        if self.settings["proxy"]:
            proxies.update(dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.settings["proxy"]))
            for name in PROXY_VARIABLES[:3]:
                env.pop(name, None)
                env.pop(name.upper(), None)
        for name, value in proxies.items():
            if name not in env and name.upper() not in env:
                env[name] = env[name.upper()] = value
        if given := self.settings["uv_settings"].get("cert"):
            env["SSL_CERT_FILE"] = str(given)
        elif "cert" in pip and not env.get("SSL_CERT_FILE"):
            env["SSL_CERT_FILE"] = pip["cert"]
        self.index = self.settings["index_url"]
        if self.index and self.index != "none":
            env["UV_DEFAULT_INDEX"] = self.index
        elif not self.index and not self._has_index(env):
            self.index = pip.get("index-url", "") or self.settings.get("fallback_index_url", "")
            if self.index:
                env["UV_DEFAULT_INDEX"] = self.index
        if self.extra_index_urls:
            env["UV_INDEX"] = " ".join(self.extra_index_urls)
        # What the inventory names lies on the nodes; whatever else is set lies here alone.
        self.own_links = [*env.get("UV_FIND_LINKS", "").split(","), *pip.get("find-links", "").split()]
        folders = [one for one in (*self.settings["find_links"], *self.own_links) if one]
        if folders:
            env["UV_FIND_LINKS"] = ",".join(dict.fromkeys(folders))
        return env

    def _has_index(self, env: Mapping[str, str]) -> bool:
        return (
            bool(env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL"))
            or self.machine.has_uv_index
            or bool(default_index(self.config) or self.config.get("offline"))
        )

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings of the project and the inventory."""
        return {**self.project, **self.settings["uv_settings"]}

    @property
    def is_offline(self) -> bool:
        """Return whether nothing is asked of the network."""
        is_set = "UV_OFFLINE" in self.environment or bool(self.config.get("offline"))
        return is_set or self.index == "none"

    def indexes(self, backend: str) -> list[str]:
        """Return the indexes that will be asked, as far as they are known."""
        if self.is_offline:
            return []
        found = list(self.extra_index_urls)
        if self.index:
            found.append(self.index)
        elif url := self.environment.get("UV_DEFAULT_INDEX") or self.environment.get("UV_INDEX_URL"):
            found.append(url)
        elif not self._has_index(self.environment):
            found.append(PYPI)
        return [*found, *([TORCH_INDEX] if backend not in ("", "none") else [])]

    def require_reachable(self, urls: Sequence[str], named: Sequence[str] = ()) -> None:
        """Raise Failure, within seconds, if an index takes no connection, or the proxy before it.

        Args:
            urls: of indexes.
            named: of those that the requirements name.
        """
        if self.is_offline or {"http-proxy", "https-proxy"} & set(self.config):
            return
        places: dict[tuple[str, int], str] = {}
        for url in (*urls, *named):
            parts = urlsplit(self.proxy_for(url) or url)
            try:
                port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)
            except ValueError:
                continue
            if parts.hostname and parts.scheme != "file":
                places.setdefault((parts.hostname, port), url)
        problems: dict[tuple[str, int], str] = {}
        threads = [threading.Thread(target=self._try, args=(place, problems), daemon=True) for place in places]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + REACH_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for (place, url), thread in zip(places.items(), threads):
            problem = problems.get(place, "")
            if thread.is_alive():
                problem = f"{place[0]} port {place[1]} gives no answer within {REACH_SECONDS} s"
            if problem:
                proxy = self.proxy_for(url)
                through = " through its proxy" if proxy else ""
                remedy = INDEX_REMEDY if url != TORCH_INDEX else TORCH_INDEX_REMEDY
                if url in named:
                    remedy = "take it out of the requirements, or set python_env_proxy to the proxy"
                if proxy:
                    remedy = "correct python_env_proxy, or the machine's own setting"
                raise Failure(f"it does not reach the index {redacted(url)}{through}: {problem}; {remedy}")

    def proxy_for(self, url: str) -> str:
        """Return the proxy on the way to a URL, or ""."""
        parts = urlsplit(url)
        env = self.environment
        found = {name: env.get(name) or env.get(name.upper()) or "" for name in PROXY_VARIABLES}
        host = parts.netloc.rpartition("@")[2]
        if found["no_proxy"] and urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]  # typeshed lacks it
            host, {"no": found["no_proxy"]}
        ):
            return ""
        proxy = found.get(f"{parts.scheme}_proxy") or found["all_proxy"]
        return proxy if not proxy or "://" in proxy else f"http://{proxy}"

    @staticmethod
    def _try(place: tuple[str, int], problems: dict[tuple[str, int], str]) -> None:
        """Connect to all its addresses at once: of IPv6 and IPv4 one may be dead."""
        try:
            addresses = sorted({one[4][:2] for one in socket.getaddrinfo(*place, type=socket.SOCK_STREAM)})
        except (socket.gaierror, UnicodeError) as error:
            problems[place] = f"the name {place[0]} does not resolve ({getattr(error, 'strerror', None) or error})"
            return
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        for address in addresses:
            threading.Thread(target=_connect, args=(address, answers), daemon=True).start()
        why = ""
        for _address in addresses:
            why = answers.get()
            if not why:
                return
        problems[place] = f"{place[0]} port {place[1]}: {why}"

    @property
    def build_needs(self) -> dict[str, Any]:
        """Return by package what settings say that its build needs besides."""
        both = (self.project, self.settings["uv_settings"])
        return {name: needs for one in both for name, needs in (one.get("extra-build-dependencies") or {}).items()}

    def _config(self) -> dict[str, str]:
        """Return a variable that has uv add settings to those of the machine's files; nothing where none are given.

        uv takes a UV_CONFIG_FILE in place of all other files; a uv.toml in what it takes for the project, before them.

        Raises:
            Failure: the environment has a file that uv would take in place of these.
        """
        if not self.settings["uv_settings"].keys() - {"cert"} and not self.extra_build:
            return {}
        if "UV_CONFIG_FILE" in self.environment:
            raise Failure(
                "UV_CONFIG_FILE is set there, and uv takes that file alone, without what python_env_uv_settings or a "
                "build needs besides; move the file to ~/.config/uv/uv.toml there, and unset the variable"
            )
        config = {name: value for name, value in self.config.items() if name != "cert"}
        if needs := {**self.build_needs, **self.extra_build}:
            config["extra-build-dependencies"] = needs
        folder = os.path.join(self.folder, "settings")
        os.makedirs(folder, 0o700, exist_ok=True)
        # With an empty pyproject.toml uv looks for no project in the folders above.
        for name, text in {"pyproject.toml": "", "uv.toml": uv_toml(config)}.items():
            part = os.path.join(folder, f"{name}.{threading.get_ident()}")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, os.path.join(folder, name))
        if self.environment.get("UV_NO_CONFIG"):
            return {"UV_CONFIG_FILE": os.path.join(folder, "uv.toml")}
        return {"UV_PROJECT": folder}

    def run(
        self, *arguments: str, cwd: str = "/", otherwise: str = "", package: str = "", **variables: str
    ) -> tuple[str, str]:
        """Run it; return its standard output and its standard error.

        Args:
            arguments: of uv.
            cwd: where it looks for settings, and in the folders above.
            otherwise: what a failure means whose words are not known.
            package: that is built.
            variables: of the environment.

        Raises:
            Failure: it failed.
        """
        env = {**self.environment, **variables}
        if arguments[:1] != ("export",):  # which goes by the project alone, and builds nothing
            env.update(self._config())
        try:
            result = subprocess.run(  # pylint: disable=ansible-bad-function
                [self.binary, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=env,
                cwd=cwd,
                pass_fds=self.passed,
                check=False,
            )
        except OSError as error:
            raise Failure(f"{self.binary} cannot be run there: {error.strerror}") from None
        if result.returncode != 0:
            why = because(result.stderr, otherwise or "uv failed", package)
            raise Failure(why, result.stderr.strip() or f"uv ended with {result.returncode}")
        return result.stdout, result.stderr

    def run_building(self, *arguments: str, torch: str, needs: list[str], **more: str) -> tuple[str, str]:
        """Run it as ``run`` does, and again with a requirement of torch for each build that turns out to need it.

        ``needs`` names the packages, and gets those that are found; where ``torch`` is "" there are none.
        """
        for _round in range(MOST_BUILDS):
            self.extra_build = {name: [torch] for name in needs} if torch else {}
            try:
                return self.run(*arguments, **more)
            except Failure as failure:
                name = wants_torch(failure.output)
                if not torch or not name or name in needs:
                    raise
                needs.append(name)
        raise Failure("too many packages need torch for their build; name them in python_env_build_needs_torch")


def default_index(settings: Mapping[str, Any]) -> str:
    """Return the index that settings of uv name in PyPI's place, "" if they name none."""
    named = [one for one in settings.get("index") or () if isinstance(one, Mapping)]
    return str(next((one.get("url") for one in named if one.get("default")), settings.get("index-url")) or "")


def more_indexes(settings: Mapping[str, Any]) -> list[str]:
    """Return the indexes that settings of uv name beside the default, for any package."""
    named = [one for one in settings.get("index") or () if isinstance(one, Mapping)]
    urls = [one.get("url") for one in named if not one.get("default") and not one.get("explicit")]
    return [str(url) for url in (*urls, *(settings.get("extra-index-url") or ()))]


def _connect(address: tuple[Any, ...], answers: queue.SimpleQueue[str]) -> None:
    """Put "" into answers if an address takes a connection, else why it does not."""
    try:
        socket.create_connection(address, 2 * REACH_SECONDS).close()  # the caller stops waiting earlier
    except OSError as error:
        answers.put(error.strerror or str(error))
    else:
        answers.put("")


def wants_torch(output: str) -> str:
    """Return the package whose build failed because torch is missing, else ""."""
    return built_by(output) if lacks_torch(output) else ""


def built_by(output: str) -> str:
    """Return the package whose build failed, "" if it names none; of several, that which the others need."""
    found = re.findall(
        r"`([A-Za-z0-9][\w.-]*)@[^`]*` depends on `|Failed to (?:download and )?build `([A-Za-z0-9][\w.-]*?)(?:==|@| )",
        output,
    )
    return "".join(found[-1]) if found else ""


def lacks_torch(output: str) -> bool:
    """Return whether a build failed because torch is missing."""
    return "No module named 'torch'" in output or "depends on `torch`, but doesn't declare it" in output
