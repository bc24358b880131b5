"""soft_align and align_distance: the definition against scalar loops, the CPU path against it, bad input."""

import math

import pytest
import torch

from kernels.alignment import align, align_distance, feature_mask, plain_terms, soft_align
from tests.kernels.cases import alignment_case, assert_equal, outputs_and_gradients

KINDS = ("usual", "repeated", "empty", "same", "dead", "constant", "zero mask")


def _norm(v):
    return math.sqrt(sum(x * x for x in v))


def _minmax(v):
    return [(x - min(v)) / (max(v) - min(v) + 1e-12) for x in v]


def _scalar_alignment(f, m, a, k, beta):
    """One pair, method §4 eq. 1-6 with scalars: reconstruction, distance, co-mask as lists."""
    anchor, target = f[a].tolist(), f[k].tolist()
    rebuilt, distance, seen = [], [], []
    for p, x in enumerate(anchor):
        cosine = [
            sum(i * j for i, j in zip(x, y, strict=True)) / max(_norm(x), 1e-12) / max(_norm(y), 1e-12) for y in target
        ]
        top = max(cosine)
        weight = [math.exp(beta * (c - top)) for c in cosine]
        weight = [w / sum(weight) for w in weight]
        warp = [sum(w * y[c] for w, y in zip(weight, target, strict=True)) for c in range(len(x))]
        blend = float(m[a, p])
        rebuilt.append([blend * w + (1 - blend) * v for w, v in zip(warp, x, strict=True)])
        apart = _norm([v - w for v, w in zip(x, warp, strict=True)])
        distance.append(blend * max(apart, 1e-6 * max(_norm(x), 1e-12)))
        seen.append(blend * sum(w * float(m[k, s]) for s, w in enumerate(weight)))
    return rebuilt, distance, _minmax(seen)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("kind", ["usual", "repeated", "same", "dead", "constant", "zero mask"])
@pytest.mark.parametrize("beta", [1.0, 50.0])
def test_alignment_against_scalar_loops(backend, kind, beta):
    f, m, a, k = alignment_case(kind, images=4, length=5, channels=3)
    found = soft_align(f, m, a, k, beta, backend=backend)
    pairs = [_scalar_alignment(f, m, i, j, beta) for i, j in zip(a.tolist(), k.tolist(), strict=True)]
    for got, expected in zip(found, zip(*pairs, strict=True), strict=True):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    alone = align_distance(f, m, a, k, beta, backend=backend)
    torch.testing.assert_close(alone, found[1], rtol=1e-11, atol=1e-11)
    together = align(f, m, a, k, k.flip(0), beta, backend=backend)
    far = align_distance(f, m, a, k.flip(0), beta, backend=backend)
    for got, expected in zip(together, (*found[:2], far, found[2]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_feature_mask_against_scalar_loops():
    f, _, _, _ = alignment_case("constant", length=5, channels=3)
    expected = [_minmax([_norm(v) for v in image]) for image in f.tolist()]
    mask = feature_mask(f.requires_grad_())
    assert not mask.requires_grad
    torch.testing.assert_close(mask, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert feature_mask(f.half()).dtype == torch.float32


def test_gradcheck_of_the_references():
    f, m, a, k = alignment_case("repeated", length=4, channels=3)
    f.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_align(x, m, a, k, 5.0, backend="reference")[:2], f)
    assert torch.autograd.gradcheck(lambda x: align_distance(x, m, a, k, 5.0, backend="reference"), f)
    assert torch.autograd.gradcheck(lambda x: align(x, m, a, k, a, 5.0, backend="reference")[:3], f)


def _block_numbers(f):
    """The numbers of one pair that count for a block: those of its map, or of its similarities if they are more."""
    return max(f[0].numel(), f.shape[1] ** 2)


@pytest.mark.parametrize("at_once", [1, 2, 4, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [1.0, 50.0, 3000.0])
def test_cpu_path_equals_the_definition(kind, beta, at_once, monkeypatch):
    f, m, a, k = alignment_case(kind)
    monkeypatch.setattr(plain_terms, "BLOCK_NUMBERS", (2 * at_once - 1) * _block_numbers(f))
    assert plain_terms.pairs_at_once(f) == at_once
    other = (k + a + 1) % len(f)
    for op in (soft_align, align_distance, lambda x, m, a, k, beta, backend: align(x, m, a, k, other, beta, backend)):
        found, expected = (
            outputs_and_gradients(lambda x, op=op, b=b: op(x, m, a, k, beta, backend=b), f)
            for b in ("auto", "reference")
        )
        assert_equal(found, expected, 1e-10)


def test_matrices_larger_than_the_maps_limit_a_block(monkeypatch):
    monkeypatch.setattr(plain_terms, "BLOCK_NUMBERS", 4 * 20 * 20)
    assert plain_terms.pairs_at_once(torch.zeros(1, 20, 5)) == 4
    assert plain_terms.pairs_at_once(torch.zeros(1, 20, 20)) == 4
    assert plain_terms.pairs_at_once(torch.zeros(1, 20, 21)) == 2
    assert plain_terms.pairs_at_once(torch.zeros(1, 20, 100)) == 1


def test_cpu_path_does_not_depend_on_the_default_device():
    f, m, a, k = alignment_case("repeated")
    expected = align(f, m, a, k, a, 5.0)
    with torch.device("meta"):
        found = align(f, m, a, k, a, 5.0)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("at_once", [1, 128])
@pytest.mark.parametrize("apart", [1e-2, 1e-4])
def test_near_the_target_float32_keeps_the_bound(apart, at_once, monkeypatch):
    """w within .01 and .0001 of f: there the Gram form alone loses the distance (method §4.1)."""
    f, m, a, k = alignment_case("same", length=12, channels=64)
    monkeypatch.setattr(plain_terms, "BLOCK_NUMBERS", at_once * _block_numbers(f))
    f[1] = f[0] + apart * torch.rand(12, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact, gram = (
        outputs_and_gradients(lambda x, b=b: align_distance(x, m.to(x), a, k, 3000.0, backend=b), x)
        for b, x in (("reference", f), ("auto", f.float()))
    )
    assert_equal([x.double() for x in gram[:1]], exact[:1], 1e-5)
    assert_equal([x.double() for x in gram[1:]], exact[1:], 1e-5 / apart)


def test_the_mask_outside_the_root_keeps_gradients_finite():
    f, m, a, k = alignment_case()
    assert bool((m == 0).any()), "an image's least foreground position always has mask 0"
    for backend in ("reference", "auto"):
        gradient = outputs_and_gradients(lambda x, b=backend: align_distance(x, m, a, k, 50.0, backend=b), f)[1]
        assert torch.isfinite(gradient).all()


def test_comask_and_mask_carry_no_gradient():
    f, m, a, k = alignment_case()
    m.requires_grad_()
    for backend in ("reference", "auto"):
        reconstruction, distance, comask = soft_align(f.requires_grad_(), m, a, k, 50.0, backend=backend)
        assert not comask.requires_grad
        (reconstruction.sum() + distance.sum()).backward()
        assert m.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_even_under_autocast(dtype):
    f, m, a, k = alignment_case(dtype=dtype, length=12, channels=16)
    exact = soft_align(f.double(), m.double(), a, k, 50.0, backend="reference")
    for backend in ("reference", "auto"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outputs_and_gradients(lambda x, b=backend: soft_align(x, m, a, k, 50.0, backend=b), f)
            alone = align_distance(f, m, a, k, 50.0, backend=backend)
        assert [x.dtype for x in found] == [dtype, torch.float32, torch.float32, dtype]
        torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.double(), exact[1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[2].double(), exact[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", [soft_align, align_distance])
def test_half_gradients_follow_the_definition(op):
    f, m, a, k = alignment_case("repeated", dtype=torch.bfloat16, length=12, channels=16)
    found, expected = (
        outputs_and_gradients(lambda x, b=b: op(x, m, a, k, 50.0, backend=b), f)[-1] for b in ("auto", "reference")
    )
    assert_equal([found.float()], [expected.float()], 2**-7)


def test_maps_that_are_not_contiguous():
    f, m, a, k = alignment_case(length=12, channels=16)
    turned = f.mT.contiguous().mT
    assert not turned.is_contiguous()
    for op in (soft_align, align_distance):
        run = lambda x, op=op: op(x, m, a, k, 50.0)  # noqa: E731
        assert_equal(outputs_and_gradients(run, turned), outputs_and_gradients(run, f), 1e-12)


def test_the_backward_is_the_same_every_time():
    f, m, a, k = alignment_case("repeated", dtype=torch.float32)
    for op in (soft_align, align_distance):
        once, again = (outputs_and_gradients(lambda x, op=op: op(x, m, a, k, 50.0), f) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.parametrize("op", [soft_align, align_distance])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features_BLC": torch.rand(4, 9)}, ValueError, r"features_BLC: .*\(4, 9\)"),
        ({"features_BLC": torch.ones(4, 9, 8, dtype=torch.int32)}, TypeError, "features_BLC: .*int32"),
        ({"features_BLC": [1.0]}, TypeError, "features_BLC: .*list"),
        (
            {"features_BLC": torch.rand(4, 0, 8), "mask_BL": torch.rand(4, 0)},
            ValueError,
            r"features_BLC: .*\(4, 0, 8\)",
        ),
        ({"mask_BL": torch.rand(4, 8)}, ValueError, r"mask_BL: .*\(4, 9\), got \(4, 8\)"),
        ({"mask_BL": torch.rand(4, 9, device="meta")}, ValueError, "mask_BL: .*cpu, got meta"),
        ({"anchor_N": torch.zeros(4)}, TypeError, r"anchor_N: .*got torch\.float32"),
        ({"anchor_N": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"anchor_N: .*\(2, 2\)"),
        ({"anchor_N": torch.zeros(3, dtype=torch.int64)}, ValueError, r"anchor_N, target_N: .*\(3,\) and \(4,\)"),
        ({"target_N": torch.tensor([0, 1, 2, 4])}, ValueError, r"target_N: .*0\.\.3, got 0\.\.4"),
        ({"anchor_N": torch.tensor([0, 1, 2, -1])}, ValueError, r"anchor_N: .*0\.\.3, got -1\.\.2"),
        ({"beta": 0.0}, ValueError, r"beta: .*got 0\.0"),
        ({"beta": math.inf}, ValueError, "beta: .*got inf"),
        ({"beta": math.nan}, ValueError, "beta: .*got nan"),
        ({"beta": 1e39}, ValueError, r"beta: .*to 3\.4e\+38, got 1e\+39"),  # inf in float32
        ({"beta": 1e-39}, ValueError, r"beta: .*from 1\.2e-38 .*, got 1e-39"),
        ({"beta": 10**400}, ValueError, "beta: .*got 1000"),
        ({"beta": "50"}, TypeError, "beta: .*got str"),
        ({"beta": None}, TypeError, "beta: .*got NoneType"),
        ({"beta": True}, TypeError, "beta: .*got bool"),
        ({"beta": torch.tensor(50.0)}, TypeError, "beta: .*got Tensor"),
        ({"backend": "cuda"}, ValueError, "backend: .*'cuda'"),
    ],
)
def test_bad_input(op, backend, change, error, words):
    f, m, a, k = alignment_case(dtype=torch.float32)
    inputs = {"features_BLC": f, "mask_BL": m, "anchor_N": a, "target_N": k, "beta": 50.0, "backend": backend}
    with pytest.raises(error, match=words):
        op(**(inputs | change))


def test_more_pairs_than_a_launch_can_have_are_left_to_the_definition():
    """CUDA limits the second and third dimension of a launch to 65,535 blocks."""
    features, rows = torch.rand(2, 1, 8), torch.zeros(65_534, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"2 images and 65534 pairs \(together up to 65535\)"):
        soft_align(features, torch.rand(2, 1), rows, rows, 50.0, backend="triton")
