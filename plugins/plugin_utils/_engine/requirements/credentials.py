# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find passwords and tokens in the URLs of requirements."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirement_lines import (
    COMMENT,
    VALUED,
    decoded,
)

URL = re.compile(r"(?i)(?:[a-z]+\+)?https?://[^\s'\"]+")
FOR_AN_INDEX = "for an index, give the URL in python_env_index_url or python_env_extra_index_urls, from a vault"
FOR_A_PACKAGE = (
    "take it out; git finds it by itself in its credential helper or in ~/.netrc of the machine that resolves, or "
    "needs none with git+ssh://git@HOST/PATH and a key there; an archive's belongs into ~/.netrc there and of root on "
    "every node"
)


def require_no_secret(path: Path) -> None:
    """Raise JobError if a TOML file, if there is one, has credentials in a URL: variables are not filled in there."""
    for number, line in enumerate(decoded(path).splitlines() if path.is_file() else (), start=1):
        for url in URL.findall(COMMENT.sub("", line)):
            if holds_secret(url):
                raise JobError(
                    f"{path} line {number} holds a password or a token in a URL, which is no place for one; "
                    f"{FOR_AN_INDEX}; for a package, {FOR_A_PACKAGE}"
                )


def secret_in(text: str) -> str:
    """Return what is wrong with a line that holds a password, or one of a package with a variable in its URL, or ""."""
    option = VALUED.fullmatch(text)
    is_package = not option or option["flag"] in ("-e", "--editable")
    for url in URL.findall(text):
        if is_package and "${" in url:
            return (
                "has a variable in the URL of a package, which is not filled in there; if it is a password or a token, "
                + FOR_A_PACKAGE
            )
        if holds_secret(url, takes_variables=True):
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
        if holds_secret(url):
            return (
                f"leads to {name}, with a password or a token in its URL; find the project that names it so, and there "
                f"{FOR_A_PACKAGE}"
            )
    return ""


def holds_secret(url: str, takes_variables: bool = False) -> bool:
    """Return whether a URL has a password or a token, which no variable of the environment, ${NAME}, stands for."""
    user, _colon, password = url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")
    is_variable = takes_variables and re.fullmatch(r"\$\{\w+\}", password or user)
    return not is_variable and (password != "" or user.lower() not in ("", "git"))


def expanded(url: str) -> str:
    """Return a URL with the values of variables, ${NAME}, that are set."""
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), url)
