# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The command line in a job's record, without what may be secret."""

from __future__ import annotations

import re
from collections.abc import Sequence

HARMLESS = re.compile(
    r"[\w./-]+\.ya?ml|-[CDbv]+|--(check|diff|become|verbose|extra-vars|inventory|limit|forks|tags|skip-tags)|-[eilft]"
    r"|--(inventory|limit|forks|tags|skip-tags)=\S*"
    r"|(-e|--extra-vars=)?(script|module|project_dir|project_files|include|logs|launcher|devices|gang|resume|checkpoint"
    r"|rerun|detach|on_interrupt|wait|collect|keep|skip|job_\w+_(mb|seconds|dir)|preflight_\w+)=\S*"
)
"""Words of a command line that hold no secret. Of an option's abbreviation nothing is known, nor of other variables."""
WITH_HARMLESS_VALUE = re.compile(r"-[ilft]|--(inventory|limit|forks|tags|skip-tags)")
"""Options whose next word holds none."""


def without_values(words: Sequence[str]) -> list[str]:
    """Return a command line with only those words that are known to hold no secret."""
    before = ["", *words]
    return [
        word if HARMLESS.fullmatch(word) or WITH_HARMLESS_VALUE.fullmatch(last) or not last else "…"
        for last, word in zip(before, words, strict=False)
    ]
