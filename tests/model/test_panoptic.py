"""The query decoder: what must not change an event's masks, and the limits."""

from dataclasses import replace

import pytest
import torch

from larpanda.event import Event, PointBatch
from larpanda.model.bundle import Bundle, Model, ModelConfig
from larpanda.model.panoptic import NO_MASK, PanopticConfig
from larpanda.reconstruct import Reconstructor

TOLERANCE = 1e-5
CONFIG = PanopticConfig(queries=5, classes=6, channels=16, head_dim=8, blocks=2)


def model_with(config, encoder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(ModelConfig(encoder, particle=config))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


@pytest.fixture
def model(tiny_model, make_cloud):
    """It takes about half of the points for low-energy deposits."""
    model = model_with(CONFIG, tiny_model.config.encoder)
    probability = found(model, make_cloud(40, seed=40))[0].led_probability
    middle = probability.logit().sort().values[19:21].mean()  # between two points: rounding decides about none
    model.particle.led_out.bias -= middle
    return model


def found(model, *events):
    return model.particle(model.encoder(PointBatch.pack(events)))


def assert_same(a, b):
    for name in ("mask_logits", "class_logits", "led_probability"):
        x, y = getattr(a, name), getattr(b, name)
        in_mask = y != NO_MASK
        assert torch.equal(x == NO_MASK, ~in_mask)
        assert (x - y)[in_mask].abs().max() <= TOLERANCE * y[in_mask].abs().max()


def test_batch_mates_and_the_order_of_points_change_nothing(model, make_cloud):
    events = [make_cloud(n, seed=n) for n in (300, 40, 120)]
    together = found(model, *events)
    for event, mine in zip(events, together, strict=True):
        assert mine.mask_logits.shape == (5, len(event))
        assert mine.class_logits.shape == (5, 7)
        assert 0 < (mine.led_probability < 0.5).sum() < len(event)
        assert_same(mine, found(model, event)[0])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    names = ("position", "energy", "motif", "species", "particle", "interaction")
    (moved,) = found(model, Event(*(getattr(events[0], name)[order] for name in names)))
    assert torch.equal(moved.mask_logits == NO_MASK, together[0].mask_logits[:, order] == NO_MASK)
    assert (moved.class_logits - together[0].class_logits).abs().max() <= TOLERANCE * moved.class_logits.abs().max()


def test_low_energy_deposits_are_in_no_mask(model, make_cloud):
    (one,) = found(model, make_cloud(300))
    assert torch.equal((one.mask_logits == NO_MASK).all(0), one.led_probability >= 0.5)
    assert torch.equal((one.mask_logits == NO_MASK).any(0), one.led_probability >= 0.5)


def test_an_event_of_low_energy_deposits_only(model, make_cloud):
    torch.nn.init.constant_(model.particle.led_out.bias, 1e4)
    (one, _) = found(model, make_cloud(50), make_cloud(20, seed=1))
    assert (one.mask_logits == NO_MASK).all()
    assert one.class_logits.isfinite().all()


@pytest.mark.parametrize("field", ["mask_after_update", "position_in_keys"])
def test_each_setting_acts(model, make_cloud, field):
    other = model_with(replace(CONFIG, **{field: False}), model.config.encoder)
    other.load_state_dict(model.state_dict())
    event = make_cloud(200)
    assert not torch.allclose(found(other, event)[0].mask_logits, found(model, event)[0].mask_logits)


def test_rows_that_the_model_does_not_see_are_nan(model):
    reconstructor = Reconstructor(Bundle(model, "mine", {}, ""), "cpu")
    event = Event.from_arrays([[1, 2, 3], [1, 2, 4], [9, 9, 9]], [1.0, 0.1, 1.0])
    one = reconstructor.instances(event, "particle")
    assert one.mask_logits.isnan().any(0).tolist() == one.led_probability.isnan().tolist() == [False, True, False]
    dark = reconstructor.instances(Event.from_arrays([[1, 2, 3]], [0.05]), "particle")
    assert dark.mask_logits.isnan().all()
    assert dark.class_logits.isnan().all()
    with pytest.raises(ValueError, match=r"no interaction head \(its heads: particle\)"):
        reconstructor.instances(event, "interaction")
    with pytest.raises(ValueError, match="expected 'particle' or 'interaction'"):
        reconstructor.instances(event, "muon")


def test_a_width_that_cannot_be_split():
    with pytest.raises(ValueError, match="width 20 is not a multiple of the head dimension 16"):
        PanopticConfig(channels=20)


def test_masks_are_over_true_instances_as_well_if_told(model, make_cloud):
    pyramid = model.encoder(PointBatch.pack([make_cloud(80, seed=1), make_cloud(50, seed=2)]))
    alone = model.particle.decode(pyramid)
    also = torch.zeros(len(alone.led), dtype=torch.bool)
    also[::3] = True
    more = model.particle.decode(pyramid, also)
    assert set(more.thing.tolist()) == set(alone.thing.tolist()) | set(also.nonzero()[:, 0].tolist())
    assert len(more.masks) == len(more.classes) == CONFIG.blocks
    assert more.masks[0].shape == (len(more.thing), 5)
    assert more.start.tolist()[-1] == len(more.thing)
