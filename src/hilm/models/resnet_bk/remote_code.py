"""Model folders that load where hilm is not installed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from transformers.dynamic_module_utils import custom_object_save

if TYPE_CHECKING:
    from pathlib import Path

    from hilm.models.resnet_bk.modeling_resnet_bk import ResNetBKPreTrainedModel

AUTO_MAP = {
    "AutoConfig": "configuration_resnet_bk.ResNetBKConfig",
    "AutoModel": "modeling_resnet_bk.ResNetBKModel",
    "AutoModelForCausalLM": "modeling_resnet_bk.ResNetBKForCausalLM",
    "AutoModelForMaskedLM": "modeling_resnet_bk.ResNetBKForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_resnet_bk.ResNetBKForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_resnet_bk.ResNetBKForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_resnet_bk.ResNetBKForTokenClassification",
}
"""Auto class of transformers → file and class in the folder."""


def save_with_code(model: ResNetBKPreTrainedModel, folder: str | Path) -> None:
    """Save a model with the code that runs it; it loads with ``trust_remote_code=True``.

    ``save_pretrained`` of a registered class names that class alone; here every head is named.
    """
    model.save_pretrained(folder)
    custom_object_save(model, folder)
    config = copy.deepcopy(model.config)
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(folder)
