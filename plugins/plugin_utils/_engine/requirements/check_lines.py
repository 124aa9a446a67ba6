# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make of lines of requirements what uv gets, and name by file and line what cannot be installed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import (
    MALWARE,
    SOURCES,
    path_of,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import secret_in
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.lay_out import place_of
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import (
    is_project,
    project_name,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirement_lines import (
    VALUED,
    WORD,
    Line,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements

with contextlib.suppress(ImportError):  # ansible-core needs it too; its sanity tests do without
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

MALWARE_SENTENCE = (
    "asks for {name} {version}, which was malware (GHSA-w37p-236h-pfx3); ask for another version there, and look into "
    "every machine that has installed it"
)
ARCHIVES = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
QUOTED = re.compile(r"^(['\"])((?:(?!\1).)*)\1$")
SURPLUS = re.compile(
    rf"(?P<option>--(?:pre|prefer-binary|no-index|require-hashes)|-[rcefi]\s*+=?+\s*+{WORD}|--[a-z-]+(?>\s*=\s*|\s+){WORD})"
    r"\s+(?P<rest>.+)"
)
"""An option with its value, if it takes one, and what stands behind."""
IGNORED = re.compile(r"\s--((use-feature|trusted-host)[ =]\S+|prefer-binary|pre|require-hashes|no-index)(?=\s|$)")
"""Options that pip accepts behind a package, and ignores there."""
IGNORED_PLACE = re.compile(r"\s(-[fi]|--(?:extra-)?index-url|--find-links)(?:\s*=\s*|\s+)\S+")
"""Likewise, of places that packages come from."""
BINARY = re.compile(r"(?:^|\s)--(no|only)-binary(?:\s*=\s*|\s+)(\S+)")
"""Options that count for pip wherever they stand; for uv in a line of their own, with one package each."""
FOR_UV = ("--no-index", "-r", "--requirement", "-c", "--constraint")
"""Options in a file that uv reads there, beside those with a path; of -r and -c only those with a URL are left."""
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


def collect(result: Requirements, lines: Sequence[Line]) -> None:
    """Turn lines into what uv gets.

    Raises:
        JobError: some cannot be installed, or hold a password.
    """
    faults: list[tuple[Line, str]] = []
    soft: list[tuple[Line, str]] = []
    demanding: list[Line] = []
    for line in lines:
        if secret := secret_in(line.text):
            faults.append((line, secret))
            continue
        surplus = SURPLUS.fullmatch(line.text)
        if surplus and not (surplus["rest"].startswith(";") and surplus["option"].startswith(("-e", "--editable"))):
            remark = "has {} behind the option {}, where pip ignores it; write it into a line of its own"
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
            text = IGNORED.sub("", text)
            for place in IGNORED_PLACE.finditer(text):
                remark = "has the option {} behind a package, where it does not count; write it into a line of its own"
                soft.append((line, remark.format(place[1])))
            text = IGNORED_PLACE.sub("", text)
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
                faults.append((line, f"names {value}, and there is no folder {folder}; correct it, or leave it out"))
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


def _source(result: Requirements, path: Path) -> str:
    """Return where a folder or file will lie for uv."""
    real = path.resolve()
    if real not in result.sources:
        result.sources.append(real)
    return f"{SOURCES}/{place_of(result.sources.index(real), real)}"


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


def _name_of(text: str) -> str:
    found = re.match(r"[A-Za-z0-9][\w.-]*", text)
    return canonicalize_name(found[0]) if found and "://" not in text.split("@")[0] else text
