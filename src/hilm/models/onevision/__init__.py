"""OneVision: a vision encoder of native resolution in two layouts, padded batches and packed rows."""

from __future__ import annotations

from hilm.extras import require

require("torch")
require("transformers")

from transformers import AutoConfig, AutoModel  # noqa: E402 - MissingExtra must come first

from hilm.models.onevision.config import (  # noqa: E402 - the same
    PRESETS,
    OneVisionConfig,
    OneVisionPackedConfig,
)
from hilm.models.onevision.convert import KEY_MAP, Rule, convert_state_dict  # noqa: E402 - the same
from hilm.models.onevision.loading import as_packed, load_onevision  # noqa: E402 - the same
from hilm.models.onevision.modeling import OneVisionModel, OneVisionPackedModel  # noqa: E402 - the same
from hilm.models.onevision.packing import (  # noqa: E402 - the same
    PackedBatch,
    grid_positions,
    pack,
    patchify,
    unpack,
    unpatchify,
    virtual_slots,
)

__all__ = [
    "KEY_MAP",
    "PRESETS",
    "OneVisionConfig",
    "OneVisionModel",
    "OneVisionPackedConfig",
    "OneVisionPackedModel",
    "PackedBatch",
    "Rule",
    "as_packed",
    "convert_state_dict",
    "grid_positions",
    "load_onevision",
    "pack",
    "patchify",
    "register",
    "unpack",
    "unpatchify",
    "virtual_slots",
]


def register() -> None:
    """Make both variants known to AutoConfig and AutoModel; importing this package does it."""
    for config, model in (
        (OneVisionConfig, OneVisionModel),
        (OneVisionPackedConfig, OneVisionPackedModel),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)


register()
