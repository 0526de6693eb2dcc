from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base import memory
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Pairs
from hpdl_mpi.data.convert import Options, convert, text_files
from hpdl_mpi.data.text import find_tokenizers

LINES = [("cat", "K AE T"), ("dog", "D AO G"), ("read", "R EH D"), ("read", "R IY D"), ("a", "AH")]


def write_lines(path: Path, lines: list[tuple[str, str]], end: str = "\n") -> Path:
    path.write_bytes("".join(f"{source}\t{target}{end}" for source, target in lines).encode())
    return path


def decoded(folder: Path) -> list[tuple[str, str]]:
    """Return the pairs of a split as text, and check how they are stored."""
    tokenizers = find_tokenizers(folder)
    pairs = Pairs.open(folder)
    (source,), (target,) = pairs.input_shape, pairs.target_shape
    sources = np.zeros((pairs.num_samples, source), pairs.input_dtype)
    targets = np.zeros((pairs.num_samples, target), pairs.target_dtype)
    pairs.read(np.arange(pairs.num_samples), sources, targets)
    for rows, lengths, name in (
        (sources, pairs.source_lengths, "source"),
        (targets, pairs.target_lengths, "target"),
    ):
        tokenizer = tokenizers[name]
        assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
        assert rows.dtype == tokenizer.dtype
        for row, length in zip(rows, lengths, strict=True):
            assert row[length - 1] == tokenizer.eos
            assert not row[length:].any()
            assert name == "source" or row[0] == tokenizer.bos
    return [
        (tokenizers["source"].decode(s), tokenizers["target"].decode(t)) for s, t in zip(sources, targets, strict=True)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_letters_and_sounds_come_back_as_they_were(tmp_path, end: str) -> None:
    source = write_lines(tmp_path / "a.tsv", LINES, end)
    (train,) = convert(source, tmp_path / "out", Options(pairs=True, tokens="characters", target_tokens="words"))
    assert decoded(train) == LINES
    tokenizers = find_tokenizers(train)
    assert tokenizers["source"].content() == {"symbols": "acdegort"}
    assert tokenizers["target"].content()["symbols"] == ["AE", "AH", "AO", "D", "EH", "G", "IY", "K", "R", "T"]


@pytest.mark.parametrize("kind", ["characters", "words", "bpe"])
def test_both_sides_may_be_of_one_kind(tmp_path, kind: str) -> None:
    source = write_lines(tmp_path / "a.tsv", LINES)
    size = 300 if kind == "bpe" else None
    (train,) = convert(source, tmp_path / "out", Options(tokens=kind, vocab_size=size))  # .tsv says that they are pairs
    assert decoded(train) == LINES


text = st.text(st.characters(exclude_categories=["Cs", "C", "Z"]), min_size=1, max_size=5)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text, text), min_size=80, max_size=100, unique_by=lambda pair: pair[0]), st.integers(0, 5))
def test_no_source_is_in_both_splits(tmp_path_factory, lines: list[tuple[str, str]], seed: int) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    lines += [(source, "other") for source, _ in lines[::3]]
    # Bytes have no unknown ones, so that all text comes back.
    options = Options(tokens="bpe", vocab_size=259, test_fraction=0.3, seed=seed)
    train, test = map(decoded, convert(write_lines(folder / "a.tsv", lines), folder / "out", options))
    assert sorted(train + test) == sorted(lines)
    assert not {source for source, _ in train} & {source for source, _ in test}
    assert train == [pair for pair in lines if pair in train]


def test_the_split_of_a_source_depends_on_it_alone(tmp_path) -> None:
    lines = [(f"word{i}", "x") for i in range(200)]

    def tests(name: str, lines: list[tuple[str, str]], seed: int) -> set[str]:
        source = write_lines(tmp_path / f"{name}.tsv", lines)
        _, test = convert(source, tmp_path / name, Options(tokens="characters", test_fraction=0.25, seed=seed))
        return {source for source, _ in decoded(test)}

    first = tests("a", lines, 0)
    assert 25 <= len(first) <= 75  # four deviations of a binomial of 200 and a quarter
    assert tests("b", [*lines[::-1], ("more", "y")], 0) - {"more"} == first
    assert tests("c", lines, 1) != first


def test_what_only_the_test_split_has_is_unknown(tmp_path) -> None:
    lines = [(f"{i:03d}", "x") for i in range(100)] + [("\u4e2d", "x")] * 3
    for seed in range(40):
        out = tmp_path / f"{seed}"
        train, test = convert(
            write_lines(tmp_path / "a.tsv", lines), out, Options(tokens="characters", test_fraction=0.2, seed=seed)
        )
        if "\u4e2d" not in find_tokenizers(train)["source"].content()["symbols"]:
            assert [source for source, _ in decoded(test)][-3:] == ["\N{REPLACEMENT CHARACTER}"] * 3
            return
    pytest.fail("a draw of one in five never came")


BAD = "cat\tK AE T\n\ndog\n\tx\ny\t \na\tb\tc\nd\te\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n\nc\td\n", r"a\.tsv: line 2: an empty line\. Found ''; expected source, one TAB, target"),
        ("a\tb\nc d\n", "line 2: not two sides. Found 'c d'"),
        ("a\tb\tc\n", r"line 1: not two sides\. Found 'a\\tb\\tc'"),
        ("a\tb\nc\t\n", r"line 2: an empty side\. Found 'c\\t'"),
        ("\tb", r"line 1: an empty side"),
        ("", r"a\.tsv: an empty file"),
        ("a\tb\nc\t\udcff", r"line 2: no text in UTF-8\. Found byte 0xff at place 6"),
    ],
)
def test_lines_that_are_no_pairs_are_named(tmp_path, text: str, message: str) -> None:
    (tmp_path / "a.tsv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.tsv", tmp_path / "out", Options(tokens="characters"))
    assert not (tmp_path / "out").exists()


def test_bad_lines_are_left_out_and_listed_if_asked(tmp_path) -> None:
    (tmp_path / "a.tsv").write_text(BAD)
    (train,) = convert(tmp_path / "a.tsv", tmp_path / "out", Options(tokens="words", skip_bad=True))
    assert decoded(train) == [("cat", "K AE T"), ("d", "e")]
    with open(tmp_path / "out/skipped.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1] == [f"{tmp_path}/a.tsv: line 2", "an empty line"]
    assert [reason for _, reason in rows[2:]] == ["not two sides", "an empty side", "an empty side", "not two sides"]
    (tmp_path / "a.tsv").write_text("\n\n")
    with pytest.raises(InputError, match=r"no pairs\. Found 2 other lines"):
        convert(tmp_path / "a.tsv", tmp_path / "none", Options(tokens="words", skip_bad=True))


@pytest.mark.parametrize("end", ["", "\n", "\nd\te\n"])
@pytest.mark.parametrize("piece", [10, 2**20])
def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch, end: str, piece: int) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 100)
    monkeypatch.setattr(text_files, "PIECE_BYTES", piece)
    (tmp_path / "a.tsv").write_text("a\tb\n" + "c" * 120 + end)
    message = r"a\.tsv: line 2: a line that is too long\. Found 1.. characters or more; expected 100 at most\. Cut"
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.tsv", tmp_path / "out", Options(tokens="characters"))
    (tmp_path / "a.tsv").write_text("a\tb\nc\t" + "d" * 98 + end)
    convert(tmp_path / "a.tsv", tmp_path / "out", Options(tokens="characters"))


def test_rows_that_do_not_fit_in_memory_are_refused_before_they_are_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 4000)
    source = write_lines(tmp_path / "a.tsv", [*LINES, ("a" * 1000, "AH")])
    message = r"a\.tsv: line 6: not enough memory for 6 rows of 'source' that are as wide as this one\. .*Cut the"
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", Options(tokens="characters"))


def test_tokenizers_that_are_there_are_taken(tmp_path) -> None:
    source = write_lines(tmp_path / "a.tsv", LINES)
    options = Options(tokens="characters", target_tokens="words")
    convert(source, tmp_path / "first", options)
    file = tmp_path / "first/tokenizer.json"
    (second,) = convert(write_lines(tmp_path / "b.tsv", LINES[:1]), tmp_path / "second", Options(tokenizer=file))
    assert decoded(second) == LINES[:1]
    assert (tmp_path / "second/tokenizer.json").read_bytes() == file.read_bytes()
    (tmp_path / "c.txt").write_text("cat\n")
    convert(tmp_path / "c.txt", tmp_path / "text", Options(tokens="characters"))
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer of 'source'\. Found tokens"):
        convert(source, tmp_path / "third", Options(tokenizer=tmp_path / "text/tokenizer.json"))


def test_a_tokenizer_of_others_gets_the_ids_that_pairs_need(tmp_path) -> None:
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.save(str(tmp_path / "other.json"))
    source = write_lines(tmp_path / "a.tsv", [("ab", "ba"), ("a", "abb")])
    (train,) = convert(source, tmp_path / "out", Options(tokenizer=tmp_path / "other.json"))
    assert decoded(train) == [("ab", "ba"), ("a", "abb")]


def test_a_size_of_the_vocabulary_is_for_the_side_that_has_a_choice(tmp_path) -> None:
    source = write_lines(tmp_path / "a.tsv", LINES)
    options = Options(tokens="characters", target_tokens="bpe", vocab_size=260)
    (train,) = convert(source, tmp_path / "out", options)
    assert find_tokenizers(train)["target"].vocabulary_size == 260
    with pytest.raises(InputError, match="--vocab-size: characters are as many as the text has"):
        convert(source, tmp_path / "none", Options(tokens="characters", vocab_size=260))


def test_a_split_without_sources_is_refused(tmp_path) -> None:
    source = write_lines(tmp_path / "a.tsv", [("a", "b"), ("a", "c")])
    with pytest.raises(InputError, match=r"a split would be empty\. Found . of 1 sources for test"):
        convert(source, tmp_path / "out", Options(tokens="characters", test_fraction=0.5))
