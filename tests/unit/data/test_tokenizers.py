from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers as pre

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text import Tokenizer, byte_pairs
from hpdl_mpi.data.text import tokenizer as tokenizer_module
from hpdl_mpi.data.text.byte_pairs import BytePairs
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.words import Words

SPECIALS = ("pad", "bos", "eos", "unk")
SAMPLE = "the cat sat on the mat\nand the cat\tslept. \u00e9\u4e2d\U0001f600\n" * 3
BPE = BytePairs.learnt([SAMPLE], 280)

texts = st.text(st.characters(exclude_categories=["Cs"]))
words = st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1), min_size=1)
line_texts = st.lists(words.map(" ".join), min_size=1).map("\n".join)


@settings(deadline=None)
@given(texts.filter(bool), texts, st.booleans())
def test_characters_come_back_as_they_were(learnt: str, text: str, with_specials: bool) -> None:
    tokenizer = Characters.learnt([learnt, text], SPECIALS if with_specials else ())
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    symbols = sorted(set(learnt + text))
    assert [symbols[i - len(tokenizer.specials)] for i in ids] == list(text)
    assert tokenizer.vocabulary_size == len(symbols) + (4 if with_specials else 0)


@settings(deadline=None)
@given(line_texts)
def test_words_come_back_as_they_were(text: str) -> None:
    tokenizer = Words.learnt([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert set(tokenizer.symbols) == set(re.findall(r"\n|\S+", text))


@settings(deadline=None)
@given(texts, st.booleans())
def test_byte_pairs_come_back_as_they_were_on_any_text(text: str, with_specials: bool) -> None:
    tokenizer = BPE.behind(SPECIALS[:3]) if with_specials else BPE
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocabulary_size == BPE.vocabulary_size + len(tokenizer.specials)
    assert np.array_equal(ids, BPE.encode(text) + len(tokenizer.specials))


def test_byte_pairs_merge_what_is_frequent() -> None:
    assert len(BPE.encode("the cat")) < 7
    assert BPE.vocabulary_size == 280
    assert BPE.content() == BytePairs.learnt([SAMPLE], 280).content()


def of_the_library(model: str, **parts: object) -> BytePairs:
    """Return a tokenizer that the library has learnt on the sample: what others have in their files."""
    trainers = {"BPE": "BpeTrainer", "WordPiece": "WordPieceTrainer", "Unigram": "UnigramTrainer"}
    unknown = {} if model == "Unigram" else {"unk_token": "[UNK]"}
    inner = tokenizers.Tokenizer(getattr(tokenizers.models, model)(**unknown))
    for name, part in parts.items():
        setattr(inner, name, part)
    more = {"unk_token": "[UNK]"} if model == "Unigram" else {}
    trainer = getattr(tokenizers.trainers, trainers[model])(
        vocab_size=300,
        special_tokens=["[UNK]"],
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
        **more,
    )
    inner.train_from_iterator([SAMPLE], trainer)
    return BytePairs(json.loads(inner.to_str()))


def test_what_usually_ends_a_text_in_files_of_the_library_is_eos() -> None:
    inner = tokenizers.Tokenizer.from_str(json.dumps(BPE.content()["model"]))
    assert BPE.eos is None
    inner.add_special_tokens(["<|endoftext|>"])
    tokenizer = BytePairs(json.loads(inner.to_str()))
    assert tokenizer.encode("a<|endoftext|>").tolist()[-1] == tokenizer.eos == tokenizer.vocabulary_size - 1
    assert tokenizer.behind(["pad", "eos"]).eos == 1
    assert tokenizer.behind(["pad"]).eos == tokenizer.vocabulary_size


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
OTHERS = {
    "byte level": of_the_library("BPE", pre_tokenizer=pre.ByteLevel(add_prefix_space=False)),
    "with a blank in front": of_the_library("BPE", pre_tokenizer=pre.ByteLevel(add_prefix_space=True)),
    "words of their own": of_the_library(
        "BPE",
        pre_tokenizer=pre.Sequence(
            [
                pre.Split(tokenizers.Regex(CL100K), "isolated"),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "no words": of_the_library("BPE", pre_tokenizer=pre.ByteLevel(add_prefix_space=False, use_regex=False)),
    "stripped": of_the_library(
        "BPE", pre_tokenizer=pre.ByteLevel(add_prefix_space=False), normalizer=tokenizers.normalizers.Strip()
    ),
    "metaspace": of_the_library("BPE", pre_tokenizer=pre.Metaspace()),
    "unigram": of_the_library("Unigram", pre_tokenizer=pre.Metaspace()),
    "word pieces": of_the_library(
        "WordPiece", pre_tokenizer=pre.BertPreTokenizer(), normalizer=tokenizers.normalizers.BertNormalizer()
    ),
}
"""Tokenizers of the library."""


def in_pieces(tokenizer: Tokenizer, text: str, places: list[int]) -> list[str]:
    """Return the pieces of a text that is read up to each place, and cut."""
    pieces, held = [], ""
    for start, stop in zip([0, *sorted(places)], [*sorted(places), len(text)], strict=True):
        held += text[start:stop]
        size = tokenizer.cut(held)
        pieces.append(held[:size])
        held = held[size:]
    return [*filter(None, pieces), held]


def joined(encode: Callable[[str], Iterable[int]], pieces: list[str]) -> list[int]:
    return [one for piece in pieces for one in encode(piece)]


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 3000), max_size=6))
def test_text_in_pieces_has_the_ids_of_the_whole(text: str, places: list[int]) -> None:
    text = SAMPLE * 6 + text + SAMPLE * 6
    for tokenizer in (Characters.learnt([text]), Words.learnt([text]), BPE):
        assert joined(tokenizer.encode, in_pieces(tokenizer, text, places)) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=40)
@given(st.text("the cat.,'s\n\r \t-9\u4e2d\u3002", max_size=60), st.lists(st.integers(0, 1500), max_size=6))
def test_text_in_pieces_has_the_ids_of_the_whole_of_tokenizers_of_others(name, text: str, places: list[int]) -> None:
    tokenizer = OTHERS[name]
    text = " " + text + SAMPLE * 3 + text + SAMPLE * 3 + text
    pieces = in_pieces(tokenizer, text, places)
    assert joined(lambda piece: tokenizer._encoding(piece).ids, pieces) == tokenizer._encoding(text).ids
    assert name != "no words" or len(pieces) == 1


LINES = {
    "in lines": "cat\n" * 500,
    "in lines of Windows": "cat\r\n\r\n" * 200,
    "in Chinese": "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002" * 80,
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("name", ["byte level", "words of their own", "word pieces"])
def test_text_without_blanks_is_cut(kind: str, name: str) -> None:
    text, tokenizer = LINES[kind], OTHERS[name]
    size = tokenizer.cut(text)
    assert len(text) - 300 < size < len(text)
    assert tokenizer._encoding(text[:size]).ids + tokenizer._encoding(text[size:]).ids == tokenizer._encoding(text).ids
    assert BPE.cut(text) > len(text) - 300
    assert BytePairs.cut_to_learn(text) > len(text) - 10


def test_pairs_of_bytes_are_learnt_on_pieces_as_on_the_whole() -> None:
    text = SAMPLE + "don't\r\n\r\n  stop.\u4e2d\u6587\u3002\u4e2d\u6587_a9,\n" * 9
    pieces, held = [], ""
    for character in text:
        held += character
        size = BytePairs.cut_to_learn(held)
        pieces.append(held[:size])
        held = held[size:]
    pieces = [*filter(None, pieces), held]
    assert len(pieces) > 90
    assert BytePairs.learnt(pieces, 300).content() == BytePairs.learnt([text], 300).content()


def test_a_text_without_a_place_to_cut_is_not_cut() -> None:
    words = Words(["a"])
    assert words.cut("abc") == BPE.cut("a" * 2**10) == BPE.cut("-" * 2**10) == 0
    assert words.cut("ab cd") == 3
    assert BPE.cut("ab cd ef") == 0  # what follows is not known
    assert BPE.cut("ab cd" + "\n" * 2**17) == 2
    assert BPE.cut("ab\n" * 2**16 + "cd ef" * 100) == 3 * 2**16 + 242
    assert BytePairs.cut_to_learn("ab cd ef") == 5


def test_specials_come_first_and_are_left_out_of_text() -> None:
    tokenizer = Characters("abc", SPECIALS)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.encode("cab").tolist() == [6, 4, 5]
    assert tokenizer.encode("aXb").tolist() == [4, 3, 5]
    assert tokenizer.decode([1, 4, 3, 5, 2, 0, 0]) == "a\N{REPLACEMENT CHARACTER}b"
    plain = Characters("abc")
    assert (plain.pad, plain.bos, plain.eos, plain.unk) == (None,) * 4
    words = Words(["a", "b"], ("unk",))
    assert words.decode(words.encode("b c a")) == "b \N{REPLACEMENT CHARACTER} a"
    bpe = BPE.behind(SPECIALS[:3])
    assert bpe.decode([1, *bpe.encode("cat"), *bpe.encode(" mat"), 2, 0]) == "cat mat"


def test_the_most_frequent_words_stay() -> None:
    tokenizer = Words.learnt(["b b c c", " a d"], ("unk",), 4)
    assert tokenizer.symbols == ("a", "b", "c")
    assert tokenizer.encode("a d").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (Characters("\nab"), "ab\na\nbXa", r"line 12: a character is not in the vocabulary\. Found 'X'"),
        (Characters("ab"), "a\ud800", r"line 10: a character is not in the vocabulary\. Found '.*d800'"),
        (Words(["a", "\n"]), "a a\nword a", r"line 11: a word is not in the vocabulary\. Found 'word'"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_named_with_its_line(tokenizer: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode(text, line=10)


@pytest.mark.parametrize("ids", [[0, 3], [-1], [2**40]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"an id is outside the vocabulary\. .*expected 0 to 2"):
        Characters("abc").decode(ids)


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_ids_have_the_smallest_type(count: int, dtype: type) -> None:
    assert Words([f"w{i}" for i in range(count)]).dtype == dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Characters(""), "symbols: no vocabulary"),
        (lambda: Characters("ba"), "not sorted, or twice there"),
        (lambda: Characters("aa"), "not sorted, or twice there"),
        (lambda: Characters("a\ud800"), "symbols: no text"),
        (lambda: Characters("a", ("bos", "pad")), "unknown specials.*pad first"),
        (lambda: Characters("a", ("sep",)), "unknown specials"),
        (lambda: Characters("a", ("pad", "pad")), "unknown specials"),
        (lambda: Words(["a", "a"]), "words are there twice"),
        (lambda: Words(["a b"]), "no word. Found 'a b'"),
        (lambda: Words([""]), "no word"),
        (lambda: BytePairs({"model": {"type": "BPE"}}), "the library tokenizers cannot read it"),
        (lambda: BPE.behind(SPECIALS), "specials: bytes are all known"),
        (lambda: BytePairs.learnt([SAMPLE], 255), "--vocab-size: too small for all bytes. Found 255; expected 256"),
        (lambda: BytePairs.learnt([SAMPLE], 2**30), "--vocab-size: out of range"),
    ],
)
def test_impossible_tokenizers_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_too_large_a_vocabulary_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_IDS", 3)
    with pytest.raises(InputError, match=r"no vocabulary\. Found 4 of them; expected 1 to 3"):
        Characters("abcd")


def test_without_the_library_one_is_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"needs the library tokenizers\. .* pip install \"hpdl_mpi\[text\]\""):
        BytePairs.learnt([SAMPLE], 300)


def panicking(kind: str) -> dict:
    """Return a tokenizer of a file that the library reads or uses with a panic, or refuses text for."""
    tree = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])).to_str())
    parts = {
        "normalizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "words": {"model": {"type": "WordLevel", "vocab": {"ab": 0}, "unk_token": "[UNK]"}},
        "pieces": {"model": {"type": "WordPiece", "vocab": {"ab": 0}, "unk_token": "[UNK]"}},
        "unigram": {"model": {"type": "Unigram", "vocab": [["ab", -1.0]], "unk_id": None}},
    }
    if kind == "pieces":
        parts[kind]["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return tree | parts[kind]


@pytest.mark.parametrize("kind", ["normalizer", "length", "words", "pieces", "unigram"])
def test_what_the_library_raises_is_explained(kind: str) -> None:
    with pytest.raises(InputError, match=r"model: the library tokenizers cannot .*Take another tokenizer"):
        BytePairs(panicking(kind)).encode("ab aab")


def test_words_that_are_known_though_their_letters_are_not_are_encoded() -> None:
    assert BytePairs(panicking("words")).encode("ab").tolist() == [0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_not_taken_for_an_error_of_the_library(monkeypatch, kind: type) -> None:
    def raise_it(*args: object) -> None:
        raise kind

    monkeypatch.setattr(byte_pairs.json, "dumps", raise_it)
    with pytest.raises(kind):
        BytePairs(BPE.content()["model"])


def test_dropout_is_for_training_alone() -> None:
    tree = json.loads(json.dumps(BPE.content()["model"]))
    tree["model"]["dropout"] = 0.5
    tokenizer = BytePairs(tree)
    assert {tuple(tokenizer.encode(SAMPLE)) for _ in range(9)} == {tuple(BPE.encode(SAMPLE))}


def test_text_that_a_vocabulary_of_others_lacks_is_not_passed_over() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain = BytePairs(json.loads(inner.to_str()))
    assert plain.encode("ab  a\nb").tolist() == [2, 0, 1]
    assert plain.encode("").tolist() == []
    with pytest.raises(InputError, match=r"line 8: a character is not in the vocabulary\. Found 'z'"):
        plain.encode("ab\nazb", line=7)
    assert plain.behind(SPECIALS[:3]).encode("ab").tolist() == [5]
