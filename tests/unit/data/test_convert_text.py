from __future__ import annotations

import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.data.convert import Options, convert, text_files
from hpdl_mpi.data.text import find_tokenizers
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.words import Words
from hpdl_mpi.data.writer import beside

TEXT = "To be, or not to be:\nthat is the question.\n" * 20


def tokens_of(folder: Path) -> np.ndarray:
    arrays = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            arrays.append(file["tokens"][:])
    return np.concatenate(arrays)


def decoded(folder: Path) -> str:
    return find_tokenizers(folder)["tokens"].decode(tokens_of(folder))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch) -> None:
    monkeypatch.setattr(text_files, "PIECE_BYTES", 61)


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path / "a.txt"


@pytest.mark.parametrize("kind", ["characters", "words", "bpe"])
def test_the_last_part_of_the_text_is_the_test_split(source, tmp_path, kind: str) -> None:
    options = Options(tokens=kind, vocab_size=280 if kind == "bpe" else None, test_fraction=0.1, shards=3)
    train, test = convert(source, tmp_path / "out", options)
    cut = int(len(TEXT) * 0.9)
    tokenizer = find_tokenizers(train)["tokens"]
    assert tokens_of(train).dtype == tokenizer.dtype == (np.uint16 if kind == "bpe" else np.uint8)
    assert tokens_of(train).tolist() == tokenizer.encode(TEXT[:cut]).tolist()
    assert tokens_of(test).tolist() == tokenizer.encode(TEXT[cut:]).tolist()
    assert max(path.name for path in train.iterdir()) == "train-00002-of-00003.h5"
    if kind != "words":
        assert decoded(train) + decoded(test) == TEXT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out"]  # nothing hidden is left


def test_folders_above_the_dataset_are_made(source, tmp_path) -> None:
    (train,) = convert(source, tmp_path / "new" / "deep" / "out", Options(tokens="characters", test_fraction=0))
    assert decoded(train) == TEXT


def test_characters_are_those_of_all_the_text_words_those_of_training(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a b a b a b c z")
    train, test = convert(tmp_path / "a.txt", tmp_path / "c", Options(tokens="characters", test_fraction=0.2))
    assert find_tokenizers(train)["tokens"].content() == {"symbols": " abcz"}
    assert find_tokenizers(train)["tokens"].specials == ()
    train, test = convert(tmp_path / "a.txt", tmp_path / "w", Options(tokens="words", test_fraction=0.2))
    assert find_tokenizers(train)["tokens"].specials == ("unk",)
    assert tokens_of(test).tolist() == [0, 0]


def test_files_of_a_folder_come_in_order_and_no_word_spans_two(tmp_path) -> None:
    folder = tmp_path / "books"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("dd ee")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfaa bb\r\ncc")
    (folder / "sub/c.txt").write_text("ff")
    (characters,) = convert(folder, tmp_path / "c", Options(tokens="characters"))
    assert decoded(characters) == "aa bb\r\nccdd eeff"
    (words,) = convert(folder, tmp_path / "w", Options(tokens="words"))
    assert decoded(words) == "aa bb\ncc dd ee ff"


def test_several_files_come_in_the_order_of_their_names(tmp_path) -> None:
    for name, text in (("x/b.txt", "bb"), ("y/a.txt", "aa"), ("c.txt", "cc")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in ("y/a.txt", "x/b.txt", "c.txt")]
    (folder,) = convert(files, tmp_path / "out", Options(tokens="characters"))
    assert decoded(folder) == "ccbbaa"
    with pytest.raises(InputError, match=r"x: no such file\. Name one folder, or files alone"):
        convert([*files, tmp_path / "x"], tmp_path / "none", Options(tokens="characters"))
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    with pytest.raises(InputError, match=r"c\.txt: NPZ has one source\. Convert each by itself"):
        convert([tmp_path / "a.npz", tmp_path / "c.txt"], tmp_path / "none")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=20),
    piece=st.integers(1, 30),
    fraction=st.sampled_from([0.0, 0.3]),
)
def test_pieces_of_any_size_give_the_same_tokens(tmp_path_factory, monkeypatch, text, piece, fraction) -> None:
    monkeypatch.setattr(text_files, "PIECE_BYTES", piece)
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_bytes(text.encode())
    splits = convert(folder / "a.txt", folder / "out", Options(tokens="characters", test_fraction=fraction))
    # A mark of the byte order in front is none of the text.
    assert "".join(map(decoded, splits)) == text.encode().decode("utf-8-sig")


def test_a_tokenizer_that_is_there_is_taken(source, tmp_path) -> None:
    (first,) = convert(source, tmp_path / "first", Options(tokens="characters"))
    (tmp_path / "b.txt").write_text("question\n")
    file = tmp_path / "first/tokenizer.json"
    (second,) = convert(tmp_path / "b.txt", tmp_path / "second", Options(tokenizer=file))
    assert decoded(second) == "question\n"
    assert find_tokenizers(second)["tokens"].content() == find_tokenizers(first)["tokens"].content()
    (tmp_path / "b.txt").write_text("no\n" * 100 + "zoo\n")
    with pytest.raises(InputError, match=r"b\.txt: line 101: a character is not in the vocabulary\. Found 'z'"):
        convert(tmp_path / "b.txt", tmp_path / "third", Options(tokens="characters", tokenizer=file))
    with pytest.raises(InputError, match=r"tokenizer\.json: a tokenizer of another kind\. Found characters"):
        convert(tmp_path / "b.txt", tmp_path / "third", Options(tokens="words", tokenizer=file))


@pytest.mark.parametrize("place", [0, 1, 100, 122, 500])
def test_a_byte_that_is_no_text_is_named_with_its_place(tmp_path, place: int) -> None:
    data = bytearray(TEXT.encode())
    data[place] = 0xFF
    (tmp_path / "a.txt").write_bytes(data)
    line = 1 + data[:place].count(b"\n")
    message = rf"a\.txt: line {line}: no text in UTF-8\. Found byte 0xff at place {place}, invalid start byte"
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.txt", tmp_path / "out", Options(tokens="characters"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_a_text_that_ends_within_a_character_is_refused(tmp_path, head: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(head + b"a" * 60 + "\u4e2d".encode()[:2])
    with pytest.raises(InputError, match=rf"byte 0xe4 at place {60 + len(head)}, unexpected end of data"):
        convert(tmp_path / "a.txt", tmp_path / "out", Options(tokens="characters"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", Options(tokens="characters"), r"a\.txt: an empty file"),
        ("\ufeff", Options(tokens="characters"), "symbols: no vocabulary"),
        ("a", Options(tokens="characters"), r"a\.txt: too little text for the split 'train'. Found 1 tokens"),
        ("abc", Options(tokens="characters", test_fraction=0.1), "too little text for the split 'test'"),
        ("abc", Options(), "--tokens: not said what a token is. Expected characters, words or bpe"),
        ("abc", Options(tokens="characters", vocab_size=9), "--vocab-size: characters are as many as the text has"),
        ("abc", Options(tokens="bpe"), "--vocab-size: not said how many tokens there are"),
        ("   ", Options(tokens="words"), "the training text: no words to learn"),
        ("abc", Options(tokens="words", vocab_size=1), "--vocab-size: out of range. Found 1; expected more than 1"),
        ("abc", Options(tokens="words", tokenizer="nowhere.json"), r"nowhere\.json: cannot be read"),
        ("abc", Options(tokens="bpe", vocab_size=300, tokenizer="x.json"), "--vocab-size: that of the file is taken"),
        ("abc", Options(tokens="words", target_tokens="words"), "--target-tokens is for pairs, not text"),
        ("abc", Options(tokens="words", skip_bad=True), "--skip-bad is for images and pairs, not text"),
        ("a b c", Options(tokens="words", per_class=2), "choosing per class needs one class number per sample"),
    ],
)
def test_what_cannot_be_converted_is_explained(tmp_path, text: str, options: Options, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.txt", tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_text_without_a_place_to_cut_is_held_up_to_a_bound(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(text_files, "MAX_HELD", 200)
    held = []
    monkeypatch.setattr(Words, "cut", lambda self, text: held.append(len(text)) or Words.cut_to_learn(text))
    (tmp_path / "a.txt").write_text("one line\n" + "\u4e2d" * 500)
    message = r"a\.txt: line [12]: text without a place to cut it\. Found 2.. characters .*expected 200 at most\. Put"
    for options in (Options(tokens="words"), Options(tokens="bpe", vocab_size=300)):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / "a.txt", tmp_path / "out", options)
    (tmp_path / "a.txt").write_text("one line\n" + "\u4e2d" * 150 + " \u4e2d" * 200)
    convert(tmp_path / "a.txt", tmp_path / "out", Options(tokens="words"))
    assert max(held) <= 200 + text_files.PIECE_BYTES


def test_words_a_line_are_never_held_as_a_whole(tmp_path, monkeypatch) -> None:
    text = "one\ntwo\nthree\n" * 2000
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(text_files, "PIECE_BYTES", 1000)
    monkeypatch.setattr(text_files, "MAX_HELD", 1000)
    (train,) = convert(tmp_path / "a.txt", tmp_path / "out", Options(tokens="bpe", vocab_size=270))
    assert decoded(train) == text
    assert tokens_of(train).tolist() == find_tokenizers(train)["tokens"].encode(text).tolist()


def test_a_kind_that_is_not_that_of_the_file_is_what_is_told(tmp_path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    inner.save(str(tmp_path / "other.json"))
    (tmp_path / "a.txt").write_text("a b")
    message = r"other\.json: a tokenizer of another kind\. Found bpe; expected words\. Name the tokenizer\.json"
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.txt", tmp_path / "out", Options(tokens="words", tokenizer=tmp_path / "other.json"))


def test_text_in_an_archive_is_refused(source, tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(source, "book/a.txt")
    with pytest.raises(InputError, match=r"text in an archive\. Unpack it, and name the folder"):
        convert(tmp_path / "a.tar.gz", tmp_path / "out", Options(tokens="characters"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.txt"]


def test_what_an_earlier_run_has_left_does_not_matter(source, tmp_path) -> None:
    beside(tmp_path / "out", "unpacked").write_bytes(bytes(7))
    (train,) = convert(source, tmp_path / "out", Options(tokens="characters"))
    assert decoded(train) == TEXT


def test_options_of_text_are_refused_elsewhere(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    with pytest.raises(InputError, match="--tokens is for text and pairs, not NPZ"):
        convert(tmp_path / "a.npz", tmp_path / "out", Options(tokens="words"))


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch) -> None:
    def full(tokenizer: Characters, text: str, line: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Characters, "encode", full)
    with pytest.raises(StorageError, match="the dataset could not be written"):
        convert(source, tmp_path / "out", Options(tokens="characters"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("kind", "specials"),
    [("characters", ("pad", "mask")), ("words", ("pad", "unk", "mask")), ("bpe", ("pad", "mask"))],
)
def test_a_mask_has_an_id_of_its_own_behind_padding(source, tmp_path, kind: str, specials: tuple[str, ...]) -> None:
    options = {"tokens": kind, "vocab_size": 280 if kind == "bpe" else None}
    (train,) = convert(source, tmp_path / "out", Options(mask_token=True, **options))
    tokenizer = find_tokenizers(train)["tokens"]
    assert tokenizer.specials == specials
    assert tokenizer.mask == len(specials) - 1
    tokens = tokens_of(train)
    assert tokens.min() >= len(specials)
    assert tokens.max() < tokenizer.vocabulary_size
    (plain,) = convert(source, tmp_path / "plain", Options(**options))
    with pytest.raises(InputError, match=r"tokenizer\.json: lacks ids that are needed.*expected pad, mask\. Name"):
        convert(source, tmp_path / "again", Options(tokenizer=tmp_path / "plain/tokenizer.json", mask_token=True))
    assert find_tokenizers(plain)["tokens"].mask is None


def test_pairs_have_no_mask(tmp_path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\nc\td\n")
    with pytest.raises(InputError, match="--mask-token is for text, not pairs"):
        convert(tmp_path / "a.tsv", tmp_path / "out", Options(tokens="characters", mask_token=True))


def test_running_text_and_pairs_are_not_one_source(source, tmp_path) -> None:
    (tmp_path / "p.tsv").write_text("a\tb\n")
    with pytest.raises(InputError, match=r"running text and pairs at once\. Found a\.txt, p\.tsv"):
        convert([source, tmp_path / "p.tsv"], tmp_path / "out", Options(tokens="characters"))
