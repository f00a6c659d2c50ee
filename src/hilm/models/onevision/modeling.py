"""The padded and the packed variant of the encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import capture_outputs

from hilm.errors import InputError
from hilm.models.onevision.config import OneVisionConfig, OneVisionPackedConfig
from hilm.models.onevision.layers import OneVisionAttention, OneVisionBlock, OneVisionHead, norm
from hilm.models.onevision.packing import grid_positions, pixel_grid, segment_lengths
from hilm.models.onevision.rope import rotation
from hilm.models.onevision.selection import select_tokens


class OneVisionPreTrainedModel(PreTrainedModel):
    """Initial weights, and the pass from patches to features that both variants share."""

    config_class = OneVisionConfig
    config: OneVisionConfig
    base_model_prefix = "onevision"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["OneVisionBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"attentions": OneVisionAttention}

    def __init__(self, config: OneVisionConfig) -> None:
        super().__init__(config)
        size = config.patch_size
        kernel = nn.Conv2d(config.num_channels, config.hidden_size, size, stride=size, bias=False)
        if config.packed:
            self.patch_embed = nn.ModuleDict({"proj": kernel})
        else:
            self.embeddings = nn.ModuleDict({"patch_embedding": kernel})
        self.layernorm_pre = norm(config)
        blocks = nn.ModuleList(OneVisionBlock(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": blocks})
        if config.use_head:
            self.layernorm_post = norm(config)
            self.head = OneVisionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.MultiheadAttention):
            init.normal_(module.in_proj_weight, std=self.config.initializer_range)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, OneVisionHead):
            init.normal_(module.probe)

    def _encoded(
        self,
        patches: Tensor,
        positions: Tensor,
        lengths: list[int] | None,
        keep: bool | None,
    ) -> BaseModelOutputWithPooling:
        """Encode patches (…, N, C, p, p) that stand at positions (…, N, 3).

        ``hidden_states`` starts with the first norm's output and ends with the last block's, before the
        last norm.
        """
        hidden = self.layernorm_pre(self._embedded(patches))
        angles = rotation(positions.to(hidden.device), self.config, hidden.dtype)
        keep = self.config.output_hidden_states if keep is None else keep
        states = [hidden]
        for block in self.encoder.layers:
            hidden = block(hidden, angles, lengths)
            states = [*states, hidden] if keep else []
        pooled = None
        if self.config.use_head:
            hidden = self.layernorm_post(hidden)
            samples = [hidden] if lengths is None else hidden[None].split(lengths, 1)
            pooled = torch.cat([self.head(sample) for sample in samples])
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=pooled, hidden_states=tuple(states) if keep else None
        )

    def _embedded(self, patches: Tensor) -> Tensor:
        kernel = self.patch_embed.proj if self.config.packed else self.embeddings.patch_embedding
        if patches.dtype != kernel.weight.dtype:
            raise InputError(f"pixels are {patches.dtype}, the model is {kernel.weight.dtype}")
        if self.config.patch_embed == "linear":
            return nn.functional.linear(patches.flatten(-3), kernel.weight.flatten(1))
        embedded: Tensor = kernel(patches.flatten(0, -4)).flatten(1)
        return embedded.view(*patches.shape[:-3], -1)


class OneVisionModel(OneVisionPreTrainedModel):
    """The padded variant: a batch of pictures or clips of one size."""

    main_input_name = "pixel_values"

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        visible_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
        frame_slots: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode visible tokens; no other is embedded.

        Args:
            pixel_values: (B, C, H, W) or (B, C, T, H, W), sides multiples of the patch, dtype of the model.
            visible_indices: (B, N) int64 indices into the virtual clip, frame by frame, row by row: which
                tokens, and at which slots. All tokens when None.
            patch_positions: (B, N, 3) integers that take the place of slot, row and column.
            frame_slots: (B, T) int64 slots of the frames in the virtual clip, which has
                ``rope_temporal_size`` frames.
            output_hidden_states: Whether to return the stream before and after every block.
            kwargs: return_dict; output_attentions, with the eager implementation only.

        Returns:
            last_hidden_state (B, N, D), pooler_output (B, D), hidden_states of L + 1 entries (B, N, D).

        Raises:
            InputError: Shapes, dtypes or indices do not fit; the message says which.
        """
        eager = self.config._attn_implementation == "eager"  # noqa: SLF001 - set_attn_implementation() writes it
        if kwargs.get("output_attentions") and not eager:
            raise InputError("only the eager attention has probabilities", hint='attn_implementation="eager"')
        clips = pixel_values[:, :, None] if pixel_values.ndim == 4 else pixel_values
        if clips.ndim != 5 or clips.shape[1] != self.config.num_channels:
            raise InputError(
                f"pixel_values are {tuple(pixel_values.shape)}; they must be (B, C, H, W) or (B, C, T, H, W) "
                f"with {self.config.num_channels} channels"
            )
        grid = pixel_grid(clips, self.config.patch_size)
        size = (grid.shape[0], *grid.shape[2:4], grid.shape[5])
        sources, positions = select_tokens(size, self.config.rope_temporal_size, visible_indices, frame_slots)
        frame, row, column = sources.to(grid.device).unbind(-1)
        sample = torch.arange(len(grid), device=grid.device)[:, None]
        patches = grid[sample, :, frame, row, :, column]
        return self._encoded(
            patches, _checked_positions(patch_positions, positions), None, output_hidden_states
        )


class OneVisionPackedModel(OneVisionPreTrainedModel):
    """The packed variant: pictures and clips of any sizes, one after the other, without padding."""

    config_class = OneVisionPackedConfig
    main_input_name = "hidden_states"

    @capture_outputs
    def forward(
        self,
        hidden_states: Tensor,
        grid_thw: Tensor,
        patch_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode every segment by itself.

        Args:
            hidden_states: Patches (S, C · p · p), each laid out (C, y, x), dtype of the model.
            grid_thw: (n, 3) int64 frames, rows and columns of each segment; their products sum to S.
            patch_positions: (S, 3) integers: slot, row, column. Slots are 0 … T - 1 when None.
            output_hidden_states: Whether to return the stream before and after every block.
            kwargs: return_dict.

        Returns:
            last_hidden_state (S, D), pooler_output (n, D), hidden_states of L + 1 entries (S, D).

        Raises:
            InputError: Shapes, dtypes or counts do not fit; the message names the segment.
        """
        del kwargs
        size, channels = self.config.patch_size, self.config.num_channels
        if hidden_states.shape[1:] != (channels * size**2,):
            raise InputError(
                f"patches are {tuple(hidden_states.shape)}; they must be (S, {channels * size**2})"
            )
        lengths = segment_lengths(grid_thw, len(hidden_states))
        default = [grid_positions(torch.arange(t), h, w) for t, h, w in grid_thw.tolist()]
        positions = _checked_positions(patch_positions, torch.cat(default))
        patches = hidden_states.unflatten(-1, (channels, size, size))
        return self._encoded(patches, positions, lengths, output_hidden_states)


def _checked_positions(given: Tensor | None, default: Tensor) -> Tensor:
    if given is None:
        return default
    if given.shape != default.shape or given.is_floating_point():
        raise InputError(
            f"patch_positions are {given.dtype} {tuple(given.shape)}; they must be whole numbers "
            f"{tuple(default.shape)}"
        )
    return given
