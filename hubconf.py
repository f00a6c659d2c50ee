"""Entry points of ``torch.hub``: five sizes of ResNet-BK, and one for any configuration.

``torch.hub.load(REPOSITORY, "resnet_bk_1m")`` works from a fresh clone: the package need not be installed.
"""

from __future__ import annotations

import logging
import pathlib
import sys
from typing import TYPE_CHECKING

sys.path.insert(0, str(pathlib.Path(__file__).parent / "src"))

from hilm import errors
from hilm.models import resnet_bk

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import torch

    from hilm.models.resnet_bk import ResNetBKForCausalLM

dependencies = ["torch", "transformers", "safetensors"]
logger = logging.getLogger("hilm.hub")


def resnet_bk_custom(**fields: Any) -> ResNetBKForCausalLM:
    """Make a randomly initialised model of any configuration, for example ``d_model=512, n_layers=12``."""
    return _announced(resnet_bk.ResNetBKForCausalLM(resnet_bk.checked_config(**fields)))


def _announced(model: ResNetBKForCausalLM) -> ResNetBKForCausalLM:
    size = resnet_bk.describe(model.config)
    logger.warning(
        "randomly initialised ResNet-BK %s: %s parameters, %s active per token",
        *(size.label, f"{size.parameters:,}", f"{size.active_parameters:,}"),
    )
    return model


def _pretrained(label: str, repo_id: str, fields: dict[str, Any]) -> ResNetBKForCausalLM:
    """Load weights from the Hub or a folder; random weights are never returned instead.

    Raises:
        NotFound: They cannot be had.
        InputError: They are of another size, or do not fill the model.
    """
    try:
        model, loading = resnet_bk.ResNetBKForCausalLM.from_pretrained(
            repo_id, output_loading_info=True, **fields
        )
    except OSError as error:
        raise errors.NotFound(
            f"no weights of ResNet-BK {label} from {repo_id!r}: {str(error).splitlines()[0]}",
            hint="name another repository or folder with repo_id=…, or take random weights: pretrained=False",
        ) from error
    other = {name for name, value in resnet_bk.PRESETS[label].items() if getattr(model.config, name) != value}
    wrong = sorted(other | set(loading["missing_keys"]) | set(loading["unexpected_keys"]))
    if wrong:
        raise errors.InputError(
            f"{repo_id!r} is not a ResNet-BK {label} as asked for; these differ: {', '.join(wrong)}"
        )
    return model


def _entry(label: str) -> Callable[..., ResNetBKForCausalLM]:
    def entry(
        *,
        pretrained: bool = False,
        repo_id: str | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> ResNetBKForCausalLM:
        if not pretrained:
            return _announced(
                resnet_bk.create_resnet_bk_for_hf(label, device=device, dtype=dtype, **overrides)
            )
        fields = overrides | {"revision": revision or "main", "dtype": dtype}
        model = _pretrained(label, repo_id or f"resnet-bk/resnet-bk-{label.lower()}", fields)
        return model if device is None else model.to(device)

    entry.__doc__ = f"""ResNet-BK {label}.

    Args:
        pretrained: Load weights; without them, or the network, this raises.
        repo_id: Repository or folder to load from; resnet-bk/resnet-bk-{label.lower()} when None.
        revision: Branch, tag or commit.
        device: Where to put the model.
        dtype: Of the weights.
        overrides: Fields of ResNetBKConfig; with pretrained those that leave shapes as they are.
    """
    return entry


resnet_bk_1m = _entry("1M")
resnet_bk_10m = _entry("10M")
resnet_bk_100m = _entry("100M")
resnet_bk_1b = _entry("1B")
resnet_bk_10b = _entry("10B")
