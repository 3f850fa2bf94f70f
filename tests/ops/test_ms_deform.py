"""Every implementation of the sampling operator: against the official numbers, against each other, at the edges."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.ops import ms_deform, ms_deform_attn, ms_deform_backend, ms_deform_cpu

CASES = [c["file"] for c in goldens.cases("msda_op")]
BACKENDS = ["reference", "cpu", "triton"]
GPU = torch.cuda.is_available()


@pytest.fixture(params=BACKENDS)
def operator(request, monkeypatch):
    """The public function with one implementation: Triton's on a GPU or, without one, in its interpreter."""
    if request.param == "triton":
        triton = pytest.importorskip("detrkit.ops.ms_deform_triton", exc_type=ImportError)
        if not GPU:
            # the operator's kernel for CPU tensors replaced by Triton's, which its interpreter runs on them
            monkeypatch.setattr(ms_deform, "ms_deform_cpu", triton)

    def run(value, shapes, locations, weights):
        on_gpu = request.param == "triton" and GPU
        name = "cpu" if request.param == "triton" and not GPU else request.param
        tensors = [t.cuda() if on_gpu else t for t in (value, locations, weights)]
        with ms_deform_backend(name):
            return ms_deform_attn(tensors[0], shapes, *tensors[1:]).to(value.device)

    run.name = request.param
    return run


def _random(shapes, *, b=2, q=5, h=3, d=4, p=2, dtype=torch.float64, seed=0, spread=1.6):
    g = torch.Generator().manual_seed(seed)
    s = sum(height * width for height, width in shapes)
    value = torch.randn(b, s, h, d, generator=g, dtype=torch.float64)
    locations = torch.rand(b, q, h, len(shapes), p, 2, generator=g, dtype=torch.float64) * spread - (spread - 1) / 2
    weights = torch.randn(b, q, h, len(shapes) * p, generator=g, dtype=torch.float64).softmax(-1)
    weights = weights.view(b, q, h, len(shapes), p)
    return [t.to(dtype) for t in (value, locations, weights)]


def _with_gradients(run, value, shapes, locations, weights, seed=1):
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    out = run(leaves[0], shapes, leaves[1], leaves[2])
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction.to(out))]


def _assert_close(got, want, atol):
    for name, a, b in zip(("output", "value", "locations", "weights"), got, want, strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=atol * max(1.0, float(b.abs().max())), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("file", CASES)
def test_golden(operator, file):
    data = {k: torch.from_numpy(v) for k, v in goldens.arrays(file).items()}
    shapes = [(int(h), int(w)) for h, w in data["shapes"]]
    leaves = [data[k].requires_grad_() for k in ("value", "locations", "weights")]
    out = operator(leaves[0], shapes, leaves[1], leaves[2])
    got = [out.detach(), *torch.autograd.grad(out, leaves, data["grad_output"])]
    want = [data[k] for k in ("output", "grad_value", "grad_locations", "grad_weights")]
    if "exact_grid" in file:
        # on a pixel's center both slopes are right, and a last bit decides whether a location is there
        got[2] = want[2] = torch.zeros(())
    _assert_close(got, want, 1e-12)


@pytest.mark.slow
def test_gradcheck(operator):
    shapes = [(3, 4), (1, 1)]
    inputs = [t.requires_grad_() for t in _random(shapes, b=1, q=2, h=2, d=3, p=2)]
    interpreted = operator.name == "triton" and not GPU  # a second for every evaluation
    assert torch.autograd.gradcheck(lambda v, at, w: operator(v, shapes, at, w), inputs, fast_mode=interpreted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "shapes", [[(7, 9), (4, 5), (2, 3)], [(1, 6), (5, 1)], [(1, 1)], [(2, 2), (1, 1), (1, 2), (2, 1)]]
)
def test_equals_reference(operator, shapes, seed):
    """Maps of one line, one column, one pixel; several images; heads and channels that are no powers of two."""
    tensors = _random(shapes, b=2, q=11, h=3, d=5, p=2, seed=seed)
    want = _with_gradients(ms_deform.reference, tensors[0], shapes, *tensors[1:])
    got = _with_gradients(operator, tensors[0], shapes, *tensors[1:])
    _assert_close(got, want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["cpu"], indirect=True)  # the one that is computed in parts
def test_chunks_do_not_show(operator, monkeypatch):
    """Parts that end in the middle of an image; as many points as in an encoder, and as few as in a decoder."""
    monkeypatch.setattr(ms_deform_cpu, "_ELEMENTS_PER_THREAD", 20)
    ms_deform_cpu._cached_pyramid.cache_clear()
    shapes = [(6, 5), (3, 3)]
    for q in (2, 70):
        tensors = _random(shapes, b=2, q=q, h=2, d=4, p=2)
        want = _with_gradients(ms_deform.reference, tensors[0], shapes, *tensors[1:])
        _assert_close(_with_gradients(operator, tensors[0], shapes, *tensors[1:]), want, 1e-12)
    ms_deform_cpu._cached_pyramid.cache_clear()


@pytest.mark.slow
def test_far_outside_is_zero(operator):
    shapes = [(4, 6), (2, 3)]
    value, locations, weights = _random(shapes)
    for far in (-3.0, 4.0, 1e9, -1e9, 1e30, float("inf"), -float("inf")):
        leaves = [value.clone().requires_grad_(), torch.full_like(locations, far).requires_grad_(), weights]
        if operator.name == "reference" and abs(far) > 1e9:
            continue  # grid_sample has its own notion of what no int64 holds
        out = operator(leaves[0], shapes, leaves[1], leaves[2])
        assert out.abs().max() == 0
        assert torch.autograd.grad(out.sum(), leaves[0])[0].abs().max() == 0


def test_a_location_that_is_no_number_stays_in_its_query():
    """It comes from a diverged model, whose error must say so; no other query and no memory may suffer from it."""
    shapes = [(4, 6)]
    value, locations, weights = _random(shapes, b=1, q=3)
    clean = ms_deform_attn(value, shapes, locations, weights)
    locations[0, 1, 0, 0, 0, 0] = float("nan")
    out = ms_deform_attn(value, shapes, locations, weights)
    assert out[0, 1, :4].isnan().all()
    torch.testing.assert_close(out[0, [0, 2]], clean[0, [0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize(("b", "q"), [(0, 3), (2, 0)])
def test_empty(operator, b, q):
    shapes = [(3, 2), (1, 2)]
    value, locations, weights = _random(shapes, b=b, q=q)
    out, *grads = _with_gradients(operator, value, shapes, locations, weights)
    assert out.shape == (b, q, 12)
    assert [g.shape for g in grads] == [t.shape for t in (value, locations, weights)]
    assert all(float(g.abs().sum()) == 0 for g in grads)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_half_precision_are_in_float32(operator, dtype):
    """Values in half precision, locations and weights in float32, as under autocast: one rounding at the end."""
    shapes = [(13, 9), (7, 5), (4, 3), (2, 2)]
    value, locations, weights = _random(shapes, b=1, q=40, h=2, d=8, p=4, spread=1.2)
    value = value.to(dtype)
    at, share = locations.float(), weights.float()
    want = _with_gradients(ms_deform.reference, value.double(), shapes, at.double(), share.double())
    got = _with_gradients(operator, value, shapes, at, share)
    assert [t.dtype for t in got] == [dtype, dtype, torch.float32, torch.float32]
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 4e-6
    direction_too = 2 * rounding  # the gradient that comes in is rounded as well
    for a, b in zip(got, want, strict=True):
        assert float((a.double() - b).abs().max()) <= direction_too * float(b.abs().max())


def test_results_do_not_depend_on_threads_or_run():
    shapes = [(20, 30), (10, 15)]
    tensors = _random(shapes, b=2, q=200, h=4, d=8, p=4, dtype=torch.float32)
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 2, 5):
            torch.set_num_threads(threads)
            runs.append(_with_gradients(ms_deform_attn, tensors[0], shapes, *tensors[1:]))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.slow
def test_one_operator_for_compile_and_export():
    shapes = [(4, 5), (2, 3)]
    value, locations, weights = _random(shapes, dtype=torch.float32)
    flat = [4, 5, 2, 3]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    torch.library.opcheck(torch.ops.detrkit.ms_deform_attn.default, (leaves[0], flat, leaves[1], leaves[2]))

    nodes = []

    def backend(graph, _inputs):
        nodes.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    compiled = torch.compile(
        lambda v, at, w: 2 * ms_deform_attn(v, shapes, at, w), fullgraph=True, backend=backend, dynamic=False
    )
    torch.testing.assert_close(compiled(*leaves), 2 * ms_deform_attn(leaves[0], shapes, *leaves[1:]))
    assert [n for n in nodes if "ms_deform_attn" in n] == ["detrkit.ms_deform_attn.default"]
    assert not any("grid_sampl" in n for n in nodes)
    torch.testing.assert_close(
        _with_gradients(
            torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager"),
            value.detach(),
            shapes,
            *[t.detach() for t in leaves[1:]],
        ),
        _with_gradients(ms_deform_attn, value.detach(), shapes, *[t.detach() for t in leaves[1:]]),
    )


class _Sampling(torch.nn.Module):
    def forward(self, value, locations, weights):
        return ms_deform_attn(value, [(4, 5), (2, 3)], locations, weights)


def test_an_export_holds_only_operators_of_pytorch():
    tensors = tuple(_random([(4, 5), (2, 3)], dtype=torch.float32))
    program = torch.export.export(_Sampling(), tensors)
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert any("grid_sampl" in t for t in targets)
    assert all(t.startswith("aten.") or "getitem" in t for t in targets), targets
    torch.testing.assert_close(program.module()(*tensors), _Sampling()(*tensors))


def test_choice_and_override(monkeypatch):
    called = []
    for module, name in ((ms_deform, "reference"), (ms_deform_cpu, "forward")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name: called.append(n) or f(*a))
    shapes = [(2, 3)]
    tensors = _random(shapes)
    ms_deform_attn(tensors[0], shapes, *tensors[1:])
    with ms_deform_backend("reference"):
        ms_deform_attn(tensors[0], shapes, *tensors[1:])
        with ms_deform_backend("cpu"):
            ms_deform_attn(tensors[0], shapes, *tensors[1:])
    ms_deform_attn(tensors[0], shapes, *tensors[1:])
    assert called == ["forward", "reference", "forward", "forward"]

    with pytest.raises(ValueError, match='backend "cuda"'), ms_deform_backend("cuda"):
        pass
    with ms_deform_backend("triton"), pytest.raises(RuntimeError, match="it needs triton and a CUDA device, not cpu"):
        ms_deform_attn(tensors[0], shapes, *tensors[1:])
    meta = [t.to("meta") for t in tensors]
    assert ms_deform_attn(meta[0], shapes, *meta[1:]).shape == (2, 5, 12)  # by the reference
    with ms_deform_backend("cpu"), pytest.raises(RuntimeError, match="the tensors are on meta"):
        ms_deform_attn(meta[0], shapes, *meta[1:])


def test_what_does_not_fit_is_refused():
    shapes = [(2, 2), (1, 1)]
    value, locations, weights = _random(shapes)
    with pytest.raises(ValueError, match=r"value has 5 positions, the levels \[\(2, 2\)\] have 4"):
        ms_deform_attn(value, [(2, 2)], locations, weights)
    for wrong in (locations[:1], locations[:, :, :2], locations[:, :, :, :1], locations[..., :1]):
        with pytest.raises(ValueError, match=r"locations are .*need \(2, Q, 3, 2, P, 2\)"):
            ms_deform_attn(value, shapes, wrong, weights)
    with pytest.raises(ValueError, match="need one for each point"):
        ms_deform_attn(value, shapes, locations, weights[..., :1])


@pytest.mark.gpu
@pytest.mark.parametrize(("b", "q"), [(1, 300), (8, 300), (1, None), (8, None)])
def test_triton_at_the_published_size(b, q):
    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)]
    tensors = _random(shapes, b=b, q=q or 22223, h=8, d=32, p=4, dtype=torch.float32, spread=1.1)
    tensors = [t.cuda() for t in tensors]

    def run(name):
        with ms_deform_backend(name):
            return _with_gradients(lambda v, s, at, w: ms_deform_attn(v, s, at, w), tensors[0], shapes, *tensors[1:])

    for name, a, r in zip(("output", "value", "locations", "weights"), run("triton"), run("reference"), strict=True):
        # a location within a rounding of a pixel's center may take the other slope: few do
        off = (a - r).abs() > 1e-4 * r.abs().max()
        assert float(off.float().mean()) < (1e-5 if name == "locations" else 1e-9), name
