"""Reading files of rows: what is in them arrives, and whatever cannot be read is named with file and row."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import rows_of


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def jsonl(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b'{"a": "x\xe2\x80\xa8y"}\n{"a": "x\xc2\x85y"}', [{"a": "x\u2028y"}, {"a": "x\x85y"}]),
        (b'\r\n{"a": null}\r\n\n{"a": [null, {"b": null}]}', [{"a": None}, {"a": [None, {"b": None}]}]),
        (b'{"a": "\\ud800"}', [{"a": "\ud800"}]),
        (b'{"a": 123456789012345678901234567890, "b": 1e-300}', [{"a": 123456789012345678901234567890, "b": 1e-300}]),
        (b'{"": {"": ""}}', [{"": {"": ""}}]),
    ],
)
def test_lines_of_json(tmp_path: Path, content: bytes, values: list[Any]) -> None:
    rows = rows_of(jsonl(tmp_path / "r.jsonl", content))
    assert [row.values for row in rows] == values


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", b'\n\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in rows_of(path)] == [f"{path}:3", f"{path}:5"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1}\n{oops', r"r\.jsonl:2: not JSON \(Expecting property name .* at column 2\)"),
        (b'{"a": 1}\n{"a": "\xe9"}', r"r\.jsonl:2: not UTF-8 \(byte 0xe9 at position 7\)"),
        (b'{"a": 1}\n[1]', r"r\.jsonl:2: a row must be a JSON object, not list"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"r\.jsonl:1: not usable JSON \(Exceeds the limit"),
        (b'{"a": ' + b"9" * 4200 + b"}", r"r\.jsonl:1: field 'a' is an integer of more than 4000 digits"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", r"r\.jsonl:1: field 'a'.* nested more than 100 levels"),
        (b'{"a": ' + b"[" * 100_000, r"r\.jsonl:1: not usable JSON \(nested too deeply\)"),
        (b'{"a": {"b": NaN}}', r"r\.jsonl:1: field 'a'\.b is nan, which JSON has not"),
        (b'{"a": -1e999}', r"r\.jsonl:1: field 'a' is -inf"),
        (b'{"a": {"b": 1, "b": 2}}', r"r\.jsonl:1: not usable JSON \(the key 'b' comes twice"),
        (b'\xef\xbb\xbf{"a": 1}', r"r\.jsonl:1: not JSON \(Unexpected UTF-8 BOM"),
        ('{"a": 1}'.encode("utf-16"), r"r\.jsonl is UTF-16: save it as UTF-8"),
        (gzip.compress(b'{"a": 1}', mtime=0), r"r\.jsonl is compressed \(gzip\): unpack it"),
        (b"", r"r\.jsonl: it has no rows"),
        (b"\n \n", r"r\.jsonl: it has no rows"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        rows_of(jsonl(tmp_path / "r.jsonl", content))
    assert len(str(refused.value)) < 700


def test_parquet_in_any_folder(tmp_path: Path) -> None:
    (tmp_path / "run[1] *").mkdir()
    path = parquet(tmp_path / "run[1] *" / "t.parquet", a=[1, 2])
    assert [(row.where, row.values) for row in rows_of(path)] == [
        (f"dataset {path} row 0", {"a": 1}),
        (f"dataset {path} row 1", {"a": 2}),
    ]


def test_parquet_values_become_plain(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    path = parquet(
        tmp_path / "t.parquet",
        time=[moment],
        day=[moment.date()],
        map=pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        half=pa.array([0.5], pa.float32()),
        null=pa.array([None], pa.string()),
        struct=[{"a": None, "b": [None, 1]}],
    )
    (row,) = rows_of(path)
    assert row.values == {
        "time": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "map": {"k": 1},
        "half": 0.5,
        "struct": {"b": [None, 1]},
    }


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([b"x"]), "row 0: field 'a' is of type bytes"),
        (pa.array([float("nan")]), "row 0: field 'a' is nan"),
        (pa.array([1], pa.duration("s")), "row 0: field 'a' is of type timedelta"),
        (pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())), "not a whole Parquet file"),
        (pa.array([], pa.int64()), "it has no rows"),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path: Path, column: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"dataset .*t\.parquet:? ?{reason}"):
        rows_of(parquet(tmp_path / "t.parquet", a=column))


@pytest.mark.parametrize("size", [0, 10, 300, -1])
def test_a_torn_parquet_file_is_named(tmp_path: Path, size: int) -> None:
    path = Path(parquet(tmp_path / "t.parquet", a=list(range(100))))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"dataset .*t\.parquet: not a whole Parquet file"):
        rows_of(str(path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.jsonl", "no such file"),
        ("absent.parquet", "no such file"),
        ("x" * 300 + ".jsonl", "no such file"),
        ("there.txt", r"ends with \.jsonl or \.json or"),
        ("*.txt", r"there\.txt: a file of rows ends with"),
    ],
)
def test_names_of_files(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "there.txt").write_text("a\n1\n")
    with pytest.raises(ValueError, match=reason):
        rows_of(str(tmp_path / name))


@pytest.mark.parametrize("name", ["nobody/nothing", "x" * 300, "a//b", "no such name"])
def test_a_hugging_face_name_that_cannot_be_loaded_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not a Hugging Face dataset that can be loaded") as refused:
        rows_of(name)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 800
