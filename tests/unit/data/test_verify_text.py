from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import hdf5
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.info import summarize, summarize_text
from hpdl_mpi.data.text import find_tokenizers, tokenizers_json
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.verify_text import Usage, verify_text


@pytest.fixture
def text(tmp_path):
    """Return a split of 90 characters in two shards."""
    (tmp_path / "a.txt").write_text("abcd\n" * 20)
    return convert(tmp_path / "a.txt", tmp_path / "text", Options(tokens="characters", test_fraction=0.1, shards=2))[0]


@pytest.fixture
def pairs(tmp_path):
    """Return a split of three pairs."""
    (tmp_path / "a.tsv").write_text("ab\tA B\na\tA\nba\tB A\n")
    return convert(tmp_path / "a.tsv", tmp_path / "pairs", Options(tokens="characters", target_tokens="words"))[0]


def verified(folder):
    return list(verify_text(folder, find_tokenizers(folder)))


def change(path, array: str, place, value) -> None:
    """Put another value into an array of a shard."""
    with h5py.File(path, "a") as file:
        values = file[array][:]
        values[place] = value
        del file[array]
        file[array] = values


def test_sound_text_gives_a_report_per_shard(text) -> None:
    first, second = verified(text)
    assert first.path.name == "train-00000-of-00002.h5"
    assert first.usage == second.usage == {"tokens": Usage(45, 5, 5)}
    assert first.num_pairs is None
    assert first.checksums


def test_sound_pairs_are_counted_without_padding(pairs) -> None:
    (report,) = verified(pairs)
    assert report.num_pairs == 3
    # a, b and the end of three sources; A, B, begin and end of three targets.
    assert report.usage == {"source": Usage(5 + 3, 3, 6), "target": Usage(5 + 6, 4, 6)}


def test_an_id_outside_the_vocabulary_is_found(text) -> None:
    change(text / "train-00001-of-00002.h5", "tokens", 7, 5)
    with pytest.raises(InputError, match=r"00001-of-00002\.h5: tokens: an id of token 7 is outside .*Found 5;"):
        verified(text)


def test_an_id_of_a_pair_outside_the_vocabulary_is_found(pairs) -> None:
    change(pairs / "train-00000-of-00001.h5", "target", (1, 1), 9)
    with pytest.raises(InputError, match=r"target: an id of sample 1 is outside .*Found 9; expected 0 to 5"):
        verified(pairs)


@pytest.mark.parametrize(
    ("array", "place", "value"), [("source", (1, 2), 4), ("source", (0, 2), 4), ("target", (1, 3), 2)]
)
def test_a_sequence_that_ends_elsewhere_is_found(pairs, array: str, place: tuple[int, int], value: int) -> None:
    change(pairs / "train-00000-of-00001.h5", array, place, value)
    with pytest.raises(InputError, match=rf"{array}: sample {place[0]} does not end where its length says"):
        verified(pairs)


def test_damage_and_lengths_that_cannot_be_are_found(pairs, text) -> None:
    path = pairs / "train-00000-of-00001.h5"
    with h5py.File(path) as file:
        chunk = file["source"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="samples 0 to 2 of 'source' cannot be read"):
        verified(pairs)
    change(path, "source_length", 1, 9)
    with pytest.raises(InputError, match="source_length: the length of sample 1 cannot be"):
        verified(pairs)
    (text / "train-00001-of-00002.h5").unlink()
    with pytest.raises(InputError, match="shards are missing"):
        verified(text)


def test_text_is_described_by_its_begin(text, pairs) -> None:
    (summary,) = summarize_text(text)
    assert (summary.name, summary.tokens, summary.kind, summary.vocabulary_size) == ("tokens", 90, "characters", 5)
    assert summary.begin == ("abcd\n" * 9)[:45]  # of the first shard
    source, target = summarize_text(pairs)
    assert (source.tokens, source.begin, target.tokens, target.begin) == (8, "ab", 11, "A B")


def test_a_tokenizer_of_other_data_is_passed_over_or_refused(text) -> None:
    file = text.parent / "tokenizer.json"
    file.write_bytes(tokenizers_json({"other": Characters("ab")}))
    assert summarize_text(text) == []
    with pytest.raises(InputError, match="no array 'other'"):
        verified(text)
    file.write_bytes(tokenizers_json({"tokens": Characters("ab")}))
    with pytest.raises(InputError, match=r"tokens: .*an id is outside the vocabulary"):
        summarize_text(text)
    file.unlink()
    assert summarize_text(text) == []


def test_ids_below_zero_are_outside(tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = np.array([0, 1, -1], np.int32)
    with pytest.raises(InputError, match="an id of token 2 is outside the vocabulary"):
        list(verify_text(tmp_path, {"tokens": Characters("ab")}))


FLAT = np.arange(10, dtype=np.int32) % 2
ROWS = FLAT.reshape(5, 2)


def write_tokens(folder, **arrays) -> None:
    """Write arrays beside a tokenizer of ``tokens``; a number stands for so many integers that were never written."""
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays.items():
            if isinstance(array, int):
                file.create_dataset(name, (array,), np.int64, chunks=(min(array, 1024),))
            else:
                file[name] = array
    (folder / "tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("ab")}))


@pytest.mark.parametrize(
    "arrays",
    [
        {"tokens": np.zeros((0, 4), np.int32)},
        {"tokens": FLAT.astype(np.float32)},
        {"tokens": np.zeros((2, 3, 4), np.int32)},
        {"tokens": 2**40},
        {"tokens": ROWS, "tokens_length": 2**40},
        {"tokens": ROWS, "tokens_length": 5},
        {"tokens": ROWS, "tokens_length": np.ones(4, np.int32)},
        {"tokens": ROWS, "tokens_length": np.ones(5, np.float32)},
        {"tokens": ROWS, "tokens_length": np.ones((5, 1), np.int32)},
        {"tokens": h5py.Empty("i4")},
    ],
)
def test_arrays_that_are_no_text_are_described_as_any_other(tmp_path, arrays) -> None:
    write_tokens(tmp_path, **arrays)
    assert summarize_text(tmp_path) == []
    (file,) = summarize(tmp_path)
    assert [array.name for array in file.arrays] == sorted(arrays)


@pytest.mark.parametrize(
    ("arrays", "count"),
    [
        ({"tokens": FLAT, "tokens_length": 2**40}, 10),
        ({"tokens": ROWS}, 10),
        ({"tokens": ROWS, "tokens_length": np.array([2, 1, 2, 1, 1])}, 7),
    ],
)
def test_tokens_are_counted_by_the_lengths_of_rows_alone(tmp_path, arrays, count: int) -> None:
    write_tokens(tmp_path, **arrays)
    (summary,) = summarize_text(tmp_path)
    assert summary.tokens == count


def test_lengths_are_summed_block_by_block(tmp_path, monkeypatch) -> None:
    lengths = np.arange(1000) % 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = np.zeros((1000, 2), np.int8)
        file["tokens_length"] = lengths
    (tmp_path / "tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("ab")}))
    monkeypatch.setattr(hdf5, "TARGET_BLOCK_BYTES", 64)
    (summary,) = summarize_text(tmp_path)
    assert summary.tokens == lengths.sum()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (FLAT.astype(np.float32), r"tokens: no flat array of tokens\. Found .*float32; expected integers"),
        (np.zeros((2, 3, 4), np.int32), r"tokens: no flat array of tokens\. Found .*\(3, 4\)"),
        (FLAT[:1], "tokens: too few tokens for a window"),
    ],
)
def test_what_cannot_be_read_as_text_is_not_sound(tmp_path, tokens, message: str) -> None:
    write_tokens(tmp_path, tokens=tokens)
    with pytest.raises(InputError, match=message):
        verified(tmp_path)


def test_all_arrays_of_tokens_are_read(tmp_path) -> None:
    write_tokens(tmp_path, tokens=FLAT, rows=ROWS)
    several = {"tokens": Characters("ab"), "rows": Characters("ab")}
    (report,) = verify_text(tmp_path, several)
    assert report.usage == {"tokens": Usage(10, 2, 2), "rows": Usage(10, 2, 2)}
    change(tmp_path / "a.h5", "rows", (3, 1), 2)
    with pytest.raises(InputError, match="rows: an id of token 3 is outside"):
        list(verify_text(tmp_path, several))


def test_pairs_may_have_other_tokens_beside(pairs) -> None:
    with h5py.File(pairs / "train-00000-of-00001.h5", "a") as file:
        file["words"] = np.array([0, 1, 5])
    tokenizers = find_tokenizers(pairs) | {"words": Characters("ab")}
    with pytest.raises(InputError, match="words: an id of token 2 is outside"):
        list(verify_text(pairs, tokenizers))


@pytest.mark.parametrize("specials", [(), ("pad",), ("eos",)])
@pytest.mark.parametrize("side", ["source", "target"])
def test_tokenizers_of_pairs_have_padding_and_an_end(pairs, side: str, specials: tuple[str, ...]) -> None:
    tokenizers = find_tokenizers(pairs) | {side: Characters("abcdef", specials)}
    message = rf"{side}: a tokenizer that pairs cannot have\. Found .*expected pad and eos among them\. Put"
    with pytest.raises(InputError, match=message):
        list(verify_text(pairs, tokenizers))
