from __future__ import annotations

import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.cli.data import app
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.text import tokenizers_json
from hpdl_mpi.data.text.characters import Characters
from tests.images import contents, signalled, write_images
from tests.mpirun import needs_mpirun, run_python


@pytest.fixture
def hpdl(monkeypatch):
    """Return a function that runs `hpdl data` and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture
def source(tmp_path):
    labels = (np.arange(40) % 4).astype(np.uint8)
    np.savez(tmp_path / "source.npz", x=np.zeros((40, 8, 8, 1), np.uint8), y=labels)
    return tmp_path / "source.npz"


def test_convert_info_and_verify_tell_one_story(hpdl, source, tmp_path) -> None:
    out = tmp_path / "out"
    printed = hpdl("convert", source, out, "--shards", 2, "--test-fraction", 0.25, "--compression", 9)
    assert f"{out}/train: 2 files, N = 30, x (N, 8, 8, 1) uint8, y (N,) uint8" in printed
    assert f"{out}/test: 1 file, N = 10" in printed
    printed = hpdl("info", out / "train")
    for text in (
        "train-00000-of-00002.h5",
        "(8, 8, 1)",
        "uint8",
        "(15, 8, 8, 1)",
        "shuffle, deflate 9, fletcher32",
        "15",
    ):
        assert text in printed
    printed = hpdl("verify", out / "train").splitlines()
    assert len(printed) == 2
    assert printed[0].startswith(f"{out}/train/train-00000-of-00002.h5: sound, 15 samples, 4 classes")


def test_text_is_converted_described_and_verified(hpdl, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be.\n" * 10)
    out = tmp_path / "out"
    printed = hpdl("convert", tmp_path / "a.txt", out, "--tokens", "bpe", "--vocab-size", 260, "--test-fraction", 0.1)
    assert f"{out}/train: 1 file, N = " in printed
    printed = hpdl("info", out / "test")
    assert "bpe, a vocabulary of 260, begins: To be, or not to be." in printed
    printed = hpdl("verify", out / "train")
    assert "tokens in tokens, " in printed
    assert "of 260 ids" in printed
    (tmp_path / "b.txt").write_text("That is the question.\n")
    printed = hpdl("convert", tmp_path / "b.txt", tmp_path / "a.txt", tmp_path / "both", "--tokens", "characters")
    assert f"{tmp_path}/both/train: 1 file, N = {210 + 22}, tokens" in printed
    assert "samples" in hpdl("verify", out / "train", "--inputs", "tokens", "--targets", "tokens")


def test_pairs_are_converted_described_and_verified(hpdl, tmp_path) -> None:
    (tmp_path / "a.tsv").write_text("cat\tK AE T\n\nat\tAE T\n")
    out = tmp_path / "out"
    options = ("--pairs", "--tokens", "characters", "--target-tokens", "words", "--skip-bad")
    printed = hpdl("convert", tmp_path / "a.tsv", out, *options)
    assert "train: 1 file, N = 2, source (N, 4) uint8, source_length (N,) int32, target (N, 5) uint8" in printed
    assert f"left out: 1, all of them in {out}/skipped.csv\n  {tmp_path}/a.tsv: line 2: an empty line" in printed
    assert "target: 9 tokens, words, a vocabulary of 7, begins: K AE T" in hpdl("info", out / "train")
    printed = hpdl("verify", out / "train")
    assert "sound, 2 pairs, 7 tokens in source, 4 of 7 ids, 9 tokens in target, 5 of 7 ids" in printed
    first = hpdl("convert", tmp_path / "a.tsv", tmp_path / "b", "--tokenizer", out / "tokenizer.json", "--skip-bad")
    assert "N = 2" in first


def test_csv_options_reach_the_converter(hpdl, tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,red,2\n,blue,4\n3,red,6\n")
    hpdl("convert", tmp_path / "t.csv", tmp_path / "out", "--target", "y", "--missing", "mean")
    printed = hpdl("info", tmp_path / "out/train")
    assert "x: features: a, b=blue, b=red" in printed
    assert "y: target: y" in printed
    assert "targets from 2 to 6" in hpdl("verify", tmp_path / "out/train")


def test_image_options_reach_the_converter_and_what_is_left_out_is_told(hpdl, tmp_path) -> None:
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    for number in range(12):
        (tmp_path / f"source/cat/bad{number:02d}.png").write_bytes(b"")
    options = ("--size", 3, "--grayscale", "--skip-bad")
    printed = hpdl("convert", tmp_path / "source", tmp_path / "out", *options).splitlines()
    assert printed[0].startswith(f"{tmp_path}/out/train: 1 file, N = 7, x (N, 3, 3, 1) uint8, y (N,) uint8")
    assert printed[1] == f"left out: 12, all of them in {tmp_path}/out/skipped.csv"
    assert printed[2] == f"  {tmp_path}/source/cat/bad00.png: an empty file."
    assert len(printed) == 2 + 10
    assert "y: classes: ant, cat" in hpdl("info", tmp_path / "out/train")
    assert "7 samples, 2 classes of 3 to 4 samples" in hpdl("verify", tmp_path / "out/train")


def test_bytes_of_a_name_that_are_no_text_are_written_one_way(hpdl, tmp_path) -> None:
    source, out = (tmp_path / os.fsdecode(name) for name in (b"in\xfd", b"out\xfd"))
    write_images(source, {"cat": 4})
    (source / "cat" / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    first, second, third = hpdl("convert", source, out, "--skip-bad").splitlines()
    assert first.startswith(rf"{tmp_path}/out\xfd/train: 1 file, N = 4")
    assert second == rf"left out: 1, all of them in {tmp_path}/out\xfd/skipped.csv"
    assert third == rf"  {tmp_path}/in\xfd/cat/bad\xe9.png: an empty file."
    assert rf"{tmp_path}/out\xfd/train/train-00000-of-00001.h5: sound" in hpdl("verify", out / "train")
    with pytest.raises(InputError, match=r"in\\xfd/cat/bad\\xe9\.png: an empty file\."):
        hpdl("convert", source, tmp_path / "none")


@needs_mpirun
def test_ranks_of_a_launcher_convert_together_and_one_speaks(tmp_path) -> None:
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    command = ("-m", "hpdl_mpi", "data", "convert", str(tmp_path / "source"))
    done = run_python(2, *command, str(tmp_path / "out"), "--shards", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("N = 7") == 1
    convert(tmp_path / "source", tmp_path / "alone", Options(shards=3))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    bad = tmp_path / "source/cat/0003.png"
    bad.write_bytes(bad.read_bytes()[:-30])  # found only when it is decoded, by one of the ranks
    done = run_python(2, *command, str(tmp_path / "none"), "--shards", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {bad}: a damaged image. Found ")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out", "source"]


@needs_mpirun
def test_a_killed_rank_ends_all_and_leaves_nothing_that_opens_as_a_dataset(tmp_path) -> None:
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    call = f"""
from hpdl_mpi.comm import world
from hpdl_mpi.data.convert import Options, convert
convert({str(tmp_path / "source")!r}, {str(tmp_path / "out")!r}, Options(shards=4), world())
print("done")
"""
    done = run_python(2, "-c", signalled(signal.SIGKILL, "00003-of", call))
    assert done.returncode != 0
    assert "done" not in done.stdout
    assert not (tmp_path / "out").exists()
    # What is left is hidden, and in the way of nothing.
    convert(tmp_path / "source", tmp_path / "out")


def test_conversion_that_is_told_to_end_leaves_nothing(tmp_path) -> None:
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    call = f"""
import sys
from hpdl_mpi.cli.main import main
sys.argv[1:] = ["data", "convert", {str(tmp_path / "source")!r}, {str(tmp_path / "out")!r}, "--shards", "4"]
main()
"""
    program = signalled(signal.SIGTERM, "00003-of", call)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "Error: stopped by SIGTERM; nothing was written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SWALLOWED = """
import os, signal, sys
from hpdl_mpi.data import writer

def lose(write):
    def write_whole(path, data):
        write(path, data)
        if "00001-of" in path.name:
            try:
                os.kill(os.getpid(), signal.{name})
            except BaseException:
                print("lost")
    return write_whole

writer.write_whole = lose(writer.write_whole)
"""


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("SIGTERM", 143, "Error: stopped by SIGTERM; nothing was written.\n"), ("SIGINT", 130, "Interrupted.\n")],
)
def test_conversion_ends_though_what_a_signal_raises_is_lost(tmp_path, name: str, code: int, message: str) -> None:
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    call = f"""
from hpdl_mpi.cli.main import main
sys.argv[1:] = ["data", "convert", {str(tmp_path / "source")!r}, {str(tmp_path / "out")!r}, "--shards", "4"]
main()
"""
    program = SWALLOWED.format(name=name) + call
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "lost\n", message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_info_describes_foreign_files_and_shows_where_they_differ(hpdl, write_file, tmp_path) -> None:
    write_file("d/1.h5", {"group/a": np.zeros((3, 2), np.float32), "s": np.float64(1.0)})
    write_file("d/2.h5", {"group/a": np.zeros((4, 5), np.float32)})
    printed = hpdl("info", tmp_path / "d")
    assert "group/a" in printed
    assert "(2,) or (5,)" in printed
    assert "contiguous" in printed


def test_verify_warns_where_damage_could_not_be_seen(hpdl, write_file) -> None:
    path = write_file("a.h5", {"images": np.zeros((3, 2)), "labels": np.zeros(3, np.int64)})
    assert "no checksums" in hpdl("verify", path, "--inputs", "images", "--targets", "labels")


def test_a_tokenizer_of_other_data_above_does_not_matter(hpdl, write_file, tmp_path) -> None:
    path = write_file("d/train/a.h5", {"x": np.zeros((4, 3), np.float32), "y": np.zeros(4, np.uint8)})
    (tmp_path / "d/tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("ab")}))
    assert "sound, 4 samples" in hpdl("verify", path.parent)
    assert "characters" not in hpdl("info", path.parent)


def test_an_array_of_nothing_is_described(hpdl, write_file) -> None:
    assert "float32" in hpdl("info", write_file("a.h5", {"x": h5py.Empty("f4"), "y": np.zeros(4)}))


def test_errors_reach_the_caller_with_their_message(hpdl, tmp_path) -> None:
    for command in ("info", "verify"):
        with pytest.raises(InputError, match="nowhere: no such file"):
            hpdl(command, tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: no such file"):
        hpdl("convert", tmp_path / "nowhere", tmp_path / "out")


def test_help_loads_no_heavy_module() -> None:
    program = "import sys; import hpdl_mpi.cli.data; print([m for m in ('numpy', 'h5py', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_one_sample_of_one_class_is_not_said_in_the_plural(hpdl, tmp_path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 2)), y=np.zeros(1, np.int64))
    hpdl("convert", tmp_path / "one.npz", tmp_path / "out")
    assert "sound, 1 sample, 1 class of 1 sample" in hpdl("verify", tmp_path / "out/train")
