"""Configuration of OneVision encoders, and the published sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig

from hilm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

CHOICES = {
    "layer_norm_type": ("layer_norm", "rms_norm"),
    "rope_style": ("adjacent_tiled", "adjacent", "halves"),
    "rope_compute": ("input", "float32"),
    "patch_embed": ("conv", "linear"),
}
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
PRESETS: Mapping[str, Mapping[str, int]] = {
    size: dict(zip(SHAPE, numbers, strict=True))
    for size, numbers in {
        "small": (384, 6, 6, 1536, 16),
        "base": (768, 12, 12, 3072, 16),
        "base-p14": (768, 12, 12, 3072, 14),
        "large": (1024, 24, 16, 4096, 14),
        "huge": (1280, 32, 20, 5120, 14),
        "huge27": (1536, 27, 16, 4608, 14),
        "giant": (1536, 40, 16, 6144, 14),
    }.items()
}
"""Size → fields of the configuration. Two published shapes are called "huge": trust a config, not a name."""


class OneVisionConfig(PreTrainedConfig):
    """What an OneVision encoder is made of.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Hidden width of the perceptrons.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads; half a head's width must be a multiple of 16.
        num_channels: Of the pixels.
        image_size: Side of the training pictures, for information; any multiple of the patch is accepted.
        patch_size: Side of a patch in pixels.
        hidden_act: Activation of the perceptrons; "gelu" is the exact one.
        layer_norm_eps: Of every norm.
        layer_norm_type: "layer_norm" or "rms_norm"; the head's norm is always the latter.
        attention_dropout: While training.
        initializer_range: Deviation of initial weights.
        rope_theta: Base of the rotary frequencies.
        rope_temporal_size: Frames of the virtual clip; None is as many as there are.
        use_head: Whether there are a last norm and an attention pooling head.
        rope_style: "adjacent_tiled" in all published weights: adjacent channels turn by *different* angles.
        rope_compute: Precision of the rotation: that of its "input", or at least "float32".
        patch_embed: "conv", or "linear" with the same weights and other rounding.

    Raises:
        InputError: A value breaks a rule; the message names the field, the value and the rule.
    """

    model_type = "hilm_onevision"
    packed: ClassVar[bool] = False
    """Whether a model takes packed rows and projects to queries, keys and values at once."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    layer_norm_type: str = "layer_norm"
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    rope_theta: float = 10000.0
    rope_temporal_size: int | None = 64
    use_head: bool = True
    rope_style: str = "adjacent_tiled"
    rope_compute: str = "input"
    patch_embed: str = "conv"

    def __post_init__(self, **kwargs: Any) -> None:
        """Check every field that shapes the model."""
        super().__post_init__(**kwargs)
        for name in (
            *SHAPE,
            "num_channels",
            *(("rope_temporal_size",) if self.rope_temporal_size is not None else ()),
        ):
            value = getattr(self, name)
            self._require(type(value) is int and value >= 1, name, "a whole number, at least 1")
        self._require(self.num_hidden_layers <= 1024, "num_hidden_layers", "at most 1024")  # files may lie
        for name, choices in CHOICES.items():
            self._require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        heads = self.num_attention_heads
        self._require(
            self.hidden_size % (32 * heads) == 0, "hidden_size", f"a multiple of 32 x {heads} heads"
        )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise InputError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}; it must be {rule}")


class OneVisionPackedConfig(OneVisionConfig):
    """The same encoder over packed rows, which rotates in float32."""

    model_type = "hilm_onevision_packed"
    packed: ClassVar[bool] = True

    rope_compute: str = "float32"
