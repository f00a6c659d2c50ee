"""ResNet-BK: a language model that mixes tokens in O(N) by Green's functions of tridiagonal operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_resnet_bk import ResNetBKCache
from .configuration_resnet_bk import ResNetBKConfig
from .experts import ResNetBKExperts, ResNetBKMoE, ScatteringRouter, load_balance
from .mixer import ResNetBKMixer, prime_bumps, scattering_phase

if TYPE_CHECKING:
    from transformers import GenerationConfig

HALTED = 0.01
"""Survival at which a token's updates end."""


@dataclass
class ResNetBKModelOutput(MoeModelOutputWithPast):
    """Adds the mean number of layers a token used, a scalar, with ``use_act``."""

    mean_depth: Tensor | None = None


@dataclass
class ResNetBKLMOutput(MoeCausalLMOutputWithPast):
    """Adds the mean number of layers a token used, a scalar, with ``use_act``."""

    mean_depth: Tensor | None = None


class ResNetBKLayer(GradientCheckpointingLayer):
    """Residual update by the mixer and the experts, side by side behind one norm."""

    def __init__(self, config: ResNetBKConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.mixer = ResNetBKMixer(config)
        self.moe = ResNetBKMoE(config)
        self.dropout = nn.Dropout(config.dropout_p)
        self.halting = Halting(config) if config.use_act and layer_idx < config.n_layers - 1 else None

    def forward(
        self,
        hidden: Tensor,
        survival: Tensor | None,
        keep: Tensor | None,
        bumps: Tensor | None,
        past_key_values: ResNetBKCache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Update the stream.

        Args:
            hidden: (B, N, d).
            survival: (B, N), how much of this update a token takes; all when None.
            keep: (B, N) bool mask.
            bumps: (B, N) prime bumps.
            past_key_values: Advanced.

        Returns:
            The stream, the survival, and the router's logits (B · N, M).
        """
        past = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        normed = self.norm(hidden)
        mixed, green = self.mixer(normed, keep, bumps, past)
        active = None if survival is None else survival > HALTED
        answer, logits = self.moe(normed, green, active)
        update = mixed + self.dropout(answer)
        if survival is not None:
            share = ((survival - HALTED) / (1 - HALTED)).clamp_min(0)
            update = update * share[..., None].to(update.dtype)
            survival = survival if self.halting is None else survival * (1 - self.halting(green))
        return hidden + update, survival, logits


class Halting(nn.Module):
    """Probability that a token's updates end after this layer: the smaller its phase, the likelier."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.threshold = config.act_halt_threshold
        self.slope = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, green: Tensor) -> Tensor:
        """Return (B, N) for Green's functions (B, N, H, 2)."""
        return torch.sigmoid(self.slope * (self.threshold - scattering_phase(green)) + self.bias)


class ResNetBKPreTrainedModel(PreTrainedModel):
    """Initial weights, loading and saving."""

    config_class = ResNetBKConfig
    config: ResNetBKConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ResNetBKLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["eta_raw", "energy", "b_raw", "bump_gain"]
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": ResNetBKLayer}

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for the decorator in this file; it is in experts.py

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Default to "eager", whose rounding of a token does not depend on how others are routed."""
        name: str = super().get_correct_experts_implementation(requested_experts or "eager")
        return name

    @classmethod
    def maybe_distribute_model(
        cls, model: ResNetBKPreTrainedModel, distributed_config: Any, mesh: Any
    ) -> Any:
        """Divide a model among processes; each gets whole operators.

        Raises:
            ValueError: Their number is not a multiple of the processes' number.
        """
        size = 1 if distributed_config is None else distributed_config.tp_size
        channels = model.config.bk_channels
        if channels % size and "layers.*.mixer" in model.config.base_model_tp_plan:
            raise ValueError(f"bk_channels is {channels}; {size} processes need a multiple of {size}")
        return super().maybe_distribute_model(model, distributed_config, mesh)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ResNetBKMixer):
            self._init_mixer(module)
        elif isinstance(module, ResNetBKExperts):
            init.normal_(module.up_proj, std=self.config.initializer_range)
            init.normal_(module.down_proj, std=self.config.initializer_range)
        elif isinstance(module, ScatteringRouter):
            init.constant_(module.gamma, module.initial_gamma)
            init.zeros_(module.beta)
        elif isinstance(module, Halting):
            init.constant_(module.slope, 10.0)
            init.constant_(module.bias, -4.0)

    def _init_mixer(self, mixer: ResNetBKMixer) -> None:
        """Memories from one token up to 1/eta_init, energies across the middle of the band."""
        channels, single = self.config.bk_channels, torch.float32
        eta = torch.logspace(0, math.log10(self.config.eta_init), channels, dtype=single)
        width = (eta - self.config.eta_min).clamp_min(1e-3)
        init.copy_(mixer.eta_raw, width + (-(-width).expm1()).log())  # inverse of softplus
        energy = torch.linspace(-1, 1, channels, dtype=single)
        init.copy_(mixer.energy, energy if channels > 1 else 0 * energy)
        init.zeros_(mixer.b_raw)
        init.ones_(mixer.bk_scale)
        if self.config.use_prime_bump:
            init.ones_(mixer.bump_gain)


class ResNetBKModel(ResNetBKPreTrainedModel):
    """The stack of layers, without a head. Any length is accepted, also 0."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.n_seq, config.d_model)
        self.dropout = nn.Dropout(config.dropout_p)
        self.layers = nn.ModuleList(ResNetBKLayer(config, index) for index in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ResNetBKCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> ResNetBKModelOutput:
        """Return the last hidden states.

        Args:
            input_ids: (B, N) integers below vocab_size; or ``inputs_embeds``.
            attention_mask: (B, past + N); tokens where it is 0 change nothing, wherever they stand.
            position_ids: (B, N); counted from the mask when None.
            past_key_values: State after the tokens before; advanced in place.
            inputs_embeds: (B, N, d).
            use_cache: Whether to return the state after the last token.
            output_router_logits: Whether to return each layer's router logits, (B · N, M).
            kwargs: output_hidden_states and return_dict.

        Raises:
            ValueError: Not one of ids and embeddings, an unknown id, or ids or a mask of another shape.
        """
        del kwargs
        if use_cache and past_key_values is None:
            past_key_values = ResNetBKCache(self.config)
        past_key_values = past_key_values if self.config.causal else None
        hidden = self._embedded(input_ids, inputs_embeds)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        keep = checked_mask(attention_mask, hidden.shape[0], seen, hidden.shape[1])
        hidden, bumps = self._placed(
            hidden, positions(keep, seen, hidden) if position_ids is None else position_ids
        )
        keep = None if keep is None else keep[:, seen:]
        survival = torch.ones(hidden.shape[:2], device=hidden.device) if self.config.use_act else None
        depth, routes = [survival], []
        for layer in self.layers:
            hidden, survival, route = layer(hidden, survival, keep, bumps, past_key_values=past_key_values)
            depth.append(survival)
            routes.append(route)
        return ResNetBKModelOutput(
            last_hidden_state=self.norm(hidden),
            past_key_values=past_key_values if use_cache else None,
            router_logits=tuple(routes) if output_router_logits else None,
            mean_depth=mean_depth(depth[:-1], keep) if self.config.use_act else None,
        )

    def mourre_constants(self) -> Tensor:
        """Return 4 b^2 - E^2 of every operator, (L, H): positive inside the band, where states travel."""
        operators = [layer.mixer.operator(torch.float32) for layer in self.layers]
        return torch.stack([4 * operator.b.square() - operator.energy.square() for operator in operators])

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is None:
            return inputs_embeds
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids is {tuple(input_ids.shape)}; it must be (batch, tokens)")
        if input_ids.is_cpu and input_ids.numel() and not torch.compiler.is_compiling():
            rows = self.embed_tokens.num_embeddings
            low, high = map(int, input_ids.aminmax())
            if low < 0 or high >= rows:
                raise ValueError(
                    f"input_ids from {low} to {high}, but the model has {rows} embeddings, from 0: create it "
                    "with tokenizer=… or call resize_token_embeddings"
                )
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def _placed(self, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add learned positions; return the stream and the prime bumps, (B, N), of these positions."""
        if self.config.position_embedding == "learned":
            hidden = hidden + self.embed_positions(position.clamp(0, self.config.n_seq - 1))
        if not self.config.use_prime_bump:
            return self.dropout(hidden), None
        largest = int(position.max()) + 1 if position.numel() else 0
        table = prime_bumps(1 << max(4, largest.bit_length()), self.config.k_max, self.config.epsilon)
        return self.dropout(hidden), table.to(position.device)[position + 1]


def positions(keep: Tensor | None, seen: int, hidden: Tensor) -> Tensor:
    """Count kept tokens: (B, N), or (1, N) without a mask."""
    if keep is None:
        return torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
    return (keep.long().cumsum(1) - 1).clamp_min(0)[:, seen:]


def checked_mask(mask: Tensor | None, batch: int, seen: int, length: int) -> Tensor | None:
    """Return the mask as bool, (B, seen + N); None when it masks nothing.

    Raises:
        ValueError: It has another shape.
    """
    if mask is None:
        return None
    if mask.shape != (batch, seen + length):
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}; it must be {(batch, seen + length)}: batch, "
            f"{seen} tokens in the cache + {length} new"
        )
    keep = mask.bool()
    return None if not torch.compiler.is_compiling() and bool(keep.all()) else keep


def mean_depth(depth: list[Tensor], keep: Tensor | None) -> Tensor:
    """Average the sum of survivals over kept tokens."""
    used = torch.stack(depth).sum(0)
    return used.mean() if keep is None else (used * keep).sum() / keep.sum().clamp_min(1)


class ResNetBKLMHead(ResNetBKPreTrainedModel):
    """A head over the vocabulary, and its loss."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__(config)
        self.model = ResNetBKModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: D417 - the other arguments are documented at ResNetBKModel
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ResNetBKCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ResNetBKLMOutput:
        """Return logits, and with ``labels`` the loss; other arguments as in :meth:`ResNetBKModel.forward`.

        Args:
            labels: (B, N); -100 is left out.
            output_router_logits: Whether to return the router's logits and the load balance.
            logits_to_keep: How many last positions, or which ones, to compute logits for; 0 is all.
            kwargs: Passed to the loss (num_items_in_batch) and to the model.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        balanced = self.training and labels is not None and self.config.router_aux_loss_coef > 0
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits or balanced,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        aux_loss = loss = None
        if outputs.router_logits:
            new = None if attention_mask is None else attention_mask[:, -outputs.last_hidden_state.shape[1] :]
            aux_loss = load_balance(outputs.router_logits, self.config.top_k, new)
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
            loss = self._penalised(loss, aux_loss if balanced else None, outputs.mean_depth)
        names = {"past_key_values", "hidden_states", "mean_depth"} & outputs.keys()
        routes = outputs.router_logits if output_router_logits else None
        return ResNetBKLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            router_logits=routes,
            **{name: outputs[name] for name in names},
        )

    def _penalised(self, loss: Tensor, balance: Tensor | None, depth: Tensor | None) -> Tensor:
        """Add what unbalanced experts and many layers cost."""
        if balance is not None:
            loss = loss + self.config.router_aux_loss_coef * balance
        return loss if depth is None else loss + self.config.act_loss_coef * depth


class ResNetBKForCausalLM(ResNetBKLMHead, GenerationMixin):
    """Predicts the next token. No token sees a later one, whatever is switched on.

    Raises:
        ValueError: The configuration is not causal.
    """

    def __init__(self, config: ResNetBKConfig) -> None:
        if not config.causal:
            raise ValueError(
                "causal is False; ResNetBKForCausalLM needs True (ResNetBKForMaskedLM is for False)"
            )
        super().__init__(config)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Tensor | None, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str, dict[str, Any]]:
        """Let an empty prompt, (B, 0), begin a text."""
        prompt, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        if prompt.shape[1]:
            return prompt, name, model_kwargs
        begin, name, _ = super()._prepare_model_inputs(None, bos_token_id, {})
        if model_kwargs.get("attention_mask") is not None:
            model_kwargs["attention_mask"] = begin.new_ones(len(prompt), 1)
        return begin.expand(len(prompt), 1), name, model_kwargs

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Start ``generate`` with an empty state, unless the caller brought one.

        Raises:
            ValueError: Another kind of cache is asked for, or a text is padded on the right.
        """
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError("generate continues the last token of every row: pad on the left")
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: ResNet-BK has one cache, "
                "of fixed size; leave it out"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = ResNetBKCache(self.config)
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


class ResNetBKForMaskedLM(ResNetBKLMHead):
    """Predicts masked tokens from both sides.

    Raises:
        ValueError: The configuration is causal.
    """

    def __init__(self, config: ResNetBKConfig) -> None:
        if config.causal:
            raise ValueError("causal is True; ResNetBKForMaskedLM needs causal=False")
        super().__init__(config)


class ResNetBKForSequenceClassification(GenericForSequenceClassification, ResNetBKPreTrainedModel):
    """Classifies a text by its last token."""


class ResNetBKForTokenClassification(GenericForTokenClassification, ResNetBKPreTrainedModel):
    """Classifies every token."""


class ResNetBKForQuestionAnswering(GenericForQuestionAnswering, ResNetBKPreTrainedModel):
    """Finds a span that answers."""


AutoModel.register(ResNetBKConfig, ResNetBKModel, exist_ok=True)  # the generic heads above look it up
