"""The parts of the GPU suite's calls that can be wrong on a CPU too: batches, profiles, tables, what is gathered."""

import hashlib
import io
import json
import lzma
import struct
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.gem_pyramid import kernel as gem_pyramid
from perf import bench_train
from perf.calls import cache, slim_dali, tables, wheels
from perf.calls.child import surroundings
from perf.calls.compile_kernels import compile_share
from perf.calls.fatbin import MAGIC, entries, without_other_chips
from perf.calls.images_on_device import ImagesOnDevice, resized
from perf.calls.kernel_tests import Recorder
from perf.calls.memcheck import errors_in
from perf.calls.plan import FAST
from perf.calls.profile_step import Kernel, busy_us, longest, summary
from perf.calls.rows import RowsFile, results_of, rows_of
from perf.calls.wheels import GatherError
from perf.parts import train_step
from tacaf.child_processes import ROOT
from tacaf.data.augment import draw_parameters, reference, resize
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.photo import decode
from tacaf.data.plan import Plan
from tacaf.data.reader import ShardReader
from tacaf.train.config import load_config


def test_images_decoded_beforehand_make_the_batch_of_the_definition(sysu_shards):
    words = [f"data.shards={sysu_shards}", "run=unused", "data.plan.identities_per_batch=4"]
    config = load_config(ROOT / "launch" / "configs" / "demo.yaml", words)
    index, augment = ShardIndex.open(sysu_shards), config.data.augment
    plan = Plan(select_training(index, "trainval"), config.data.plan, config.seed)
    planned = plan.global_batch(2, 1)
    images = ImagesOnDevice(index, planned.row_B, augment.height, augment.width, "cpu", threads=1)
    batch = images.batch(config, plan, 2, 1)
    drawn = draw_parameters(augment, config.seed, 2, 1, planned.position_B, planned.branch_B)
    reader = ShardReader(index)
    assert torch.equal(batch.row_B, torch.from_numpy(planned.row_B))
    assert batch.pairs.pairs4 is not None
    for place, row in enumerate(planned.row_B.tolist()):
        exact = reference(decode(reader.read(row).tobytes()), augment, drawn, place)
        difference = np.abs(batch.images_BCHW[place].numpy() - exact)
        assert difference.max() < 0.02, "a level of 255 is .017 after the normalisation"
    ((whole, rows),) = images.whole(np.unique(planned.row_B), 1000)
    assert whole.shape == (len(rows), 3, augment.height, augment.width)


def test_resizing_follows_the_definition():
    image = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    found = resized(torch.from_numpy(image), 96, 48).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - resize(image, 96, 48)).max() <= 1


def test_the_busy_time_counts_what_overlaps_once():
    kernels = [Kernel("a", 0, 10), Kernel("b", 5, 12), Kernel("c", 20, 30), Kernel("a", 21, 25), Kernel("d", 31, 40)]
    assert busy_us(kernels) == (12 + 10 + 9, [8, 1])
    found = summary(kernels, ["cudaLaunchKernel", "cudaStreamSynchronize"], steps=2)
    assert found["busy_share"] == pytest.approx(31 / 40)
    assert (found["kernels"], found["host_waits"], found["step_ms"]) == (2.5, 0.5, 0.02)
    assert longest(kernels, 2)[0] == {"kernel": "a", "us": 7, "calls": 1}


@pytest.mark.parametrize(
    ("output", "errors"),
    [("========= ERROR SUMMARY: 0 errors", 0), ("x\n========= ERROR SUMMARY: 12 errors\n", 12), ("killed", None)],
)
def test_the_memory_checkers_count(output, errors):
    assert errors_in(output) == errors


@pytest.mark.slow
def test_a_slice_of_the_tests_records_each_result(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('k', range(4))\ndef test_it(k):\n    assert k != 3, 'three'\n"
    )
    file = RowsFile(tmp_path / "rows.json")
    words = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    pytest.main(words, plugins=[Recorder(file, 1, 2)])
    rows = rows_of(results_of("rows", tmp_path))
    assert [(row["test"], row["outcome"]) for row in rows] == [("test_it[1]", "passed"), ("test_it[3]", "failed")]
    assert "AssertionError" in rows[1]["why"]
    assert tables.of_rows(rows)[0] == "1 tests passed, 1 did not"


def test_the_table_of_kernels_has_a_column_for_each_provider_and_survives_failures():
    shape = {"B": 4}
    rows = [
        {"op": "x", "shape": shape, "pass": "both", "provider": "eager", "p50_ms": 2.0, "graph_ms": None},
        {"op": "x", "shape": shape, "pass": "both", "provider": "triton", "p50_ms": 2.0, "graph_ms": 1.5},
        {"op": "x", "shape": shape, "provider": "sdpa", "error": "refused"},
    ]
    lines = tables.of_rows(rows)
    assert lines[0].split() == ["op", "shape", "pass", "eager", "triton", "sdpa"]
    assert lines[1].split() == ["x", "B=4", "both", "(2)", "1.5", "-"]
    assert lines[2].split() == ["x", "B=4", "-", "-", "-", "failed"]


def test_rows_that_make_no_table_cost_one_line():
    (line,) = tables.of_part([{"rows": [{"op": "x", "provider": "y", "shape": object(), "p50_ms": "wrong"}]}])
    assert "make no table" in line


@pytest.mark.slow
def test_a_variant_that_fails_leaves_the_others_and_rows_are_written_one_by_one(tmp_path, monkeypatch, capsys):
    built, seen, file = train_step.Step.__init__, [], tmp_path / "train.json"

    def step(self, variant, *rest):
        seen.append([row["name"] for row in json.loads(file.read_text())["rows"]] if file.exists() else [])
        if variant.channels_last:
            raise torch.OutOfMemoryError("no memory left\nmore")
        built(self, variant, *rest)

    monkeypatch.setattr(train_step.Step, "__init__", step)
    names = ["baseline, kernels", "whole, kernels, channels-last", "whole, kernels, fused optimizer"]
    words = ["--small", "--groups", "1", "--rounds", "1", "--json", str(file), "--variants", *names]
    with surroundings(fake=True):
        assert bench_train.main(words) == 1
    assert seen == [[], names[:1], names[:2]]
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == names
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith("OutOfMemoryError: no memory left (perf/test_gpu_calls.py:")
    assert "failed: OutOfMemoryError" in capsys.readouterr().out


def test_variants_that_do_not_exist_are_refused_with_those_that_do(capsys):
    assert bench_train.main(["--device", "cpu", "--variants", "hole*"]) == 2
    assert "whole, kernels" in capsys.readouterr().err
    assert FAST in [variant.name for variant in bench_train.VARIANTS]


def container(*codes: tuple[int, int, bytes]) -> bytes:
    """A container of device code: (kind, chip, code) each."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 0, 64, len(code)) + bytes(12) + struct.pack("<I", chip) + bytes(32) + code
        for kind, chip, code in codes
    )
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_device_code_of_other_chips_becomes_zeros_and_nothing_else_changes():
    library = (
        b"host" + MAGIC + b"by chance" + container((2, 80, b"old" * 9), (2, 90, b"ours" * 9), (1, 90, b"text" * 9))
    )
    slim = without_other_chips(library, (90,))
    assert len(slim) == len(library)
    assert b"ours" * 9 in slim
    assert b"old" not in slim
    assert b"text" not in slim
    assert slim.startswith(b"host" + MAGIC + b"by chance")
    assert [(kind, chip) for kind, chip, _, _ in entries(slim)] == [(2, 80), (2, 90), (1, 90)]


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_slim_copy_is_cut_into_parts_that_make_the_archive_again(tmp_path, monkeypatch):
    monkeypatch.setattr(slim_dali, "PART_BYTES", 100)
    ours, other = (f"nvidia/dali/impl.cpython-{tag}-x86_64-linux-gnu.so" for tag in ("312", "313"))
    files = {
        ours: container((2, 80, bytes(range(256)) * 9), (2, 90, b"code")),
        other: b"x",
        "nvidia/dali/a.py": b"1",
        "nvidia/dali/include/dali.h": b"x",
        "nvidia/nvimgcodec/extensions/libnvtiff_ext.so.0": b"x",
    }
    parts = slim_dali.pack([wheel(tmp_path / "a.whl", files)], tmp_path)
    assert len(parts) > 1
    assert parts == sorted(parts)
    data = lzma.decompress(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["nvidia/__init__.py", ours, "nvidia/dali/a.py"]
        assert b"code" in archive.extractfile(ours).read()


def test_versions_come_from_the_constraints_and_from_what_a_wheel_asks_for(tmp_path):
    pins = wheels.constraints()
    assert pins["pydantic"].count(".") == 2
    metadata = b"Name: a\nRequires-Dist: b-core==2.5.0\nRequires-Dist: c>=1\nRequires-Dist: d==1 ; extra == 'x'\n"
    found = wheels.required_by(wheel(tmp_path / "a-1.whl", {"a-1.dist-info/METADATA": metadata}))
    assert found == {"b-core": "2.5.0"}


@pytest.mark.slow
def test_what_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(GatherError, match="surely-absent"):
        wheels.fetch(["surely-absent"], tmp_path)


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    lines = {
        "METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "RECORD": b"",
        "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    (tmp_path / "index").mkdir()
    tiny = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    wheel(tiny, {f"tiny-1.0.dist-info/{name}": text for name, text in lines.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.parent))
    monkeypatch.setattr(wheels, "LOCK", tmp_path / "lock.txt")
    for digest, fits in (("0" * 64, False), (hashlib.sha256(tiny.read_bytes()).hexdigest(), True)):
        wheels.LOCK.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
        with nullcontext() if fits else pytest.raises(GatherError, match="tiny"):
            assert wheels.fetch(["tiny"], tmp_path / "wheels")
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [tiny.name]


@pytest.mark.slow
def test_a_cache_gathered_ahead_is_taken_where_kernels_are_missing(tmp_path):
    gathered, used = tmp_path / "gathered", tmp_path / "used"
    for folder in (gathered / "A", gathered / "B", used / "A"):
        folder.mkdir(parents=True)
        (folder / "kernel.cubin").write_text(str(folder.parent.name))
        group = {"child_paths": {"kernel.cubin": "/elsewhere/kernel.cubin"}}
        (folder / "__grp__kernel.json").write_text(json.dumps(group))
    assert cache.take_gathered(used, gathered) == 1
    assert cache.compiled_kernels(used) == {"A", "B"}
    assert (used / "A" / "kernel.cubin").read_text() == "used"
    group = json.loads((used / "B" / "__grp__kernel.json").read_text())
    assert group == {"child_paths": {"kernel.cubin": str(used / "B" / "kernel.cubin")}}
    assert cache.take_gathered(used, tmp_path / "absent") == 0


def compile_kernels_anew() -> int:
    """How many of an op's kernels the cache on the disk holds; what this process keeps of them is forgotten first."""
    for kernel in (gem_pyramid.stripe_sums_kernel, gem_pyramid.roots_kernel, gem_pyramid.backward_kernel):
        kernel.device_caches.clear()
    return compile_share("gem_pyramid", "bf16", 0, 1)["in_cache"]


@pytest.mark.slow
def test_kernels_compiled_ahead_are_found_in_another_place(tmp_path, monkeypatch):
    """As on a GPU machine: compiled into one folder, stripped, copied to another, compiled again there."""
    found = []
    for folder in ("first", "second"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / folder))
        with surroundings(fake=True):
            found.append(compile_kernels_anew())
        cache.keep_only_binaries(tmp_path / folder)
        cache.take_gathered(tmp_path / "second", tmp_path / "first")
    assert found == [0, 3]
