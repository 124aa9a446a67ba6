import sys
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import EXAMPLES
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight.imports import of_script

SCRIPT = """\
from __future__ import annotations
import os, sys
import torch, numpy.linalg as la
from pytorch_lightning import Trainer, callbacks
from typing import TYPE_CHECKING
import models.small
from models import large
from helper import *
if TYPE_CHECKING:
    import only_for_types
else:
    import not_for_types
if not TYPE_CHECKING:
    import under_a_condition
try:
    import optional
except ImportError:
    import fallback
try:
    import needed
finally:
    import at_the_end
with contextlib.suppress(ImportError):
    import suppressed
with open("x"):
    import opened
class A:
    import in_class
def function():
    import in_function
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
if __name__ == "__main__":
    import as_script
else:
    import as_module
"""
STANDARD = {("__future__", "annotations"), ("os", ""), ("sys", ""), ("typing", "TYPE_CHECKING")}
HELPER = 'import of_helper\nimport train\nif __name__ == "__main__":\n    import helper_as_script\n'


def project(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_what_a_script_imports(tmp_path: Path) -> None:
    folder = project(tmp_path, train=SCRIPT, helper=HELPER, models__small="import of_small")
    (folder / "models" / "large").mkdir()
    (folder / "models" / "large" / "__init__.py").write_text("from . import part\nfrom ..small import thing\n")
    (folder / "models" / "large" / "part.py").write_text("from .. import other\nimport of_part.deep\n")
    (folder / "models" / "unused.py").write_text("import of_unused")
    assert set(of_script(folder, "train.py")) == {
        *(("torch", ""), ("numpy.linalg", ""), ("pytorch_lightning", "Trainer"), ("pytorch_lightning", "callbacks")),
        *(("needed", ""), ("at_the_end", ""), ("opened", ""), ("in_class", ""), ("as_script", "")),
        *(("of_helper", ""), ("of_small", ""), ("of_part.deep", "")),
        *STANDARD,
    }


def test_modules_lie_beside_the_script(tmp_path: Path) -> None:
    project(tmp_path, scripts__train="import beside\nimport above", scripts__beside="", above="import of_above")
    assert of_script(tmp_path, "scripts/train.py") == [("above", "")]


def test_the_example(tmp_path: Path) -> None:
    modules = {module.partition(".")[0] for module, _name in of_script(EXAMPLES, "train.py")}
    others = {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "sklearn"}
    assert modules - sys.stdlib_module_names == others


def test_a_script_that_cannot_be_parsed(tmp_path: Path) -> None:
    folder = project(tmp_path, train="import torch\nprint 1\n")
    with pytest.raises(JobError) as caught:
        of_script(folder, "train.py")
    assert str(caught.value).startswith(f"{folder}/train.py, line 2 cannot be parsed: Missing parentheses")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"import torch\n# caf\xe9\n",
            ", line 2 cannot be parsed: it has a byte that is not utf-8; save it as UTF-8, or name its encoding in its "
            "first line (PEP 263)",
        ),
        (b"# coding: nope\n", " cannot be parsed: unknown encoding: nope; correct it"),
    ],
)
def test_a_script_in_no_encoding(tmp_path: Path, content: bytes, message: str) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(content)
    with pytest.raises(JobError) as caught:
        of_script(tmp_path, "train.py")
    assert str(caught.value) == f"{script}{message}"


def test_a_script_that_names_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"# coding: latin-1\nimport torch  # caf\xe9\n")
    assert of_script(tmp_path, "train.py") == [("torch", "")]
