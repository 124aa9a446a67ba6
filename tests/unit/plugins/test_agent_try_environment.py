# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment tried, with a torch of our own making; nvidia-smi played by a shell script."""

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import try_environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import Code
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import trial as trial_of
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.nvidia_smi import parse
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import make_bundle
from local_nodes import ME, Altered, Connection, LocalNode, alive, closed, until

TORCH = """\
import types
print("torch says hello")
__version__ = "2.13.0+cu128"
version = types.SimpleNamespace(cuda="12.8")
nccl = types.SimpleNamespace(version=lambda: (2, 27, 3))
cuda = types.SimpleNamespace(device_count=lambda: 2, is_available=lambda: True, nccl=nccl)
distributed = types.SimpleNamespace(is_nccl_available=lambda: True)
"""
# As a driver before 535 answers: one unknown field at a time.
OLD_SMI = """\
#!/bin/sh
fields=${1#--query-gpu=}
for field in $(echo "$fields" | tr , ' '); do
    case $field in
    clocks_event_reasons.*|remapped_rows.pending)
        echo "Field \\"$field\\" is not a valid field to query."
        echo
        exit 2 ;;
    esac
done
echo "0, Tesla V100-SXM2-16GB, 470.82.01, 16160, 0, 0, No, Not Active, Active, Not Active"
"""


def tried(
    node: LocalNode, folder: Path | None = None, code: Code | None = None, script: str = "", **more: Any
) -> dict[str, Any]:
    """Return what came of importing torch, and what a project or the text of a script imports."""
    variables = {"PYTHONPATH": str(folder)} if folder else {}
    if script:
        code = project(node.directory.parent / "project", {"train.py": script})
    asked = {"variables": variables, "imports": trial_of(code), "seconds": 30.0, **more}
    found: dict[str, Any] = node.ask("preflight_facts", payload=code.bundle.content if code else b"", **asked)[
        "environment"
    ]
    return found


def project(folder: Path, files: dict[str, str], script: str = "train.py", module: str = "") -> Code:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Code(folder, make_bundle(folder, script, 1), script, module)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "package").mkdir(parents=True)
    (folder / "torch.py").write_text(TORCH)
    (folder / "package" / "__init__.py").write_text("name = 1\n")
    (folder / "package" / "part.py").write_text("")
    (folder / "broken.py").write_text("raise OSError('first line\\nlibgomp.so.1: cannot open shared object file')\n")
    (folder / "leaves.py").write_text("raise SystemExit('go away')\n")
    return folder


def test_torch_and_what_a_script_imports(node: LocalNode, library: Path) -> None:
    script = (
        "from package import name, part\nfrom package import none\nimport broken\nimport leaves, nope\n"
        "from nope import x\nraise SystemExit('it trains')\n"
    )
    found = tried(node, library, script=script)
    package = library / "package" / "__init__.py"
    assert found.pop("python").startswith("3.")
    assert found == {
        **{"torch": "2.13.0+cu128", "cuda": "12.8", "nccl": "2.27.3", "devices": 2, "usable": True},
        "failed": {
            "train.py, line 2": f"ImportError: cannot import name 'none' from 'package' ({package})",
            "train.py, line 3": "OSError: libgomp.so.1: cannot open shared object file",
            "train.py, line 4": "SystemExit: go away",
            "train.py, line 5": "ModuleNotFoundError: No module named 'nope'",
        },
    }
    assert not list(library.rglob("*.pyc"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os\nos._exit(0)\n", "ended Python with exit code 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "was killed by SIGSEGV"),
        ("import time\ntime.sleep(60)\n", "did not finish within the 2 s that all imports have together"),
        ("import os\nos.closerange(3, 99)\n", "ended Python with exit code 1"),
    ],
)
def test_a_module_that_python_does_not_survive(node: LocalNode, library: Path, text: str, why: str) -> None:
    (library / "odd.py").write_text(text)
    found = tried(node, library, script="import torch\nimport leaves\nimport odd\nimport package", seconds=2.0)
    assert (found["torch"], found["nccl"], found["usable"]) == ("2.13.0+cu128", "2.27.3", True)
    assert found["failed"] == {"train.py, line 2": "SystemExit: go away", "train.py, line 3": why}
    assert "importing" not in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "import os\nos._exit(0)\n",
            f"has an environment that does not work for {ME}: exited with code 0; remove envs",
        ),
        ("import os\nos.abort()\n", f"has an environment that does not work for {ME}: was killed by SIGABRT; remove"),
        ("import time\ntime.sleep(60)\n", "did not finish importing torch and what the script imports within 1 s; "),
    ],
)
def test_a_torch_that_python_does_not_survive(node: LocalNode, library: Path, text: str, problem: str) -> None:
    (library / "torch.py").write_text(text)
    assert tried(node, library, script="import package", seconds=1.0)["problem"].startswith(problem)


def test_no_torch(node: LocalNode) -> None:
    found = tried(node)
    assert found["torch"] is None
    assert found["failed"] == {"torch": "ModuleNotFoundError: No module named 'torch'"}


def test_the_surroundings_are_a_jobs(node: LocalNode, library: Path) -> None:
    (library / "asks.py").write_text(
        "import os\nraise RuntimeError((os.environ['A'], os.environ['USER'], 'LOCAL_RANK' in os.environ))\n"
    )
    node.connection = Connection({**os.environ, "LOCAL_RANK": "0"})
    value = 'it\'s = \n"quoted"'
    found = tried(node, variables={"PYTHONPATH": str(library), "A": value}, script="import asks")
    assert found["failed"]["train.py, line 1"] == f"RuntimeError: {(value, ME, False)!r}"


def replaced_python(node: LocalNode, text: str, mode: int = 0o755) -> None:
    python = node.directory / "env" / "bin" / "python"
    python.unlink()
    python.write_text(text)
    python.chmod(mode)


def test_an_environment_that_its_user_may_not_use(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\n", stat.S_IRUSR)
    path = node.directory / "env/bin/python"
    assert tried(node) == {
        "problem": f"has an environment that {ME} may not use: {path} or a folder above it is closed to that account; "
        "chmod it, or remove envs in the cluster_dir there, and run: ansible-playbook setup.yml"
    }


def test_an_environment_that_is_closed_to_ansible(node: LocalNode) -> None:
    request = node.request("preflight_facts", variables={}, imports=trial_of(None), seconds=10)
    with closed(node.directory / "env"):
        problem = try_environment.try_environment(request, b"")["problem"]
    assert re.match(r"has an environment that \S+ may not use: ", problem)


def test_an_environment_whose_python_is_gone(node: LocalNode) -> None:
    python = node.directory / "env" / "bin" / "python"
    python.unlink()
    python.symlink_to(node.directory / "gone")
    assert tried(node)["problem"].startswith("has an environment that does not work: No such file or directory")


def test_an_environment_that_does_not_start(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\necho one >&2\necho 'Fatal Python error: no encodings' >&2\nexit 1\n")
    assert tried(node)["problem"] == (
        f"has an environment that does not work for {ME}: Fatal Python error: no encodings; remove envs in the "
        "cluster_dir there, and run: ansible-playbook setup.yml"
    )


def test_an_environment_that_says_much_in_one_line(node: LocalNode, library: Path) -> None:
    (library / "wordy.py").write_text("raise RuntimeError('x' * 10000)\n")
    assert tried(node, library, script="import wordy")["failed"]["train.py, line 1"] == f"RuntimeError: {'x' * 286}"
    replaced_python(node, f"#!/bin/sh\necho {'x' * 10000} >&2\nexit 1\n")
    assert f"for {ME}: {'x' * 299}…; remove" in tried(node)["problem"]


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ("exit 3", f"has an environment that does not work for {ME}: exited with code 3; "),
        ("exec sleep 60", "did not finish importing torch and what the script imports within 1 s; "),
    ],
)
def test_what_an_environment_leaves_behind_is_ended(node: LocalNode, end: str, problem: str) -> None:
    pid = node.directory / "pid"
    replaced_python(node, f"#!/bin/sh\nsleep 60 &\necho $! > {pid}\n{end}\n")
    began = time.monotonic()
    assert tried(node, seconds=1.0)["problem"].startswith(problem)
    assert time.monotonic() - began < 10
    until(lambda: not alive(int(pid.read_text())))


def test_an_environment_that_babbles(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\necho what?\n")
    assert tried(node)["problem"].startswith("has an environment that does not work: ")
    replaced_python(node, "#!/bin/sh\necho 7\n")
    assert tried(node)["problem"].startswith("has an environment that does not work: it printed 7 as it started; ")


@pytest.mark.parametrize(
    "line",
    [
        *(
            '{"devices": -1}',
            '{"host": 1}',
            '{"failed": {"a": 1}}',
            '{"torch": 7}',
            '{"usable": "yes"}',
            '{"cuda": NaN}',
        ),
        *("[" * 5000 + "]" * 5000, '{"importing": ["a"]}', '{"failed": []}', "[]", "?"),
    ],
    ids=lambda line: line[:20],
)
def test_a_module_that_tells_something_else(node: LocalNode, library: Path, line: str) -> None:
    tell = "import gc\nout = next(one for one in gc.get_objects() if type(one).__name__ == 'Trial')._out\n"
    tell += f"print({line!r}, file=out, flush=True)\n"
    (library / "torch.py").write_text(f"{tell}{TORCH}")
    assert tried(node, library)["problem"].startswith("has an environment that does not work: ")


def test_an_environment_that_takes_too_long(node: LocalNode) -> None:
    replaced_python(node, "#!/bin/sh\nexec sleep 60\n")
    assert tried(node, seconds=0.5)["problem"].startswith(
        "did not finish importing torch and what the script imports within 0 s"
    )


# ------------------------------------------------------------------------------------------------------------- the code

ROOT = "import os, sys\nhere = os.path.dirname(os.path.abspath(__file__))\nroot = os.path.dirname(here)\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{ROOT}sys.path.insert(0, root)\nimport top, src.other",
        f"{ROOT}if root not in sys.path:\n    sys.path.append(root)\nimport top",
        f"{ROOT}sys.path += [root]\nimport top",
        f"{ROOT}added = [*sys.path, root]\nsys.path = added\nimport top",
        f"{ROOT}sys.path[:0] = [f'{{root}}', here]\nimport top",
        "import sys\nfrom pathlib import Path\nROOT: Path = Path(__file__).resolve().parents[1]\n"
        "sys.path.extend([str(ROOT), (ROOT / 'src').as_posix()])\nimport top",
        "import os.path as osp, sys\na, b = osp.split(osp.abspath(__file__))\na += '/..'\nsys.path.append(a)\n"
        "import top",
        "import rootutils\nroot = rootutils.setup_root(__file__)\nimport top",
        "from rootutils import setup_root as find\nfind(__file__)\nimport top",
        "import sys\nsys.path.append('.')\nif __name__ == '__main__':\n    import top",
        "import site\nsite.addsitedir('.')\nimport top",
        "import os\nos.environ['NEEDED'] = '1'\nimport reads",
        "import other, beside.part",
    ],
)
def test_python_decides_where_modules_are(node: LocalNode, library: Path, text: str) -> None:
    """src/train.py that puts its root on its path; what else it does is not run."""
    files = {
        "top.py": "",
        "src/other.py": "",
        "src/beside/part.py": "",
        "src/reads.py": "import os\nos.environ['NEEDED']",
        "src/rootutils.py": "import os, sys\ndef setup_root(path):\n    sys.path.append(os.getcwd())\n",
    }
    train = "\nraise SystemExit('it trains')\nos.environ['NEEDED']\nopen('trained', 'w')\n"
    code = project(node.directory.parent / "project", {**files, "src/train.py": text + train}, "src/train.py")
    assert tried(node, library, code)["failed"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "for fold in range(5):\n    DELETE\n    os.chdir(OUT)\n    sys.path.append(OUT)",
        "while True:\n    DELETE\n    sys.path.append(OUT)\n    break",
        "with open(os.devnull):\n    DELETE\n    sys.path.append(OUT)",
        "try:\n    DELETE\n    sys.path.append(OUT)\nfinally:\n    DELETE",
        "if not os.getenv('NO'):\n    DELETE\n    os.chdir(OUT)\n    sys.path.append(OUT)\nelse:\n    DELETE",
        "if DELETE:\n    sys.path.append(OUT)",
        "os.chdir(DELETE or OUT)",
        "sys.path.append(DELETE)",
        "sys.path.append(sys.path.append(DELETE))",
        "sys.path[DELETE:] = ['.']",
        "os.environ[str(DELETE)] = '1'",
        "def train(folder):\n    DELETE\n    return folder\nroot = train(OUT)\nsys.path.append(root)",
        "def setup_root(folder):\n    DELETE\nsetup_root(OUT)",
        "def delete(_text):\n    DELETE\nos.path.join = delete\nsys.path.append(str(OUT))",
        "import own\nsys.path.append(own.delete(OUT))",
        "from own import delete as setup_root\nsetup_root(OUT)",
        "root = (gone := DELETE)\nsys.path.append(root)",
        "sys.path.extend([DELETE for _ in range(1)])",
        "import pathlib\nroot = pathlib.Path(OUT)\nroot = root.rename('gone')\nsys.path.append(str(root))",
        "import pathlib\nsys.path.append(str(pathlib.Path(OUT).replace('gone')))",
    ],
)
def test_a_script_is_not_run(node: LocalNode, library: Path, tmp_path: Path, text: str) -> None:
    """Whatever of it touches the path: what would be deleted is still there."""
    out = tmp_path / "out"
    out.mkdir()
    (library / "own.py").write_text("import os\ndelete = os.rmdir\n")
    begin = f"import os, shutil, sys\nOUT = {str(out)!r}\n"
    code = text.replace("DELETE", "shutil.rmtree(OUT)")
    assert tried(node, library, script=f"{begin}{code}\nimport package")["failed"] == {}
    assert out.is_dir()


def test_the_path_of_the_environment_counts(node: LocalNode, library: Path) -> None:
    """PYTHONPATH=. in env, relative to the job's folder."""
    code = project(node.directory.parent / "project", {"top.py": "", "src/train.py": "import top"}, "src/train.py")
    assert tried(node, library, code)["failed"] == {
        "src/train.py, line 1": "ModuleNotFoundError: No module named 'top'"
    }
    assert tried(node, code=code, variables={"PYTHONPATH": f".:{library}"})["failed"] == {}


def test_the_file_that_asks_is_named(node: LocalNode, library: Path) -> None:
    files = {
        "train.py": "import torch\nfrom models import net\nimport models.wrong\nimport random",
        "models/__init__.py": "",
        "models/net.py": "import random\n\nfrom models import part\n",
        "models/part.py": "import einops\n",
        "models/wrong.py": "x =\n",
        "json.py": "raise RuntimeError('not the standard one')",
    }
    assert tried(node, library, project(node.directory.parent / "project", files))["failed"] == {
        "models/part.py, line 1": "ModuleNotFoundError: No module named 'einops'",
        "models/wrong.py, line 1": "SyntaxError: invalid syntax (wrong.py, line 1)",
    }


def test_a_script_that_cannot_be_parsed(node: LocalNode, library: Path) -> None:
    found = tried(node, library, script="import torch\nprint 1\n")["failed"]
    assert list(found) == ["train.py, line 2"] and found["train.py, line 2"].startswith("SyntaxError: Missing parenth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"import torch\n# caf\xe9\n", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9"),
        (b"# coding: nope\n", "SyntaxError: unknown encoding: nope"),
        (b"# coding: latin-1\nimport torch  # caf\xe9\n", ""),
    ],
)
def test_a_script_in_some_encoding(node: LocalNode, library: Path, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_bytes(content)
    failed = tried(node, library, project(tmp_path / "code", {}))["failed"]
    assert failed.get("train.py", "").startswith(why) and bool(failed) == bool(why)


def test_a_module_whose_imports_are_relative(node: LocalNode, library: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/train.py": "from . import part\nfrom .gone import x\nimport top",
        "pkg/part.py": "",
        "pkg/__main__.py": "from . import part",
        "top.py": "",
    }
    folder = node.directory.parent / "project"
    assert tried(node, library, project(folder, files, "pkg/train.py", "pkg.train"))["failed"] == {
        "pkg/train.py, line 2": "ModuleNotFoundError: No module named 'pkg.gone'"
    }
    assert tried(node, library, project(folder, files, "pkg/__main__.py", "pkg"))["failed"] == {}


def test_imports_that_may_fail_or_never_come(node: LocalNode, library: Path) -> None:
    script = """\
from __future__ import annotations
import os, sys
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import only_for_types
else:
    import not_for_types
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
    found = tried(node, library, script=script)["failed"]
    names = {why.removeprefix("ModuleNotFoundError: No module named ").strip("'") for why in found.values()}
    assert names == {"needed", "at_the_end", "opened", "in_class", "as_script"}


def test_the_code_lies_there_as_a_job_s_would_and_goes_again(node: LocalNode, library: Path) -> None:
    (library / "looks.py").write_text("import os\nraise RuntimeError(f'{os.getcwd()} {sorted(os.listdir())}')\n")
    folder = node.directory.parent / "project"
    code = project(folder, {"train.py": "import looks", "data/x": "", "wandb/run": ""})
    found = tried(node, library, code)["failed"]["train.py, line 1"]
    place, _space, listing = found.removeprefix("RuntimeError: ").partition(" ")
    assert listing == "['data', 'train.py']" and place.endswith("/work")
    assert not Path(place).parent.exists()
    assert node.jobs == [] and not list((node.directory / "bundles").iterdir())


def test_code_that_finds_no_place(node: LocalNode, library: Path) -> None:
    code = project(node.directory.parent / "project", {"train.py": ""})
    asked = {"variables": {"PYTHONPATH": str(library)}, "imports": trial_of(code), "seconds": 30.0}
    assert node.ask("preflight_facts", payload=b"no code", **asked)["environment"]["problem"].startswith(
        "cannot lay out the job's code to try its imports: Error -3 while decompressing data"
    )
    node.connection = Altered(('tempfile.gettempdir(), "/var/tmp", "/dev/shm"', '"/nowhere", "/gone"'))
    assert node.ask("preflight_facts", payload=code.bundle.content, **asked)["environment"]["problem"] == (
        "lets no program run from /nowhere, /gone, and an import is tried in one of them"
    )


# ----------------------------------------------------------------------------------------------------------------- GPUs


def with_smi(node: LocalNode, folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    node.connection = Connection({**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})
    found: dict[str, Any] = node.ask("preflight_facts", variables={}, imports=None, seconds=30.0)["gpus"]
    return found


def test_fields_that_an_old_driver_does_not_know(node: LocalNode, tmp_path: Path) -> None:
    found = with_smi(node, tmp_path / "bin", OLD_SMI)
    assert found["problem"] == ""
    assert "remapped_rows.pending" not in found["fields"]
    (gpu,) = parse(found)
    assert (gpu.model, gpu.driver, gpu.total_mb) == ("Tesla V100-SXM2-16GB", "470.82.01", 16160)
    assert (gpu.ecc_errors, gpu.pages_pending, gpu.slowdowns) == (0, False, ("sw_thermal_slowdown",))


def test_a_driver_that_does_not_answer_well(node: LocalNode, tmp_path: Path) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    found = with_smi(node, tmp_path / "bin", f'#!/bin/sh\necho "{said}"\nexit 9\n')
    assert (found["csv"], found["problem"]) == ("", f"nvidia-smi fails: {said}")


def test_no_gpu(node: LocalNode) -> None:
    found = node.ask("preflight_facts", variables={}, imports=None, seconds=30.0)["gpus"]
    assert (found["count"], found["csv"], found["problem"]) == (0, "", "")
