"""Images side by side with captions."""

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import grid
from imagen_jax.images.grid import image_grid


def test_a_grid_holds_every_image_and_caption():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    plain = np.asarray(image_grid([red, blue, red], columns=2, gap=1))
    assert plain.shape == (20, 20, 3)
    assert (plain[1:9, 1:9] == [255, 0, 0]).all()
    assert (plain[1:9, 11:19] == [0, 0, 255]).all()
    assert (plain[11:19, 11:19] == 255).all()
    captioned = np.asarray(image_grid([red, blue], ["a cat", "红苹果"]))
    below = captioned[4 + 96 + 2 :]
    assert (below[:, : below.shape[1] // 2] < 128).any()
    assert (below[:, below.shape[1] // 2 :] < 128).any()
    with pytest.raises(ValueError, match="2 captions for 1"):
        image_grid([red], ["a", "b"])


# Names of icons; they have every uncommon character (outside level 1 of GB 2312) of all names.
NAMES = """
橄榄 蝙蝠 蟋蟀 骷髅 蟑螂 蜥蜴 鹦鹉 龇牙咧嘴 獾 猛犸 鳄鱼 蓝莓 橘子 海豚 彗星 庵点 鲨鱼 浣熊
臭鼬 匕首 牡蛎 骰子 芙蓉 刺猬 铃铛 风筝 猕猴桃 摩羯座 棕榈树 马黛茶 开香槟 冰淇淋 回旋镖 咖喱饭
摔跤选手 瑙鲁 斐济 三叉戟徽章 墨西哥粽子 东帝汶 梵蒂冈 克利珀顿岛 宇航员，线条风格
红心，立体风格 警察，扁平风格 （中等-浅肤色） “经典”、火狐：猫！狗？
"""


def test_the_font_has_what_prompts_are_written_in():
    from fontTools.ttLib import TTFont

    rows, cells = range(0xB0, 0xD8), range(0xA1, 0xFF)  # level 1 of GB 2312
    common = [bytes([row, cell]).decode("gb2312", "ignore") for row in rows for cell in cells]
    wanted = set("".join([*NAMES.split(), *common, *map(chr, range(0x21, 0x7F)), "éèüçñßöÅœ"]))
    assert len(wanted) > 3755
    has = TTFont(grid.FONT).getBestCmap()
    assert not [character for character in wanted if ord(character) not in has]


def drawn(caption: str) -> bytes:
    return image_grid([Image.new("RGB", (96, 96))], [caption]).tobytes()


def test_different_characters_are_drawn_differently():
    alone = [*"红苹果猫狗骷髅龇aeéÅ7!，", "", "\U0010ffff"]  # none, and one that no font has
    assert len({drawn(character) for character in alone}) == len(alone)


def lines(caption: str, width: int) -> list[str]:
    return grid.caption_lines(caption, grid.caption_font(12), width)


def test_captions_break_where_their_language_does():
    assert lines("a  red\nheart", 96) == ["a red heart"]
    assert lines("a man walking, flat style", 96) == ["a man walking,", "flat style"]
    assert lines("两个人手拉手中等，深肤色", 96) == ["两个人手拉手中", "等，深肤色"]
    assert lines("", 96) == []


@pytest.mark.parametrize("caption", ["两个人手拉手：" * 9, "a red heart and " * 9, "x" * 400])
def test_a_long_caption_is_cut_to_two_lines_that_fit(caption):
    font = grid.caption_font(12)
    for width in (96, 128, 20):
        said = lines(caption, width)
        assert len(said) <= 2
        assert said[-1].endswith("…")
        assert all(font.getlength(line) <= width for line in said)
        begins = "".join(said).removesuffix("…").replace(" ", "")
        assert caption.replace(" ", "").startswith(begins)
