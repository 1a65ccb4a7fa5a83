"""Dataclasses from and to plain dicts: types, kinds, merged fields, and faults named by path."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict

from imagen_jax.storage.codec import MERGED, from_dict, to_dict
from imagen_jax.storage.json_file import read_dataclass, write_object


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    side: int
    corners: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Colours:
    fill: str = "red"
    opacity: float = 1.0

    def __post_init__(self):
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must be in [0, 1], not {self.opacity}")


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square
    size: tuple[int, int]
    title: str | None = None
    layer: Literal["front", "back"] = "front"
    largest: float = math.inf
    style: str | tuple[int, ...] = "plain"
    marks: Mapping[str, Circle] = field(default_factory=dict)
    colours: Colours = field(default_factory=Colours, metadata={MERGED: True})
    border: Circle | None = None
    closed: bool = True


@dataclass(frozen=True)
class Plugin:
    name: str
    options: Mapping[str, Any] = field(default_factory=dict, metadata={MERGED: True})


KINDS = {"shape": {"circle": Circle, "square": Square}}
DRAWING = Drawing(Square(3, ((0.0, 1.0), (0.5, 0.5))), (4, 5), marks={"a": Circle(2.0)})
VALUES = {"shape": {"kind": "circle"}, "size": [1, 2]}


def read(path: str = "", **changes) -> Drawing:
    return from_dict(Drawing, {**VALUES, **changes}, path, KINDS)


@pytest.mark.parametrize(
    "drawing",
    [
        DRAWING,
        replace(DRAWING, shape=Circle(0.5), largest=3.0, style=(1, 2), title="x", closed=False),
        replace(DRAWING, colours=Colours("blue", 0.25), border=Circle(), marks={}),
    ],
)
def test_through_json_and_back(drawing):
    values = json.loads(json.dumps(to_dict(drawing, KINDS)))
    assert from_dict(Drawing, values, "", KINDS) == drawing


def test_the_keys_are_the_fields_in_their_order():
    values = to_dict(DRAWING, KINDS)
    assert list(values["shape"]) == ["kind", "side", "corners"]
    assert [*values][2:] == [
        "title", "layer", "largest", "style", "marks", "fill", "opacity", "border", "closed",
    ]  # fmt: skip
    assert values["shape"]["corners"] == [[0.0, 1.0], [0.5, 0.5]]


def test_a_config_dict_becomes_plain():
    config = ConfigDict({"a": {"b": (1, ConfigDict({"c": 2}))}, "d": None})
    assert to_dict(config) == {"a": {"b": [1, {"c": 2}]}, "d": None}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": [3.0, 4]}, {"size": (3, 4)}),
        ({"shape": {"kind": "circle", "radius": 2}}, {"shape": Circle(2.0)}),
        ({"largest": 3}, {"largest": 3.0}),
        ({"title": None, "border": {}}, {"title": None, "border": Circle()}),
        ({"opacity": 0}, {"colours": Colours(opacity=0.0)}),
        ({"shape": Circle(9.0)}, {"shape": Circle(9.0)}),
    ],
)
def test_values_take_their_fields_types(values, expected):
    found = read(**values)
    for name, value in expected.items():
        assert getattr(found, name) == value
        assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"titel": "x"}, "unknown key 'sheet.titel'; did you mean 'title'?"),
        ({"opacty": 1}, "unknown key 'sheet.opacty'; did you mean 'opacity'?"),
        ({"colours": {}}, "unknown key 'sheet.colours'"),
        ({"shape": {"kind": "sqare"}}, "'sheet.shape.kind' is 'sqare'; did you mean 'square'?"),
        ({"shape": {"side": 2}}, "'sheet.shape.kind' is None; known: circle, square"),
        ({"shape": {"kind": "square"}}, "there is no 'sheet.shape.side', which is needed"),
        ({"shape": 3}, "'sheet.shape' is 3; it must be a section of keys"),
        ({"border": "thick"}, "'sheet.border' is 'thick'; it must be a section of keys"),
        ({"marks": {"a": {"radios": 1}}}, "unknown key 'sheet.marks.a.radios'; did you mean"),
        ({"marks": [1]}, "'sheet.marks' is [1]; it must be a section of keys"),
        ({"layer": "middle"}, "'sheet.layer' is 'middle'; it must be one of 'front', 'back'"),
        ({"size": [1, 2, 3]}, "'sheet.size' has 3 entries, not 2"),
        ({"size": [1, "2"]}, "'sheet.size.1' is '2'; it must be of type int"),
        ({"size": [1, True]}, "'sheet.size.1' is True; it must be of type int"),
        ({"size": 7}, "'sheet.size' is 7; it must be a list"),
        ({"size": [1, 2.5]}, "'sheet.size.1' is 2.5; it must be of type int"),
        ({"size": [1, math.inf]}, "'sheet.size.1' is inf; it must be of type int"),
        ({"largest": True}, "'sheet.largest' is True; it must be of type float"),
        ({"closed": 1}, "'sheet.closed' is 1; it must be of type bool"),
        ({"title": 3}, """of type str; on a command line, quote it twice: '"3"\'"""),
        ({"style": 2}, "'sheet.style' is 2; it must be of type str"),
        ({"opacity": 2}, "sheet: opacity must be in [0, 1], not 2"),
    ],
)
def test_faults_are_named_by_their_path(values, message):
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        read("sheet", **values)
    assert message in str(caught.value)


def test_a_merged_mapping_takes_the_other_keys():
    plugin = Plugin("blur", {"radius": 3, "options": 4})
    values = {"name": "blur", "radius": 3, "options": 4}
    assert to_dict(plugin) == values
    assert from_dict(Plugin, values) == plugin


def test_a_file_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "circle.json"
    write_object(path, to_dict(Circle(2.0)))
    assert read_dataclass(path, "a circle", Circle) == Circle(2.0)
    write_object(path, {"radius": "wide"})
    with pytest.raises(ValueError, match=r"circle\.json is not a circle: 'radius' is 'wide'; it"):
        read_dataclass(path, "a circle", Circle)
