"""Configuration of ResNet-BK models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig
from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.get_logger(__name__)

COUNTS = (
    "vocab_size",
    "d_model",
    "n_layers",
    "n_seq",
    "num_experts",
    "top_k",
    "d_ff",
    "bk_channels",
    "k_max",
)
SWITCHES = (
    "causal",
    "use_semiseparable",
    "use_birman_schwinger",
    "use_mourre",
    "use_lap",
    "use_scattering_router",
    "use_prime_bump",
    "use_act",
)
CHOICES = {
    "right_closure": ("vacuum", "dirichlet"),
    "position_embedding": ("none", "learned"),
    "core_dtype": ("float32", "float64"),
}
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "dropout_p": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "epsilon": (lambda value: value >= 0, "at least 0"),
    "schatten_threshold": (lambda value: value > 0, "above 0"),
    "scattering_scale": (lambda value: value > 0, "above 0"),
    "act_halt_threshold": (lambda value: 0 < value < 1, "in (0, 1)"),
    "v_max": (lambda value: 0 < value <= 1000, "in (0, 1000]"),  # 8 steps must not overflow float32
    "layer_norm_eps": (lambda value: value > 0, "above 0"),
    "initializer_range": (lambda value: value > 0, "above 0"),
    "prime_bump_scale": (lambda value: value >= 0, "at least 0"),
    "act_loss_coef": (lambda value: value >= 0, "at least 0"),
    "router_aux_loss_coef": (lambda value: value >= 0, "at least 0"),
}
GROUPS = {
    "use_mourre": ("use_birman_schwinger",),
    "use_lap": ("use_birman_schwinger",),
    "schatten_threshold": ("use_birman_schwinger",),
    "epsilon": ("use_birman_schwinger", "use_prime_bump"),
    "core_dtype": ("use_semiseparable",),
    "scattering_scale": ("use_scattering_router",),
    "prime_bump_scale": ("use_prime_bump",),
    "k_max": ("use_prime_bump",),
    "act_halt_threshold": ("use_act",),
    "act_loss_coef": ("use_act",),
}
"""Option → the switches that use it."""

EXPERTS_PLAN = {"moe.experts.up_proj": "colwise", "moe.experts.down_proj": "rowwise"}
MIXER_PLAN = dict.fromkeys(
    ("eta_raw", "energy", "b_raw", "bump_gain", "v_proj", "x_proj", "k_proj", "q_proj"), "colwise"
) | {"feature_proj": "rowwise", "y_proj": "rowwise"}


class ResNetBKConfig(PreTrainedConfig):
    """What a ResNet-BK model is made of.

    Attributes:
        vocab_size: Rows of the embedding.
        d_model: Width of the residual stream.
        n_layers: Layers.
        n_seq: Length of the training sequences; any length is accepted at any time.
        num_experts: Experts per layer.
        top_k: Experts per token.
        dropout_p: Dropout after the embedding and after the experts.
        d_ff: Hidden width of one expert; 2 · d_model when None.
        bk_channels: Tridiagonal operators per layer; max(1, d_model // 8) when None.
        causal: Whether a token sees only the past; False is for encoders.
        right_closure: What follows the last token: a free half line ("vacuum") or nothing ("dirichlet").
        position_embedding: "none", or "learned" with n_seq rows.
        use_semiseparable: Whether the resolvent also mixes a stream of values.
        low_rank: Key and query pairs per channel of that stream; None is one without maps.
        use_birman_schwinger: Whether features are increments of the Birman-Schwinger determinant.
        epsilon: Weakens its coupling by 1 + epsilon; also the exponent of the prime bump.
        use_mourre: Keeps its energies inside the band.
        use_lap: Takes its vacuum closure on the real axis.
        schatten_threshold: Bound of its Hilbert-Schmidt norm.
        use_scattering_router: Whether the scattering phase chooses the experts.
        scattering_scale: Width of an expert's phase interval.
        use_prime_bump: Whether prime powers on the position axis shift the potential.
        prime_bump_scale: Height of these shifts.
        k_max: Highest power.
        use_act: Whether tokens leave the residual stream's updates early.
        act_halt_threshold: Phase, in units of pi, below which they do.
        act_loss_coef: Weight of the mean number of layers used in the loss.
        v_max: Bound of the potential.
        eta_min: Smallest width; 1 / eta is the memory in tokens.
        eta_init: Smallest width at initialisation.
        core_dtype: Precision of the mixed values, whatever that of the model; Green's functions are float64.
        router_aux_loss_coef: Weight of the load balance in the training loss.
        output_router_logits: Whether outputs carry the router's logits.
        layer_norm_eps: Of the layer norms.
        initializer_range: Deviation of initial weights.
        use_cache: Whether to return the state after the last token.
        pad_token_id: Padding.
        bos_token_id: Begin of a text.
        eos_token_id: End of a text.
        tie_word_embeddings: Whether the head shares the embedding.

    Raises:
        ValueError: A value breaks a rule; the message names the field, the value and the rule.
    """

    model_type = "resnet_bk"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "n_seq",
        "intermediate_size": "d_ff",
        "num_experts_per_tok": "top_k",
        "num_local_experts": "num_experts",
    }

    vocab_size: int = 30000
    d_model: int = 256
    n_layers: int = 8
    n_seq: int = 2048
    num_experts: int = 4
    top_k: int = 1
    dropout_p: float = 0.0
    d_ff: int = None  # type: ignore[assignment]  # __post_init__ fills it in
    bk_channels: int = None  # type: ignore[assignment]  # the same
    causal: bool = True
    right_closure: str = "vacuum"
    position_embedding: str = "none"
    use_semiseparable: bool = True
    low_rank: int | None = None
    use_birman_schwinger: bool = False
    epsilon: float = 1.0
    use_mourre: bool = True
    use_lap: bool = True
    schatten_threshold: float = 100.0
    use_scattering_router: bool = False
    scattering_scale: float = 0.1
    use_prime_bump: bool = False
    prime_bump_scale: float = 0.02
    k_max: int = 3
    use_act: bool = False
    act_halt_threshold: float = 0.2
    act_loss_coef: float = 0.0
    v_max: float = 3.0
    eta_min: float = 0.01
    eta_init: float = 0.02
    core_dtype: str = "float32"
    router_aux_loss_coef: float = 0.01
    output_router_logits: bool = False
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in derived widths, then check every field."""
        self.d_ff = 2 * self.d_model if self.d_ff is None else self.d_ff
        self.bk_channels = max(1, self.d_model // 8) if self.bk_channels is None else self.bk_channels
        for alias, field in self.attribute_map.items():  # a saved top_k comes back under its alias
            if alias in kwargs:
                setattr(self, field, kwargs.pop(alias))
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_combinations()
        self.base_model_tp_plan = self._tensor_parallel_plan()

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """Part → how transformers divides it among processes.

        Experts are cut through their hidden units. Operators never talk to each other, so each process owns
        some of them; not where their mean phase decides about a token.
        """
        plan = {"moe.experts": "moe_tp_experts"} | EXPERTS_PLAN
        if not self.use_scattering_router and not self.use_act:
            absent = set() if self.use_prime_bump else {"bump_gain"}
            absent |= set() if self.use_semiseparable else {"x_proj", "y_proj"}
            absent |= set() if self.low_rank else {"k_proj", "q_proj"}
            plan["mixer"] = "local_params"
            plan |= {f"mixer.{name}": how for name, how in MIXER_PLAN.items() if name not in absent}
        return {f"layers.*.{name}": how for name, how in plan.items()}

    def _check_values(self) -> None:
        for name in COUNTS + (("low_rank",) if self.low_rank is not None else ()):
            value = getattr(self, name)
            self._require(type(value) is int and value >= 1, name, "a whole number, at least 1")
        for name in SWITCHES:
            self._require(isinstance(getattr(self, name), bool), name, "True or False")
        for name, choices in CHOICES.items():
            self._require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        for name, (holds, rule) in RANGES.items():
            value = getattr(self, name)
            self._require(type(value) in {int, float} and holds(value), name, rule)

    def _check_combinations(self) -> None:
        self._require(self.top_k <= self.num_experts, "top_k", f"at most num_experts = {self.num_experts}")
        floor = 0.01 if self.core_dtype == "float32" else 1e-4  # rounding of the recurrence grows like 1/eta
        self._require(self.eta_min >= floor, "eta_min", f"at least {floor} in {self.core_dtype}")
        self._require(self.eta_init > self.eta_min, "eta_init", f"above eta_min = {self.eta_min}")
        self._require(not self.use_act or self.n_layers >= 2, "n_layers", "at least 2 with use_act")
        self._require(
            self.use_semiseparable or self.low_rank is None, "low_rank", "None without use_semiseparable"
        )
        if self.use_semiseparable:
            rule = f"a divisor of d_model = {self.d_model} with use_semiseparable"
            self._require(self.d_model % self.bk_channels == 0, "bk_channels", rule)
        for name, switches in GROUPS.items():
            if getattr(self, name) != getattr(type(self), name) and not any(map(self._on, switches)):
                logger.warning_once(f"{name} is set but has no effect without {' or '.join(switches)}")

    def _on(self, switch: str) -> bool:
        return bool(getattr(self, switch))

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"ResNetBKConfig: {name} is {getattr(self, name)!r}; it must be {rule}")

    def to_dict(self) -> dict[str, Any]:
        """Write ``top_k`` as ``num_experts_per_tok``: the former is also a parameter of sampling."""
        values: dict[str, Any] = super().to_dict()
        values["num_experts_per_tok"] = values.pop("top_k")
        return values
