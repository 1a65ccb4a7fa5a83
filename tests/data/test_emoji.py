"""The emoji set: rendering, names in two languages, classes and the held-out split."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import emoji, sources

pytestmark = pytest.mark.skipif(
    bool(emoji.missing_files()),
    reason=f"not installed: {', '.join(emoji.missing_files())} (apt: {emoji.DEBIAN_PACKAGES})",
)


@pytest.fixture(scope="module")
def listed() -> list[emoji.Emoji]:
    return emoji.list_emoji()


@pytest.fixture(scope="module")
def by_text(listed) -> dict[str, emoji.Emoji]:
    return {item.text: item for item in listed}


@pytest.fixture(scope="module")
def some(by_text) -> tuple[list[emoji.Emoji], dict[str, np.ndarray]]:
    """A few emoji, among them the groups that look the same, and some that are held out."""
    flags = [item for item in by_text.values() if item.group == "Flags"]
    return emoji.build([*flags, *list(by_text.values())[:30]])


@pytest.mark.parametrize(
    ("text", "english", "chinese", "variant"),
    [
        ("😀", "grinning face", "嘿嘿", False),
        ("❤️", "red heart", "红心", False),  # listed with U+FE0F, annotated without
        ("🇨🇳", "flag: China", "旗: 中国", False),
        ("👋🏽", "waving hand: medium skin tone", "挥手: 中等肤色", True),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "flag: Scotland", "旗: 苏格兰", False),
        ("👩‍🔬", "woman scientist", "女科学家", True),
        ("🧑‍🔬", "scientist", "科学家", False),
    ],
)
def test_names_are_those_of_unicode(by_text, text, english, chinese, variant):
    item = by_text[text]
    assert (item.names["en"], item.names["zh"], item.variant) == (english, chinese, variant)


def test_every_emoji_has_an_english_name_and_nearly_all_a_chinese_one(listed):
    assert all(item.names["en"] for item in listed)
    assert sum("zh" in item.names for item in listed) > 0.99 * len(listed)
    assert all(set(item.groups) == {"en", "zh"} for item in listed)


def test_captions_follow_the_stated_shares(by_text):
    cat = by_text["😻"]
    pairs = emoji.captions(cat)
    total = dict.fromkeys(cat.names, 0.0)
    for text, probability in pairs:
        total["en" if text.isascii() else "zh"] += probability
    assert total == pytest.approx({"en": 0.5, "zh": 0.5})
    names = {cat.names["en"], cat.names["zh"]}
    share = sum(probability for text, probability in pairs if text in names)
    assert share == pytest.approx(emoji.NAME_SHARE)
    assert all(len(text.split(", ")) <= 3 for text, _ in pairs)
    assert emoji.captions(cat) == pairs


def test_a_joined_sequence_is_one_image_and_a_made_up_one_is_dropped(by_text):
    font = emoji.load_font()
    couple = emoji.render("👩🏽‍❤️‍👨🏿", font)
    assert couple.size == emoji.BITMAP_SIZE
    assert emoji.render("🐈‍🍕", font) is None  # falls apart into a cat and a pizza


def test_the_image_is_the_fonts_on_white(by_text):
    image = emoji.square(emoji.render("❤️", emoji.load_font()))
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    assert (image[0, 0] == 255).all()
    red, green, blue = image[60, 64].astype(int)
    assert red > 150 > max(green, blue)


def test_identical_images_are_one_class_of_one_split(some):
    items, arrays = some
    row = {item.names["en"]: index for index, item in enumerate(items)}
    norway = [row[f"flag: {name}"] for name in ("Norway", "Bouvet Island", "Svalbard & Jan Mayen")]
    assert len(set(arrays["label"][norway].tolist())) == 1
    assert arrays["label"][norway[0]] != arrays["label"][row["flag: China"]]
    for first in range(len(items)):
        same = (arrays["image"] == arrays["image"][first]).all((1, 2, 3))
        assert (same == (arrays["label"] == arrays["label"][first])).all()
    train = {label for label, split in zip(*_label_and_split(arrays), strict=True) if split}
    heldout = {label for label, split in zip(*_label_and_split(arrays), strict=True) if not split}
    assert train
    assert heldout
    assert not train & heldout


def _label_and_split(arrays):
    return arrays["label"].tolist(), (arrays["split"] == "train").tolist()


def test_about_five_percent_are_held_out_whatever_the_spelling(listed):
    heldout = [emoji.is_heldout(item.codepoints) for item in listed]
    assert 0.04 < np.mean(heldout) < 0.06
    assert emoji.is_heldout("2764 FE0F") == emoji.is_heldout("2764")


def test_the_npz_is_read_back_by_split(some, tmp_path):
    items, arrays = some
    np.savez_compressed(tmp_path / "emoji.npz", **arrays)
    parts = {split: sources.read_npz(tmp_path / "emoji.npz", split) for split in sources.SPLITS}
    assert len(parts["train"]) + len(parts["heldout"]) == len(parts["all"]) == len(items)
    assert not set(parts["train"].keys) & set(parts["heldout"].keys)
    assert parts["all"][3]["captions"] == emoji.captions(items[3])
    assert parts["all"].extra["name_zh"][3] == items[3].names["zh"]
    lines = emoji.train_captions(arrays)
    trained = [item for item, split in zip(items, arrays["split"], strict=True) if split == "train"]
    assert set(lines) == {text for item in trained for text, _ in emoji.captions(item)}
    assert json.loads(arrays["captions"].tobytes())[0][0][0] == items[0].names["en"]


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji, "FONT_FILE", tmp_path / "none.ttf")
    with pytest.raises(FileNotFoundError, match=r"none\.ttf: apt-get install fonts-noto"):
        emoji.list_emoji()


def test_square_pads_with_white():
    tall = Image.new("RGB", (10, 40), "black")
    result = emoji.square(tall, 40)
    assert (result[:, :10] == 255).all()
    assert (result[:, 16:24] == 0).all()
