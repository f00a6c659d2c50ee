"""ResNet-BK computes what it says, and costs what a linear-time model should.

Compared with a GPT-2 of the same depth and width, parameters within 2 % (positions not counted: a table costs
no time) and torch's scaled dot product attention. One thread; times are processor time, medians of pairs.

Run: python benchmarks/resnet_bk.py
"""

from __future__ import annotations

import operator
import statistics
import time
from typing import TYPE_CHECKING

import torch
from harness import Gate, Result, main
from transformers import GPT2Config, GPT2LMHeadModel

from hilm.models.resnet_bk import ResNetBKCache, ResNetBKConfig, ResNetBKForCausalLM
from hilm.models.resnet_bk.scan import fraction_scan

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY, LAYERS, WIDTH, LONGEST = 384, 4, 128, 16_384
SWITCHES = (
    {},
    {"use_semiseparable": False},
    {"low_rank": 2, "top_k": 2},
    {"right_closure": "dirichlet"},
    {"use_birman_schwinger": True},
    {"use_scattering_router": True},
    {"use_prime_bump": True},
    {"use_act": True},
    {"position_embedding": "learned"},
    {"core_dtype": "float64"},
)


def resnet_bk(**fields: object) -> ResNetBKForCausalLM:
    torch.manual_seed(0)
    shape = {"d_model": WIDTH, "n_layers": LAYERS, "num_experts": 2, "d_ff": 280, "tie_word_embeddings": True}
    return ResNetBKForCausalLM(ResNetBKConfig(vocab_size=VOCABULARY, **shape | fields)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LONGEST,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # the fused one
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config).eval()


def size(model: torch.nn.Module) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if "wpe" not in name)


def tokens(length: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (1, length))


def forward(model: torch.nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(ids, use_cache=False)


def step(model: torch.nn.Module, ids: torch.Tensor) -> None:
    model.zero_grad()
    model.train()(ids, labels=ids, use_cache=False).loss.backward()


def ratio(first: Callable[[], None], second: Callable[[], None], pairs: int = 5) -> tuple[float, float]:
    """Median of first / second over pairs that run in turn, and the median seconds of the second."""
    first()
    second()
    times = [(cost(first), cost(second)) for _ in range(pairs)]
    return statistics.median(a / b for a, b in times), statistics.median(b for _, b in times)


def cost(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def future_influence() -> float:
    """Largest change of an earlier logit by later tokens, over switches and experts' implementations."""
    worst = 0.0
    for fields in SWITCHES:
        model = resnet_bk(**fields)
        for experts in ("eager", "batched_mm"):
            model.set_experts_implementation(experts)
            for length, cut in ((40, 13), (200, 101)):
                one, other = tokens(length), tokens(length)
                other[:, :cut] = one[:, :cut]
                with torch.no_grad():
                    change = model(one).logits - model(other).logits
                worst = max(worst, float(change[:, :cut].abs().max()))
    return worst


def core_error(dtype: torch.dtype, length: int = 128) -> tuple[float, float]:
    """Largest error of a fresh model's Green's functions against dense inverses, and the largest of these.

    Potential and answer have the dtype; what is between is computed as the model does, in float64.
    """
    worst = largest = 0.0
    coefficients = (
        resnet_bk().requires_grad_(requires_grad=False).model.layers[0].mixer.operator(torch.float64)
    )
    width, b, energy = coefficients
    v = 1.5 * torch.randn(length, len(b), dtype=dtype).double()
    a = torch.stack([(width / b).expand_as(v), (v - energy) / b], -1)
    n = torch.view_as_complex(fraction_scan(a[None], torch.zeros_like(a[:1]), None))[0]
    neighbours = (
        torch.eye(length, dtype=torch.float64).roll(1, 0).tril() + torch.eye(length).roll(-1, 0).triu()
    )
    for h, (eta, coupling, place) in enumerate(zip(*coefficients, strict=True)):
        matrix = torch.diag(v[:, h] - torch.complex(place, eta)) + coupling * neighbours
        dense = torch.stack([torch.linalg.inv(matrix[:i, :i])[-1, -1] for i in range(1, length + 1)])
        green = (1j * n[:, h] / b[h]).to(torch.complex64 if dtype == torch.float32 else torch.complex128)
        worst = max(worst, float((green - dense).abs().max()))
        largest = max(largest, float(dense.abs().max()))
    return worst, largest


def decoding(model: ResNetBKForCausalLM) -> tuple[float, float, int]:
    """Time per token after 16,384 tokens over that after 64, tokens per second, and the state's bytes."""
    short, long = (ResNetBKCache(model.config) for _ in range(2))

    def run(cache: ResNetBKCache) -> None:
        with torch.no_grad():
            for _ in range(50):
                model(tokens(1), past_key_values=cache)

    with torch.no_grad():
        model(tokens(64), past_key_values=short)
        model(tokens(LONGEST), past_key_values=long)
    slower, seconds = ratio(lambda: run(long), lambda: run(short), pairs=9)
    return slower, 50 / seconds, long.state_bytes


def against(ours: ResNetBKForCausalLM, theirs: GPT2LMHeadModel, length: int) -> tuple[float, float]:
    """Times faster than GPT-2 in a forward pass, and tokens per second."""
    ids = tokens(length)
    faster, seconds = ratio(lambda: forward(theirs, ids), lambda: forward(ours, ids))
    return faster, length / seconds


def correctness() -> tuple[Gate, ...]:
    return (
        Gate("influence of later tokens on a logit", future_influence(), "<=", 0.0, ""),
        Gate("core against dense inverses, float64", core_error(torch.float64)[0], "<=", 1e-10, ""),
        Gate("core against dense inverses, float32", core_error(torch.float32)[0], "<=", 5e-6, ""),
    )


def measure() -> Result:
    torch.set_num_threads(1)
    ours, theirs = resnet_bk(), gpt2()
    speeds = {length: against(ours, theirs, length) for length in (512, 2048, 8192)}
    slower, per_second, state = decoding(ours)
    long, short, middle = tokens(LONGEST), tokens(1024), tokens(2048)
    forwards, _ = ratio(lambda: forward(ours, long), lambda: forward(ours, short))
    steps, _ = ratio(lambda: step(ours, long), lambda: step(ours, short))
    trained, seconds = ratio(lambda: step(theirs, middle), lambda: step(ours, middle), pairs=3)
    relative = operator.truediv(*core_error(torch.float32))
    limits = {512: (0.8, 1.0), 2048: (1.5, 2.5), 8192: (4.0, 8.0)}
    return Result(
        name="resnet_bk",
        claim="ResNet-BK sees no future token, and its time grows with the length, not with its square",
        command="python benchmarks/resnet_bk.py",
        gates=(
            *correctness(),
            Gate("parameters against GPT-2's", abs(size(ours) / size(theirs) - 1), "<=", 0.02, ""),
            *(
                Gate(f"speed over GPT-2's at {length:,} tokens", speeds[length][0], ">=", required, "x", aim)
                for length, (required, aim) in limits.items()
            ),
            Gate("forward at 16,384 over 1,024 tokens", forwards, "<=", 17, "x", 14),
            Gate("training step at 16,384 over 1,024 tokens", steps, "<=", 17, "x", 14),
            Gate("time per token after 16,384 over after 64, less 1", abs(slower - 1), "<=", 0.1, ""),
        ),
        figures={
            **{f"forward at {length:,}": (speed, "tokens/s") for length, (_, speed) in speeds.items()},
            "training step over GPT-2's at 2,048": (trained, "x"),
            "training at 2,048": (2048 / seconds, "tokens/s"),
            "decoding": (per_second, "tokens/s"),
            "state": (state, "bytes"),
            "core in float32, relative to its largest value": (relative, ""),
        },
    )


if __name__ == "__main__":
    main(measure)
