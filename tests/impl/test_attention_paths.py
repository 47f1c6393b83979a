"""The fused path is taken where it is right and pays, never elsewhere, and gives what the clear one gives."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import impl
from impl import attention_paths
from impl.attention_paths import FUSED_FROM, attention_path
from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.naive import exact

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def qkv(n: int, m: int, dtype: torch.dtype = FLOAT32, leading: tuple[int, ...] = (1, 2)) -> list[Tensor]:
    return [normal((*leading, rows, 8), dtype, seed) for seed, rows in enumerate((n, m, m))]


# --- the choice ---


@pytest.mark.parametrize(("device", "dtype"), FUSED_FROM)
def test_large_finite_inputs_are_fused_from_the_tables_size_on(device: str, dtype: torch.dtype) -> None:
    m = FUSED_FROM[device, dtype] // 128
    assert attention_path(*qkv(128, m, dtype)) == "fused"
    assert attention_path(*qkv(128, m - 1, dtype)) == "clear"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_a_dtype_outside_the_table_is_clear(dtype: torch.dtype) -> None:
    assert attention_path(*qkv(256, 256, dtype)) == "clear"


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_clear(which: int, bad: float) -> None:
    inputs = qkv(256, 256)
    inputs[which][0, 1, 200, 3] = bad
    assert attention_path(*inputs) == "clear"


def test_what_could_overflow_on_the_way_is_clear() -> None:
    q, k, v = qkv(256, 256)
    assert attention_path(q * 1e20, k * 1e20, v) == "clear"  # a score
    assert attention_path(q, k, v * 1e37) == "clear"  # the sum of 256 values before the division
    assert attention_path(q, k, v, scale=1e38) == "clear"


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_causal_square_with_a_scale_that_is_not_positive_is_right_on_the_fused_path(scale: float) -> None:
    q, k, v = qkv(256, 256)
    assert attention_path(q, k, v, None, is_causal=True, scale=scale) == "fused"
    out = impl.attention(q, k, v, is_causal=True, scale=scale)
    assert_correct("attention", out, q, k, v, is_causal=True, scale=scale)


def test_an_empty_row_is_clear() -> None:
    q, k, v = qkv(256, 256)
    mask = torch.ones(256, 256, dtype=torch.bool)
    assert attention_path(q, k, v, mask) == "fused"
    mask[17] = False
    assert attention_path(q, k, v, mask) == "clear"
    first_key_hidden = torch.arange(256)[None] > 0
    assert attention_path(q, k, v, first_key_hidden) == "fused"
    assert attention_path(q, k, v, first_key_hidden, is_causal=True) == "clear"  # query 0 sees key 0 only
    assert attention_path(*qkv(256, 255), is_causal=True) == "clear"
    assert attention_path(*qkv(255, 256), is_causal=True) == "fused"


def test_unequal_head_dims_and_empty_tensors_are_clear() -> None:
    q, k, v = qkv(256, 256)
    assert attention_path(q, k, v[..., :4]) == "clear"
    assert attention_path(q[:0], k[:0], v[:0]) == "clear"


def test_where_values_cannot_be_read_it_is_clear() -> None:
    q, k, v = qkv(256, 256)
    paths: list[Any] = []

    def record(x: Tensor) -> Tensor:
        paths.append(attention_path(x, k, v))
        return impl.attention(x, k, v).sum()

    torch.func.vmap(record)(q[None])
    torch.func.grad(record)(q)
    with torch.autocast("cpu", dtype=BFLOAT16):
        record(q)
    assert paths == ["clear"] * 3
    assert torch.compile(lambda x: attention_path(x, k, v) == "clear", backend="eager", fullgraph=True)(q)


# --- the kernel ---

N, M = 128, 256
LEADING = [(), (2,), (3, 2), (2, 3, 2)]


def no_mask(leading: tuple[int, ...]) -> None:
    return None


def one_row(leading: tuple[int, ...]) -> Tensor:
    return torch.arange(M)[None] % 3 < 2


def own_pairs(leading: tuple[int, ...]) -> Tensor:
    mask = torch.rand(N, M, generator=torch.Generator().manual_seed(0)) < 0.5
    return mask | (torch.arange(M) == 0)


def own_row_per_matrix(leading: tuple[int, ...]) -> Tensor:
    lengths = torch.arange(M - math.prod(leading), M).reshape(*leading, 1, 1)
    return torch.arange(M) < lengths


def padding_per_outermost(leading: tuple[int, ...]) -> Tensor:
    return own_row_per_matrix(leading[:1]).reshape(*leading[:1], *(1 for _ in leading[1:]), 1, M)


def error_bound(dtype: torch.dtype, largest: float) -> float:
    """The kernel against float64, for |scale| ≤ 0.3, d = 8, |q|, |k| < 4 and values up to `largest`.

    A score is off by (8 + 4) roundings of at most 0.3·8·16 = 39, which moves the weights by twice that, relatively;
    the sum over M keys adds M + 10 roundings. In 16 bits the weights and the result are rounded once each.
    """
    u32, u = 2.0**-24, torch.finfo(dtype).eps / 2
    return largest * ((2 * 12 * 39 + M + 10) * u32 + (2.01 * u if dtype == BFLOAT16 else 0))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("mask_of", [no_mask, one_row, own_pairs, own_row_per_matrix, padding_per_outermost])
def test_fused_equals_the_formula(
    mask_of: Callable[[tuple[int, ...]], Tensor | None], leading: tuple[int, ...], is_causal: bool, dtype: torch.dtype
) -> None:
    q, k, v = (x.clamp(-4, 4) for x in qkv(N, M, dtype, leading))
    mask, options = mask_of(leading), {"is_causal": is_causal, "scale": -0.3}
    assert attention_path(q, k, v, mask, is_causal=is_causal, scale=-0.3) == "fused"
    got = impl.attention(q, k, v, mask, is_causal=is_causal, scale=-0.3)
    want = exact("attention", q, k, v, mask, **options)
    assert got.dtype == dtype and got.shape == want.shape
    assert (got.double() - want).abs().max() <= error_bound(dtype, v.abs().max().item())


def test_fused_is_one_kernel_for_every_layout() -> None:
    """torch falls back to n × m scores for three axes or rows that are not dense; impl hands it four dense ones."""
    q, k, v = qkv(256, 256)
    layouts = {
        "three axes": (q[0], k[0], v[0]),
        "columns": (q.mT.contiguous().mT, k, v),
        "heads second": (q.transpose(1, 2).contiguous().transpose(1, 2), k, v),
        "broadcast": (q, k[:, :1], v[0, 0]),
    }
    for name, inputs in layouts.items():
        assert attention_path(*inputs) == "fused"
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            impl.attention(*inputs)
        kernels = {event.name for event in profiled.events() or ()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in kernels, name
        assert "aten::_scaled_dot_product_attention_math" not in kernels, name


@pytest.mark.parametrize("is_causal", [False, True])
def test_fused_gradients_equal_the_clear_ones(is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in (qkv(128, 256)[0], *qkv(128, 256, leading=(2,))[1:]))  # k, v broadcast
    upstream = normal((1, 2, 128, 8), FLOAT32, 9)
    fused = impl.attention_vjp(q, k, v, grad_output=upstream, is_causal=is_causal)
    behind = torch.autograd.grad(impl.attention(q, k, v, is_causal=is_causal), (q, k, v), upstream)
    monkeypatch.setattr(attention_paths, "FUSED_FROM", {})
    clear = impl.attention_vjp(q, k, v, grad_output=upstream, is_causal=is_causal)
    for grads in (fused, clear):
        assert_correct("attention_vjp", grads, q, k, v, grad_output=upstream, is_causal=is_causal)
    for one, other, named in zip(fused, clear, behind, strict=True):
        assert torch.equal(one, named)
        assert not torch.equal(one, other)  # two algorithms: equal bits would mean that one of them never ran


def test_a_vjp_needs_no_autograd() -> None:
    q, k, v = qkv(128, 256)
    want = impl.attention_vjp(q, k, v, grad_output=q)
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(impl.attention_vjp(q, k, v, grad_output=q), want, strict=True))
    with torch.inference_mode():
        assert_correct("attention_vjp", impl.attention_vjp(q, k, v, grad_output=q), q, k, v, grad_output=q)
        q, k, v = q + 0, k + 0, v + 0
    assert_correct("attention_vjp", impl.attention_vjp(q, k, v, grad_output=q), q, k, v, grad_output=q)


def test_the_reason_for_reading_the_inputs_is_still_there() -> None:
    """torch's kernel answers a NaN in q with numbers. Once this fails, the finiteness test may go."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("torch's kernel for AVX2 answers with NaN")
    q, k, v = qkv(8, 8)
    q[..., 0, 0] = math.nan
    assert not F.scaled_dot_product_attention(q, k, v)[..., 0, :].isnan().any()
    assert impl.attention(q, k, v)[..., 0, :].isnan().all()
