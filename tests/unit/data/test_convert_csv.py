from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert.csv_table import read_splits
from hpdl_mpi.data.hdf5 import text_attribute
from hpdl_mpi.data.verify import verify

HOUSES = """rooms,place,price
3,INLAND,100.5
,COAST,200
5,INLAND,300
7,COAST,400
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that converts a text and returns {split: (x, y, features, classes)}."""
    counter = iter(range(1000))

    def convert_text(text: str | bytes, **options) -> dict[str, tuple]:
        source, out = tmp_path / "table.csv", tmp_path / f"out{next(counter)}"
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        result = {}
        for folder in convert(source, out, Options(**options)):
            (path,) = folder.glob("*.h5")
            with h5py.File(path) as file:
                texts = text_attribute(file["x"], "features"), text_attribute(file["y"], "classes")
                result[folder.name] = (file["x"][:], file["y"][:], *texts)
        return result

    return convert_text


def test_a_file_that_is_gone_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"/gone\.csv: cannot be read\. Found No such file or directory"):
        read_splits(tmp_path / "gone.csv", target="price", classes=False, missing="error", test_fraction=0.0, seed=0)


def test_numbers_stay_in_place_and_text_becomes_one_column_per_category(run) -> None:
    x, y, features, classes = run(HOUSES, target="price", missing="zero")["train"]
    assert features == ["rooms", "place=COAST", "place=INLAND"]
    assert x.tolist() == [[3, 0, 1], [0, 1, 0], [5, 0, 1], [7, 1, 0]]
    assert y.tolist() == [100.5, 200, 300, 400]
    assert (x.dtype, y.dtype, classes) == (np.float32, np.float32, [])


def test_text_targets_become_classes_in_sorted_order(run) -> None:
    x, y, features, classes = run(HOUSES, target="place", missing="drop")["train"]
    assert (features, classes) == (["rooms", "price"], ["COAST", "INLAND"])
    assert (y.tolist(), y.dtype) == ([1, 1, 0], np.uint8)
    assert x.tolist() == [[3, 100.5], [5, 300], [7, 400]]


def test_numbers_can_be_named_classes_and_are_sorted_by_value(run) -> None:
    x, y, _, classes = run("label,a\n10,1\n2,2\n10,3\n9,4\n", target="label", classes=True)["train"]
    assert classes == ["2", "9", "10"]
    assert y.tolist() == [2, 0, 2, 1]
    assert x.tolist() == [[1], [2], [3], [4]]


@pytest.mark.parametrize(("policy", "fill"), [("zero", 0.0), ("mean", 5.0), ("median", 5.0)])
def test_each_policy_fills_gaps_as_it_says(run, policy, fill) -> None:
    x, _, _, _ = run(HOUSES, target="price", missing=policy)["train"]
    assert x[:, 0].tolist() == [3, fill, 5, 7]


@pytest.mark.parametrize("policy", ["mean", "median"])
def test_fills_and_categories_are_learnt_from_the_training_split_alone(run, policy) -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(40) ** 2
    text = "a,b,y\n" + "".join(f"{'' if i % 4 == 0 else v},{i},{i}\n" for i, v in enumerate(values.tolist()))
    splits = run(text, target="y", missing=policy, test_fraction=0.5, seed=2)
    rows = splits["train"][0][:, 1].astype(int)
    known = [values[row] for row in rows if row % 4]
    expected = np.float32(np.mean(known) if policy == "mean" else np.median(known))
    filled = [x[0] for split in splits.values() for x in split[0] if int(x[1]) % 4 == 0]
    assert len(filled) == 10
    assert set(filled) == {expected}


def test_splits_are_complete_disjoint_and_depend_on_the_seed_alone(run) -> None:
    text = "a,y\n" + "".join(f"{i},{2 * i}\n" for i in range(30))
    first, again, other = (run(text, target="y", test_fraction=0.2, seed=seed) for seed in (1, 1, 2))
    assert [len(first[split][1]) for split in ("train", "test")] == [24, 6]
    assert sorted([*first["train"][1], *first["test"][1]]) == [2 * i for i in range(30)]
    for split in ("train", "test"):
        assert np.array_equal(first[split][0][:, 0] * 2, first[split][1])
        assert np.array_equal(first[split][0], again[split][0])
    assert not np.array_equal(first["test"][0], other["test"][0])


def test_a_category_that_only_the_test_split_has_is_refused(run) -> None:
    text = "a,y\n" + "".join(f"{'rare' if i == 17 else 'common'},{i}\n" for i in range(20))
    messages = []
    for seed in range(40):
        try:
            run(text, target="y", test_fraction=0.3, seed=seed)
        except InputError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 40
    assert "line 19, column 'a': 'rare' does not occur in the training split" in messages[0]
    assert "Choose another --seed" in messages[0]


@pytest.mark.parametrize("marker", ["", "NA", "n/a", "NaN", "null", "None", "?", "  "])
def test_markers_of_missing_numbers_are_refused_with_line_and_column(run, marker) -> None:
    with pytest.raises(
        InputError, match=r"table\.csv: line 3, column 'a': no value. Found 1 missing .*Choose with --m"
    ):
        run(f"a,y\n1,2\n{marker},3\n4,5\n", target="y")


@pytest.mark.parametrize("policy", ["mean", "median", "zero", "drop"])
def test_no_policy_leaves_nan_behind(run, tmp_path, policy) -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(60, 4)).round(3).astype(str)
    cells[rng.random(cells.shape) < 0.15] = "nan"
    cells[:, 3] = "1"
    for split, (x, y, _, _) in run(
        "a,b,c,y\n" + "\n".join(map(",".join, cells.tolist())), target="y", missing=policy, test_fraction=0.3
    ).items():
        assert np.isfinite(x).all()
        assert np.isfinite(y).all()
        list(verify(tmp_path / "out0" / split))


def test_missing_text_is_refused_dropped_or_has_no_category(run) -> None:
    text = "a,y\nred,1\n,2\nblue,3\n"
    with pytest.raises(InputError, match="line 3, column 'a': no value"):
        run(text, target="y")
    assert run(text, target="y", missing="drop")["train"][1].tolist() == [1, 3]
    for policy in ("zero", "mean", "median"):
        x, _, features, _ = run(text, target="y", missing=policy)["train"]
        assert features == ["a=blue", "a=red"]
        assert x.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_a_text_column_keeps_words_that_elsewhere_mean_missing(run) -> None:
    _, _, features, _ = run("country,y\nNA,1\nZA,2\n", target="y")["train"]
    assert features == ["country=NA", "country=ZA"]


@pytest.mark.parametrize("policy", ["mean", "median", "zero"])
def test_missing_targets_are_never_filled(run, policy) -> None:
    text = "a,y\n1,2\n3,\n"
    with pytest.raises(InputError, match=r"line 3, column 'y': no value.*Choose with --missing: drop the rows\."):
        run(text, target="y", missing=policy)
    assert run(text, target="y", missing="drop")["train"][1].tolist() == [2]


def test_quotes_blanks_byte_order_mark_and_windows_lines_are_understood(run) -> None:
    text = '\ufeffname, size ,y\r\n"a, ""b""\nc",1e3 ,2\r\n\r\nplain,-.5,3\r\n'
    x, y, features, _ = run(text, target="y")["train"]
    assert features == ['name=a, "b"\nc', "name=plain", "size"]
    assert x.tolist() == [[1, 0, 1000], [0, 1, -0.5]]
    assert y.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line of column names. Found an empty file"),
        ("1,2\n3,4\n", "no line of column names"),
        ("a,y\n", "no samples. Found a line of names alone"),
        ("a,b\n1,2\n", "no column 'y'. Found a, b. Choose one with --target"),
        ("a,a,y\n1,2,3\n", "column names are not unique. Found a more than once"),
        ("y\n1\n", "no column but the target"),
        ("a,y\n1,2\n3\n", r"line 3: wrong number of cells. Found 1 cells; expected 2"),
        ("a,y\n1,2\n\n3,4,5\n", r"line 4: wrong number of cells. Found 3 cells; expected 2"),
        ('a,y\n1,2\n"3,4\n', "line 3: cannot be read as CSV"),
        (b"a,y\n\xe9t\xe9,2\n", "cannot be read as CSV.*Save it as UTF-8"),
        ("a,y\n1,2\ninf,3\n", "line 3, column 'a': infinite"),
        ("a,y\n1,2\n2,-1e999\n", "line 3, column 'y': infinite"),
        ("a,y\n1,2\n1e39,3\n", "a feature is too large for float32.*"),
        ("a,y\n1,2\n1,-1e39\n", "line 3: the target is too large for float32"),
        ("a,y\n1_000,2\n1_0,3\n", None),
    ],
)
def test_bad_tables_are_refused_with_file_and_line(run, text, message) -> None:
    if message is None:  # not a number in CSV, whatever Python says
        assert run(text, target="y")["train"][2] == ["a=1_0", "a=1_000"]
        return
    with pytest.raises(InputError, match=f"(?s)table\\.csv.*{message}"):
        run(text, target="y")


def test_a_column_without_any_number_cannot_be_filled(run) -> None:
    with pytest.raises(InputError, match=r"column 'a': no values at all\. Remove the column"):
        run("a,b,y\n,1,2\n,3,4\n", target="y", missing="mean")


def test_too_many_categories_are_refused(run) -> None:
    text = "name,y\n" + "".join(f"person {i},{i}\n" for i in range(1001))
    with pytest.raises(InputError, match=r"column 'name': too many different texts.*Found 1001, such as 'person 0'"):
        run(text, target="y")


def test_dropping_every_row_is_an_error(run) -> None:
    with pytest.raises(InputError, match="every row has a gap"):
        run("a,b,y\n,1,2\n3,,4\n", target="y", missing="drop")


def test_the_target_must_be_named(tmp_path) -> None:
    (tmp_path / "t.csv").write_text(HOUSES)
    with pytest.raises(InputError, match=r"which column is the target.*Name it with --target"):
        convert(tmp_path / "t.csv", tmp_path / "out")


def test_per_class_works_on_classes_of_a_table(run) -> None:
    text = "a,kind\n" + "".join(f"{i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(20))
    x, y, _, classes = run(text, target="kind", per_class=4)["train"]
    assert classes == ["even", "odd"]
    assert y.tolist() == [0, 1] * 4
    assert (x[:, 0] % 2).tolist() == y.tolist()
    with pytest.raises(InputError, match=r"Found 9 samples of class 1 \(odd\); expected at least 10"):
        run(text.rsplit("\n", 2)[0] + "\n", target="kind", per_class=10)


def test_a_naive_twin_agrees_on_a_random_table(run, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    colours = rng.choice(["red", "green", "blue"], 50)
    numbers = rng.normal(size=(50, 2))
    lines = [f"{a!r},{c},{b!r}" for (a, b), c in zip(numbers.tolist(), colours, strict=True)]
    x, y, _, _ = run("a,colour,y\n" + "\n".join(lines), target="y")["train"]
    expected = [
        [np.float32(a), *(float(c == k) for k in ("blue", "green", "red"))]
        for a, c in zip(numbers[:, 0], colours, strict=True)
    ]
    assert np.array_equal(x, np.array(expected, np.float32))
    assert np.array_equal(y, numbers[:, 1].astype(np.float32))
