"""Print the phoneme and the word error rate of a run on pronunciations, over the words of its test data.

    python benchmarks/error_rates.py runs/seq2seq-cmudict cmudict.tsv --beams 5

The file holds all pronunciations: lines of word TAB sounds, as data/README.md makes them. A word that is spoken in
several ways is held against that which is nearest, as is usual for CMUdict: a prediction that is one of them is right.
The phoneme error rate is the number of sounds that are wrong, missing or too many over the number there should be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.text_files import lines
from hpdl_mpi.data.pairs import Pairs
from hpdl_mpi.train.runfolder import RunFolder
from hpdl_mpi.train.vocabulary import pair_tokenizers

Sounds = tuple[str, ...]


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many symbols are replaced, left out or put in to make one sequence the other (Levenshtein, 1966)."""
    before = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
        before = row
    return before[-1]


def pronunciations(path: Path) -> dict[str, list[Sounds]]:
    """Return the ways in which each word of a file is spoken."""
    known: dict[str, list[Sounds]] = {}
    for number, line in lines(path):
        word, tab, sounds = line.partition("\t")
        if not tab:
            raise InputError("no pronunciation", where=f"{path}: line {number}", found=line, expected="word TAB sounds")
        known.setdefault(word, []).append(tuple(sounds.split()))
    return known


def held_out(run: Path) -> list[str]:
    """Return the words of a run's test data, each once."""
    job = RunFolder(run).read_job()
    tokenizer, _ = pair_tokenizers(run, job)
    if job.data.test is None:
        raise InputError("the run has no test data: nothing was held out", where=f"{run}: data.test")
    pairs = Pairs.open(job.data.test, job.data.inputs, job.data.targets)
    tokens = np.empty((pairs.num_samples, *pairs.input_shape), pairs.input_dtype)
    pairs.read(np.arange(pairs.num_samples), tokens, None)
    pairs.close()
    ends = pairs.source_lengths - 1  # without eos
    return sorted({tokenizer.decode(row[:end]) for row, end in zip(tokens, ends, strict=True)})


def predictions(run: Path, words: Sequence[str], options: Sequence[str]) -> dict[str, Sounds]:
    """Return what `hpdl predict` makes of words."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "words.tsv"), Path(folder, "found.tsv")
        asked.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        command = ["predict", str(run), str(asked), "--output", str(answered), *options]
        subprocess.run([sys.executable, "-m", "hpdl_mpi", *command], check=True, stdout=subprocess.DEVNULL)
        found = [line.split("\t") for _, line in lines(answered)]
    return {word: tuple(sounds.split()) for word, sounds in found}


def main() -> None:
    """Read the arguments, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("pronunciations", type=Path, help="lines of word TAB sounds")
    parser.add_argument("--beams", help="search with so many beams")
    arguments = parser.parse_args()
    known = pronunciations(arguments.pronunciations)
    found = predictions(arguments.run, held_out(arguments.run), ["--beams", arguments.beams] if arguments.beams else [])
    unknown = [word for word in found if word not in known]
    if unknown:
        raise InputError(
            "no pronunciation of a word",
            where=arguments.pronunciations,
            found=f"none of {unknown[0]!r}",
            expected="the file of all words",
        )
    errors, sounds, wrong = 0, 0, 0
    for word, said in found.items():
        least, length = min((distance(said, way), len(way)) for way in known[word])
        errors, sounds, wrong = errors + least, sounds + length, wrong + (least > 0)
    print(f"{len(found)} words: phoneme error rate {errors / sounds:.2%}, word error rate {wrong / len(found):.2%}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # it has said why
