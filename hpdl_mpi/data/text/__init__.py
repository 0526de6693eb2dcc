"""Text as numbers: tokenizers, how they are learnt, and the file that holds them beside the data."""

from hpdl_mpi.data.text.file import (
    find_tokenizers,
    named_tokenizers,
    own_tokenizers,
    read_tokenizers,
    tokenizer_file,
    tokenizers_json,
)
from hpdl_mpi.data.text.tokenizer import Tokenizer

__all__ = [
    "Tokenizer",
    "find_tokenizers",
    "named_tokenizers",
    "own_tokenizers",
    "read_tokenizers",
    "tokenizer_file",
    "tokenizers_json",
]
