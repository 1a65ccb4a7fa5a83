"""Tokenizers and their training: their ids, and the files that they refuse."""

import pytest

from imagen_jax.text.tokenizer_training import train_tokenizer
from imagen_jax.text.tokenizers import ByteTokenizer, SentencePieceTokenizer, token_ids, vocab_size


def test_trained_pieces_are_words(model_file):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    pieces = processor.encode("woman judge: medium skin tone", out_type=str)
    assert pieces == ["▁woman", "▁judge", ":", "▁medium", "▁skin", "▁tone"]


def test_training_a_tokenizer_is_deterministic(model_file, captions):
    shuffled = [*reversed(captions), captions[0]]
    assert train_tokenizer(shuffled, vocab_size=400) == model_file.read_bytes()


def test_chinese_words_are_pieces(tmp_path, captions):
    pytest.importorskip("jieba")
    path = tmp_path / "words.model"
    captions = [*captions, "男法官: 中等肤色", "红色的心", "女法官", "红色"]
    path.write_bytes(train_tokenizer(captions, vocab_size=400))
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert processor.encode("红色法官", out_type=str) == ["▁", "红色", "法官"]


def test_lone_surrogates_are_replaced(model_file):
    for tokenizer in (ByteTokenizer(), SentencePieceTokenizer(str(model_file))):
        assert token_ids(tokenizer, ["a\ud83d"]) == token_ids(tokenizer, ["a?"])


def test_bad_model_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.model"):
        vocab_size(SentencePieceTokenizer(str(tmp_path / "absent.model")))
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.model"):
        vocab_size(SentencePieceTokenizer(str(tmp_path / "bad.model")))


def test_a_model_with_other_special_ids_is_refused(tmp_path, captions):
    import sentencepiece

    with open(tmp_path / "other.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match="pad id -1 and eos id 2"):
        vocab_size(SentencePieceTokenizer(str(tmp_path / "other.model")))
