from __future__ import annotations

import json
import re

import pytest
import tokenizers

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text import find_tokenizers, read_tokenizers, tokenizers_json
from hpdl_mpi.data.text.byte_pairs import BytePairs
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.file import MAX_BYTES
from hpdl_mpi.data.text.words import Words


def test_a_file_holds_all_kinds(tmp_path) -> None:
    several = {
        "a": Characters("ab\u4e2d", ("pad", "bos", "eos", "unk")),
        "b": Words(["x", "y"], ("unk",)),
        "c": BytePairs.learnt(["the cat sat\n"], 280).behind(("pad", "bos", "eos")),
    }
    (tmp_path / "tokenizer.json").write_bytes(tokenizers_json(several))
    read = read_tokenizers(tmp_path / "tokenizer.json")
    assert list(read) == ["a", "b", "c"]
    for name, tokenizer in several.items():
        assert type(read[name]) is type(tokenizer)
        assert read[name].content() == tokenizer.content()
        assert read[name].specials == tokenizer.specials
        assert read[name].encode("xab").tolist() == tokenizer.encode("xab").tolist()


def test_a_file_of_the_library_is_read_as_it_is(tmp_path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, [("a", "b")]))
    inner.add_special_tokens(["<|endoftext|>"])
    inner.enable_truncation(1)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "gpt.json"))
    (tokenizer,) = read_tokenizers(tmp_path / "gpt.json").values()
    assert tokenizer.encode("aab<|endoftext|>").tolist() == [0, 2, 3]
    assert tokenizer.vocabulary_size == 4
    (tmp_path / "gpt.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "a.h5").touch()
    assert list(find_tokenizers(tmp_path)) == ["tokens"]


def test_the_file_is_found_beside_shards_and_above_them(tmp_path) -> None:
    (tmp_path / "d/train").mkdir(parents=True)
    (tmp_path / "d/train/a.h5").touch()
    assert find_tokenizers(tmp_path / "d/train") == {}
    (tmp_path / "d/tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("ab")}))
    for path in ("d/train", "d/train/*.h5", "d/train/a.h5"):
        assert find_tokenizers(tmp_path / path)["tokens"].vocabulary_size == 2
    (tmp_path / "d/train/tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("abc")}))
    assert find_tokenizers(tmp_path / "d/train")["tokens"].vocabulary_size == 3


ENTRY = {"kind": "characters", "specials": [], "symbols": "ab"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "no file of tokenizers. Found list"),
        ("{}", "no file of tokenizers. Found no format"),
        ({"format": "hpdl_mpi tokenizers 9"}, "no file of tokenizers. Found hpdl_mpi tokenizers 9"),
        ({"tokenizers": {}}, "holds no tokenizers"),
        ({"tokenizers": [ENTRY]}, "holds no tokenizers"),
        ({"tokenizers": {"a": 3}}, "'a': no tokenizer. Found int"),
        ({"tokenizers": {"a": ENTRY | {"specials": None}}}, "'a': specials: no list of texts"),
        ({"tokenizers": {"a": ENTRY | {"specials": [1]}}}, "'a': specials: no list of texts"),
        ({"tokenizers": {"a": ENTRY | {"specials": ["x"]}}}, "'a': specials: unknown specials"),
        ({"tokenizers": {"a": ENTRY | {"kind": "letters"}}}, "'a': kind: no such tokenizer. Found 'letters'"),
        (
            {"tokenizers": {"a": ENTRY | {"symbols": ["a"]}}},
            "'a': symbols: no such tokenizer. Found ['a']",
        ),
        ({"tokenizers": {"a": ENTRY | {"symbols": "ba"}}}, "'a': symbols: characters are not sorted"),
        ({"tokenizers": {"a": ENTRY | {"kind": "words", "symbols": ["a", 2]}}}, "'a': symbols: no such tokenizer"),
        ({"tokenizers": {"a": ENTRY | {"kind": ["words"]}}}, "'a': kind: no such tokenizer"),
        ({"tokenizers": {"a": ENTRY | {"kind": "bpe", "model": {}}}}, "'a': model: the library tokenizers cannot"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if isinstance(content, dict):
        content = json.dumps({"format": "hpdl_mpi tokenizers 1"} | content)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=rf"tokenizer\.json: {re.escape(message)}"):
        read_tokenizers(path)


def test_a_file_that_is_too_large_or_absent_is_refused_unread(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        read_tokenizers(tmp_path / "nowhere.json")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"huge\.json: too large for a tokenizer"):
        read_tokenizers(tmp_path / "huge.json")
