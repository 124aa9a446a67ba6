# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay out a table: with rich on a terminal, as plain text elsewhere."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from ansible.utils.color import ANSIBLE_COLOR
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape

NARROWEST = 30
"""Columns that the last cells get, however narrow the terminal is."""
GAP = 2


def laid_out(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    colors: Mapping[str, str] | None = None,
    *,
    cut: bool = False,
) -> list[str]:
    """Return the lines of a table.

    Args:
        heads: of the columns.
        rows: whatever stands in their cells, it does not act upon the terminal.
        width: columns of the terminal; None for no terminal, where each row is one line, as long as it takes.
        colors: of cells on a terminal, by what they say.
        cut: whether a last cell that is too long for a terminal is cut; else it is broken into lines.
    """
    cells = [[escape(cell) for cell in row] for row in rows]
    sizes = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    if width is not None:
        try:
            return _drawn(heads, cells, sizes, max(width, sum(sizes[:-1]) + GAP * len(heads) + NARROWEST), colors, cut)
        except ImportError:  # rich comes with `make tools`, not with Ansible
            pass
    gap = " " * GAP
    return [
        gap.join([*(cell.ljust(size) for cell, size in zip(row[:-1], sizes, strict=False)), row[-1]]).rstrip()
        for row in [heads, *cells]
    ]


def _drawn(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    sizes: Sequence[int],
    width: int,
    colors: Mapping[str, str] | None,
    cut: bool,
) -> list[str]:
    from rich.console import Console  # takes 0.1 s, and only a terminal needs it
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for head, size in zip(heads[:-1], sizes, strict=False):
        table.add_column(head, no_wrap=True, min_width=size)
    table.add_column(heads[-1], no_wrap=cut, overflow="ellipsis" if cut else "fold")
    for row in rows:
        table.add_row(*(Text(cell, style=(colors or {}).get(cell, "")) for cell in row))
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=ANSIBLE_COLOR,
        color_system="standard" if ANSIBLE_COLOR else None,
    )
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
