# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read requirements files, and name by file and line what cannot be installed.

What uv gets is one text of all files, in UTF-8, with the local projects, archives and folders it names as copies or
links in a folder of its own. So the same text can be resolved on another machine.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import locale
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import tomllib
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import (
    MALWARE,
    SOURCES,
    path_of,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import without_credentials
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import (
    MEBIBYTE,
    MOST_MB,
    measured,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import RESULTS, not_made
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.uv_settings import require_usable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import join_names

with contextlib.suppress(ImportError):  # ansible-core needs it too; its sanity tests do without
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

MALWARE_SENTENCE = (
    "asks for {name} {version}, which was malware (GHSA-w37p-236h-pfx3); ask for another version there, and look into "
    "every machine that has installed it"
)
ARCHIVES = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF16, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
)
"""In the order in which pip looks for them."""
CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")
COMMENT = re.compile(r"(^|\s+)#.*$")
VALUED = re.compile(
    r"(?P<flag>-r|--requirement|-c|--constraint|-e|--editable|-f|--find-links|-i|--index-url|--extra-index-url)"
    r"(?:\s*=\s*|\s+|(?<=^-[rcefi])(?=\S))(?P<value>.+)"
)
"""An option whose value is a path or a URL."""
WORD = r"(?:'[^']*'|\"[^\"]*\"|\S)++"
"""Without a space outside of quotes."""
QUOTED = re.compile(r"^(['\"])((?:(?!\1).)*)\1$")
SURPLUS = re.compile(
    rf"(?P<option>--(?:pre|prefer-binary|no-index|require-hashes)|-[rcefi]\s*+=?+\s*+{WORD}|--[a-z-]+(?>\s*=\s*|\s+){WORD})"
    r"\s+(?P<rest>.+)"
)
"""An option with its value, if it takes one, and what stands behind."""
UNHEEDED = re.compile(r"\s--((use-feature|trusted-host)[ =]\S+|prefer-binary|pre|require-hashes|no-index)(?=\s|$)")
"""Options that pip takes behind a package, and pays no heed to there."""
UNHEEDED_PLACE = re.compile(r"\s(-[fi]|--(?:extra-)?index-url|--find-links)(?:\s*=\s*|\s+)\S+")
"""Likewise, of places that packages come from."""
BINARY = re.compile(r"(?:^|\s)--(no|only)-binary(?:\s*=\s*|\s+)(\S+)")
"""Options that pip heeds wherever they stand; uv in a line of their own, with one package each."""
FOR_UV = ("--no-index", "-r", "--requirement", "-c", "--constraint")
"""Options in a file that uv reads there, beside those with a path; of -r and -c only those with a URL are left."""
URL = re.compile(r"(?i)(?:[a-z]+\+)?https?://[^\s'\"]+")
FOR_AN_INDEX = "for an index, give the URL in python_env_index_url or python_env_extra_index_urls, from a vault"
FOR_A_PACKAGE = (
    "take it out; git finds it by itself in its credential helper or in ~/.netrc of the machine that resolves, or "
    "needs none with git+ssh://git@HOST/PATH and a key there; an archive's belongs into ~/.netrc there and of root on "
    "every node"
)
VERSION_OF_GIT = re.compile(
    r"(setuptools|flit)[-_]scm|use_scm_version|hatch[-_]vcs|versioningit|versioneer|dunamai|(uv|poetry)-dynamic-versioning"
    r"|setuptools-git-versioning|\bpbr\b|source\s*=\s*[\"']scm[\"']"
)
"""In a project's files, what takes the version from git."""
EGG = re.compile(r"[#&]egg=([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)(?=&|$)")
"""The name that pip takes for a URL without one."""
HASH = re.compile(r"\s--hash[= ]([a-z0-9]+:[0-9a-fA-F]+)")
TORCH_LABEL = re.compile(r"torch(?:vision|audio|text|data)?")
TORCHS_OWN = re.compile(
    r"nvidia-(?:cublas|cuda-\w+|cudnn|cufft|cufile|curand|cusolver|cusparse|cusparselt|nccl|nvjitlink|nvshmem|nvtx)"
    r"(?:-cu\d+)?|triton|pytorch-triton(?:-rocm)?"
)
"""What torch itself requires, in the versions that belong to its build."""
ELSEWHERE = re.compile(
    r"pywin32|pywinpty|pyreadline3?|win-inet-pton|wincertstore|appnope|pyobjc-.*|tensorflow-(macos|metal)"
)
"""Packages of Windows and macOS that a freeze there lists."""
FREEZE = "pip list --format=freeze"
OF_A_PROJECT = (
    "build-backend",
    "conflicts",
    "default-groups",
    "dependency-groups",
    "dev-dependencies",
    "environments",
    "managed",
    "package",
    "required-environments",
    "sources",
    "workspace",
)
"""What tool.uv may have, and a uv.toml may not."""
PLACES = ("cache-dir", "extra-index-url", "find-links", "index-url", "url")
"""Settings of uv that are URLs or paths."""
CONVERTED = {
    "pipfile.lock": "pipenv requirements > requirements.txt",
    "pipfile": "pipenv requirements > requirements.txt",
    "poetry.lock": "poetry export -o requirements.txt",
    "pdm.lock": "pdm export -o requirements.txt",
}
"""Lock files of other tools, and how those write what is understood here."""


@dataclass(frozen=True)
class Line:
    """A logical line: what pip sees, without comments, several joined by backslashes as one; each option is one.

    Attributes:
        file: where it stands.
        number: of its first line there.
        text: never empty.
        constrains: whether it only says which version, if any (``-c``).
    """

    file: Path
    number: int
    text: str
    constrains: bool = False

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.file} line {self.number}"


@dataclass
class Requirements:
    """What a user wants installed.

    Attributes:
        path: the file that was named.
        arguments: of ``uv pip compile``, beside the text, for a pyproject.toml.
        lines: for uv, with SOURCES for the folder of what they name on this machine.
        constraints: likewise, of ``-c``.
        sources: what lies on this machine, in the order of its numbers.
        hashes: by package, those that are allowed, of constraints too; empty if the files give none.
        indexes: URLs in the files, of indexes and pages of links, as written there.
        soft: lines that often cannot be installed, and what to do about each; see ``faults``.
        contents: by file, its SHA-256.
        beside: projects and archives that a pyproject.toml has uv take from this machine.
        requires_python: the Pythons that a pyproject.toml is for, as it has them; "" for any.
        is_built: whether only the build of the project says what it needs, from whatever files.
        takes_prereleases: of any package.
        places: by line for uv, the file and line where it stands.
        uv_settings: that uv finds for a pyproject.toml, as a uv.toml has them.
    """

    path: Path
    arguments: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    hashes: dict[str, list[str]] = field(default_factory=dict)
    indexes: list[str] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    beside: list[Path] = field(default_factory=list)
    requires_python: str = ""
    is_built: bool = False
    takes_prereleases: bool = False
    places: dict[str, str] = field(default_factory=dict)
    uv_settings: dict[str, Any] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """Return the variables of the environment that the URLs of indexes and folders name, as far as they are set."""
        options = "\n".join(one for one in (*self.lines, *self.constraints) if one.startswith("-"))
        return {name: os.environ[name] for name in re.findall(r"\$\{(\w+)\}", options) if name in os.environ}

    def digest(self, settings: Mapping[str, Any], max_mb: int = MOST_MB) -> str:
        """Return what is the same as long as the resolution may stay as it is, in hex.

        Args:
            settings: whatever else decides it; a password in a URL does not.
            max_mb: the most that the files of a local project may have together, in MiB.

        Raises:
            JobError: one has more.
        """
        own = [self.path.parent] if self.is_built else []
        trees = [tree_digest(path, max_mb) for path in (*self.sources, *self.beside, *own)]
        known = {"files": sorted(self.contents.values()), "trees": trees, "arguments": self.arguments}
        text = without_credentials(json.dumps({**known, "settings": settings}, sort_keys=True, default=str))
        return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------- reading files


def decoded(path: Path) -> str:
    """Return a file's text: in the encoding that its byte order mark or a coding line names, as pip does, else UTF-8.

    Raises:
        JobError: it cannot be read so.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}; correct python_env_requirements") from None
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return _decode(path, data[len(mark) :], encoding)
    for line in data.split(b"\n")[:2]:
        if line.startswith(b"#") and (found := CODING.search(line)):
            return _decode(path, data, found[1].decode("ascii"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        usual = locale.getpreferredencoding(False)
        if usual.lower().replace("-", "") not in ("utf8", "ascii", "ansi_x3.41968", "usascii"):
            return _decode(path, data, usual)
        raise JobError(
            f"{path} line {number} is not in UTF-8; save it as UTF-8, or name its encoding in the first line, as in: "
            "# -*- coding: latin-1 -*-"
        ) from None


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise JobError(f"{path} cannot be read as {encoding}: {error}; save it as UTF-8") from None


def logical_lines(path: Path, text: str, constrains: bool) -> Iterator[Line]:
    """Yield what pip sees of a file."""
    joined, first = "", 0
    numbered = list(enumerate(text.splitlines(), start=1))
    for number, line in numbered:
        first = first or number
        is_comment = COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment and number < len(numbered):
            joined += line[:-1]
            continue
        joined_line = COMMENT.sub("", joined + (f" {line}" if is_comment else line)).strip()
        for text in _options(joined_line) if joined_line.startswith("-") else [joined_line] if joined_line else []:
            yield Line(path, first, text, constrains)
        joined, first = "", 0


def _options(line: str) -> list[str]:
    """Return the options of a line, each with what stands behind it."""
    found: list[str] = []
    for word in re.findall(WORD, line):
        if word.startswith("-"):
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


def read(path: Path, extras: Sequence[str] = (), groups: Sequence[str] = (), has_sources: bool = True) -> Requirements:
    """Read a requirements file, pyproject.toml, uv.lock or pylock.toml, and all that it includes.

    Args:
        path: on this machine, absolute.
        extras: of a pyproject.toml or uv.lock.
        groups: likewise.
        has_sources: whether uv heeds tool.uv.sources in a pyproject.toml.

    Raises:
        JobError: it cannot be read, or lines of it cannot be installed: all of these at once.
    """
    name = path.name.lower()
    if path.is_dir():
        raise JobError(f"{path} is a folder; set python_env_requirements to a file in it, such as pyproject.toml")
    if not path.is_file():
        raise JobError(
            f"The requirements file {path} does not exist on the controller; correct python_env_requirements"
        )
    if name in CONVERTED:
        raise JobError(
            f"{path} is another tool's lock file; run: {CONVERTED[name]}, and set python_env_requirements to that"
        )
    if name.endswith((".yml", ".yaml")):
        raise JobError(
            f"{path} is an environment of conda, and nodes are set up with packages from PyPI; write what it has below "
            "pip:, and the Python packages of its dependencies by their names on PyPI (pytorch is torch there), into a "
            "requirements.txt, and set python_env_requirements to that"
        )
    if name in ("setup.py", "setup.cfg"):
        raise JobError(
            f"{path} defines how a project is built; write -e . into a requirements.txt beside it, and set "
            "python_env_requirements to that"
        )
    if (extras or groups) and name not in ("pyproject.toml", "uv.lock"):
        raise JobError(
            f"{path} has no extras or groups; take python_env_extras and python_env_groups out of the inventory, or "
            "set python_env_requirements to a pyproject.toml"
        )
    result = Requirements(path)
    if name in ("pyproject.toml", "uv.lock"):
        _require_no_secret(path)
        project = path.with_name("pyproject.toml")
        _require_no_secret(project)
        _find_beside(result, project)
        table = _table(project)
        result.requires_python = str(_within(table, "project").get("requires-python", ""))
        result.is_built = name == "pyproject.toml" and _has_dynamic_dependencies(table)
    if name == "pyproject.toml":
        # A group without its file would be of the folder that uv's settings lie in.
        options = [f"--extra={one}" for one in extras] + [f"--group=pyproject.toml:{one}" for one in groups]
        result.arguments = ["pyproject.toml", *options]
        _remember(result, path, decoded(path))
        _take_settings(result)
    elif name == "uv.lock":
        result.arguments = ["uv.lock", *[f"--extra={one}" for one in extras], *[f"--group={one}" for one in groups]]
        _remember(result, path, decoded(path))
        project = path.with_name("pyproject.toml")
        if not project.is_file():
            raise JobError(f"{path} lies without its pyproject.toml, which has to be beside it")
        _remember(result, project, decoded(project))
    elif name == "pylock.toml" or (name.startswith("pylock.") and name.endswith(".toml")):
        text = decoded(path)
        _remember(result, path, text)
        _collect(result, list(logical_lines(path, pinned_by(path, text), False)))
    else:
        _collect(result, list(_included(result, path, False, ())))
    for source in result.sources:
        _require_no_secret(source / "pyproject.toml")
        if has_sources:
            _require_self_contained(source, path)
    return result


def _table(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file; nothing if it cannot be read: uv reports what is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _within(table: Any, *names: str) -> dict[str, Any]:
    """Return a table of tables, empty where there is none."""
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def _has_dynamic_dependencies(table: Mapping[str, Any]) -> bool:
    found = _within(table, "project").get("dynamic")
    return isinstance(found, list) and ("dependencies" in found or "optional-dependencies" in found)


def _find_beside(result: Requirements, project: Path) -> None:
    """Find what a pyproject.toml has uv take from this machine, and what that takes in turn.

    Raises:
        JobError: it is not there, or holds a password.
    """
    table = _table(project)
    found = []
    for given in _within(table, "tool", "uv", "sources").values():
        for one in given if isinstance(given, list) else [given]:
            if isinstance(one, dict) and isinstance(one.get("path"), str):
                found.append(project.parent / one["path"])
            elif isinstance(one, dict) and one.get("workspace") is True:
                found += _members(project)
    text = json.dumps([table.get("project"), table.get("dependency-groups")], default=str)
    found += [project.parent / path_of(one) for one in re.findall(r"@ *(file:[^\s\";]+)", text)]
    for path in (Path(os.path.normpath(one)) for one in found):
        if not path.exists():
            raise JobError(f"{project} names {path}, and there is nothing; correct it")
        if path not in (*result.beside, result.path.parent):
            result.beside.append(path)
            _require_no_secret(path / "pyproject.toml")
            _find_beside(result, path / "pyproject.toml")


def _require_self_contained(source: Path, path: Path) -> None:
    """Raise JobError if a project, of which a copy is built, takes others from outside of it."""
    taken = Requirements(source / "pyproject.toml")
    _find_beside(taken, taken.path)
    outside = [str(one) for one in taken.beside if not one.is_relative_to(source)]
    if outside:
        raise JobError(
            f"{taken.path} takes {join_names(outside)} from outside of its project (tool.uv.sources), and is built "
            f"from a copy; name each in a line of its own, as in -e {os.path.relpath(outside[0], path.parent)}, and "
            f"set python_env_uv_settings: {{no-sources: true}}"
        )


def _members(project: Path) -> list[Path]:
    """Return the projects of the workspace that one belongs to."""
    for folder in project.parents:
        workspace = _within(_table(folder / "pyproject.toml"), "tool", "uv", "workspace")
        if workspace:
            members = workspace.get("members")
            patterns = [one for one in members if isinstance(one, str)] if isinstance(members, list) else []
            return [folder, *sorted(one for pattern in patterns for one in folder.glob(pattern) if is_project(one))]
    return []


def _take_settings(result: Requirements) -> None:
    """Take the settings that uv finds for a pyproject.toml: the first uv.toml, or tool.uv, from its workspace upwards.

    Raises:
        JobError: they hold a password, or what uv does not take.
    """
    start = [*_workspace_of(result.path), result.path][0].parent
    for folder in (start, *start.parents):
        path, settings = folder / "uv.toml", _table(folder / "uv.toml")
        if not path.is_file():
            path = folder / "pyproject.toml"
            settings = _within(_table(path), "tool", "uv")
        if settings:
            _require_no_secret(path)
            require_usable(settings, f"{path}, settings of uv")
            _remember(result, path, decoded(path))
            result.uv_settings = {
                name: _placed(name, value, folder) for name, value in settings.items() if name not in OF_A_PROJECT
            }
            return


def _placed(name: str, value: Any, folder: Path) -> Any:
    """Return the value of a setting of uv with absolute paths, and with what JSON has."""
    if isinstance(value, list):
        return [_placed(name, one, folder) for one in value]
    if isinstance(value, dict):
        return {key: _placed(key, one, folder) for key, one in value.items()}
    if name in PLACES and isinstance(value, str) and "://" not in value:
        return os.path.normpath(folder / value)
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def explicit_indexes(requirements: Requirements, locks: str) -> list[str]:
    """Return the indexes that projects take only packages from that they name, and locks have: uv lists none."""
    own = [requirements.path.parent] if requirements.path.name == "pyproject.toml" else []
    found: list[str] = []
    for folder in (*own, *requirements.sources, *requirements.beside):
        path = folder / "pyproject.toml"
        tables = [_within(_table(one), "tool", "uv") for one in (path, *_workspace_of(path))]
        sources = [one for table in tables for one in _within(table, "sources").items()]
        used = [given for name, given in sources if re.search(rf"(?m)^{re.escape(canonicalize_name(name))}==", locks)]
        named = [one.get("index") for given in used for one in _listed(given) if isinstance(one, dict)]
        indexes = [one for table in tables for one in _listed(table.get("index")) if isinstance(one, dict)]
        found += [str(one.get("url")) for one in indexes if one.get("explicit") and one.get("name") in named]
    return [url for url in dict.fromkeys(found) if re.match("https?://", url)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _workspace_of(project: Path) -> list[Path]:
    """Return the pyproject.toml of the workspace that one belongs to, if there is another."""
    members = _members(project)
    return [members[0] / "pyproject.toml"] if project.parent in members[1:] else []


def _require_no_secret(path: Path) -> None:
    """Raise JobError if a TOML file, if there is one, has credentials in a URL: variables are not filled in there."""
    for number, line in enumerate(decoded(path).splitlines() if path.is_file() else (), start=1):
        for url in URL.findall(COMMENT.sub("", line)):
            if _holds_secret(url):
                raise JobError(
                    f"{path} line {number} holds a password or a token in a URL, which is no place for one; "
                    f"{FOR_AN_INDEX}; for a package, {FOR_A_PACKAGE}"
                )


def _remember(result: Requirements, path: Path, text: str) -> None:
    result.contents[str(path)] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _included(result: Requirements, path: Path, constrains: bool, within: Sequence[Path]) -> Iterator[Line]:
    """Yield the lines of a file and of all that it includes."""
    text = decoded(path)
    _remember(result, path, text)
    for line in logical_lines(path, text, constrains):
        option = VALUED.fullmatch(line.text)
        if not option or option["flag"] not in ("-r", "--requirement", "-c", "--constraint"):
            yield line
            continue
        value = option["value"].strip("'\"")
        if "://" in value and not value.startswith("file:"):
            yield line
            continue
        target = Path(os.path.normpath(path.parent / path_of(value)))
        if not target.is_file():
            raise JobError(f"{line} names {value}, and there is no file {target}; correct that line")
        if target not in (*within, path):
            yield from _included(
                result, target, constrains or option["flag"].startswith(("-c", "--c")), (*within, path)
            )


# ------------------------------------------------------------------------------------------------- what lies in the way


def _collect(result: Requirements, lines: Sequence[Line]) -> None:
    """Turn lines into what uv gets.

    Raises:
        JobError: some cannot be installed, or hold a password.
    """
    faults: list[tuple[Line, str]] = []
    soft: list[tuple[Line, str]] = []
    demanding: list[Line] = []
    for line in lines:
        if secret := _secret(line.text):
            faults.append((line, secret))
            continue
        surplus = SURPLUS.fullmatch(line.text)
        if surplus and not (surplus["rest"].startswith(";") and surplus["option"].startswith(("-e", "--editable"))):
            remark = "has {} behind the option {}, where pip pays no heed to it; write it into a line of its own"
            faults.append((line, remark.format(surplus["rest"], re.split(r"[\s=]", surplus["option"])[0])))
            continue
        text = HASH.sub("", line.text).strip()
        binary = [f"--{which}-binary {name}" for which, names in BINARY.findall(text) for name in names.split(",")]
        for one in binary:
            result.places.setdefault(one, str(line))
        result.lines += binary
        text = BINARY.sub("", text).strip()
        if not text:
            continue
        if not text.startswith("-"):
            text = UNHEEDED.sub("", text)
            for place in UNHEEDED_PLACE.finditer(text):
                remark = "has the option {} behind a package, where it does not count; write it into a line of its own"
                soft.append((line, remark.format(place[1])))
            text = UNHEEDED_PLACE.sub("", text)
        option = VALUED.fullmatch(text)
        flag, value = (option["flag"], QUOTED.sub(r"\2", option["value"].strip())) if option else ("", text)
        if flag in ("-i", "--index-url", "--extra-index-url"):
            result.indexes.append(value)
            text = f"{'--extra-index-url' if flag == '--extra-index-url' else '--index-url'} {value}"
        elif flag in ("-f", "--find-links") and "://" in value and not value.startswith("file:"):
            result.indexes.append(value)
            text = f"--find-links {value}"
        elif flag in ("-f", "--find-links"):
            folder = Path(os.path.normpath(line.file.parent / path_of(value)))
            if folder.exists():
                text = f"--find-links {_source(result, folder)}"
            else:
                faults.append((line, f"names {value}, and there is no folder {folder}"))
        elif flag in ("-e", "--editable") or not text.startswith("-"):
            text, fault = _required(result, line, flag, value)
            if fault:
                faults.append((line, fault))
            elif remark := _doubtful(text):
                soft.append((line, remark))
            for one in HASH.findall(line.text):
                result.hashes.setdefault(_name_of(text), []).append(one)
        elif text == "--pre":
            result.takes_prereleases = True
            continue
        elif text == "--require-hashes":
            demanding.append(line)
            continue
        elif text.startswith(("--trusted-host", "--use-feature", "--prefer-binary")):
            continue  # pip's alone, or so anyway
        elif not text.startswith(FOR_UV):
            option_name = re.split(r"[\s=]", text)[0]
            faults.append((line, f"has the option {option_name}, which is not taken from a file; leave it out"))
        result.places.setdefault(text, str(line))
        (result.constraints if line.constrains else result.lines).append(text)
    if not result.hashes:
        remark = (
            "requires hashes, and no line of a package has one; uv pip compile --generate-hashes writes such a file"
        )
        faults += [(line, remark) for line in demanding]
    result.soft = [f"{line}: {remark}" for line, remark in soft]
    if faults:
        listing = [f"{line} {remark}" for line, remark in faults]
        if len(listing) > 1:
            listing.insert(0, f"{result.path} has {len(listing)} lines that nodes cannot install:")
        if soft and not all("password" in remark for _line, remark in faults):
            listing.append("Lines that often fit only the machine that made the list:")
            listing += [f"{line} {remark}" for line, remark in soft]
        raise JobError("\n".join(listing))


def _required(result: Requirements, line: Line, flag: str, value: str) -> tuple[str, str]:
    """Return a requirement as uv gets it, and what is wrong with it, or ""."""
    marker = ""
    if found := re.search(r"\s+;\s*(.+)$", value):
        marker, value = f" ; {found[1]}", value[: found.start()]
    name, at, location = value.partition("@")
    is_named = bool(at) and re.fullmatch(r"[A-Za-z0-9][\w.-]*\s*(\[[^]]*\])?\s*", name) is not None
    if not (is_named and not flag):
        name, location = "", value
    location = location.strip()
    if version := _malware_in(location):
        return value, MALWARE_SENTENCE.format(name="lightning", version=version)
    extras = ""
    if not name and (found := re.fullmatch(r"(.*?)(\[[^]]*\])", location)):
        location, extras = found[1], found[2]
    if re.match(r"(?i)(git|hg|bzr|svn)\+|https?://|ssh://", location):
        if location.startswith(("hg+", "bzr+", "svn+")):
            return value, "names a repository that is not git's; install it from an archive or an index"
        if not name and (egg := EGG.search(location)):  # settings of uv go by the name, and it builds for none
            name, extras = egg[1] + extras, ""
        return f"{f'{name.strip()} @ ' if name else ''}{location}{extras}{marker}", ""
    is_path = flag or name or location.startswith((".", "/", "~", "file:")) or os.sep in location
    is_path = is_path or (location.lower().endswith(ARCHIVES) and (line.file.parent / location).is_file())
    if is_path:
        fragment = re.search(r"#.*$", location)
        path = Path(os.path.normpath(line.file.parent / os.path.expanduser(path_of(location.split("#")[0]))))
        if not path.exists():
            if name:
                place = location.split("#")[0]
                wheel = re.search(r"/[^/]+?-(\d[^-+/]*)[^-/]*-[^/]+\.whl$", unquote(place))
                version = wheel[1] if wheel else "VERSION"
                printed = "" if wheel else f", as this prints there: {FREEZE}"
                return value, (
                    f"names {place}, a place on the machine that made this list; write "
                    f"{name.strip()}=={version}{printed}"
                )
            meant = _meant(line.file.parent, location) or "correct it, or leave it out"
            return value, f"names {location}, and there is nothing at {path}; {meant}"
        if path.is_dir() and not is_project(path):
            meant = _meant(line.file.parent, location) or "correct it"
            return value, f"names the folder {path}, which has neither pyproject.toml nor setup.py; {meant}"
        place = f"file://{_source(result, path)}{fragment[0] if fragment else ''}"
        if not name and (own := project_name(path)):  # settings of uv go by the name
            name, extras = f"{own}{extras}", ""
        return f"{name.strip()} @ {place}{marker}" if name else f"{place}{extras}{marker}", ""
    return _indexed(value + marker)


def _meant(folder: Path, location: str) -> str:
    """Return how a file in a folder has to name what pip finds from one above, where it is started; "" if nothing."""
    for start in folder.parents:
        path = Path(os.path.normpath(start / location.split("#")[0]))
        if is_project(path) or path.is_file():
            return f"it is taken relative to {folder}; write {os.path.relpath(path, folder)} for {path}"
    return ""


def _indexed(text: str) -> tuple[str, str]:
    """Return a requirement that comes from an index, and what is wrong with it, or ""."""
    stripped = text.strip()
    if option := re.search(r"\s(--[a-z-]+)", stripped):
        return text, (
            f"has the option {option[1]}, which uv does not take from a file; leave it out, and if it is needed set "
            "python_env_uv_settings: {config-settings-package: {PACKAGE: {KEY: VALUE}}}"
        )
    try:
        requirement = Requirement(stripped)
    except InvalidRequirement as error:
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*=[^=].*", stripped):
            name, version = stripped.split("=")[:2]
            return text, f"is as conda writes it ({stripped}); write {name}=={version}"
        return text, f"is no requirement ({str(error).splitlines()[0]}); correct it, or leave it out"
    name = canonicalize_name(requirement.name)
    exact = {one.version for one in requirement.specifier if one.operator in ("==", "===")}
    if bad := {version for version in exact if _is_malware(name, version)}:
        return text, MALWARE_SENTENCE.format(name=requirement.name, version=min(bad))
    if name in ("pkg-resources", "pkg_resources") and exact == {"0.0.0"}:
        return text, "is no package (Debian's pip writes pkg-resources==0.0.0); leave it out"
    return text, ""


def _doubtful(text: str) -> str:
    """Return what is to be done about a line that only fits the machine it comes from, or ""."""
    found = re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*==\s*([^\s;,]+)", text)
    if not found:
        return ""
    name, (version, plus, label) = canonicalize_name(found[1]), found[2].partition("+")
    if plus and TORCH_LABEL.fullmatch(name):
        return (
            f"pins the build {label} of {name}; write {name}=={version}: python_env_torch_backend "
            "sets which build a node gets"
        )
    if plus:
        return f"pins {found[2]}, a build that public indexes do not have; write {name}=={version}"
    if ELSEWHERE.fullmatch(name) and ";" not in text:
        return "is only for another system than Linux; leave it out"
    if TORCHS_OWN.fullmatch(name):
        return "belongs to one build of torch, which brings what it needs itself; leave it out"
    return ""


def _is_malware(name: str, version: str) -> bool:
    try:
        parsed = Version(Version(version).public)
    except InvalidVersion:
        return False
    return parsed in map(Version, MALWARE.get(canonicalize_name(name), ()))  # 2.6.2, 2.6.02, v2.6.2.0


def _malware_in(location: str) -> str:
    """Return the version that was malware if the name of a file in a path or URL says so, else ""."""
    versions = "|".join(map(re.escape, MALWARE["lightning"]))
    found = re.search(rf"(?i)(?<![a-z0-9])(?:pytorch[-_.])?lightning-({versions})(?=[-.+]|$)", unquote(location))
    return found[1] if found else ""


def malware_among(lock: str) -> str:
    """Return the sentence's end if a lock has what was malware, else ""."""
    for name, version in re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", lock):
        if _is_malware(name, version):
            return MALWARE_SENTENCE.format(name=name, version=version)
    for location in re.findall(r"(?m)^\S+ @ (\S+)", lock):
        if version := _malware_in(location):
            return MALWARE_SENTENCE.format(name="lightning", version=version)
    return ""


def _secret(text: str) -> str:
    """Return what is wrong with a line that holds a password, or one of a package with a variable in its URL, or ""."""
    option = VALUED.fullmatch(text)
    is_package = not option or option["flag"] in ("-e", "--editable")
    for url in URL.findall(text):
        if is_package and "${" in url:
            return (
                "has a variable in the URL of a package, which is not filled in there; if it is a password or a token, "
                + FOR_A_PACKAGE
            )
        if _holds_secret(url, takes_variables=True):
            remedy = (
                FOR_A_PACKAGE
                if is_package
                else (
                    "write ${NAME} instead of it and set that variable where you run ansible-playbook, or, "
                    + FOR_AN_INDEX
                )
            )
            return f"holds a password or a token in a URL, which is no place for one; {remedy}"
    return ""


def secret_among(lock: str) -> str:
    """Return the sentence's end if a lock has a URL with credentials, else ""."""
    for name, url in re.findall(r"(?m)^(\S+) @ (\S+)", lock):
        if _holds_secret(url):
            return (
                f"leads to {name}, with a password or a token in its URL; find the project that names it so, and there "
                f"{FOR_A_PACKAGE}"
            )
    return ""


def _holds_secret(url: str, takes_variables: bool = False) -> bool:
    """Return whether a URL has a password or a token, which no variable of the environment, ${NAME}, stands for."""
    user, _colon, password = url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")
    is_variable = takes_variables and re.fullmatch(r"\$\{\w+\}", password or user)
    return not is_variable and (password != "" or user.lower() not in ("", "git"))


def expanded(url: str) -> str:
    """Return a URL with the values of variables, ${NAME}, that are set."""
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), url)


def _name_of(text: str) -> str:
    found = re.match(r"[A-Za-z0-9][\w.-]*", text)
    return canonicalize_name(found[0]) if found and "://" not in text.split("@")[0] else text


# ------------------------------------------------------------------------------------------ what lies on this machine


def _source(result: Requirements, path: Path) -> str:
    """Return where a folder or file will lie for uv."""
    real = path.resolve()
    if real not in result.sources:
        result.sources.append(real)
    return f"{SOURCES}/{place_of(result.sources.index(real), real)}"


def place_of(number: int, path: Path) -> str:
    """Return where a source lies in the folder of sources; a path without characters that a URL would escape."""
    return f"{number}/{re.sub(r'[^A-Za-z0-9_.+-]', '_', path.name)}"


def is_project(path: Path) -> bool:
    """Return whether a folder is a project, and not one that only holds wheels."""
    return (path / "pyproject.toml").is_file() or (path / "setup.py").is_file()


def project_name(path: Path) -> str:
    """Return the name of a project as its pyproject.toml has it, "" if it does not say."""
    try:
        name = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(name)


def files_of(project: Path, within: Sequence[Path] = ()) -> list[str]:
    """Return the files of a project, relative to it: what git tracks, and of the rest all but what was made there.

    Those of folders that links lead to are among them; ``within`` is what has led to this one.
    """
    tracked = _listed_by_git(project, "--cached", "--recurse-submodules")
    others = None if tracked is None else _listed_by_git(project, "--others", "--exclude-standard") or []
    names = not_made(project, others)
    folders = ("build", "dist", *sorted(RESULTS))
    left = [one for one in folders if not os.path.exists(project / one / "__init__.py")]  # else a package
    is_left = re.compile(rf"({'|'.join(['(.*/)?[^/]*[.]egg-info', *left])})/")
    kept = {*(tracked or ()), *(name for name in names if not is_left.match(name))}
    top = Path(os.path.realpath(project))
    for link in [name for name in kept if os.path.islink(project / name) and os.path.isdir(project / name)]:
        target = Path(os.path.realpath(project / link))
        is_circle = top.is_relative_to(target) or target in within
        is_data = "/" not in link and link not in (tracked or ()) and not target.is_relative_to(top)
        if not is_circle and not (is_data and not os.path.exists(target / "__init__.py")):
            kept.update(f"{link}/{name}" for name in files_of(target, (*within, top)))
    return sorted(name for name in kept if os.path.isfile(project / name))


def _listed_by_git(project: Path, *which: str) -> list[str] | None:
    listed = _git_output(project, "ls-files", "-z", *which)
    return None if listed is None else [name for name in listed.split("\0") if name]


def _git_output(project: Path, *arguments: str) -> str | None:
    """Return git's output, or None if git fails in this folder."""
    command = ["git", "-C", str(project), *arguments]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return None
    return os.fsdecode(found.stdout) if found.returncode == 0 else None


def tree_digest(path: Path, max_mb: int) -> str:
    """Return what is the same as long as a file or folder is.

    Raises:
        JobError: it is a project with more than max_mb MiB of files.
    """
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    if is_project(path):
        names = files_of(path)
        total, largest = measured(path, names, follow_symlinks=True)
        if total > max_mb * MEBIBYTE:
            raise JobError(
                f"{path} has {total / MEBIBYTE:.1f} MB of files, and a local project that is built may have "
                f"{max_mb} MB (job_bundle_max_mb); the largest are {largest}; add data and results to the .gitignore "
                "of its git repository, or raise the limit"
            )
        for name in names:
            digest.update(f"{name}\0{file_digest(path / name)}\n".encode("utf-8", "surrogateescape"))
    else:
        for entry in sorted(path.iterdir()):
            digest.update(f"{entry.name}\0{entry.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_version_of_git(project: Path) -> bool:
    """Return whether the build of a project asks git's history for its version."""
    texts = [project / name for name in ("pyproject.toml", "setup.py", "setup.cfg")]
    known = [one.read_text(encoding="utf-8", errors="replace") for one in texts if one.is_file()]
    return (project / ".git").exists() and VERSION_OF_GIT.search("\n".join(known)) is not None


def lay_out(requirements: Requirements, folder: Path, has_history: bool = True) -> None:
    """Have copies of projects, and links to archives and folders of wheels, lie where the text says.

    Args:
        requirements: with sources.
        folder: empty.
        has_history: whether git's history of a project is there too, whose tags may say the version.

    Raises:
        JobError: a project cannot be built without its history.
    """
    for number, path in enumerate(requirements.sources):
        place = folder / place_of(number, path)
        place.parent.mkdir()
        if path.is_dir() and is_project(path) and not has_history:
            _copy_project(path, place)
        elif path.is_dir() and is_project(path):
            _copy_files(path, place)
            _give_history(path, place)
        else:
            place.symlink_to(path)


def _give_history(project: Path, place: Path) -> None:
    """Have git's history of a project count in a copy of it."""
    repository = project / ".git"
    if repository.is_dir():
        (place / ".git").symlink_to(repository)
    elif repository.is_file() and (
        paths := _git_output(project, "rev-parse", "--absolute-git-dir", "--git-common-dir")
    ):
        # A submodule or worktree: its own settings say where its files lie, and not for one more worktree.
        own, common = paths.splitlines()
        (place / ".git").mkdir()
        for name in ("HEAD", "index"):
            if (path := Path(own, name)).exists():
                shutil.copy(path, place / ".git")
        (place / ".git" / "commondir").write_text(f"{(project / common).resolve()}\n")


def lay_out_project(requirements: Requirements, folder: Path) -> None:
    """Have a copy of what another machine needs of a pyproject.toml or uv.lock in a folder.

    Raises:
        JobError: it needs what is not sent.
    """
    project = requirements.path.parent
    if requirements.beside:
        raise JobError(
            f"{requirements.path} takes {join_names([str(one) for one in requirements.beside])} from the controller, "
            "which is sent to no node; set python_env_resolve_on: localhost, or set python_env_requirements to a "
            "requirements.txt with lines such as: -e ./lib"
        )
    if requirements.is_built:
        _copy_project(project, folder)
    else:
        for name in ("pyproject.toml", "uv.lock", "uv.toml"):
            if (project / name).is_file():
                shutil.copy(project / name, folder)


def _copy_project(project: Path, place: Path) -> None:
    """Copy a project without git's history."""
    if has_version_of_git(project):
        raise JobError(
            f"{project} takes its version from git's history, which is sent to no node; set "
            "python_env_resolve_on: localhost, or write the version into the project's pyproject.toml"
        )
    _copy_files(project, place)


def _copy_files(project: Path, place: Path) -> None:
    for name in files_of(project):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, place / name)


# ------------------------------------------------------------------------------------------------------- lock files


def pinned_by(path: Path, text: str) -> str:
    """Return a pylock.toml as lines of requirements with hashes.

    Raises:
        JobError: it is none.
    """
    try:
        packages = tomllib.loads(text)["packages"]
        return "\n".join(_pinned(one) for one in packages)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{path} is no lock file as PEP 751 has it ({error}); make it again") from None


def _pinned(package: Mapping[str, Any]) -> str:
    marker = f" ; {package['marker']}" if "marker" in package else ""
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    name = package["name"]
    if vcs := package.get("vcs"):
        subdirectory = f"#subdirectory={vcs['subdirectory']}" if "subdirectory" in vcs else ""
        where = vcs.get("url") or vcs["path"]
        return f"{name} @ {vcs['type']}+{where}@{vcs['commit-id']}{subdirectory}{marker}"
    if archive := package.get("archive"):
        place, files = archive.get("url") or f"./{archive['path']}", [archive]
        requirement = f"{name} @ {place}"
    elif directory := package.get("directory"):
        return f"{name} @ ./{directory['path']}{marker}"
    else:
        requirement = f"{name}=={package['version']}"
    hashes = [f" --hash={kind}:{value}" for one in files for kind, value in sorted(one["hashes"].items())]
    return f"{requirement}{marker}{''.join(hashes)}"
