from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.info import summarize_text
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
