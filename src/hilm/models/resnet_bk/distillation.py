"""A Trainer whose model also learns from a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from hilm.models.resnet_bk.compression import distillation_loss

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class DistillationTrainer(Trainer):
    """Trains a causal language model on texts and on what another of the same vocabulary says about them.

    Args:
        teacher: Any causal language model of transformers; it is not changed.
        temperature: Softens both distributions.
        alpha: Share of the teacher in the loss.

    Raises:
        ValueError: The vocabularies differ in size.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        temperature: float = 2.0,
        alpha: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        own, other = self.model.config.vocab_size, teacher.config.vocab_size
        if own != other:
            raise ValueError(f"student and teacher have {own} and {other} tokens; they must be the same")
        self.teacher = teacher.to(self.args.device).eval()
        self.temperature, self.alpha = temperature, alpha

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT002 - the library's signature
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Return the loss of one batch, and the student's outputs when asked for."""
        student = model(**inputs, num_items_in_batch=num_items_in_batch)
        labels = inputs["labels"]
        with torch.no_grad():
            teacher = self.teacher(
                **{name: value for name, value in inputs.items() if name != "labels"}
            ).logits
        loss = distillation_loss(student, teacher, labels, self.temperature, self.alpha, num_items_in_batch)
        return (loss, student) if return_outputs else loss
