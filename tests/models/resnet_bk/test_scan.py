from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilm.models.resnet_bk import scan
from hilm.models.resnet_bk.scan import fraction_scan, value_scan

LENGTHS = (1, 2, 8, 31, 32, 33, 200, 1000)


def problem(length, masked, dtype=torch.float64, seed=0, eta=0.1):
    """Inputs of both recurrences: batch 2, 3 channels, 4 values each."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=dtype)

    a = torch.stack([eta + draw(2, length, 3).abs(), 2 * draw(2, length, 3)], -1)
    start = torch.stack([draw(2, 3).abs(), draw(2, 3)], -1)
    keep = torch.rand(2, length, generator=random) > 0.4 if masked else None
    return a, start, draw(2, length, 3, 4), draw(2, 3, 4, 2), keep


def sequential(a, start, x, first, keep):
    """The recurrences as they are defined, one token after the other, differentiable."""
    n, y = torch.view_as_complex(start), torch.view_as_complex(first)
    ns, ys = [], []
    for i in range(a.shape[1]):
        kept = torch.ones(len(a), 1, dtype=torch.bool) if keep is None else keep[:, i, None]
        step = 1 / (torch.view_as_complex(a[:, i].contiguous()) + n)
        value = 1j * step[..., None] * (x[:, i] - y)
        n, y = torch.where(kept, step, n), torch.where(kept[..., None], value, y)
        ns.append(n)
        ys.append(y)
    return torch.view_as_real(torch.stack(ns, 1)), torch.view_as_real(torch.stack(ys, 1))


def chunked(a, start, x, first, keep):
    n = fraction_scan(a, start, keep)
    return n, value_scan(n, x, first, keep)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_scans_are_the_recurrences(length, masked):
    inputs = problem(length, masked)
    for fast, slow in zip(chunked(*inputs), sequential(*inputs), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 40])
def test_adjoints_are_exact(length, masked):
    *inputs, keep = problem(length, masked)
    for tensor in inputs:
        tensor.requires_grad_()
    torch.autograd.gradcheck(lambda *tensors: chunked(*tensors, keep), inputs, fast_mode=True)


@pytest.mark.parametrize("masked", [False, True])
def test_adjoints_equal_autograd_through_the_plain_loop(masked):
    *inputs, keep = problem(300, masked)
    grads = []
    for run in (chunked, sequential):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        n, y = run(*leaves, keep)
        ((n * n.detach().cos()).sum() + (y * y.detach().sin()).sum()).backward()
        grads.append([leaf.grad for leaf in leaves])
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_the_operators_keep_the_rules_of_pytorch(masked):
    a, start, x, first, keep = problem(40, masked)
    n = fraction_scan(a, start, keep).requires_grad_()
    torch.library.opcheck(fraction_scan, (a.requires_grad_(), start, keep))
    torch.library.opcheck(value_scan, (n, x.requires_grad_(), first, keep))


def test_cutting_a_sequence_changes_nothing():
    a, start, x, first, keep = problem(150, masked=True)
    n, y = chunked(a, start, x, first, keep)
    left = chunked(a[:, :61], start, x[:, :61], first, keep[:, :61])
    right = chunked(a[:, 61:], left[0][:, -1], x[:, 61:], left[1][:, -1], keep[:, 61:])
    torch.testing.assert_close(torch.cat([left[0], right[0]], 1), n, atol=1e-13, rtol=0)
    torch.testing.assert_close(torch.cat([left[1], right[1]], 1), y, atol=1e-13, rtol=0)


@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(0.01, 3), st.floats(0, 1000))
def test_the_fraction_stays_in_the_right_half_plane(seed, length, damping, potential):
    random = torch.Generator().manual_seed(seed)
    imaginary = potential * torch.randn(1, length, 1, generator=random)
    a = torch.stack([torch.full_like(imaginary, damping), imaginary], -1)
    n = fraction_scan(a, torch.zeros(1, 1, 2), None)
    assert (n[..., 0] > 0).all()
    assert (n.norm(dim=-1) <= 1.0001 / damping).all()


def test_long_sequences_stay_finite():
    a, start, x, first, keep = problem(65_536, masked=False, dtype=torch.float32, eta=0.01)
    n, y = chunked(a[:1, :, :1], start[:1, :1], x[:1, :, :1, :1], first[:1, :1, :1], keep)
    assert torch.isfinite(n).all()
    assert torch.isfinite(y).all()


def test_two_copies_live_side_by_side():
    """An installed package and a model folder bring the same file under two names."""
    spec = importlib.util.spec_from_file_location("copied-scan.v1", scan.__file__)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    a, start, *_ = problem(50, masked=False)
    assert copied.NAMESPACE != scan.NAMESPACE
    assert torch.equal(copied.fraction_scan(a, start, None), fraction_scan(a, start, None))
