"""The kinds of files beside jsonl and Parquet: CSV, TSV, JSON, Arrow, patterns of files, folders, saved datasets."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import rows_of


def values(path: Path | str, **keys: object) -> list[dict[str, object]]:
    return [row.values for row in rows_of(str(path), **keys)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.csv", b"id,prompt\n007,1e3\nNULL,nan\n", [{"id": "007", "prompt": "1e3"}, {"id": "NULL", "prompt": "nan"}]),
        ("r.csv", b'a,b\n"x, ""y""\nz",\r\n,2\n', [{"a": 'x, "y"\nz'}, {"b": "2"}]),
        ("r.csv", b'\xef\xbb\xbf"a",b\n1,2\n', [{"a": "1", "b": "2"}]),
        ("r.csv", "a\n\u2028\n".encode(), [{"a": "\u2028"}]),
        ("r.csv", b"a\n" + b"x" * 300_000 + b"\n", [{"a": "x" * 300_000}]),
        ("r.csv", b"a\n\n1\n\n", [{"a": "1"}]),
        ("r.tsv", b"a\tb\n1,5\t2\n", [{"a": "1,5", "b": "2"}]),
        ("r.json", b'[{"a": null},\n {"a": [1]}]', [{"a": None}, {"a": [1]}]),
    ],
)
def test_every_value_arrives_as_it_is_written(
    tmp_path: Path, name: str, content: bytes, expected: list[dict[str, object]]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == expected


def test_a_row_of_a_csv_knows_the_line_that_it_begins_at(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('a,b\n"1\n2\n3",x\n4,y\n')
    assert [row.where for row in rows_of(str(path))] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("r.csv", b"a,b\n1,2\n1\n", r"r\.csv:3: it has 1 cells, and the header names 2 columns"),
        ("r.csv", b"a,a\n1,2\n", r"r\.csv:1: the column 'a' comes twice"),
        ("r.csv", b"a,\n1,2\n", r"r\.csv:1: a column of the header has no name"),
        ("r.csv", b'a\n"x\n', r"r\.csv:2: not CSV \(unexpected end of data\)"),
        ("r.csv", b'a\n"x"y\n', r"r\.csv:2: not CSV"),
        ("r.csv", b"a\n\xff\n", r"r\.csv:2: not UTF-8"),
        ("r.csv", b"a,b\n", r"r\.csv: it has no rows"),
        ("r.csv", b"", r"r\.csv: it has no rows"),
        ("r.csv", b"\x1f\x8b123", r"r\.csv is compressed \(gzip\)"),
        ("r.json", b'{"a": 1}', r"r\.json: a \.json file of rows is one list of objects"),
        ("r.json", b'[{"a": 1}', r"r\.json: not JSON"),
        ("r.json", b"[[1]]", r"r\.json row 0: a row must be a JSON object"),
        ("r.arrow", b"ARROW1\0\0broken", r"r\.arrow: not a whole Arrow file"),
        ("r.arrow", b"\xff\xff\xff\xff", r"r\.arrow: not a whole Arrow file"),
        ("r.arrow", b"", r"r\.arrow: not a whole Arrow file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        rows_of(str(tmp_path / name))


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_forms_of_arrow(tmp_path: Path, make: object) -> None:
    table = pa.table({"a": [1, 2, 3], "b": [{"x": 1}, {"x": None}, None]})
    with pa.OSFile(str(tmp_path / "r.arrow"), "wb") as sink, make(sink, table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table, max_chunksize=2)
    assert values(tmp_path / "r.arrow") == [{"a": 1, "b": {"x": 1}}, {"a": 2, "b": {}}, {"a": 3}]


def test_a_pattern_names_several_files_by_name(tmp_path: Path) -> None:
    for name, number in (("b.jsonl", 2), ("a.csv", 1), ("c.txt", 3)):
        (tmp_path / name).write_text("n\n1\n" if name == "a.csv" else f'{{"n": {number}}}\n')
    assert values(tmp_path / "[ab].*") == [{"n": "1"}, {"n": 2}]
    assert values(tmp_path / "*.jsonl") == [{"n": 2}]
    with pytest.raises(ValueError, match="no such file"):
        rows_of(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[7:]", range(7, 10)),
        ("train[:90%]", range(9)),
        ("train[90%:]", range(9, 10)),
        ("train[-25%:]", range(8, 10)),
        ("train[-2:]", range(8, 10)),
        ("train[2:-2]", range(2, 8)),
        ("train[5:50]", range(5, 10)),
    ],
)
@pytest.mark.parametrize("kind", ["file", "saved"])
def test_a_part_of_a_split_has_the_rows_that_datasets_gives_it(
    tmp_path: Path, split: str, expected: range, kind: str
) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "r.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(10)))
    if kind == "saved":
        datasets.Dataset.from_list([{"n": n} for n in range(10)]).save_to_disk(tmp_path / "saved")
        path = tmp_path / "saved"
    assert [row["n"] for row in values(path, split=split)] == list(expected)
    theirs = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 10})[0]
    assert (theirs.from_ or 0, 10 if theirs.to is None else theirs.to) == (expected.start, expected.stop)


def test_a_saved_dataset_has_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = {name: datasets.Dataset.from_list([{"n": name}]) for name in ("train", "test")}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    assert values(tmp_path / "saved", split="test") == [{"n": "test"}]
    with pytest.raises(ValueError, match=r"saved: cannot be loaded .* no split 'dev'; there is train, test"):
        rows_of(str(tmp_path / "saved"), split="dev")


@pytest.mark.parametrize("keys", [{"split": "test"}, {"subset": "main"}, {"revision": "v1"}])
def test_what_a_file_has_not_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"a file has no subset and no revision, and its only split is 'train'"):
        rows_of(str(tmp_path / "r.jsonl"), **keys)


@pytest.mark.parametrize("split", ["train[", "train[1]", "train[:1]+test", "train[:101%]", "train[a:]", ""])
def test_what_is_no_part_of_a_split_is_refused(tmp_path: Path, split: str) -> None:
    from rollout.tasks.slices import parse_slice

    with pytest.raises(ValueError, match=r"is no part of a split|a percentage is between"):
        parse_slice(split)
