"""The locks: whatever pyproject.toml asks for and whatever is installed stands there, exact and with its hashes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from requirements import install, renew

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "requirements"
BUILDS = {"cpu": ("lock.txt", "torch-cpu.txt"), "cuda": ("lock.txt", "torch-cuda.txt")}
ENTRY = re.compile(
    r"^([a-z0-9-]+)==([^\s;]+)(?: ; ([^\\\n]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Environments of the supported Pythons on Linux.
ENVIRONMENTS = [
    {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    for python in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]


def entries(*names: str) -> list[Requirement]:
    """The entries of these locks that are exact versions with hashes."""
    found = ENTRY.findall("".join((FOLDER / name).read_text() for name in names))
    return [
        Requirement(f"{name}=={version}" + (f" ; {marker}" if marker else "")) for name, version, marker, _ in found
    ]


def locked(build: str, environment: dict[str, str]) -> dict[str, str]:
    """Name -> version of what a build of PyTorch may be installed with. Two versions of one package are an error."""
    found: dict[str, str] = {}
    for entry in entries(*BUILDS[build]):
        if entry.marker is None or entry.marker.evaluate(environment):
            assert entry.name not in found, f"{entry.name} stands twice"
            found[entry.name] = str(entry.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("name", renew.LOCKS)
def test_every_line_is_an_exact_version_with_hashes(name):
    lines = (FOLDER / name).read_text().splitlines()
    starts = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(starts) == len(entries(name)) > 1, "an address, an option, a range, or a package without a hash"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda it: f"{it['python_version']}-{it['platform_machine']}")
@pytest.mark.parametrize("build", BUILDS)
def test_the_lock_holds_what_pyproject_asks_for(build, environment):
    versions = locked(build, environment)
    for line in install.requirements(EXTRAS):
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            version = versions.get(canonicalize_name(wanted.name))
            assert version, f"{line}: in no lock; run make lock"
            assert wanted.specifier.contains(version), f"{line}: {version} is locked; run make lock"


def test_what_is_installed_is_locked():
    if not Path(sys.prefix, "ready").exists():
        pytest.skip("this environment was not made by make, so it may hold other packages")
    build = "cpu" if metadata.version("torch").endswith("+cpu") else "cuda"
    versions = locked(build, {})
    folders = sorted(
        {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    )  # not what libraries add to the path
    for found in metadata.distributions(path=folders):
        name = canonicalize_name(found.metadata["Name"])
        if name != "tacaf":
            assert versions.get(name) == found.version, f"{name} {found.version} is not locked; make installs it anew"


def test_both_builds_of_torch_are_the_same_version():
    (wanted,) = (Requirement(line) for line in (FOLDER / "torch.in").read_text().splitlines() if line[0] != "#")
    for environment in ENVIRONMENTS:
        assert f"=={locked('cuda', environment)['torch']}" == str(wanted.specifier)
        assert Version(locked("cpu", environment)["torch"]).public == locked("cuda", environment)["torch"]
        tag = "cp" + environment["python_version"].replace(".", "")
        wheel = f"+cpu-{tag}-{tag}-manylinux_2_28_{environment['platform_machine']}.whl"
        digest = re.search(
            rf"^(\w{{64}})  torch-[\d.]+{re.escape(wheel)}$", (FOLDER / "torch-cpu.sha256").read_text(), re.M
        )
        assert digest, wheel
        assert digest[1] in (FOLDER / "torch-cpu.txt").read_text(), wheel


def test_a_torch_whose_cpu_builds_are_not_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "torch.in").write_text("torch==9.8.7\n")
    monkeypatch.setattr(renew, "TORCH", tmp_path / "torch.in")
    with pytest.raises(SystemExit, match=re.escape("9.8.7")):
        renew.cpu_builds()


def test_renewing_keeps_versions_and_asks_for_every_hash_anew():
    digest = "0" * 64
    lock = (
        f"a==1 ; python_version < '3.12' \\\n    --hash=sha256:{digest} \\\n    --hash=sha256:{digest}\n    # via b\n"
    )
    assert renew.without_hashes(lock + lock) == "a==1 ; python_version < '3.12'\n    # via b\n" * 2


def test_extras_are_spelled_out_and_an_unknown_one_is_named(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    extras = 'one = ["b"]\ntwo = ["c"]\nall = ["small[one, two]", "d"]\n'
    pyproject.write_text(f'[project]\nname = "small"\ndependencies = ["a"]\n[project.optional-dependencies]\n{extras}')
    assert install.requirements([], pyproject) == ["a"]
    assert sorted(install.requirements(["all"], pyproject)) == ["a", "b", "c", "d"]
    with pytest.raises(SystemExit, match="surely_absent"):
        install.requirements(["surely_absent"], pyproject)


def test_make_installs_nothing_without_a_hash():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert lines
    assert all("--require-hashes" in line or "--no-deps --no-build-isolation --editable ." in line for line in lines)


def run_install(folder: Path, lock: str, packages: Path) -> subprocess.CompletedProcess:
    """install.py in a small project that wants the package `tiny`, with no index but a folder of wheels."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(FOLDER / "install.py", folder / "requirements")
    for name in ("tools.txt", "torch-cpu.txt", "torch-cuda.txt"):
        (folder / "requirements" / name).write_text("")
    (folder / "requirements" / "lock.txt").write_text(lock)
    project = '[project]\nname = "small"\ndependencies = ["tiny>=1"]\noptional-dependencies = {}\n'
    (folder / "pyproject.toml").write_text(project)
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages), "PIP_TARGET": str(folder / "target")}
    command = [sys.executable, str(folder / "requirements" / "install.py")]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_a_file_with_another_hash_or_in_no_lock_is_not_installed(tmp_path):
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for lock in (f"tiny==1.0 --hash=sha256:{'0' * 64}\n", ""):
        done = run_install(tmp_path / "project", lock, wheel.parent)
        assert done.returncode != 0
        assert "tiny" in done.stderr
        assert not (tmp_path / "project" / "target" / "tiny.py").exists()
    done = run_install(tmp_path / "project", f"tiny==1.0 --hash=sha256:{digest}\n", wheel.parent)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "project" / "target" / "tiny.py").exists()
