"""Configs of JSON values and of settings: what comes out, and what is said of a mistake."""

from dataclasses import asdict, dataclass
from typing import Literal

import pytest

from larpanda.config import config_from_json, override
from larpanda.model.bundle import ModelConfig
from larpanda.train.recipes import FINETUNE, PRETRAIN, nano_semantic


@dataclass(frozen=True)
class Leg:
    length: float
    joints: int = 1

    def __post_init__(self):
        if self.length < 0:
            raise ValueError(f"length is {self.length:g}; expected 0 or more")


@dataclass(frozen=True)
class Robot:
    legs: tuple[Leg, ...]
    tail: Leg | None = None
    place: tuple[float, float] = (0.0, 0.0)
    gait: Literal["walk", "run"] = "walk"


def test_nested_values_become_dataclasses_and_tuples():
    found = config_from_json(Robot, {"legs": [{"length": 1}, {"length": 2.5, "joints": 3}], "tail": {"length": 0}}, "x")
    assert found == Robot((Leg(1.0), Leg(2.5, 3)), Leg(0.0))
    assert isinstance(found.legs[0].length, float)
    assert config_from_json(Robot, {"legs": [], "tail": None, "place": [1, 2]}, "x") == Robot((), place=(1.0, 2.0))


@pytest.mark.parametrize("recipe", [*FINETUNE.values(), *PRETRAIN.values()])
def test_a_recipe_comes_back_from_its_values(recipe):
    assert config_from_json(type(recipe()), asdict(recipe()), "here") == recipe()
    assert config_from_json(ModelConfig, {}, "here") == ModelConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"legs": [{"length": 1}, {"lenght": 1}]}, r"r\.yaml: legs\[1\]\.lenght: no such field; .*legs\[1\]\.length$"),
        ({"leg": []}, r"r\.yaml: leg: no such field; the nearest is legs$"),
        ({}, r"r\.yaml: legs is missing$"),
        ({"legs": [{"length": "long"}]}, r"r\.yaml: legs\[0\]\.length is 'long'; expected float$"),
        ({"legs": [{"length": 1, "joints": 1.5}]}, r"r\.yaml: legs\[0\]\.joints is 1\.5; expected int$"),
        ({"legs": [{"length": 1, "joints": True}]}, r"r\.yaml: legs\[0\]\.joints is True; expected int$"),
        ({"legs": [{"length": -1}]}, r"r\.yaml: legs\[0\]: length is -1; expected 0 or more$"),
        ({"legs": 4}, r"r\.yaml: legs is 4; expected a list$"),
        ({"legs": [4]}, r"r\.yaml: legs\[0\] is 4; expected the fields length, joints$"),
        ({"legs": [], "place": [1, 2, 3]}, r"r\.yaml: place is \[1, 2, 3\]; expected tuple\[float, float\]$"),
        ({"legs": [], "gait": "hop"}, r"r\.yaml: gait is 'hop'; expected Literal\['walk', 'run'\]$"),
        ({"legs": [], "tail": [1]}, r"r\.yaml: tail is \[1\]; expected the fields length, joints$"),
        ([1], r"r\.yaml: the whole is \[1\]; expected the fields legs"),
        ({"legs": [], 3: 4}, r"r\.yaml: 3: no such field"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(values, message):
    with pytest.raises(ValueError, match=message) as error:
        config_from_json(Robot, values, "r.yaml")
    assert "\n" not in str(error.value)


def test_settings_of_the_command_line():
    config = override(nano_semantic(), ["optim.lr=1e-3", "model.encoder.depths=1,1,1,1,1", "steps=7"])
    assert (config.optim.lr, config.model.encoder.depths, config.steps) == (1e-3, (1, 1, 1, 1, 1), 7)
    assert config.model.encoder.channels == nano_semantic().model.encoder.channels
    assert override(Robot(()), ["gait=run", 'legs=[{"length": 2}]', "place=3,4"]) == Robot(
        (Leg(2.0),), place=(3.0, 4.0), gait="run"
    )
    for setting, message in (
        ("optim.lrr=1", r"--set optim\.lrr: no such setting; the nearest is optim\.lr"),
        ("steps=many", "--set: steps is 'many'; expected int"),
        ("steps", "--set steps: expected section"),
    ):
        with pytest.raises(ValueError, match=message):
            override(config, [setting])
