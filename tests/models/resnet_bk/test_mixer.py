"""The mathematics, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch

from hilm.models.resnet_bk.mixer import Operator, ResNetBKMixer, free_closure, prime_bumps, reciprocal, swept
from tests.models.resnet_bk.tiny import config

N = 24


def operator(eta=0.3, b=1.3, energy=0.4, dtype=torch.float64):
    return Operator(*(torch.tensor([value], dtype=dtype) for value in (eta, b, energy)))


def potential(dtype=torch.float64):
    return 1.5 * torch.randn(1, N, 1, generator=torch.Generator().manual_seed(1), dtype=dtype)


def dense(v, op, beyond=0):
    """(T - z)^-1 of the block of all tokens, and of a free half line of ``beyond`` more sites."""
    diagonal = torch.cat([v.flatten(), v.new_zeros(beyond)]).double()
    b, z = float(op.b), complex(float(op.energy), float(op.eta))
    neighbours = torch.full((len(diagonal) - 1,), b, dtype=torch.float64)
    unit = torch.eye(len(diagonal), dtype=torch.complex128)
    t = torch.diag(diagonal) + torch.diag(neighbours, 1) + torch.diag(neighbours, -1)
    return torch.linalg.inv(t.to(torch.complex128) - z * unit)


def fractions(v, op, x=None):
    a = torch.stack([(op.eta / op.b).expand_as(v), (v - op.energy) / op.b], -1)
    start = [v.new_zeros(1, 1, 2), v.new_zeros(1, 1, 0 if x is None else x.shape[-1], 2)]
    return a, swept(a, x, start, None)


def green(n, op):
    """g = i n / b."""
    return 1j * torch.view_as_complex(n.contiguous()) / op.b


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.1])
def test_the_core_is_the_last_diagonal_element_of_every_leading_block(dtype, limit, eta):
    v, op = potential(dtype), operator(eta=eta, dtype=dtype)
    _, (n, _) = fractions(v, op, torch.ones_like(v)[..., None])
    expected = torch.stack([dense(v[:, : i + 1], op)[i, i] for i in range(N)])
    assert (green(n, op).flatten() - expected).abs().max() <= limit


def test_values_are_the_last_row_of_the_inverse():
    v, op = potential(), operator()
    x = torch.randn(1, N, 1, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, (n, y) = fractions(v, op, x)
    y = torch.view_as_complex(y)[0, :, 0]
    for i in range(N):
        row = dense(v[:, : i + 1], op)[i]
        expected = float(op.b) * row @ x[0, : i + 1, 0].to(torch.complex128)
        torch.testing.assert_close(y[i], expected, atol=1e-12, rtol=0)
        # the first resolvent identity makes the normalised value's variance 1
        ward = row.abs().square().sum()
        torch.testing.assert_close(ward, green(n, op)[0, i, 0].imag / op.eta[0], atol=1e-12, rtol=0)


def test_the_vacuum_closure_is_a_free_half_line_on_the_right():
    v, op = potential(), operator()
    a, (n, *_) = fractions(v, op, torch.zeros(1, N, 1, 1, dtype=torch.float64))
    before = torch.cat([torch.zeros_like(n[:, :1]), n[:, :-1]], 1)
    closed = green(reciprocal(a + before + op.closure(op.eta)), op).flatten()
    for i in (0, 5, N - 1):
        assert abs(closed[i] - dense(v[:, : i + 1], op, beyond=200)[i, i]) < 1e-12


def test_determinant_increments():
    v, op = potential(), operator()
    a, (n, *_) = fractions(v, op, torch.zeros(1, N, 1, 1, dtype=torch.float64))
    before = torch.cat([torch.zeros_like(n[:, :1]), n[:, :-1]], 1)
    g = green(reciprocal(a + before + op.closure(op.eta)), op).flatten()
    w = 1 - v.flatten() * g
    free = dense(torch.zeros_like(v), op, beyond=200)[:N, :N]
    total = torch.linalg.det(torch.eye(N) + torch.diag(v.flatten()).to(torch.complex128) @ free)
    assert abs(torch.prod(1 / w) / total - 1) < 1e-10


@pytest.mark.parametrize("q", [-2.5, -2.0, -0.7, 0.0, 0.7, 2.0, 2.5])
@pytest.mark.parametrize("p", [0.0, 0.01, 1.0])
def test_the_free_closure_is_the_fixed_point_in_the_right_half_plane(p, q):
    n = torch.view_as_complex(free_closure(*torch.tensor([[p], [q]], dtype=torch.float64)))[0]
    assert abs(n * (complex(p, -q) + n) - 1) < (1e-5 if (p, abs(q)) == (0.0, 2.0) else 1e-12)
    assert n.real >= 0
    nearby = torch.view_as_complex(free_closure(*torch.tensor([[p + 1e-9], [q]], dtype=torch.float64)))[0]
    assert abs(n - nearby) < 1e-3


def test_two_sided_equals_the_dense_solution():
    mixer = ResNetBKMixer(config(causal=False, d_model=3, bk_channels=1)).double()
    v, op = potential(), operator()
    x = torch.randn(1, N, 1, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, trajectory = fractions(v, op, x)
    start = [v.new_zeros(1, 1, 2), v.new_zeros(1, 1, 3, 2)]
    n, y = mixer._answer(a, x, op, start, None, trajectory)
    inverse = dense(v, op)
    torch.testing.assert_close(green(n, op).flatten(), inverse.diagonal(), atol=1e-12, rtol=0)
    expected = inverse @ x[0, :, 0].to(torch.complex128)
    expected = expected * (op.eta / inverse.diagonal().imag).sqrt()[:, None]
    torch.testing.assert_close(torch.view_as_complex(y)[0, :, 0], expected, atol=1e-12, rtol=0)


def test_the_schatten_threshold_bounds_the_prefix_norm():
    settings = config(
        use_birman_schwinger=True, use_mourre=False, bk_channels=1, schatten_threshold=2.0, v_max=9.0
    )
    mixer, op, tau = ResNetBKMixer(settings), operator(), 2.0
    raw = 5 * potential()
    free = dense(torch.zeros_like(raw), op, beyond=200)[:N, :N]

    def norm(values):
        root = values.flatten().abs().sqrt().to(torch.complex128)
        return torch.linalg.matrix_norm(root[:, None] * free * root)

    bounded, (strength,) = mixer._potential(raw, op, None, None, [torch.zeros(1, 1, dtype=torch.float64)])
    v = 9 * (raw / 9).tanh()
    s = (2 * abs(complex(free[0, 0])) / float(op.eta) * v.square().sum()).sqrt()
    torch.testing.assert_close(strength[:, -1], v.square().sum(1))
    assert norm(v) <= s
    assert s > tau
    assert norm(bounded) <= tau * (1 + 2 * (s / tau).log()).sqrt()


def test_mourre_keeps_energies_inside_the_band():
    mixer = ResNetBKMixer(config(use_birman_schwinger=True))
    for parameter, value in ((mixer.energy, 50.0), (mixer.b_raw, 0.3), (mixer.eta_raw, 0.0)):
        torch.nn.init.constant_(parameter, value)
    op = mixer.operator(torch.float64)
    assert (4 * op.b.square() - op.energy.square() >= 0.389 * op.b.square()).all()


def test_prime_bumps_are_von_mangoldt_weights():
    table = prime_bumps(64, 3, 0.5)
    assert table[[0, 1, 6, 12, 64, 16]].count_nonzero() == 0  # 16 and 64 are higher powers than the third
    top = max(math.log(n if n in (2, 3, 5, 7) else {4: 2, 8: 2}[n]) / n for n in (2, 3, 4, 5, 7, 8))
    for n, prime in {2: 2, 3: 3, 4: 2, 8: 2, 9: 3, 25: 5, 27: 3, 61: 61}.items():
        assert table[n] == pytest.approx(math.log(prime) / n / top)
    torch.testing.assert_close(prime_bumps(1024, 3, 0.5)[:65], table)
