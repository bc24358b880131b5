"""`tacaf`: one name for every command, from any folder, with the packages that a command needs and no more."""

import ast
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tacaf
from requirements import install
from tacaf.__main__ import main
from tacaf.checkout import PACKAGES, ROOT
from tacaf.child_processes import child_environment
from tacaf.command import INPUT
from tacaf.commands import COMMANDS
from tacaf.extras import CORE, EXTRA_OF, missing
from tests.processes import LIMIT_S

# Packages that always come with another one, which pyproject.toml names.
COMES_WITH = {
    "aiohttp": "fsspec",
    "anyio": "starlette",
    "cycler": "matplotlib",
    "huggingface_hub": "transformers",
    "markupsafe": "jinja2",
    "typing_extensions": "pydantic",
}
# Runs `tacaf` as its entry point does, on a machine that has only the packages of some extras.
BLOCKED = """
import sys
from importlib.machinery import PathFinder

finders = list(sys.meta_path)

class Installed:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if any(name == package or name.startswith(package + ".") for package in {blocked!r}):
            return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in found if spec is not None), None)

sys.meta_path[:] = [Installed]
from tacaf.commands import run
run()
"""


def tacaf_in(
    folder: Path, *words: object, extras: tuple[str, ...] = (), blocked: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    blocked += tuple(package for package, extra in EXTRA_OF.items() if extra not in extras)
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked), *map(str, words)],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.text in out


def test_the_version_and_the_commit(capsys, monkeypatch):
    monkeypatch.setenv("TACAF_COMMIT", "0123abc")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tacaf {tacaf.__version__}, commit 0123abc\n"


@pytest.mark.parametrize(
    ("words", "names"), [(["serach", "--run", "x"], "search"), (["packs"], "'packs'"), ([], "none"), (["--no"], "--no")]
)
def test_a_command_that_does_not_exist_is_named_with_the_nearest(capsys, words, names):
    assert main(words) == INPUT
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert names in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_a_main(name):
    module = COMMANDS[name].module
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert "main" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", ["shards", "score", "search"])
def test_a_command_has_its_own_help(tmp_path, name):
    done = tacaf_in(tmp_path, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: tacaf {name} ")


def test_search_and_export_need_no_extra(untrained_run, raw_sysu, tmp_path):
    """Paths are those of the folder that the command is called from."""
    (tmp_path / "query").symlink_to(raw_sysu / "cam3")
    (tmp_path / "gallery").symlink_to(raw_sysu / "cam1")
    done = tacaf_in(
        tmp_path, "search", "--run", untrained_run, "--gallery", "gallery", "--query", "query", "--json", "found.json"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.json").exists()
    done = tacaf_in(tmp_path, "export", "--run", untrained_run, "--to", "safetensors", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_scoring_needs_no_extra(tmp_path):
    pid = np.repeat(np.arange(4), 2)
    features = np.eye(8, dtype=np.float32)
    modality = np.array(["visible", "infrared"] * 4)
    np.savez(tmp_path / "f.npz", features=features, pid=pid, camid=pid * 0, modality=modality, number=pid * 0)
    words = ("score", "--features", "f.npz", "--protocol", "generic", "--direction", "infrared_to_visible")
    done = tacaf_in(tmp_path, *words, "--rerank", "2", "1", "0.3", "--json", "score.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "score.json").exists()


def test_the_page_needs_its_extra_alone(untrained_run, raw_sysu, tmp_path):
    """It gets as far as the gallery, which is missing here."""
    words = ("page", "--run", untrained_run, "--gallery", "no-such-gallery", "--port", "0")
    done = tacaf_in(tmp_path, *words, extras=("app",))
    assert done.returncode == INPUT
    assert "no-such-gallery" in done.stderr
    done = tacaf_in(tmp_path, *words)
    assert done.returncode == INPUT
    assert "[app]" in done.stderr


def test_a_command_names_the_extra_that_it_lacks(untrained_run, sysu_shards, tmp_path):
    done = tacaf_in(tmp_path, "evaluate", "--run", untrained_run, "--shards", sysu_shards, "--protocol", "sysu_mm01")
    assert (done.returncode, done.stdout) == (INPUT, "")
    assert done.stderr.count("\n") == 1
    assert f"pip install --editable '{ROOT}[train]'" in done.stderr


def test_every_import_is_required_by_the_project():
    """A package is either in `dependencies`, or in the extra that `EXTRA_OF` names."""
    distributions = metadata.packages_distributions()
    core = {canonicalize_name(Requirement(line).name) for line in install.requirements([])}
    lacking = set()
    for room in ("tacaf", "kernels", "launch", "shards", "perf"):
        for path in (ROOT / room).rglob("*.py"):
            for package in imported(path) - set(sys.stdlib_module_names) - {"tacaf", *PACKAGES}:
                known = [name for name in EXTRA_OF if name.partition(".")[0] == package]
                found = set(map(canonicalize_name, distributions.get(COMES_WITH.get(package, package), [])))
                if not known and not found & core:
                    lacking.add((str(path.relative_to(ROOT)), package))
    assert not lacking


@pytest.mark.parametrize("package", EXTRA_OF)
def test_an_extra_requires_its_packages(package):
    required = {canonicalize_name(Requirement(line).name) for line in install.requirements([EXTRA_OF[package]])}
    distributions = metadata.packages_distributions()
    name = COMES_WITH.get(package, package).partition(".")[0]
    found = distributions.get(name, [name])  # not all are in `dev`; one that is not installed goes by its own name
    assert required & set(map(canonicalize_name, found))
    assert f"[{EXTRA_OF[package]}]" in str(missing(package))


def test_the_core_is_what_every_command_requires():
    required = {canonicalize_name(Requirement(line).name) for line in install.requirements([])}
    distributions = metadata.packages_distributions()
    assert {canonicalize_name(distributions[package][0]) for package in CORE} == required


@pytest.mark.parametrize("package", ["numpy", "pydantic", "PIL", "torch"])
def test_another_python_is_told_where_the_packages_are(tmp_path, package):
    """As for a user who forgot to activate the environment."""
    done = tacaf_in(tmp_path, "search", "--help", blocked=(package,))
    assert (done.returncode, done.stdout) == (INPUT, "")
    assert re.fullmatch(rf"error: .*\b{package}, which {re.escape(sys.executable)} does not have.*\n", done.stderr)


def imported(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def test_the_names_that_stay_are_there():
    page = (ROOT / "docs" / "api.md").read_text().partition("## ")[0]
    names = re.findall(r"`((?:tacaf|kernels)\.[a-z_.]+\.\w+)`", page)
    assert len(names) == 8
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_importing_tacaf_imports_nothing_else():
    script = "import sys; before = set(sys.modules); import tacaf; print(sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['tacaf']\n"


def test_the_packages_are_those_of_this_repository(tmp_path):
    script = f"import importlib\nfor name in {PACKAGES}: print(importlib.import_module(name).__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in PACKAGES]


@pytest.mark.parametrize("name", PACKAGES)
def test_another_package_of_the_same_name_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    assert name in refusal(tmp_path, f"sys.path.insert(0, {str(tmp_path)!r})", "tacaf.__main__")


def test_a_folder_that_hides_a_package_is_named_by_the_command_that_needs_it(tmp_path):
    """`python -m` puts the current folder first, and an editable install comes last: here it does not come at all."""
    (tmp_path / "shards").mkdir()
    only_there = f"sys.path[:] = [{str(tmp_path)!r}, *(entry for entry in sys.path if entry != {str(ROOT)!r})]"
    only_there += "\nsys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]"
    assert "shards" in refusal(tmp_path, only_there, "shards.__main__")


def refusal(folder: Path, change: str, module: str) -> str:
    """What a command says after this change of Python's path; the status is that of an input error."""
    script = f"import sys\nfrom tacaf.command import run_to_end\n{change}\nsys.exit(run_to_end({module!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout) == (INPUT, "")
    assert done.stderr.count("\n") == 1
    assert str(folder) in done.stderr
    return done.stderr
