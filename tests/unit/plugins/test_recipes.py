# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Habits of the field: docs/recipes.md says what to type for each, and this types it, on two nodes on this machine.

Each project is a folder of tests/field/ with its recipe's name. Nodes use the environment of the tests.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_nodes import LocalNode, free_port, starts_jobs, until
from playing import ROOT, play

pytestmark = starts_jobs

FIELD = ROOT / "tests" / "field"


def blocks() -> dict[str, list[list[str]]]:
    """Return the commands of the page, split into words, by the project of the first in each block."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    found = [[shlex.split(line) for line in block.splitlines()] for block in re.findall(r"```sh\n(.*?)```", text, re.S)]
    return {re.findall(r"project_dir=~/(\S+)", " ".join(commands[0]))[0]: commands for commands in found}


PAGE = blocks()


@dataclass
class Typed:
    """A command that was typed."""

    output: Path
    code: int | None = None

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def job(self) -> str:
        return re.findall(r"(?m)^(\d{8}-\d{6}-\S+-[0-9a-f]{4}): ", self.text)[0]

    @property
    def folder(self) -> Path:
        return self.output.parent / "runs" / self.job

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "job.json").read_text())
        return found

    @property
    def cause(self) -> str:
        """Why the job did not end well."""
        assert self.code == 2, self.text
        return str(self.record["cause"])

    def printed(self, rank: int = 0) -> list[str]:
        """The lines of a rank's log, of a job that ended well."""
        assert self.code == 0, self.text
        return (self.folder / "logs" / f"rank{rank}-node{rank}.log").read_text().splitlines()

    @property
    def artifacts(self) -> dict[str, str]:
        folder = self.folder / "artifacts"
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Recipe:
    """The commands of one block, to be typed one after the other."""

    home: Path
    name: str
    typed: list[Typed] = field(default_factory=list)

    def type(self, meanwhile: Callable[[Typed], None] = lambda one: None) -> Typed:
        """Type the next command; return it once it, and what is done meanwhile, has ended."""
        number = len(self.typed)
        program, playbook, *words = PAGE[self.name][number]
        assert program == "ansible-playbook"
        job = self.typed[0].job if self.typed else ""
        words = [
            re.sub("""(?<=[='"])/data\\b""", f"{self.home}/data", word).replace("=ID", f"={job}") for word in words
        ]
        one = Typed(self.home / f"{self.name}-{number}")
        self.typed.append(one)
        with ThreadPoolExecutor() as pool:
            playing = pool.submit(play, self.home, playbook, *words, output=one.output, HOME=str(self.home))
            meanwhile(one)
        one.code = playing.result().returncode
        return one


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an inventory of two nodes, set up as setup.yml does, with the environment of the tests."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "temporary").mkdir()
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{folder}/nodes/{{{{ inventory_hostname }}}}",
        "cluster_master_port": free_port(),
        "job_user": "",
        "job_env": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": f"{folder}/temporary"},
        "job_stop_grace_seconds": 2,
        "firewall_provider": "none",
    }
    hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(2)}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    (folder / "nodes").mkdir()
    result = play(folder, "setup.yml", "--tags", "node_env")
    assert result.returncode == 0, result.stdout + result.stderr
    for host in hosts:
        (folder / "nodes" / host / "tools").mkdir()  # py-spy
        for environment in ("env", "tools/env"):
            (folder / "nodes" / host / environment).symlink_to(sys.prefix)
    yield folder
    for host in hosts:
        LocalNode(folder / "nodes" / host, host).end_all()


@pytest.fixture
def recipe(home: Path, request: pytest.FixtureRequest) -> Iterator[Recipe]:
    """The recipe that the test is called after; all its commands have to be typed."""
    name = request.node.name.removeprefix("test_").replace("_", "-")
    shutil.copytree(FIELD / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    one = Recipe(home, name)
    yield one
    assert len(one.typed) == len(PAGE[name]), "the page has more commands than were typed"


def test_every_recipe_is_tried() -> None:
    tried = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    projects = {path.name for path in FIELD.iterdir() if path.is_dir()} - {"project"}
    assert set(PAGE) == projects == tried - {"every-recipe-is-tried"}


# ------------------------------------------------------------------------------------------------- how it is started


def test_subcommands(recipe: Recipe) -> None:
    assert recipe.type().printed() == ["fit first"]


def test_package(recipe: Recipe) -> None:
    """S5."""
    assert recipe.type().printed() == ["a model of the package ['--epochs', '3']"]


def test_src_layout(recipe: Recipe) -> None:
    assert recipe.type().printed(1) == ["a model from src"]


def test_hydra(recipe: Recipe) -> None:
    ended = recipe.type()
    (line,) = ended.printed()
    found = re.fullmatch(r"lr 0\.2, writes to /.*\bwork/(outputs/\S+)", line)
    assert found, line
    assert ended.artifacts[f"{found[1]}/model.txt"] == "a model"
    assert ended.artifacts[f"{found[1]}/.hydra/overrides.yaml"] == "- lr=0.2\n"


def test_lightning_cli(recipe: Recipe) -> None:
    """It goes on where it is said to, on all ranks."""
    first = recipe.type()
    assert "0 of 2 from step 0" in first.printed() and "1 of 2 from step 0" in first.printed(1)
    assert first.record["met"]
    second = recipe.type()
    assert "0 of 2 from step 6" in second.printed() and "1 of 2 from step 6" in second.printed(1)
    assert f"goes on from {first.job}, step 6" in second.lines


def test_lightning_trainer(recipe: Recipe) -> None:
    """It goes on without a word about it."""
    first = recipe.type()
    assert "0 of 2 from step 0" in first.printed() and "1 of 2 from step 0" in first.printed(1)
    assert "0 of 2 tests" in first.printed() and "1 of 2 tests" in first.printed(1)
    second = recipe.type()
    assert "0 of 2 from step 6" in second.printed() and "1 of 2 from step 6" in second.printed(1)
    assert f"goes on from {first.job}, step 6" in second.lines


def test_fabric(recipe: Recipe) -> None:
    """Torchrun leaves nothing outside the job's folder."""
    ended = recipe.type()
    assert "0 of 2" in ended.printed() and "1 of 2" in ended.printed(1)
    assert not list((recipe.home / "temporary").glob("torchelastic_*"))
    assert ended.artifacts == {}


def test_accelerate(recipe: Recipe) -> None:
    ended = recipe.type()
    assert "0 of 2" in ended.printed() and "1 of 2" in ended.printed(1)


def test_transformers(recipe: Recipe) -> None:
    """S10."""
    assert "0 of 2 from step 0 to 20" in recipe.type().printed()
    second = recipe.type()
    assert "0 of 2 from step 10 to 20" in second.printed() and "1 of 2 from step 10 to 20" in second.printed(1)
    assert "goes on from out/checkpoint-10" in second.lines


def test_configurator(recipe: Recipe) -> None:
    """S10."""
    assert "from step 0 of 5, in a world of 2" in recipe.type().printed()
    assert "from step 5 of 10, in a world of 2" in recipe.type().printed(1)


def test_spawns(recipe: Recipe) -> None:
    ended = recipe.type()
    assert sorted(ended.printed() + ended.printed(1)) == [f"rank {rank}: 4 of 4" for rank in range(4)]
    assert ended.record["met"]


# ----------------------------------------------------------------------------------------- what it reads and writes


def test_relative_data(recipe: Recipe) -> None:
    (recipe.home / "data").mkdir(exist_ok=True)
    (recipe.home / "data" / "images.bin").write_bytes(bytes(9))
    assert recipe.type().printed() == ["['cat', 'dog']", "9 bytes"]


def test_elsewhere(recipe: Recipe) -> None:
    """An absolute path."""
    first = recipe.type()
    assert (first.printed(), first.artifacts) == (["from the beginning"], {})
    assert recipe.type().printed(1) == ["from step 10"]


def test_hyperparameters(recipe: Recipe) -> None:
    """The remedy in the cause is one."""
    assert recipe.type().printed() == ["from step 0"]
    words = (
        "UnpicklingError: torch.load with weights_only refuses an object of type __main__.Config in the checkpoint, "
        "such as a hyperparameter; if you trust it, add -e "
        '\'{"env": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}}\', or call '
        "torch.serialization.add_safe_globals([Config]) before it is loaded; see"
    )
    assert words in recipe.type().cause
    assert recipe.type().printed()[-1] == "from step 10"


def test_other_encoding(recipe: Recipe) -> None:
    ended = recipe.type()
    log = (ended.folder / "logs" / "rank0-node0.log").read_bytes()
    assert log == "Verlust: größer\n".encode("latin-1") + "损失\n".encode("gb18030") + "损失 in UTF-8\n".encode()
    shown = [line for line in ended.lines if line.startswith("[0 node0]")]
    assert (shown[0], shown[2]) == (
        "[0 node0] Verlust: gr\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}er",
        "[0 node0] 损失 in UTF-8",
    )


def test_bars(recipe: Recipe) -> None:
    ended = recipe.type()
    assert "drawn" in ended.printed()
    (tqdm,) = (line for line in ended.lines if "tqdm" in line)
    (rich,) = (line for line in ended.lines if "rich" in line)
    assert tqdm.startswith("[0 node0] tqdm: 100%|") and "100%" in rich


# ---------------------------------------------------------------------------------------------------- how it ends


def test_asks(recipe: Recipe) -> None:
    words = "EOFError: EOF when reading a line (a job's standard input is empty, so nobody can answer it; "
    assert words in recipe.type().cause


def test_exit_text(recipe: Recipe) -> None:
    assert "no data in /data: run prepare.py first; see" in recipe.type().cause


def test_exit_at_once(recipe: Recipe) -> None:
    assert re.search("exited with code 3 after . s: the licence server does not answer; see", recipe.type().cause)


def test_core_dump(recipe: Recipe) -> None:
    ended = recipe.type()
    assert "was killed by SIGSEGV" in ended.cause
    assert ended.artifacts == {}
    job = recipe.home / "nodes" / "node0" / "jobs" / ended.job
    cores = list((job / "work").glob("core*"))  # where the machine's core_pattern says so
    words = "not collected from node0, because they are core dumps, which stay in the job's work directory there: core"
    assert (words in ended.text) is bool(cores)


def test_never_ends(recipe: Recipe) -> None:
    def stop(typed: Typed) -> None:
        until(lambda: "nothing was printed for" in typed.text, 120)
        assert recipe.type().code == 0

    ended = recipe.type(stop)
    assert ended.code == 99
    place = "at the end of the script, where Python runs exit handlers and waits for threads, in Condition.wait"
    assert f"ranks 0, 1 are {place} (threading.py:" in ended.text


def test_own_signals(recipe: Recipe) -> None:
    assert recipe.type().code == 0
    assert recipe.type().code == 0
    ended = recipe.type()
    assert ended.artifacts.keys() == {"saved-at-SIGUSR1", "saved-at-SIGTERM"}


def test_forks(recipe: Recipe) -> None:
    words = r"exited with code 1 after \d+ s: BlockingIOError: \[Errno 11\] .* \(the job"
    assert re.search(words, recipe.type().cause)
