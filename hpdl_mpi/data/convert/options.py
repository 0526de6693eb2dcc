"""What a user can say about a conversion, and which formats it is for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.csv_table import Missing
from hpdl_mpi.data.text.learn import Kind

TEXT = ("text", "pairs")
"""Formats of text."""

OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("target", "classes", "missing"), ("CSV",)),
    **dict.fromkeys(("size", "grayscale"), ("images",)),
    "skip_bad": ("images", "pairs"),
    **dict.fromkeys(("tokens", "vocab_size", "tokenizer"), TEXT),
    **dict.fromkeys(("pairs", "target_tokens"), ("pairs",)),
    "mask_token": ("text",),
}
"""Formats that an option is for, where it is not for all."""


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes
    ----------
    shards, test_shards : int, optional
        Files of the split "train" and of each other one; by default one per 256 MiB.
    per_class, test_per_class : int, optional
        Keep this many samples of each class, the classes taking turns.
    test_fraction : float
        Part of the samples to set aside for test, where the source has no test split of its own.
    seed : int
        Of the test split, of the choice of samples, and of the order of images. Running text is cut at one place.
    compression : int
        Level of gzip, 0 to 9.
    targets : str
        The array of class numbers that `per_class` looks at.
    target, classes, missing
        For CSV: see `csv_table.read_splits`.
    size, grayscale
        For images: see `decode.Form`.
    skip_bad : bool
        For images and pairs: leave out what cannot be used, and list it in ``skipped.csv``.
    tokens, target_tokens : {"characters", "words", "bpe"}, optional
        For text: what is a token; of the targets of pairs, by default the same.
    vocab_size : int, optional
        For text: see `text.learn.WantedTokenizer`.
    tokenizer : path-like, optional
        For text: a file with the tokenizer to take, see `read_tokenizers`.
    pairs : bool
        For text: lines are pairs of source and target with a TAB between.
    mask_token : bool
        For running text: ids 0 and the last special are padding and a mask, see `data.Masking`.
    """

    shards: int | None = None
    test_shards: int | None = None
    per_class: int | None = None
    test_per_class: int | None = None
    test_fraction: float = 0.0
    seed: int = 0
    compression: int = 6
    targets: str = "y"
    target: str | None = None
    classes: bool = False
    missing: Missing = "error"
    size: int | None = None
    grayscale: bool = False
    skip_bad: bool = False
    tokens: Kind | None = None
    target_tokens: Kind | None = None
    vocab_size: int | None = None
    tokenizer: str | os.PathLike[str] | None = None
    pairs: bool = False
    mask_token: bool = False

    def require_suited(self, kind: str, source: Path) -> None:
        """Raise an `InputError` if an option is not for sources of this format."""
        for name, owners in OWNERS.items():
            if kind not in owners and getattr(self, name) != getattr(Options(), name):
                raise InputError(f"--{name.replace('_', '-')} is for {' and '.join(owners)}, not {kind}", where=source)
