"""Models small enough to be taken apart."""

from __future__ import annotations

import torch

from hilm.models.resnet_bk import ResNetBKConfig, ResNetBKForCausalLM, ResNetBKForMaskedLM

SWITCHES = {
    "plain": {},
    "diagonal": {"use_semiseparable": False},
    "low-rank": {"low_rank": 2, "top_k": 2},
    "dirichlet": {"right_closure": "dirichlet"},
    "birman-schwinger": {"use_birman_schwinger": True, "schatten_threshold": 1.5, "epsilon": 0.0},
    "scattering": {"use_scattering_router": True},
    "prime-bump": {"use_prime_bump": True, "prime_bump_scale": 0.5},
    "act": {"use_act": True, "act_halt_threshold": 0.6},
    "positions": {"position_embedding": "learned"},
    "float64": {"core_dtype": "float64"},
}
"""What can be switched on, each alone."""


def config(**fields):
    small = {"vocab_size": 41, "d_model": 16, "n_layers": 2, "n_seq": 32, "num_experts": 3, "bk_channels": 4}
    return ResNetBKConfig(**small | fields)


def model(seed=0, scale=4.0, head=None, **fields):
    """A model in eval mode; ``scale`` enlarges the initial weights so that effects show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = (head or (ResNetBKForCausalLM if fields.get("causal", True) else ResNetBKForMaskedLM))(
            config(**fields)
        )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(scale)
    return made.eval()


def tokens(batch, length, seed=0):
    return torch.randint(3, 41, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(made, ids, **inputs):
    with torch.no_grad():
        return made(ids, **inputs).logits
