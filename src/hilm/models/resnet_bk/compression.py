"""Smaller models: quantisation-aware training, structured pruning, distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from hilm.models.resnet_bk.experts import ResNetBKExperts, ResNetBKMoE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers.utils import ModelOutput

    from hilm.models.resnet_bk.modeling_resnet_bk import ResNetBKPreTrainedModel

KEPT = ("v_proj", "router.proj")
"""Linear maps that are never rounded: they steer, and are small."""


class RowRounding(nn.Module):
    """Round each row to whole multiples of its largest value / (2^(bits - 1) - 1); gradients pass."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights, in the shape and dtype of ``weight`` (…, columns)."""
        fixed = weight.detach()
        step = fixed.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / self.largest
        return (fixed / step).round() * step + (weight - fixed)  # the last term is 0, with a gradient of 1


def prepare_qat(model: ResNetBKPreTrainedModel, bits: int = 8) -> None:
    """Let a model compute with rounded weights, in place: those of experts and of linear maps.

    Potential, routers, embedding and a head that shares it keep theirs.

    Raises:
        ValueError: ``bits`` is not 2 to 8, or the model is prepared already.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it must be 2 to 8")
    if any(map(parametrize.is_parametrized, model.modules())):
        raise ValueError("the model is prepared already")
    for module, name in list(_quantised(model)):
        parametrize.register_parametrization(module, name, RowRounding(bits))


def convert_qat(model: ResNetBKPreTrainedModel) -> None:
    """Replace a prepared model's weights by the rounded ones it computes with, in place.

    Outputs stay the same to the bit; the rows can be stored as integers and one step each, without loss.
    """
    for module in model.modules():
        for name in tuple(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)


def _quantised(model: ResNetBKPreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    embedding = model.get_input_embeddings().weight
    for name, module in model.named_modules():
        if isinstance(module, ResNetBKExperts):
            yield from ((module, "up_proj"), (module, "down_proj"))
        elif isinstance(module, nn.Linear) and module.weight is not embedding and not name.endswith(KEPT):
            yield module, "weight"


def prune_experts(model: ResNetBKPreTrainedModel, amount: float) -> None:
    """Remove a share of each expert's hidden units, in place: those of smallest |up row| · |down column|.

    Raises:
        ValueError: ``amount`` is not in [0, 1), or no unit would be left.
    """
    width = model.config.d_ff - round(amount * model.config.d_ff)
    if not 0 <= amount < 1 or not width:
        raise ValueError(
            f"amount is {amount}; it must be at least 0 and leave one of {model.config.d_ff} units"
        )
    for moe in _mixtures(model):
        up, down = moe.experts.up_proj, moe.experts.down_proj
        kept = (up.norm(dim=2) * down.norm(dim=1)).topk(width, -1).indices.sort(-1).values
        _replace(moe.experts, "up_proj", up.take_along_dim(kept[:, :, None], 1))
        _replace(moe.experts, "down_proj", down.take_along_dim(kept[:, None, :], 2))
    model.config.d_ff = width


def remove_experts(model: ResNetBKPreTrainedModel, count: int, input_ids: Tensor) -> None:
    """Remove experts from every layer, in place: those that the router finds least probable on a text.

    Args:
        model: With learned routers: in the scattering router an expert is an interval of phases.
        count: How many; at least top_k are left.
        input_ids: (B, N), what the model is for.

    Raises:
        ValueError: Too many experts, or a scattering router.
    """
    left = model.config.num_experts - count
    if count < 0 or left < model.config.top_k:
        raise ValueError(
            f"count is {count}; it must be at least 0 and leave top_k = {model.config.top_k} experts"
        )
    if model.config.use_scattering_router:
        raise ValueError("experts of a scattering router divide the phases among them; none can be removed")
    with torch.no_grad():
        routes = model(input_ids, output_router_logits=True).router_logits
    for moe, logits in zip(_mixtures(model), routes, strict=True):
        kept = logits.softmax(-1).mean(0).topk(left).indices.sort().values
        for module, names in ((moe.experts, ("up_proj", "down_proj")), (moe.router.proj, ("weight", "bias"))):
            for name in names:
                _replace(module, name, getattr(module, name)[kept])
        moe.experts.num_experts = moe.router.proj.out_features = left
    model.config.num_experts = left


def _mixtures(model: ResNetBKPreTrainedModel) -> list[ResNetBKMoE]:
    return [module for module in model.modules() if isinstance(module, ResNetBKMoE)]


def _replace(module: nn.Module, name: str, values: Tensor) -> None:
    before = getattr(module, name)
    setattr(module, name, nn.Parameter(values.detach().clone(), requires_grad=before.requires_grad))


def distillation_loss(
    student: ModelOutput,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 2.0,
    alpha: float = 0.5,
    num_items_in_batch: Tensor | None = None,
) -> Tensor:
    """Weigh the student's own loss against the divergence from its teacher.

    (1 - alpha) loss + alpha T^2 KL(softmax(teacher / T), softmax(student / T)), averaged over tokens
    (Hinton, Vinyals and Dean 2015).

    Args:
        student: Output of a causal model that was given ``labels``: its logits (B, N, V) and its loss.
        teacher: Logits (B, N, V) for the same tokens.
        labels: (B, N); -100 is left out.
        temperature: T.
        alpha: Share of the divergence.
        num_items_in_batch: Divisor instead of the number of predicted tokens, where gradients accumulate.
    """
    predicted = labels[:, 1:] != -100
    learned, taught = (
        functional.log_softmax(logits[:, :-1][predicted].float() / temperature, -1)
        for logits in (student.logits, teacher)
    )
    divergence = functional.kl_div(learned, taught, reduction="sum", log_target=True)
    count = predicted.sum() if num_items_in_batch is None else num_items_in_batch
    loss: Tensor = (1 - alpha) * student.loss + alpha * temperature**2 * divergence / count
    return loss
