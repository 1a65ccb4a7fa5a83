"""The icons: matched names, families, splits that leave no near twin, captions and weights."""

import collections
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import icon_captions, icon_sets, icons, unicode_names

ICON_SETS = Path(__file__).parent / "icon_sets"
pytestmark = pytest.mark.skipif(
    bool(unicode_names.missing_tables()),
    reason=f"the icons' names need apt: {unicode_names.DEBIAN_PACKAGES}",
)
# (style, name) of those that other independent code, which split all 18,559, does not train on.
NOT_TRAINED_ON = {
    ("noto", "black-large-square"): "heldout",
    ("flat", "black-large-square"): "heldout",
    ("twemoji", "red-triangle-pointed-down"): "pair",
    ("outline", "diamond-suit"): "pair",
}


@pytest.fixture(scope="module")
def opened() -> list[icon_sets.OpenSet]:
    return icon_sets.read_sets(icon_sets.find_sets(ICON_SETS))


@pytest.fixture(scope="module")
def listed(opened) -> list[icons.Icon]:
    return icons.list_icons(opened)


@pytest.fixture(scope="module")
def known() -> dict[str, unicode_names.Named]:
    return {item.text: item for item in unicode_names.read_names()}


@pytest.mark.parametrize(
    ("text", "english", "chinese"),
    [
        ("😀", "grinning face", "嘿嘿"),
        ("❤️", "red heart", "红心"),  # listed with U+FE0F, annotated without
        ("🇨🇳", "flag: China", "旗: 中国"),
        ("👋🏽", "waving hand: medium skin tone", "挥手: 中等肤色"),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "flag: Scotland", "旗: 苏格兰"),
        ("👩‍🔬", "woman scientist", "女科学家"),
    ],
)
def test_names_are_those_of_unicode(known, text, english, chinese):
    assert known[text].names == {"en": english, "zh": chinese}


def test_nearly_all_have_a_chinese_name(known):
    assert np.mean(["zh" in item.names for item in known.values()]) > 0.99


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("👨🏽‍🚀", "👩‍🚀", True),
        ("🧑🏿‍🚀", "👩‍🚀", True),
        ("🏃🏻‍♀️", "🏃", True),
        ("❤️", "❤", True),
        ("👩‍🚀", "👩‍🔬", False),
        ("👩‍❤️‍👨", "👩‍❤️‍💋‍👨", False),
        ("🇨🇳", "🇨🇭", False),
    ],
)
def test_a_family_is_a_thing_of_any_tone_and_gender(one, other, same):
    assert (icons.family_of(one) == icons.family_of(other)) == same
    assert icons.family_of(icons.family_of(one)) == icons.family_of(one)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("flag: Côte d’Ivoire", "flag-cote-divoire"),
        ("keycap: #", "keycap-hash"),
        ("Japanese “no vacancy” button", "japanese-no-vacancy-button"),
        ("flag: Trinidad & Tobago", "flag-trinidad-and-tobago"),
        ("U.S. piñata!", "us-pinata"),
    ],
)
def test_a_name_is_written_as_icon_sets_do(name, slug):
    assert icons.slug(name) == slug
    assert icon_sets.NAME.fullmatch(slug)


def test_icons_are_matched_by_characters_of_any_set_or_by_name(opened, listed):
    names = {icon.key: icon.names for icon in listed}
    suit = {"en": "diamond suit", "zh": "方片"}
    assert names["noto/diamond-suit"] == suit  # its set says which characters it is
    assert names["fluent/diamond-suit"] == suit  # another set does
    assert names["fxemoji/blacksmallsquare"]["en"] == "black small square"
    assert names["noto-v1/dark-skin-tone"] == {"en": "dark skin tone"}  # Unicode lists no such
    bodies = {f"{each.icon_set.style}/{name}" for each in opened for name in each.bodies}
    assert bodies - names.keys() == {"fxemoji/blackdiamondsuit"}
    alone = icons.list_icons([opened[3]])  # without another set: by its name alone
    assert alone[0].names == suit


def test_variants_differ_by_tone_or_gender(listed):
    variants = {icon.name for icon in listed if icon.variant}
    hand = "backhand-index-pointing-down"
    assert variants == {f"{hand}-dark-skin-tone", f"{hand}-light-skin-tone"}
    assert len({icon.family for icon in listed if icon.name.startswith(hand)}) == 1


def percent(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 100


def test_splits_follow_the_hash_of_the_family(listed):
    assert {(icon.style, icon.name): icon.split for icon in listed if icon.split != "train"} == (
        NOT_TRAINED_ON
    )
    for icon in listed:
        matched = not icon.family.isascii()
        code = " ".join(f"{ord(x):X}" for x in icon.family) if matched else icon.family
        held = percent(code) < 5
        pair = not held and percent(f"{code} {icon.style}") < 5
        assert (icon.split == "heldout", icon.split == "pair") == (held, pair)


def test_a_pair_that_no_other_style_teaches_is_held_out(opened):
    twemoji = [each for each in opened if each.icon_set.style == "twemoji"]
    alone = {icon.name: icon.split for icon in icons.list_icons(twemoji)}
    assert alone["red-triangle-pointed-down"] == "heldout"
    assert alone["diamond-suit"] == "train"


def test_shares_of_five_percent_are_held_out_whole_and_in_pairs(known):
    """Of all things of Unicode in all styles."""
    styles, families = icon_captions.STYLE_WORDS, {icons.family_of(text) for text in known}
    splits = [[icons.split_of(one, style, True) for style in styles] for one in families]
    held = [own for own in splits if "heldout" in own]
    assert all(set(own) == {"heldout"} for own in held)
    assert 0.04 < len(held) / len(splits) < 0.06
    rest = [split for own in splits if own not in held for split in own]
    assert 0.04 < rest.count("pair") / len(rest) < 0.06


def test_captions_name_the_style_and_follow_the_stated_shares(known):
    cat = known["😻"]
    for style, words in icon_captions.STYLE_WORDS.items():
        pairs = icon_captions.captions(cat.names, cat.keywords, style)
        assert pairs == icon_captions.captions(cat.names, cat.keywords, style)
        total = collections.Counter()
        named = collections.Counter()
        unstyled = 0.0
        for text, weight in pairs:
            language = "en" if text.isascii() else "zh"
            form = {"en": f", {words['en']} style", "zh": f"，{words['zh']}风格"}[language]
            total[language] += weight
            plain = text.removesuffix(form)
            unstyled += weight * (plain == text)
            named[language] += weight * (plain == cat.names[language])
            words_of = {cat.names[language], *cat.keywords[language]}
            assert plain in words_of or set(plain.split(", ")) <= words_of
        assert total == pytest.approx({"en": 1, "zh": 1})
        assert named == pytest.approx({"en": 0.75, "zh": 0.75})
        assert unstyled == pytest.approx(1.0 if style == "noto" else 0.0)


def test_a_style_is_a_word_in_both_languages():
    assert icon_captions.styled("red heart", "flat", "en") == "red heart, flat style"
    assert icon_captions.styled("红心", "flat", "zh") == "红心，扁平风格"
    for language in unicode_names.LANGUAGES:
        words = [own[language] for own in icon_captions.STYLE_WORDS.values()]
        assert len(set(words)) == len(words)
    assert set(icon_captions.STYLE_WORDS) == {own.style for own in icon_sets.SETS}


def test_a_family_weighs_the_root_of_its_icons_in_a_style(listed):
    columns = icons.as_columns(listed)
    sums = collections.Counter()
    for icon, weight in zip(listed, columns["weight"], strict=True):
        sums[icon.family, icon.style] += weight
    sizes = collections.Counter((icon.family, icon.style) for icon in listed)
    assert sums == pytest.approx({pair: math.sqrt(size) for pair, size in sizes.items()})
    assert max(sizes.values()) == 3


def test_columns_have_a_row_an_icon(listed):
    columns = icons.as_columns(listed)
    captions = json.loads(columns.pop("captions").tobytes())
    assert {len(values) for values in [captions, *columns.values()]} == {len(listed)}
    assert [[tuple(pair) for pair in row] for row in captions] == [x.captions for x in listed]
    assert len(set(columns["key"].tolist())) == len(listed)
    families = dict(zip(columns["label"].tolist(), columns["family"].tolist(), strict=True))
    assert [families[label] for label in columns["label"].tolist()] == columns["family"].tolist()
    assert len(families) == len(set(families.values())) == max(families) + 1


def test_missing_tables_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(unicode_names, "EMOJI_LIST", tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"none\.txt: apt-get install unicode-data unicode-cldr"):
        unicode_names.read_names()
