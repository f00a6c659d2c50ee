from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hilm.errors import InputError
from hilm.models import onevision
from hilm.models.onevision import OneVisionConfig, OneVisionModel, pack, virtual_slots
from hilm.models.onevision.layers import OneVisionBlock
from tests.models.onevision.tiny import PATCH, SHAPE, equal, levels, packed, padded, pixels, run, run_packed

PICTURE = [
    ([1.38175, -0.93299, 1.61236, 0.50164], [0.17996, 0.64237, 1.40751, 0.20010], 39.27002),
    ([1.91449, -0.19132, 1.91633, 0.06741], [-0.01540, 1.42696, 0.80354, 1.14920], 52.01462),
    ([3.28098, -2.38020, 2.56079, 0.32439], [0.94369, 1.96314, 0.98473, 1.42576], 63.10754),
    ([-0.11540, -0.02720, 1.62726, 0.22725], None, 11.51449),
]
CLIP = [
    ([1.38175, -0.93299, 1.61236, 0.50164], [-1.46792, 0.52516, -0.99838, -1.29650], 48.15488),
    ([1.61338, -0.13518, 1.15157, -0.44527], [-2.11924, 2.61205, -0.62207, -1.55875], 62.16167),
    ([2.05540, -2.98243, 0.42665, 0.91950], [-3.19848, 2.76198, -1.84436, -1.38197], 75.55816),
    ([0.06044, -0.48867, 2.16756, -1.06426], None, 10.94076),
]
"""What the public original computes with these weights: hidden states 0, 1 and -2, and the pooled output."""
SLOTS = torch.tensor([0, 32, 63])
STYLES = [
    {}, {"hidden_size": 192}, {"layer_norm_type": "rms_norm"}, {"use_head": False}, {"rope_style": "halves"},
    {"patch_embed": "linear"}, {"patch_size": 7}, {"rope_compute": "float32"},
]  # fmt: skip


def samples():
    """One token, pictures, a clip with slots, one without: every shape of sample."""
    shapes = [(1, 14, 14), (1, 42, 56), (1, 70, 28), (3, 28, 42), (2, 56, 14), (1, 14, 98), (1, 84, 84)]
    clips = [pixels(*shape) for shape in shapes]
    return [(clip, SLOTS if clip.shape[1] == 3 else None) for clip in clips]


def assert_conforms(out, expected, rows=slice(None)):
    states = [out.hidden_states[i].flatten(0, -2)[rows] for i in (0, 1, -2)]
    for tensor, (first, last, norm) in zip([*states, out.pooler_output], expected, strict=True):
        flat = tensor.flatten()
        torch.testing.assert_close(flat[:4], torch.tensor(first), atol=5e-5, rtol=0)
        if last is not None:
            torch.testing.assert_close(flat[-4:], torch.tensor(last), atol=5e-5, rtol=0)
        assert abs(float(tensor.norm()) - norm) < 5e-5


def test_the_vector_is_made_as_described():
    weights = padded().state_dict()
    assert (len(weights), sum(value.numel() for value in weights.values())) == (63, 605_440)
    row = weights["encoder.layers.0.self_attn.q_proj.weight"][0, :4]
    torch.testing.assert_close(
        row, torch.tensor([0.100515, -0.093424, -0.068774, -0.025058]), atol=1e-6, rtol=0
    )
    assert (levels(1, 42, 56).sum(), levels(3, 28, 42).sum()) == (903564, 1347106)


def test_both_variants_compute_what_the_original_computes(tmp_path):
    model = padded()
    model.save_pretrained(tmp_path)
    for made in (model, OneVisionModel.from_pretrained(tmp_path).eval()):
        assert_conforms(run(made, pixels(1, 42, 56)[None]), PICTURE)
        assert_conforms(run(made, pixels(3, 28, 42)[None], frame_slots=SLOTS[None]), CLIP)
    assert_conforms(run_packed(packed(model), [(pixels(1, 42, 56), None)]), PICTURE)
    both = run_packed(packed(model), [(pixels(1, 42, 56), None), (pixels(3, 28, 42), SLOTS)])
    for index, (rows, expected) in enumerate(((slice(0, 12), PICTURE), (slice(12, None), CLIP))):
        part = both.copy()
        part["pooler_output"] = both.pooler_output[index]
        assert_conforms(type(both)(**part), expected, rows)


def test_other_styles_do_not_conform():
    with pytest.raises(AssertionError):
        assert_conforms(run(padded(rope_style="halves"), pixels(1, 42, 56)[None]), PICTURE)


@pytest.mark.parametrize("fields", STYLES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_and_packed_agree_to_the_bit_one_sample_per_forward(fields, dtype):
    model = padded(dtype, **fields)
    other = packed(model)
    for clip, slots in samples():
        alone = run(model, clip.to(dtype)[None], frame_slots=None if slots is None else slots[None])
        batch = pack([(clip.to(dtype), slots)], model.config.patch_size)
        assert equal(alone, run(other, batch.patches, batch.grid_thw, batch.patch_positions))


def test_a_pack_of_many_differs_by_rounding():
    model = padded()
    out = run_packed(packed(model), samples())
    start = 0
    for index, (clip, slots) in enumerate(samples()):
        alone = run(model, clip[None], frame_slots=None if slots is None else slots[None])
        rows = slice(start, start := start + alone.last_hidden_state.shape[1])
        for one, many in zip(alone.hidden_states, out.hidden_states, strict=True):
            assert (many[rows] - one[0]).norm() <= 2e-6 * one.norm()
        assert (out.pooler_output[index] - alone.pooler_output[0]).norm() <= 2e-6 * alone.pooler_output.norm()


def test_neighbours_in_a_pack_see_nothing_of_each_other():
    model = packed(padded())
    one, other = samples(), samples()
    other[2] = (other[2][0].flip(-1), None)
    first, second = run_packed(model, one), run_packed(model, other)
    changed = (first.last_hidden_state != second.last_hidden_state).any(-1)
    assert changed.nonzero()[:, 0].tolist() == list(range(13, 23))
    assert (first.pooler_output != second.pooler_output).any(-1).nonzero()[:, 0].tolist() == [2]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_loop_is_attention_behind_a_block_mask(implementation):
    """The oracle: all samples as one, and a mask that cuts the connections between them."""
    model = packed(padded(torch.float64))
    model.set_attn_implementation(implementation)
    batch = pack(samples(), PATCH)
    owner = torch.repeat_interleave(batch.grid_thw.prod(-1))
    attention = model.encoder.layers[0].self_attn
    states = torch.randn(len(owner), 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still = (torch.ones(len(owner), 1, 64).double(), torch.zeros(len(owner), 1, 64).double())
    with torch.no_grad():
        made = attention(states, still, batch.grid_thw.prod(-1).tolist())[0]
        q, k, v = (x.unflatten(-1, (2, 64)).transpose(0, 1) for x in attention.qkv(states).chunk(3, -1))
        scores = (q @ k.transpose(1, 2) / 8).masked_fill(owner[:, None] != owner, -torch.inf)
        expected = attention.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    assert (made - expected).abs().max() <= 1e-14


def test_a_literal_clip_of_64_frames_equals_its_visible_frames():
    model, slots = padded(), virtual_slots(8, 64)
    literal = pixels(64, 28, 14)
    visible = (slots[:, None] * 2 + torch.arange(2)).flatten()[None]
    whole = run(model, literal[None], visible)
    few = literal[:, slots][None]
    assert equal(whole, run(model, few, visible))
    assert equal(whole, run(model, few, frame_slots=slots[None]))
    assert equal(whole, run_packed(packed(model), [(few[0], slots)]))


def test_indices_in_another_order_give_tokens_in_another_order():
    model, clip = padded(rope_temporal_size=2), pixels(2, 28, 28)[None]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    there, back = run(model, clip).last_hidden_state, run(model, clip, order[None]).last_hidden_state
    torch.testing.assert_close(back, there[:, order], atol=1e-5, rtol=0)


def test_rows_of_a_batch_have_slots_of_their_own():
    model, clips = padded(), torch.stack([pixels(2, 14, 28), pixels(2, 14, 28).flip(-1)])
    slots = torch.tensor([[0, 63], [5, 9]])
    both = run(model, clips, frame_slots=slots)
    for row in range(2):
        alone = run(model, clips[row : row + 1], frame_slots=slots[row : row + 1])
        torch.testing.assert_close(both.last_hidden_state[row], alone.last_hidden_state[0], atol=1e-5, rtol=0)


def test_given_positions_take_the_place_of_the_grid():
    model, clip = padded(), pixels(3, 28, 42)[None]
    positions = pack([(clip[0], SLOTS)], PATCH).patch_positions
    assert equal(run(model, clip, patch_positions=positions[None]), run(model, clip, frame_slots=SLOTS[None]))


def test_hidden_states_end_before_the_last_norm():
    out = run(padded(), pixels(1, 28, 28)[None])
    assert len(out.hidden_states) == SHAPE["num_hidden_layers"] + 1
    assert not torch.equal(out.hidden_states[-1], out.last_hidden_state)
    headless = run(padded(use_head=False), pixels(1, 28, 28)[None])
    assert torch.equal(headless.hidden_states[-1], headless.last_hidden_state)
    assert headless.pooler_output is None


def test_outputs_follow_the_flags_and_the_configuration():
    model = padded()
    with torch.no_grad():
        assert model(pixels(1, 14, 14)[None]).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(pixels(1, 14, 14)[None]).hidden_states) == 4
        assert isinstance(model(pixels(1, 14, 14)[None], return_dict=False), tuple)


def test_eager_attention_agrees_and_has_probabilities():
    model, clip = padded(), pixels(1, 28, 42)[None]
    expected = run(model, clip)
    with pytest.raises(InputError, match="only the eager attention"):
        run(model, clip, output_attentions=True)
    model.set_attn_implementation("eager")
    out = run(model, clip, output_attentions=True)
    assert (out.last_hidden_state - expected.last_hidden_state).abs().max() < 1e-5
    assert [tuple(weights.shape) for weights in out.attentions] == [(1, 2, 6, 6)] * 3
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(1, 2, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("other", [False, True])
def test_saving_and_loading_changes_nothing(dtype, other, tmp_path):
    made = packed(padded(dtype)) if other else padded(dtype)
    assert not list(made.named_buffers())
    made.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(made.config)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(made)
    weights, before = loaded.state_dict(), made.state_dict()
    assert weights.keys() == before.keys() == dict(loaded.named_parameters()).keys()
    assert all(value.dtype == dtype and torch.equal(value, before[key]) for key, value in weights.items())
    if dtype != torch.float16:
        batch = pack([(pixels(3, 28, 42).to(dtype), SLOTS)], PATCH)
        args = (batch.patches, batch.grid_thw) if other else (pixels(3, 28, 42).to(dtype)[None],)
        assert equal(run(made, *args), run(loaded.eval(), *args))


def test_registering_twice_is_fine():
    onevision.register()
    assert type(AutoModel.from_config(OneVisionConfig(**SHAPE))) is OneVisionModel


def test_initial_weights():
    torch.manual_seed(0)
    made = OneVisionModel(OneVisionConfig(**SHAPE, initializer_range=0.1)).requires_grad_(requires_grad=False)
    head = made.head
    for weight in (
        made.embeddings.patch_embedding.weight,
        head.attention.in_proj_weight,
        head.mlp.fc1.weight,
    ):
        assert abs(float(weight.std()) - 0.1) < 0.005
    assert abs(float(head.probe.std()) - 1) < 0.2
    zero = (head.attention.in_proj_bias, head.attention.out_proj.bias, made.layernorm_pre.bias)
    assert not any(value.count_nonzero() for value in zero)
    assert torch.equal(head.norm.weight, torch.ones(128))


@pytest.mark.parametrize("other", [False, True])
def test_gradients_reach_every_weight(other):
    made = (packed(padded()) if other else padded()).train()
    made.activation_checkpointing_enable()
    clip = pixels(2, 14, 28)
    batch = pack([(clip, None)], PATCH)
    out = made(batch.patches, batch.grid_thw) if other else made(clip[None])
    (out.pooler_output.square().sum() + out.last_hidden_state.square().sum()).backward()
    assert not [name for name, value in made.named_parameters() if value.grad is None]


def test_blocks_run_alone():
    """A block fed by hand gives the next hidden state: what a comparison layer by layer relies on."""
    model, inputs = padded(), {}
    hooks = [
        block.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args))
        for i, block in enumerate(model.encoder.layers)
    ]
    out = run(model, pixels(1, 28, 42)[None])
    for hook in hooks:
        hook.remove()
    for i, block in enumerate(model.encoder.layers):
        assert isinstance(block, OneVisionBlock)
        with torch.no_grad():
            assert torch.equal(block(*inputs[i]), out.hidden_states[i + 1])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 15, 14), "multiples of 14"),
        ((1, 3, 14, 13), "multiples of 14"),
        ((1, 3, 2, 14, 7), "multiples of 14"),
        ((1, 1, 14, 14), "with 3 channels"),
        ((3, 14, 14), "with 3 channels"),
        ((0, 3, 14, 14), "multiples of 14"),
    ],
)
def test_pixels_of_other_shapes_are_refused(shape, words):
    with pytest.raises(InputError, match=words):
        padded()(torch.zeros(shape))


def test_what_does_not_fit_is_refused():
    model, clip = padded(), pixels(1, 28, 28)[None]
    with pytest.raises(InputError, match=r"pixels are torch.bfloat16, the model is torch.float32"):
        model(clip.bfloat16())
    with pytest.raises(InputError, match=r"patch_positions are .* whole numbers \(1, 4, 3\)"):
        model(clip, patch_positions=torch.zeros(1, 3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="whole numbers"):
        model(clip, patch_positions=torch.zeros(1, 4, 3))
    other, batch = packed(model), pack([(clip[0], None)], PATCH)
    with pytest.raises(InputError, match=r"patches are \(4, 587\); they must be \(S, 588\)"):
        other(batch.patches[:, 1:], batch.grid_thw)
    with pytest.raises(InputError, match="segment 0, 1 x 2 x 2, ends at row 4 of 3"):
        other(batch.patches[1:], batch.grid_thw)
