"""The models' behaviour at small sizes: shapes, batches, gradients, randomness, heads, specifications, errors."""

import copy
import json
import warnings

import pytest
import torch

from framekd.config import MODELS, UserError
from framekd.models import ENCODERS, WithoutDraws, attention_pool, build_from_spec, build_model
from framekd.models.beats import Beats

SMALL = {"width": 64, "depth": 2, "heads": 2, "mlp_ratio": 2, "rnn_hidden": 16}
EXTRA = {"fPaSST": {"stem": [4, 8, 16]}, "BEATs": {"patch_dim": 32, "pos_kernel": 16}}
LENGTHS = {"ATST-F": 250, "BEATs": 496, "fPaSST": 250, "M2D": 62, "ASiT": 497, "tiny": 250}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads make models this small slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, **options) -> torch.nn.Module:
    sizes = {**SMALL, **EXTRA.get(name, {}), **options.pop("sizes", {})}
    return build_model(name, n_classes=7, sizes=sizes, **options).init_weights(seeded(3)).eval()


def noise(batch: int, seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(batch, int(16_000 * seconds), generator=seeded(seed))


@pytest.mark.parametrize("name", ENCODERS)
def test_shapes_follow_the_duration(name):
    model = small(name, n_clip_classes=5)
    for seconds, frames in ((10, 250), (4, 100), (1, 25)):
        mel = model.frontend(noise(2, seconds))
        assert mel.shape[:2] == (2, 1) and mel.dtype == torch.float32
        sequence = model.encode(mel)
        assert sequence.shape[2] == model.embed_dim
        if seconds == 10:
            assert sequence.shape[1] == LENGTHS[name]
            assert model.align(sequence).shape == (2, 250, model.embed_dim)
        logits, clips = model(mel)
        assert logits.shape == (2, 7, frames) and clips.shape == (2, 5)
        assert model(mel, n_frames=40)[0].shape == (2, 7, 40)
        features = model.features(mel)
        for direct, cached in zip(model(mel), model.classify(features)):
            torch.testing.assert_close(direct, cached)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_clip_alone_and_in_a_batch_agree_to_rounding(name):
    model = small(name, sequence_model="bigru")
    clips = noise(3, 2)
    clips[1] *= 0.001  # a quiet clip next to loud ones
    clips[2, 8000:] = 0.0
    together_mel = model.frontend(clips)
    together = model(together_mel)
    for i in range(3):
        mel = model.frontend(clips[i : i + 1])
        torch.testing.assert_close(mel, together_mel[i : i + 1], atol=1e-5, rtol=0)
        for alone, batched in zip(model(mel), together):
            torch.testing.assert_close(alone, batched[i : i + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("sequence_model", [None, "bigru"])
def test_gradients_reach_every_trainable_parameter(name, sequence_model):
    model = small(name, sequence_model=sequence_model).train()
    model.generator = seeded(11)
    model.encoder.kept_layers = lambda generator: [True] * 2  # a dropped layer has no gradient
    frames, clips = model(model.frontend(noise(2, 4)))
    (frames.square().sum() + clips.square().sum()).backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad or key in ("encoder.mask_embed",):
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_only_m2ds_statistics_are_frozen():
    frozen = {n: [k for k, p in small(n).named_parameters() if not p.requires_grad] for n in ENCODERS}
    assert {n: k for n, k in frozen.items() if k} == {"M2D": ["encoder.norm_stats"]}


@pytest.mark.parametrize("name", ["BEATs", "fPaSST"])
def test_random_numbers_in_training_come_only_from_the_generator(name):
    model = small(name).train()
    clips = noise(2, 4)

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = seeded(seed)
        mel = model.frontend(clips, generator=generator)
        return mel, model(mel, generator=generator)[0].detach()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(1)
    assert torch.equal(torch.get_rng_state(), before), "the state of the global generator must not change"
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, run(1)))
    assert not torch.equal(first[1], run(2)[1])
    model.eval()
    quiet = model(model.frontend(clips))[0]
    assert torch.equal(quiet, model(model.frontend(clips, generator=seeded(5)), generator=seeded(5))[0])


def test_without_a_generator_there_is_no_dropout_and_one_warning():
    model = small("BEATs")
    mel = model.frontend(noise(1, 2))
    expected = model(mel)[0]
    model.train()
    with pytest.warns(UserWarning, match=r"BEATs is in training mode without a generator"):
        got = model(mel)[0]
    torch.testing.assert_close(got, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(mel)


def test_layerdrop_and_dropout_have_the_configured_rates():
    model = small("BEATs").train()
    generator = seeded(0)
    kept = [k for _ in range(500) for k in model.encoder.kept_layers(generator)]
    assert abs(1 - sum(kept) / len(kept) - 0.05) < 0.02
    model.encoder.kept_layers = lambda generator: [False, False]
    mel = model.frontend(noise(2, 4))
    dropped = model.encode(mel, generator=seeded(1))  # without layers the output is a dropout's
    assert abs((dropped == 0).float().mean() - 0.1) < 0.01


def test_fpassts_jitter_keeps_the_band_edges_in_their_range():
    front_end = small("fPaSST").train().encoder.front_end
    generator = seeded(0)
    filters = [front_end.filters(generator) for _ in range(40)]
    tops = [int((f.sum(0) > 0).nonzero().max()) * 31.25 for f in filters]
    assert min(tops) >= 5900 and max(tops) <= 8000 and max(tops) - min(tops) > 1000
    assert torch.equal(front_end.filters(None), front_end.banks)


@pytest.mark.parametrize("name", ENCODERS)
def test_probabilities_and_logits_agree(name):
    model = small(name, head="attention")
    assert model.head_outputs == "probabilities" and small(name).head_outputs == "logits"
    mel = model.frontend(noise(2, 2))
    probabilities, logits = model(mel), model(mel, outputs="logits")
    for p, z in zip(probabilities, logits):
        assert p.min() >= 0 and p.max() <= 1
        torch.testing.assert_close(z.sigmoid(), p)
    linear = small(name)
    for p, z in zip(linear(mel, outputs="probabilities"), linear(mel)):
        torch.testing.assert_close(z.sigmoid(), p)


@pytest.mark.parametrize("name", ENCODERS)
def test_equal_seeds_give_equal_weights(name):
    def built(seed: int):
        model = build_model(name, sizes={**SMALL, **EXTRA.get(name, {})}, n_classes=3, sequence_model="bigru")
        return model.init_weights(seeded(seed)).state_dict()

    one, same, other = built(1), built(1), built(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    constant = {k for k in one if torch.equal(one[k], other[k])}
    for key in constant:  # biases, norms and other constants
        assert key.endswith(("bias", "norm_stats", "grep_a")) or "norm" in key, key


def test_new_heads_have_their_sizes_and_their_scale():
    model = small("tiny", sequence_model="bigru")
    model.new_heads(11, 4, seeded(0))
    assert (model.n_classes, model.n_clip_classes) == (11, 4)
    assert model(model.frontend(noise(1, 1)))[0].shape == (1, 11, 25)
    again = small("tiny", sequence_model="bigru").new_heads(11, 4, seeded(0))
    assert torch.equal(model.frame_head.weight, again.frame_head.weight)
    bound = model.frame_head.in_features**-0.5
    assert model.frame_head.weight.abs().max() <= bound
    model.new_heads(400, generator=seeded(0), std=0.01)
    assert model.n_clip_classes == 400 and not model.frame_head.bias.any()
    assert abs(model.frame_head.weight.std() - 0.01) < 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_is_rebuilt_from_its_specification(name):
    model = small(name, n_clip_classes=5, sequence_model="bigru")
    described = json.loads(json.dumps(model.spec()))
    rebuilt = build_from_spec(described)
    assert rebuilt.spec() == described
    rebuilt.load_state_dict(model.state_dict())
    for key in ("sample_rate", "frame_seconds", "front_end"):
        with pytest.raises(UserError, match=key):
            build_from_spec({**described, key: 7})
    with pytest.raises(UserError, match="no key 'head'"):
        build_from_spec({k: v for k, v in described.items() if k != "head"})


@pytest.mark.parametrize("name", ENCODERS)
def test_depth_groups_cover_the_encoder(name):
    model = small(name, sizes={"depth": 3})
    groups = model.depth_groups()
    assert len(groups) == 3
    names = [n for group in groups for n in group]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters() if n.startswith("encoder."))
    assert any("blocks.2." in n for n in groups[0]) and not any("blocks.2." in n for n in groups[1] + groups[2])


@pytest.mark.parametrize("name", ENCODERS)
def test_front_end_stays_in_fp32(name):
    model = small(name)
    clips = noise(2, 1)
    expected = model.frontend(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.frontend(clips), expected, atol=0, rtol=0)
    if name != "M2D":  # its statistics are parameters and are cast too
        torch.testing.assert_close(copy.deepcopy(model).bfloat16().frontend(clips), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_silence_and_clicks_stay_finite(name):
    model = small(name)
    clips = torch.zeros(3, 16_000)
    clips[1, 5000] = 1.0
    clips[2] = 1.0
    for output in model(model.frontend(clips)):
        assert torch.isfinite(output).all()


def test_audio_of_an_unsupported_length_is_refused():
    for name in ("ATST-F", "fPaSST"):
        model = small(name)
        with pytest.raises(UserError, match="windows of 10 s"):
            model(model.frontend(noise(1, 12)))
    for name, length in {"BEATs": 592, "M2D": 75, "ASiT": 593}.items():
        model = small(name)
        assert model.encode(model.frontend(noise(1, 12))).shape[1] == length
        assert model(model.frontend(noise(1, 12)))[0].shape[2] == 300
    for name in ENCODERS:
        model = small(name)
        with pytest.raises(UserError, match="pad it with zeros"):
            model.frontend(noise(1, 0.01))
        with pytest.raises(UserError, match="batch, samples"):
            model.frontend(torch.zeros(16_000))
        with pytest.raises(UserError, match="batch, samples"):
            model.frontend(torch.zeros(1, 16_000, dtype=torch.int16))


def test_asits_position_grid_can_be_switched():
    released, other = small("ASiT"), small("ASiT", sizes={"position_grid": "time-first"})
    assert not torch.allclose(released.encoder.positions(998, 128), other.encoder.positions(998, 128))
    # a table of the right size in the patches' order is not resized
    assert torch.equal(other.encoder.positions(592, 128), other.encoder.pos_embed)
    with pytest.raises(UserError, match="position_grid"):
        small("ASiT", sizes={"position_grid": "sideways"})


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(UserError, match=r"no model called 'PaSST'.*ATST-F"):
        build_model("PaSST")
    with pytest.raises(UserError, match=r"no size called 'widht'.*width"):
        build_model("M2D", sizes={"widht": 64})
    with pytest.raises(UserError, match=r"heads \(5\) must divide width \(64\)"):
        build_model("M2D", sizes={"width": 64, "heads": 5})
    with pytest.raises(UserError, match="n_clip_classes must equal"):
        build_model("tiny", head="attention", n_clip_classes=3)
    with pytest.raises(UserError, match="sequence_model"):
        build_model("tiny", sequence_model="lstm")
    with pytest.raises(UserError, match="not both"):
        build_model("tiny", sizes={"mlp": 3, "mlp_ratio": 2})


def test_relative_bias_of_each_pair_is_the_tables_entry():
    encoder: Beats = small("BEATs").encoder
    length = 200
    bias = encoder.bias(length)[0]
    table = encoder.relative_bias.weight
    for query, key in ((0, 0), (0, 1), (1, 0), (0, 79), (79, 0), (0, 80), (199, 0), (0, 199), (50, 170)):
        distance = abs(key - query)
        bucket = distance
        if distance >= 80:
            bucket = min(80 + int(torch.log(torch.tensor(distance / 80)) / torch.log(torch.tensor(10.0)) * 80), 159)
        bucket += 160 * (key > query)
        torch.testing.assert_close(bias[:, query, key], table[bucket])


def test_gated_attention_is_softmax_attention_with_a_scaled_bias():
    encoder: Beats = small("BEATs").encoder
    attention, x, bias = encoder.blocks[0].self_attn, torch.randn(2, 24, 64, generator=seeded(0)), encoder.bias(24)
    q, k, v = (f(x).view(2, 24, 2, 32).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
    gates = attention.grep_linear(q).view(2, 2, 24, 2, 4).sum(-1).sigmoid()
    scale = gates[..., :1] * (gates[..., 1:] * attention.grep_a - 1) + 2
    weights = (q @ k.transpose(2, 3) / 32**0.5 + scale * bias).softmax(-1)
    expected = attention.out_proj((weights @ v).transpose(1, 2).reshape(2, 24, 64))
    torch.testing.assert_close(attention(x, bias, dropout=0.0), expected)


def test_position_convolution_sees_half_a_kernel_to_either_side():
    """The convolution with weight normalisation against its definition, output by output."""
    conv = small("BEATs").encoder.pos_conv
    taps, group = conv.kernel, 64 // conv.groups
    torch.nn.init.normal_(conv.gain, generator=seeded(1))
    torch.nn.init.normal_(conv.bias, generator=seeded(2))
    x = torch.randn(2, 21, 64, generator=seeded(3))
    weight = conv.gain * conv.direction / conv.direction.square().sum((0, 1)).sqrt()
    padded = torch.nn.functional.pad(x, (0, 0, taps // 2, taps // 2))
    for t in (0, 7, 20):
        for channel in (0, 13, 63):
            inputs = slice(channel // group * group, (channel // group + 1) * group)
            expected = (padded[:, t : t + taps, inputs] * weight[channel].T).sum((1, 2)) + conv.bias[channel]
            torch.testing.assert_close(conv(x)[:, t, channel], torch.nn.functional.gelu(expected))


def test_fpassts_token_sees_its_column_and_the_next():
    patch = small("fPaSST").encoder.patch_embed
    x = torch.randn(2, 4, 128, 5, generator=seeded(0))
    weight, bias = patch.proj.weight, patch.proj.bias
    for t in range(5):
        pair = torch.nn.functional.pad(x, (0, 1))[..., t : t + 2]
        expected = torch.einsum("bcft,wcft->bw", pair, weight) + bias
        torch.testing.assert_close(patch(x)[:, t], expected, atol=1e-5, rtol=1e-5)


def test_the_sequence_model_is_a_bidirectional_gru():
    model = small("tiny", sequence_model="bigru", sizes={"rnn_layers": 2})
    assert isinstance(model.rnn, torch.nn.GRU) and model.rnn.bidirectional and model.rnn.num_layers == 2
    features = torch.randn(1, 30, 64, generator=seeded(0))
    changed = features.clone()
    changed[:, 15] += 1.0
    difference = (model.classify(changed)[0] - model.classify(features)[0]).abs().amax(dim=(0, 1))
    assert difference[0] > 0 and difference[-1] > 0, "a frame must change predictions before and after it"


def test_attention_pooling_is_a_weighted_mean_over_frames():
    frames, attention = torch.randn(2, 3, 9, 4, generator=seeded(0)), torch.randn(2, 3, 9, 4, generator=seeded(1))
    pooled = attention_pool(frames, attention)
    assert pooled.shape == (2, 3, 4)
    weights = attention[1, 2].exp() / attention[1, 2].exp().sum(1, keepdim=True)
    expected = sum(weights[t] * frames[1, 2, t].sigmoid() for t in range(9)) / weights.sum(0)
    torch.testing.assert_close(pooled[1, 2], expected)
    torch.testing.assert_close(attention_pool(frames[0], attention[0]), pooled[0])
    torch.testing.assert_close(attention_pool(frames, torch.zeros_like(frames)), frames.sigmoid().mean(-2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ENCODERS)
def test_gpu_agrees_with_cpu_and_draws_from_a_cpu_generator(name):
    model = small(name, sequence_model="bigru")
    clips = noise(2, 4)
    expected = model(model.frontend(clips))[0]
    model = model.cuda()
    got = model(model.frontend(clips.cuda()))[0]
    torch.testing.assert_close(got.cpu(), expected, atol=2e-3, rtol=1e-3)
    model.train()
    mel = model.frontend(clips.cuda())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        one, same = (model(mel, generator=seeded(1))[0] for _ in range(2))
    assert torch.equal(one, same)


@pytest.mark.parametrize("name", ["ATST-F", "BEATs", "fPaSST", "M2D", "ASiT", "tiny"])
def test_a_model_that_is_loaded_from_a_file_draws_no_random_number(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with WithoutDraws():
        build_model(name, n_classes=3, sizes={"width": 32, "depth": 1, "heads": 2})
    assert torch.equal(torch.get_rng_state(), before)
