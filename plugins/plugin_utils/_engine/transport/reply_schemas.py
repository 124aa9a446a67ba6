# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check replies: what a node may reply to each operation.

A node that was broken into can reply what it likes. What a reply holds becomes paths, addresses in firewalls, the
environment of other nodes' jobs and lines on a terminal; that it is of the right kind is made sure of here, once, so
that whoever uses it need not ask. Strings are still foreign: ``text.escape`` before a terminal sees them.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    DEEPEST,
    ENDED_ATTEMPT,
    GANG_RANK,
    LARGEST,
    LONGEST_DOCUMENT,
    LONGEST_REPLY,
    LONGEST_TEXT,
    MOST_ADDRESSES,
    MOST_ITEMS,
    SPEC,
    STATE,
    is_count,
    is_encodable,
    is_flag,
    is_notice,
    is_number,
    is_roster,
    is_sentence,
    is_text,
)

Check = Callable[[object], bool]

_INTERFACE = re.compile(r"[^\s/\0]{1,15}")  # as the kernel allows them
_SHA256 = re.compile(r"[0-9a-f]{64}")


# ----------------------------------------------------------------------------------------------------- kinds of values


def is_address(value: object) -> bool:
    """Return whether it is the IP address of one machine."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) and "%" not in value else None
    except ValueError:
        return False
    return address is not None and not (address.is_unspecified or address.is_multicast)


def is_absolute_path(value: object) -> bool:
    """Return whether it is an absolute path, of printable characters."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and value.startswith("/") and value.isprintable()


def is_relative_path(value: object) -> bool:
    """Return whether it is a path that stays below where it begins."""
    if not (isinstance(value, str) and is_text(value)) or "\0" in value:
        return False
    return all(part not in ("", ".", "..") for part in value.split("/"))


def is_document(value: object) -> bool:
    """Return whether it is a text of several lines."""
    return isinstance(value, str) and len(value) <= LONGEST_DOCUMENT and is_encodable(value)


def is_plain(value: object, depth: int = 0) -> bool:
    """Return whether it is any JSON value within the limits."""
    if depth > DEEPEST:
        return False
    if isinstance(value, dict):
        return all(is_text(key) and is_plain(one, depth + 1) for key, one in value.items())
    if isinstance(value, list):
        return len(value) <= MOST_ITEMS and all(is_plain(one, depth + 1) for one in value)
    return value is None or is_flag(value) or is_number(value) or is_document(value)


def is_size(value: object) -> bool:
    """Return whether it is a number of bytes or of anything else."""
    return is_count(value) and isinstance(value, int) and value >= 0


def is_port(value: object) -> bool:
    """Return whether it is a TCP port, or 0 for none."""
    return is_count(value) and isinstance(value, int) and 0 <= value <= 65535


def is_time_ns(value: object) -> bool:
    """Return whether it is a modification time in nanoseconds, as the kernel has them."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_port_range(value: object) -> bool:
    """Return whether these are the first and the last of some ports."""
    return row(is_port, is_port)(value) and isinstance(value, list) and value[0] <= value[1]


def is_interface(value: object) -> bool:
    """Return whether it is the name of a network interface."""
    return isinstance(value, str) and value.isprintable() and bool(_INTERFACE.fullmatch(value))


def matches(pattern: re.Pattern[str]) -> Check:
    """Return what checks for a string of this form."""
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def none_or(check: Check) -> Check:
    """Return what lets None through besides."""
    return lambda value: value is None or check(value)


def either(*checks: Check) -> Check:
    """Return what lets through what one of these does."""
    return lambda value: any(check(value) for check in checks)


def many(check: Check, most: int = MOST_ITEMS) -> Check:
    """Return what checks each item of a list."""
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def row(*checks: Check) -> Check:
    """Return what checks a list of so many items, each in its own way."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(checks)
        and all(check(item) for check, item in zip(checks, value, strict=True))
    )


def table(check_key: Check, check: Check, most: int = MOST_ITEMS) -> Check:
    """Return what checks the keys and values of a dictionary."""
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= most
        and all(check_key(key) and check(one) for key, one in value.items())
    )


def wrong_field(value: Mapping[str, Any], required: Mapping[str, Check], optional: Mapping[str, Check]) -> str | None:
    """Return the first field that is missing, unknown or of the wrong kind, or None."""
    checks = {**required, **optional}
    for name in (*required, *value):
        if name not in checks or name not in value or not checks[name](value[name]):
            return name
    return None


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return what checks a dictionary with these fields and no others."""
    return lambda value: isinstance(value, dict) and wrong_field(value, required, optional or {}) is None


# ------------------------------------------------------------------------------------------------------------ the table

_STATE = {"state": STATE["state"]}
_GANG_RANK = fields({"state": GANG_RANK["state"]}, {name: GANG_RANK[name] for name in GANG_RANK if name != "state"})
_GANG = {
    **{"ranks": many(_GANG_RANK), "roster": many(is_size), "attempt": is_size},
    **{"ended_attempts": many(fields(ENDED_ATTEMPT)), "ending": is_flag, "notices": many(is_notice)},
}


def is_gang(value: object) -> bool:
    """Return whether it is what the head of a job's gang says."""
    return isinstance(value, dict) and fields(_GANG)(value) and is_roster(value["roster"], len(value["ranks"]))


_MORE_OF_STATE = {name: check for name, check in STATE.items() if name != "state"}
_OWNER = {name: is_text for name in ("id", "user", "start")}
_HOLDER = {**_OWNER, "pid": is_text, "process_start": is_text}
_PROBLEM = fields({"problem": is_sentence})
_UNTRIED = fields({"failed": table(is_text, is_text, most=0)})
_TRIED = fields(
    {
        "failed": table(is_text, is_text),
        "python": is_text,
        **dict.fromkeys(("torch", "cuda", "nccl"), none_or(is_text)),
        "devices": is_size,
        "usable": is_flag,
    },
)
_ROOM = {"free": is_size}
_PACKAGES = {"python": is_text, "installed": many(is_text)}
_PLACE = {"address": is_address, "interface": is_interface}
_FIREWALL = matches(re.compile("firewalld|ufw|iptables|nftables|none"))
_RICH_RULE = fields({"zone": is_text, "rule": is_text})
_UFW_RULE = fields({"network": is_text, "ports": is_text}, {"position": none_or(is_size)})
_KEYED = matches(re.compile("(envs|tools)/[0-9a-f]{16}"))
_RESOURCES = {"clock": row(is_number, is_number), "shm": fields({**_ROOM, "size": is_size})}

REPLIES: Mapping[str, tuple[Mapping[str, Check], Mapping[str, Check]]] = {
    "list_artifacts": ({"more": is_flag, "cores": many(is_relative_path)}, {}),
    "list_checkpoints": (
        {
            "found": many(row(is_relative_path, is_size, is_size, is_number)),
            "refused": many(row(is_relative_path, is_text)),
            "others": many(row(either(is_relative_path, is_absolute_path), is_text)),
        },
        {},
    ),
    "clean": (
        {
            "jobs": many(is_text),
            "bundles": many(is_text),
            "envs": many(is_text),
            "bytes": is_size,
            "left": many(row(is_text, is_text)),
            "more": is_flag,
        },
        {},
    ),
    "receive_code": ({}, {}),
    "discard": ({}, {}),
    "preflight_facts": (
        {
            **_RESOURCES,
            "machine": row(is_text, is_text, is_text),
            "folder": is_text,
            "uid": none_or(is_size),
            "session": is_text,
            "network_disks": many(is_text),
            "address": either(fields(_PLACE), _PROBLEM),
            "addresses": many(row(is_interface, is_address, is_flag)),
            "free_port": is_port,
            "hostname": is_text,
            "resolved": many(is_text),
            "node_env": none_or(table(is_text, is_text)),
            "master": many(is_text),
            "master_port": none_or(fields({"problem": is_sentence, "by_job": is_flag})),
            "job": none_or(fields(_OWNER)),
            "packages": fields({**_PACKAGES, "locked": is_document}),
            "environment": either(_UNTRIED, _PROBLEM, _TRIED),
            "gpus": fields({"count": is_size, "fields": many(is_text), "csv": is_document, "problem": is_text}),
            "cpus": is_size,
            "memory": fields({**_ROOM, "total": is_size}),
            "disk": fields({**_ROOM, "files": none_or(is_size)}),
            "infiniband": is_flag,
            "limits": fields({"nofile": is_count, "memlock": is_count}),
        },
        {},
    ),
    "firewall_info": (
        {
            "provider": _FIREWALL,
            "msg": is_sentence,
            "concerned": many(matches(re.compile("firewalld|ufw|iptables|nftables"))),
            "firewalld": fields(dict.fromkeys(("missing", "stale"), many(_RICH_RULE))),
            "ufw": fields(dict.fromkeys(("missing", "stale"), many(_UFW_RULE))),
        },
        {},
    ),
    "follow": (
        {**_STATE, "more": is_flag, "offset": is_size},
        {
            **_MORE_OF_STATE,
            "trouble": is_sentence,
            "gang": is_gang,
            "gang_changed": is_size,
            "has_stacks": is_flag,
        },
    ),
    "setup_facts": (
        {
            **_PLACE,
            "addresses": many(is_address, MOST_ADDRESSES),
            "port_range": is_port_range,
            "folder": is_text,
            "firewalls": many(matches(re.compile("firewalld|ufw"))),
            "session": is_text,
            "uid": none_or(is_size),
            "network_disks": many(is_text),
            "job": none_or(fields(_OWNER)),
        },
        {},
    ),
    "list_jobs": (
        {
            "jobs": many(
                fields(
                    {
                        "id": is_text,
                        "spec": none_or(fields({}, SPEC)),
                        "state": fields(_STATE, _MORE_OF_STATE),
                        "size": is_size,
                        "last_line": is_text,
                        "user": is_text,
                    },
                    {"gang": is_gang},
                )
            )
        },
        {},
    ),
    "describe_checkpoint": (
        {
            "top": either(is_absolute_path, lambda value: value == ""),
            "folder": is_flag,
            "files": many(row(is_relative_path, is_size, is_time_ns, either(matches(_SHA256), lambda v: v == ""))),
        },
        {"why": is_sentence},
    ),
    "find_unreached": ({"unreached": many(is_size)}, {}),
    "node_env_info": ({"has_user": is_flag, "is_complete": is_flag}, {}),
    "place_file": ({"placed": is_flag}, {}),
    "prepare": (
        {
            **_PLACE,
            **_RESOURCES,
            "packages": fields(_PACKAGES),
            "node_env": none_or(table(is_text, is_text)),
            "limits": fields({"nofile": is_count}),
            "python": is_absolute_path,
            "job_dir": is_absolute_path,
            "start_file": is_absolute_path,
            "gpus": is_size,
            "has_bundle": is_flag,
            "gang_port": is_port,
        },
        {"stale": fields(_HOLDER)},
    ),
    "python_env_info": (
        {
            # Some of this becomes names of files here.
            "python": matches(re.compile(r"3\.[0-9]{1,2}")),
            "machine": matches(re.compile(r"[a-z0-9_]{1,20}")),
            "platform": matches(re.compile(r"[a-z0-9_-]{1,50}")),
            "wheel_platform": matches(re.compile(r"(manylinux2014|macosx_11_0)_[a-z0-9_]{1,20}")),
            "backend": matches(re.compile(r"[a-z0-9.]{1,10}")),
            "driver": matches(re.compile(r"[0-9.]{0,20}")),
            "uv": matches(re.compile(r"[0-9a-z.+]{0,30}")),
            "free": is_size,
            "executable": is_absolute_path,
            "target": _KEYED,
            "tools": _KEYED,
            **dict.fromkeys(("complete", "current", "tools_current"), is_flag),
        },
        {},
    ),
    "try_connections": (
        {
            "failed": table(is_text, is_text),
            "master": none_or(is_text),
            "taken": none_or(is_text),
            "trips": row(is_number, table(is_text, is_number)),
            "mtu": none_or(is_size),
        },
        {},
    ),
    "read_files": ({"parts": many(row(is_size, is_size, is_time_ns))}, {}),
    "receive_code_piece": ({"has": is_size}, {}),
    "try_program": ({"messages": many(table(is_text, is_plain)), "error": is_document, "late": is_flag}, {}),
    "read_stacks": ({}, {}),
    "start": ({}, {}),
    "stop": ({**_STATE, "left": many(is_size)}, _MORE_OF_STATE),
    "verify_checkpoint": ({"why": is_text}, {"bytes": is_size, "sha256": matches(_SHA256)}),
}
"""Required and optional fields of the reply to each operation."""

FACTS: Mapping[str, Check] = {
    "busy": fields({**_HOLDER, "prepared": is_flag}),
    "gone": is_flag,
    "failed": is_flag,
    "running": is_flag,
    "taken": is_port,
}
"""What may come with a refusal; with ``failed`` it is none, but an agent that could not answer."""


# ----------------------------------------------------------------------------------------------------------- the whole


def parse(text: bytes) -> Any:
    """Return the value of a reply's JSON.

    Raises:
        ValueError: it is no JSON, or longer than any reply.
    """
    if len(text) > LONGEST_REPLY:
        raise ValueError(f"{len(text)} bytes, of at most {LONGEST_REPLY}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists and dictionaries in one another, too deep") from None


def find_flaw(request: Mapping[str, Any], reply: object, payload: bytes) -> str | None:
    """Return what is wrong with a reply, a noun, or None.

    Args:
        request: what was asked.
        reply: what came back, with ``ok``: whether it was done, or else ``refusal``: why not.
        payload: what came with it.
    """
    if not isinstance(reply, dict) or not isinstance(reply.get("ok"), bool):
        return "form"
    given = {name: value for name, value in reply.items() if name != "ok"}
    required, optional = REPLIES[request["op"]] if reply["ok"] else ({"refusal": is_sentence}, FACTS)
    wrong = wrong_field(given, required, optional)
    if wrong is not None:
        return f"field {wrong}"
    if not _has_wanted_address(request, given):
        return "field address"
    if not _has_wanted_environment(request, given):
        return "field environment"
    fits = _PAYLOADS.get(request["op"], _is_empty) if reply["ok"] else _is_empty
    return None if fits(request, given, payload) else "payload"


def _has_wanted_address(request: Mapping[str, Any], reply: Mapping[str, Any]) -> bool:
    """Whether the node has the address that the inventory gives it, if it gives one: firewalls are opened to it."""
    wanted = request.get("address") if request["op"] in ("preflight_facts", "setup_facts", "prepare") else None
    found = reply.get("address", wanted)  # a refusal has none
    if isinstance(found, Mapping):
        found = found.get("address", wanted)  # and a problem neither
    return wanted is None or found == wanted


def _has_wanted_environment(request: Mapping[str, Any], reply: Mapping[str, Any]) -> bool:
    """Whether the environment was tried if, and only if, that was asked for."""
    if "environment" not in reply:
        return True
    return _UNTRIED(reply["environment"]) == (request["imports"] is None)


def _is_empty(_request: Mapping[str, Any], _reply: Mapping[str, Any], payload: bytes) -> bool:
    return not payload


def _is_log(request: Mapping[str, Any], reply: Mapping[str, Any], payload: bytes) -> bool:
    """Whether it is what comes next in the log, of which so much was asked for."""
    return bool(len(payload) <= request["max_bytes"] and reply["offset"] == request["offset"] + len(payload))


def _is_listing(request: Mapping[str, Any], reply: Mapping[str, Any], payload: bytes) -> bool:
    """Whether these are files, each with its path, bytes and modification time, in the order of a walk: none twice."""
    fields_of_files = payload.split(b"\0")[:-1]
    names, sizes, times = (fields_of_files[first::3] for first in range(3))
    order = [os.fsdecode(name).split("/") for name in names]
    return (
        len(names) == len(sizes) == len(times) <= request["most"]
        and all(len(size) < 20 and size.isdigit() and int(size) < 2**63 for size in sizes)
        and all(len(time) < 21 and time.removeprefix(b"-").isdigit() and is_time_ns(int(time)) for time in times)
        and all(before < after for before, after in zip([request["after"].split("/"), *order], order, strict=False))
        and (bool(names) or not reply["more"])
    )


def _are_parts(request: Mapping[str, Any], reply: Mapping[str, Any], payload: bytes) -> bool:
    """Whether these are the parts that were asked for, or less of them."""
    lengths = [length for length, _size, _mtime_ns in reply["parts"]]
    asked = [length for _path, _offset, length in request["parts"]]
    return (
        len(lengths) == len(asked)
        and all(length <= most for length, most in zip(lengths, asked, strict=True))
        and sum(lengths) == len(payload)
    )


def _is_verdict(_request: Mapping[str, Any], reply: Mapping[str, Any], payload: bytes) -> bool:
    """Return whether a checkpoint that is complete is described."""
    return not payload and (reply.keys() == {"why"} if reply["why"] else len(reply) == 3)


def _is_file(request: Mapping[str, Any], _reply: Mapping[str, Any], payload: bytes) -> bool:
    """Whether it is no more than was asked for."""
    return bool(len(payload) <= request["max_bytes"])


_PAYLOADS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any], bytes], bool]] = {
    "list_artifacts": _is_listing,
    "follow": _is_log,
    "read_files": _are_parts,
    "read_stacks": _is_file,
    "verify_checkpoint": _is_verdict,
}
