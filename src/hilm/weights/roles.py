"""What a tensor is for, told from its name alone.

A name is split at ``.`` and ``/`` into components, a component into words at ``_``, ``-``, digits and
camel case. Vocabularies are matched against whole words, never substrings: ``word_embeddings`` does not
contain ``wo``. The first of these rules that fires gives the type:

====  =============  ==========================================================================
rule  type           fires when
====  =============  ==========================================================================
N     normalization  the last module component has a norm word (``norm1.linear`` does not count)
O     output         a component names a head, and no integer stands to its left
E     embedding      a component names an embedding, and no attention stands to its left
A     attention      a component has an attention word, or is a bare projection (``q_proj``) with
                     neither an MLP nor a state-space mixer around it
M     mlp            a component names a feed-forward part or expert, or is ``output`` in a block
X     other          nothing above
====  =============  ==========================================================================
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from hilm.errors import UnknownLayerType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LAYER_TYPES = ("embedding", "attention", "mlp", "normalization", "output", "other")

ALIASES = {"norm": "normalization", "embeddings": "embedding", "ffn": "mlp", "head": "output"}

# What a component can be marked as, one bit each; the rules combine them.
(
    _NORM,
    _OUTPUT,
    _EMBEDDING,
    _SHARED,
    _ATTENTION,
    _PROJECTION,
    _MLP,
    _FEED,
    _LAYER_OUTPUT,
    _MIXER,
    _BK,
    _EXPERT,
    _INDEX,
) = (1 << bit for bit in range(13))
_RULES = (
    (_NORM, "N", "normalization"),
    (_OUTPUT, "O", "output"),
    (_EMBEDDING, "E", "embedding"),
    (_ATTENTION, "A", "attention"),
    (_MLP, "M", "mlp"),
)

# A pattern is a word, two words in a row (a_b), a whole component (=name) or the last word (word$).
_MARKS = {
    # "layrnorm" is how CLIP spells it
    _NORM: "norm layernorm rmsnorm batchnorm groupnorm instancenorm layrnorm ln bn",
    _OUTPUT: "=lm_head =embed_out =proj_out =classifier =score =qa_outputs =cls =predictions "
    "=seq_relationship =output =logits head heads",
    _EMBEDDING: "embed embeds embedding embeddings embd wte wpe position positions positional token$ tokens$",
    _SHARED: "=shared",
    _ATTENTION: "attention attn mha selfattention crossattention",
    _PROJECTION: "=q_proj =k_proj =v_proj =o_proj =out_proj =qkv =wqkv =query =key =value =query_key_value",
    _MLP: "mlp ffn intermediate fc moe expert experts router feed_forward feedforward",
    _FEED: "=ff =up_proj =down_proj =gate_proj =gate_up_proj =w1 =w2 =w3 =wi =wi_0 =wi_1 =wo "
    "=dense_h_to_4h =dense_4h_to_h =lin1 =lin2",
    _LAYER_OUTPUT: "=output",  # of BERT's blocks
    _MIXER: "mixer ssm mamba",
    _BK: "=bk =bk_layer",
    _EXPERT: "expert experts",
}

# Leaves say which array of a module this is; they are dropped before the rules look at the name.
_LEAVES: Mapping[str, str | None] = {
    leaf: kind
    for kind, leaves in {
        None: "weight kernel default lora_a lora_b lora_embedding_a lora_embedding_b qweight weight_packed",
        "bias": "bias beta",
        "scale": "gamma scale scales magnitude lora_magnitude_vector absmax weight_scale weight_scale_inv "
        "input_scale scb",
        "buffer": "running_mean running_var num_batches_tracked qzeros g_idx weight_zero_point weight_shape "
        "quant_map quant_state",
    }.items()
    for leaf in leaves.split()
}

_COMMON_KINDS = (
    ("buffer", "ids index masked inv_freq freqs attn_mask cos_cached sin_cached"),
    ("bias", "bias"),
)
# Per type, in order: the kind of a component is the first entry that matches it.
_KINDS = {
    "embedding": (
        ("segment", "token_type token_types segment segments"),
        ("special", "cls mask class dist distillation register reg"),
        ("patch", "patch"),
        ("position", "wpe position positions positional pos"),
        ("time", "time timestep"),
        ("token", "token tokens word wte shared embd embed embeds embedding embeddings"),
    ),
    "attention": (
        ("scale", "scale"),
        ("qkv", "qkv wqkv in =query_key_value =c_attn"),
        ("kv", "kv wkv"),
        ("q", "q query wq"),
        ("k", "k key wk"),
        ("v", "v value wv"),
        ("o", "o out output wo proj dense"),
    ),
    "mlp": (
        ("router", "router gating inp =gate =shared_expert_gate"),
        ("gate_up", "gate_up"),
        ("gate", "gate_proj ffn_gate =w1 =wi_0"),
        ("up", "up_proj ffn_up =fc1 =c_fc =w3 =wi =wi_1 =lin1 =dense_h_to_4h =intermediate"),
        ("down", "down_proj ffn_down =fc2 =c_proj =w2 =wo =lin2 =dense_4h_to_h =output"),
    ),
    "normalization": (),
    "output": (("projection", "transform"),),
    "other": (
        ("conv", "conv convolution dwconv pwconv"),
        ("pool", "pool pooler"),
        ("modulation", "norm layernorm modulation adaln scale_shift"),
        ("scale", "scale ls"),
        ("projection", "projection projector"),
    ),
}
_DEFAULT_KIND = {"normalization": "scale", "output": "head"}
_LATE_KINDS = ("ssm", "head", "scale", "bias", "buffer", "unknown")
KINDS = (
    *dict.fromkeys(kind for kinds in _KINDS.values() for kind, _ in kinds if kind not in _LATE_KINDS),
    *_LATE_KINDS,
)
"""Every kind a role can have, in the order people list them."""

_MARKS_OF = {
    pattern: sum(mark for mark, patterns in _MARKS.items() if pattern in patterns.split())
    for pattern in " ".join(_MARKS.values()).split()
}
_RANKS = {
    layer_type: {
        pattern: (rank, kind)
        for rank, (kind, patterns) in enumerate((*_COMMON_KINDS, *kinds))
        for pattern in patterns.split()
    }
    for layer_type, kinds in _KINDS.items()
}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# A whole component of digits; longer ones are no layer index, and int() refuses thousands of digits.
_INTEGER = re.compile(r"(?<![^./])([0-9]{1,9})(?![^./])")


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is for.

    Attributes:
        type: One of `LAYER_TYPES`.
        kind: What it does within its type: q k v o qkv kv, up gate down gate_up router, token position
            segment special patch time, head, conv ssm pool modulation projection, and for any type
            scale, bias or buffer (masks, indices, running statistics); ``unknown`` when nothing is.
        block: The first integer of the path that does not number an expert; None outside blocks.
        expert: The integer after ``experts``; None elsewhere.
        rule: The letter of the rule that fired.
    """

    type: str
    kind: str
    block: int | None
    expert: int | None
    rule: str


class _Verdict(NamedTuple):
    """A role whose integers are still places: the n-th integer of the name, or None."""

    type: str
    kind: str
    block: int | None
    expert: int | None
    rule: str


def classify(name: str, shape: tuple[int, ...] | None = None) -> Role:
    """Tell the role of a tensor from its name.

    Args:
        name: Name as stored.
        shape: Only breaks a tie: ``shared`` is an embedding table if it is two-dimensional or unknown.
    """
    is_table = shape is None or len(shape) == 2
    # All integers are alike to the rules, so the layers of a model share one cached verdict.
    pieces = _INTEGER.split(name)
    verdict = _judge("0".join(pieces[::2]), is_table)
    block = None if verdict.block is None else int(pieces[2 * verdict.block + 1])
    expert = None if verdict.expert is None else int(pieces[2 * verdict.expert + 1])
    return Role(verdict.type, verdict.kind, block, expert, verdict.rule)


def resolve_layer_types(names: Iterable[str]) -> frozenset[str]:
    """Resolve names a person typed to layer types.

    Args:
        names: Types or aliases (norm, embeddings, ffn, head) in any case; commas separate several.

    Raises:
        UnknownLayerType: A name is neither; the hint has the nearest one.
    """
    words = (word.strip().lower() for text in names for word in text.split(","))
    return frozenset(_resolve(word) for word in words if word)


def _resolve(word: str) -> str:
    layer_type = ALIASES.get(word, word)
    if layer_type not in LAYER_TYPES:
        nearest = difflib.get_close_matches(word, [*LAYER_TYPES, *ALIASES], n=1, cutoff=0.0)[0]
        raise UnknownLayerType(
            f"unknown layer type {word!r}",
            hint=f"did you mean {nearest!r}? The types are {', '.join(LAYER_TYPES)}",
        )
    return layer_type


@lru_cache(maxsize=1 << 14)
def _judge(name: str, is_table: bool) -> _Verdict:  # noqa: FBT001 - private, part of the cache key
    path = name.replace("/", ".").split(".")
    kind = _drop_leaves(path)
    left = parent = fired = marks = integers = 0
    block: int | None = None
    expert: int | None = None
    for component in path:
        marks = _read(component)
        fired |= _fire(marks, left, parent)
        if marks & _INDEX:
            if parent & _EXPERT:
                expert = integers
            elif block is None:
                block = integers
            integers += 1
        left |= marks
        parent = marks
    fired |= marks & _NORM
    if marks & _SHARED and is_table and not left & _ATTENTION:
        fired |= _EMBEDDING
    rule, layer_type = _first_rule(fired)
    if kind is None:
        kind = "ssm" if rule == "X" and left & (_MIXER | _BK) else _kind(layer_type, path)
    return _Verdict(layer_type, kind, None if rule == "O" else block, expert, rule)


def _drop_leaves(path: list[str]) -> str | None:
    """Remove trailing leaves, keeping one component; return the kind that they tell, if any."""
    kind = None
    while len(path) > 1 and (leaf := path[-1].lower()) in _LEAVES:
        path.pop()
        kind = kind or _LEAVES[leaf]
    # GPT-2 and GPT-NeoX store the causal mask as the "bias" of the attention module itself.
    return "buffer" if kind == "bias" and path[-1] in {"attn", "attention"} else kind


def _fire(marks: int, left: int, parent: int) -> int:
    """Rules that one component fires, given the marks of all to its left and of its parent."""
    fired = marks & (_ATTENTION | _MLP)
    if marks & _OUTPUT and not left & _INDEX:
        fired |= _OUTPUT
    if marks & _EMBEDDING and not left & _ATTENTION:
        fired |= _EMBEDDING
    if marks & _PROJECTION and not left & (_MLP | _MIXER) and not parent & _BK:
        fired |= _ATTENTION
    if marks & _FEED or (marks & _LAYER_OUTPUT and left & _INDEX and not left & _ATTENTION):
        fired |= _MLP
    return fired


def _first_rule(fired: int) -> tuple[str, str]:
    for mark, rule, layer_type in _RULES:
        if fired & mark:
            return rule, layer_type
    return "X", "other"


def _kind(layer_type: str, path: list[str]) -> str:
    """Kind told by the rightmost component that tells one."""
    for component in reversed(path):
        if kind := _component_kind(layer_type, component):
            return kind
    return _DEFAULT_KIND.get(layer_type, "unknown")


def _patterns(component: str) -> list[str]:
    """Every pattern that a component matches."""
    words = [word.lower() for word in _WORD.findall(component)]
    pairs = [f"{first}_{second}" for first, second in pairwise(words)]
    last = [f"{word}$" for word in words[-1:]]
    return [*words, *pairs, *last, f"={component.lower()}"]


@lru_cache(maxsize=1 << 14)
def _read(component: str) -> int:
    """Marks of one component, or-ed."""
    if component == "0":
        return _INDEX
    marks = 0
    for pattern in _patterns(component):
        marks |= _MARKS_OF.get(pattern, 0)
    if marks & _ATTENTION:
        marks &= ~_OUTPUT  # attention_heads
    if marks & _MLP:
        marks &= ~_EMBEDDING  # mlp_tokens
    return marks


@lru_cache(maxsize=1 << 14)
def _component_kind(layer_type: str, component: str) -> str | None:
    ranks = _RANKS[layer_type]
    found = min((ranks[pattern] for pattern in _patterns(component) if pattern in ranks), default=None)
    return None if found is None else found[1]
