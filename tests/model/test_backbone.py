"""The backbone: sizes of the paper, and what must not change an event's result."""

from dataclasses import replace

import pytest
import torch

from larpanda.event import Event, PointBatch
from larpanda.model.backbone import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    Pyramid,
    for_inference,
    input_features,
)
from larpanda.model.bundle import Model, ModelConfig
from larpanda.model.semantic import SemanticConfig

TOLERANCE = 1e-5  # of the features' scale: float rounding


def outputs(model, *events):
    """Logits and up-cast features of the points of each event, packed together."""
    batch = PointBatch.pack(events)
    with torch.no_grad():
        pyramid = model.encoder(batch)
        rows = torch.cat([model.semantic(pyramid), pyramid.at_points(pyramid.upcast())], 1)
    return rows.split(batch.start.diff().tolist())


def assert_same(a, b):
    assert a.shape == b.shape
    if len(a):
        assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


def reorder(event, order):
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    return Event(*(getattr(event, name)[order] for name in names))


def test_sizes_of_the_paper():
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(mask_token=True))
        decoder = Decoder(DecoderConfig(), EncoderConfig())
        semantic = Model(ModelConfig(semantic=SemanticConfig(DecoderConfig())))
    assert sum(p.numel() for p in encoder.parameters()) == 90_758_832
    assert sum(p.numel() for p in decoder.parameters()) == 16_334_464
    assert sum(p.numel() for p in semantic.parameters()) == 107_093_573


@pytest.mark.parametrize("model", ["tiny_model", "tiny_linear_model"])
def test_permuting_the_points_permutes_the_result(model, make_cloud, request):
    model = request.getfixturevalue(model)
    event = make_cloud(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    (before,), (after,) = outputs(model, event), outputs(model, reorder(event, order))
    assert before.abs().max() > 0.1
    assert_same(after, before[order])


def test_batch_mates_change_nothing(tiny_model, make_cloud):
    events = [make_cloud(n, seed=n, side=side) for n, side in ((500, 24), (3, 2), (0, 1), (1, 1), (2000, 100), (33, 9))]
    together = outputs(tiny_model, *events)
    for event, mine in zip(events, together, strict=True):
        (alone,) = outputs(tiny_model, event)
        assert_same(mine, alone)


def test_a_shift_by_whole_voxels_moves_no_cell(tiny_model, make_cloud):
    event = make_cloud(200)
    moved = Event(event.position + torch.tensor([5, -3, 17]), *(getattr(event, n) for n in Event.__slots__[1:6]))
    first, second = (tiny_model.encoder(PointBatch.pack([e])) for e in (event, moved))
    for a, b in zip(first.levels, second.levels, strict=True):
        assert torch.equal(a.cells.cell, b.cells.cell)
        assert torch.equal(a.cells.order, b.cells.order)


def test_one_point_and_none(tiny_model, make_cloud):
    assert [len(rows) for rows in outputs(tiny_model, make_cloud(0), make_cloud(1))] == [0, 1]
    assert all(rows.isfinite().all() for rows in outputs(tiny_model, make_cloud(1)))
    assert len(outputs(tiny_model, make_cloud(0))[0]) == 0


def test_points_of_one_voxel_are_one_cell(tiny_model):
    twice = Event.from_arrays([[5, 5, 5], [5, 5, 5], [6, 5, 5]], [0.5, 1.0, 1.0])
    once = Event.from_arrays([[5, 5, 5], [6, 5, 5]], [1.5, 1.0])
    (a,), (b,) = outputs(tiny_model, twice), outputs(tiny_model, once)
    assert_same(a, b[[0, 0, 1]])


def test_stochastic_depth_skips_what_the_draws_say(tiny_model, make_cloud):
    """Draws of 1 skip nothing; those of 0 skip all branches but those of the first block, whose rate is 0."""
    events = [make_cloud(50, seed=s) for s in range(2)]
    batch, encoder = PointBatch.pack(events), tiny_model.encoder
    plain = encoder(batch).upcast()
    skipped = encoder(batch, torch.tensor([[0.0] * encoder.n_draws, [0.99] * encoder.n_draws])).upcast()
    one = [torch.full((1, encoder.n_draws), draw) for draw in (0.0, 0.99)]
    alone = [encoder(PointBatch.pack([e]), d).upcast() for e, d in zip(events, one, strict=True)]
    assert_same(skipped, torch.cat(alone))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("_scale") and not name.startswith("blocks.0.0"):
                parameter.zero_()
    assert_same(encoder(batch).upcast()[:50], skipped[:50])
    assert not torch.allclose(plain[:50], skipped[:50])


def test_masked_points_tell_only_where_they_are(make_cloud):
    """Their energy does not matter; what they are given does; a voxel with one masked point is masked."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig((16, 32), (1, 1), window=32, layer_scale=0.5, mask_token=True))
    event = make_cloud(60)
    masked = torch.arange(60) < 20
    other = replace(event, energy=torch.where(masked, event.energy * 3, event.energy))
    a, b = (encoder(PointBatch.pack([e]), masked=masked).upcast() for e in (event, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, encoder(PointBatch.pack([event])).upcast())
    encoder.mask_token.data.fill_(1.0)
    assert not torch.equal(a, encoder(PointBatch.pack([event]), masked=masked).upcast())
    double = Event.from_arrays([[5, 5, 5], [5, 5, 5]], [1.0, 2.0])
    half, whole = (encoder(PointBatch.pack([double]), masked=torch.tensor([True, m])).upcast() for m in (False, True))
    assert torch.equal(half, whole)


def test_up_cast_of_a_hand_made_pyramid():
    fine, middle, coarse = (
        torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        torch.tensor([[10.0], [20.0]]),
        torch.tensor([[5.0]]),
    )
    pyramid = Pyramid(
        levels=(),
        features=(fine, middle, coarse),
        lengths=(torch.tensor([1, 3]), torch.tensor([2])),
        runs=(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0])),
        point_cell=torch.tensor([3, 0]),
        position=torch.zeros(4, 3),
        start=torch.tensor([0, 2]),
    )
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert pyramid.upcast().tolist() == [[1, 10, 5], [2, 20, 5], [3, 20, 5], [4, 20, 5]]
            assert pyramid.upcast(1).tolist() == [[10, 5], [20, 5]]
            assert pyramid.upcast(2).tolist() == [[5]]
            layer = torch.nn.Linear(3, 2)
            torch.testing.assert_close(pyramid.linear(layer), layer(pyramid.upcast()))
    assert pyramid.at_points(pyramid.upcast()).tolist() == [[4, 20, 5], [1, 10, 5]]


def test_the_log_scale_of_energies():
    values = [0.13, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]  # expected: computed with the released code
    event = Event.from_arrays([[384, 384, i] for i in range(8)], values)
    batch = PointBatch.pack([event])
    features = input_features(batch, torch.arange(8), 8)
    expected = [-0.3056, 0.0345, 0.2143, 0.3953, 0.6356, 0.8178, 1.0, 1.241]
    assert features[:, 3].tolist() == pytest.approx(expected, abs=1e-4)
    assert features[:, 0].abs().max() == 0
    corner = input_features(PointBatch.pack([Event.from_arrays([[0, 0, 0]], [1])]), torch.tensor([0]), 1)
    assert corner[0, :3].norm().item() == pytest.approx(1.0)


def test_gradients_reach_every_weight(tiny_model, make_cloud):
    batch = PointBatch.pack([make_cloud(300), make_cloud(20, seed=1)])
    tiny_model.semantic(tiny_model.encoder(batch)).square().sum().backward()
    assert [name for name, p in tiny_model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig((16, 32), (1,)), "2 widths and 1 depths"),
        (lambda: EncoderConfig((16, 33), (1, 1)), "width 33 is not a multiple of the head dimension 16"),
        (lambda: Decoder(DecoderConfig((16,), (1,)), EncoderConfig()), "an encoder of 5 levels needs 4"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_event_wider_than_the_curve(tiny_model):
    with pytest.raises(ValueError, match=r"curve of depth 11 covers 0\.\.2047"):
        tiny_model.encoder(
            PointBatch.pack(
                [Event(torch.tensor([[0.0, 0, 0], [2048, 0, 0]]), torch.ones(2), *[torch.zeros(2).long()] * 4)]
            )
        )


WIDE = EncoderConfig((16, 192, 256), (1, 2, 1), window=32, layer_scale=0.5, drop_path=0.0)


@pytest.fixture
def wide_model():
    """Wide enough for its weights to be packed for inference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(ModelConfig(WIDE, SemanticConfig(DecoderConfig((32, 192), (1, 1)))))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


def relative_error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, TOLERANCE), (torch.bfloat16, 0.05)])
def test_the_form_for_inference_computes_the_same(wide_model, make_cloud, dtype, limit):
    event = make_cloud(700)
    (expected,) = outputs(wide_model, event)
    for_inference(wide_model, dtype)
    (found,) = outputs(wide_model, event)
    assert 0 < relative_error(found, expected) < limit


@pytest.mark.parametrize("inference", [False, True])
def test_runs_threads_batches_and_orders_of_points_change_nothing(wide_model, make_cloud, inference):
    if inference:
        for_inference(wide_model)
    events = [make_cloud(n, seed=n) for n in (900, 40, 333)]
    together = outputs(wide_model, *events)
    assert all(torch.equal(a, b) for a, b in zip(together, outputs(wide_model, *events), strict=True))
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    assert_same(outputs(wide_model, reorder(events[0], order))[0], together[0][order])
    for event, mine in zip(events, together, strict=True):
        assert_same(outputs(wide_model, event)[0], mine)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for a, b in zip(outputs(wide_model, *events), together, strict=True):
                assert_same(a, b)
    finally:
        torch.set_num_threads(threads)


def test_large_events_go_through_in_pieces(tiny_model, make_cloud):
    event = make_cloud(9000)
    (found,) = outputs(tiny_model, event)
    batch = PointBatch.pack([event])
    assert_same(found[:, :5], tiny_model.semantic(tiny_model.encoder(batch)))


@pytest.mark.gpu
def test_another_device_agrees(wide_model, make_cloud):
    events = [make_cloud(n, seed=n) for n in (900, 40, 333)]
    expected = outputs(wide_model, *events)
    batch = PointBatch.pack(events).to("cuda")
    model = wide_model.to("cuda")
    rows = model.semantic(model.encoder(batch)).cpu().split([900, 40, 333])
    for a, b in zip(rows, expected, strict=True):
        assert relative_error(a, b[:, :5]) < 1e-4
