"""Segments on disk: growing, torn, sealed, and what is found at an address in each form."""

from __future__ import annotations

import json
import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.store import segments
from rollout.store.groups import encode, header, schema
from rollout.store.segments import Segment, group_ids, groups, paths, read_group, read_groups, seal, tidy
from rollout.types import OBSERVED, Address, Group
from tests.rollout.store.test_groups import GROUP
from tests.samples import sample_of


def some(count: int) -> list[Group]:
    """Groups of different lengths."""
    (member,) = GROUP.trajectories
    made = []
    for number in range(count):
        tokens = 5 + 700 * number
        sample = sample_of(
            token_ids=range(tokens),
            loss_mask=[0] + [1] * (tokens - 1),
            logprobs=[0.0] + [-0.25] * (tokens - 1),
            versions=[OBSERVED] + [number] * (tokens - 1),
        )
        group_id = f"g1-{number:06d}"
        members = (replace(member, group_id=group_id, samples=(sample,)), replace(member, group_id=group_id))
        made.append(replace(GROUP, id=group_id, trajectories=members))
    return made


def written(folder: Path, made: list[Group]) -> tuple[Segment, list[Address]]:
    segment = Segment(folder)
    addresses = [segment.append(group, "train") for group in made]
    segment.sync()
    return segment, addresses


def test_an_address_holds_while_the_segment_grows_and_after_it_is_sealed(tmp_path: Path) -> None:
    made = some(4)
    segment, addresses = written(tmp_path, made)
    assert addresses == [Address(segment=1, record=i) for i in range(4)]
    assert [read_group(tmp_path, address) for address in addresses] == made
    assert group_ids(segment.path) == [group.id for group in made]
    segment.close()
    seal(segment.path)
    assert [path.name for path in tmp_path.iterdir()] == ["segment-000001.parquet"]
    assert [read_group(tmp_path, address) for address in reversed(addresses)] == made[::-1]
    assert list(groups(paths(tmp_path)[1])) == [(i, group, "train") for i, group in enumerate(made)]


def test_a_sealed_segment_has_one_row_group_a_group(tmp_path: Path) -> None:
    made = some(3)
    segment, _ = written(tmp_path, made)
    seal(segment.path)
    with pq.ParquetFile(tmp_path / "segment-000001.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 2]


@pytest.mark.slow
def test_pandas_and_datasets_open_sealed_segments_as_they_are(tmp_path: Path) -> None:
    import datasets
    import pandas

    segment, _ = written(tmp_path, some(2))
    seal(segment.path)
    path = str(tmp_path / "segment-000001.parquet")
    frame = pandas.read_parquet(path)
    assert frame["reward"].tolist() == [0.5] * 4 and frame["group_id"].tolist()[::2] == ["g1-000000", "g1-000001"]
    assert json.loads(frame["messages"][0]) == [{"role": "assistant", "content": "a\u2028b"}]
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[2]["samples"][0]["versions"][:3] == [OBSERVED, 1, 1]


def test_every_worker_has_segments_of_its_own(tmp_path: Path) -> None:
    first, second = Segment(tmp_path), Segment(tmp_path)
    assert (first.number, second.number) == (1, 2)
    seal(second.path)
    assert Segment(tmp_path).number == 3


def test_a_number_that_another_worker_used_up_just_now_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins, fills and seals segment 1 between our look at the folder and our claim."""
    looked = segments.paths

    def look_then_lose(folder: Path) -> dict[int, Path]:
        found = looked(folder)
        monkeypatch.setattr(segments, "paths", looked)
        seal(written(folder, some(1))[0].path)
        return found

    monkeypatch.setattr(segments, "paths", look_then_lose)
    assert Segment(tmp_path).number == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segment-000001.parquet", "segment-000002.arrows"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_torn_tail_costs_the_torn_record_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The stream may end at any byte, and a power cut may leave zeros there."""
    folder = tmp_path_factory.mktemp("torn")
    made = some(3)
    segment, _ = written(folder, made[:2])
    last = encode(made[2], "train")
    kept = data.draw(st.integers(0, len(last) - 1))
    zeros = data.draw(st.sampled_from([0, 7, 4096]))
    with segment.path.open("ab") as file:
        file.write(last[:kept] + bytes(zeros if kept < 8 else 0))
    assert [group for _, group, _ in groups(segment.path)] == made[:2]
    told = tidy(folder, {})
    torn = kept + (zeros if kept < 8 else 0)
    assert told == (
        [f"segment-000001.arrows: cut {torn} bytes at its end, of a group that was not written whole"] if torn else []
    )
    assert segment.path.stat().st_size == segment.size and tidy(folder, {}) == []
    assert group_ids(segment.path) == [group.id for group in made[:2]]


def test_a_stream_without_a_record_is_deleted(tmp_path: Path) -> None:
    Segment(tmp_path)
    (tmp_path / "segment-000002.arrows").touch()
    (tmp_path / "segment-000003.arrows").write_bytes(encode(GROUP, "train")[:100])
    assert tidy(tmp_path, {}) == [] and list(tmp_path.iterdir()) == []


def test_a_crash_while_sealing_leaves_one_of_the_two(tmp_path: Path) -> None:
    made = some(2)
    segment, addresses = written(tmp_path, made)
    stream = segment.path.read_bytes()
    (tmp_path / "segment-000001.partial").write_bytes(b"half")
    tidy(tmp_path, {})
    assert [read_group(tmp_path, address) for address in addresses] == made
    seal(segment.path)
    segment.path.write_bytes(stream)  # the crash came between the rename and this file's end
    tidy(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["segment-000001.parquet"]
    assert [read_group(tmp_path, address) for address in addresses] == made


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A disk that is full once a file has this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_disk_that_is_full_while_sealing_costs_nothing(tmp_path: Path, size: int) -> None:
    made = some(6)
    segment, addresses = written(tmp_path, made)
    with no_file_larger_than(size), pytest.raises(OSError, match="File too large"):
        seal(segment.path)
    assert [*tmp_path.iterdir()] == [segment.path]
    assert [read_group(tmp_path, address) for address in addresses] == made
    seal(segment.path)
    assert [read_group(tmp_path, address) for address in addresses] == made


def test_a_full_disk_costs_the_group_that_did_not_fit_and_no_other(tmp_path: Path) -> None:
    made = some(6)
    segment, _ = written(tmp_path, made[:2])
    with no_file_larger_than(segment.size + 100), pytest.raises(OSError, match="File too large"):
        segment.append(made[5], "train")
    assert os.stat(segment.path).st_size == segment.size
    assert segment.append(made[3], "train") == Address(segment=1, record=2)
    assert [group for _, group, _ in groups(segment.path)] == [*made[:2], made[3]] and tidy(tmp_path, {}) == []


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    segment, _ = written(tmp_path, some(1))
    with pytest.raises(ValueError, match=r"segment-000001.arrows: record 1 cannot be read: there is none"):
        read_group(tmp_path, Address(segment=1, record=1))
    with pytest.raises(ValueError, match=r"segment-000007.parquet: record 0 cannot be read: .*No such file"):
        read_group(tmp_path, Address(segment=7, record=0))
    seal(segment.path)
    with pytest.raises(ValueError, match=r"segment-000001.parquet: record 2 cannot be read: there is none"):
        read_group(tmp_path, Address(segment=1, record=2))


def test_damage_before_a_finished_group_is_told_and_nothing_is_cut_or_sealed(tmp_path: Path) -> None:
    """The ledger knows three records, and the second is overwritten with zeros: the third is not torn."""
    segment, _ = written(tmp_path, some(3))
    content = bytearray(segment.path.read_bytes())
    first = len(header()) + len(encode(some(1)[0], "train"))
    content[first : first + 64] = bytes(64)
    segment.path.write_bytes(content)
    assert tidy(tmp_path, {1: 3}) == [
        f"segment-000001.arrows: damaged at byte {first}, where a finished group should be; it is left as it is"
    ]
    assert segment.path.read_bytes() == content
    with pytest.raises(ValueError, match=rf"is damaged at byte {first}"):
        seal(segment.path)
    assert [path.name for path in tmp_path.iterdir()] == ["segment-000001.arrows"]


@pytest.mark.parametrize("place", [5, 40, -1])
def test_damage_before_a_record_that_nobody_knows_is_no_torn_tail(tmp_path: Path, place: int) -> None:
    """Groups of evaluations are in no ledger. A flipped bit of the header, or of the first record, hides them all."""
    segment, _ = written(tmp_path, some(3))
    content = bytearray(segment.path.read_bytes())
    content[place if place > 0 else len(header()) + 5] ^= 1
    segment.path.write_bytes(content)
    told = tidy(tmp_path, {})
    assert segment.path.read_bytes() == content and all("it is left as it is" in line for line in told)


def test_the_only_group_of_a_stream_that_was_not_written_whole_is_told(tmp_path: Path) -> None:
    segment, _ = written(tmp_path, some(1))
    os.truncate(segment.path, segment.size - 1)
    assert tidy(tmp_path, {}) == ["segment-000001.arrows: deleted, because its only group was not written whole"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_damaged_bytes_cost_the_groups_that_have_them_and_are_told(tmp_path: Path, sealed: bool) -> None:
    """Whatever pyarrow raises for them. Both forms have checksums, so that none comes back with other values."""
    made = some(3)
    segment, _ = written(tmp_path, made)
    path = segment.path
    if sealed:
        seal(path)
        path = path.with_suffix(".parquet")
    content = path.read_bytes()
    for place in range(0, len(content), 397):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        found = read_groups(tmp_path, 1, range(3))
        assert set(found) == {0, 1, 2}
        assert all(isinstance(group, ValueError) or group == made[record] for record, group in found.items())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len([*groups(path)]) <= 3
    for size in range(0, len(content), 997):
        path.write_bytes(content[:size])
        found = read_groups(tmp_path, 1, range(3))
        assert isinstance(found[2], ValueError) and path.name in str(found[2])
        if sealed:
            with pytest.warns(UserWarning, match="segment-000001.parquet cannot be read"):
                assert [*groups(path)] == []


def test_a_damaged_group_is_not_sealed(tmp_path: Path) -> None:
    """Sealed, it would have a checksum that is right for wrong values."""
    segment, _ = written(tmp_path, some(2))
    content = segment.path.read_bytes()
    begin = len(content) - 700
    for place in range(begin, len(content), 97):
        segment.path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises((ValueError, OSError)):
            seal(segment.path)
        assert list(tmp_path.iterdir()) == [segment.path]


def test_a_group_that_was_written_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    segment, _ = written(tmp_path, [])
    made = some(2)
    with segment.path.open("ab") as file, pa.ipc.new_stream(file, schema()) as stream:
        for group in made:
            stream.write_batch(pa.ipc.open_stream(header() + encode(group, "train")).read_next_batch())
    content = segment.path.read_bytes()
    plain = content[len(header()) :]
    segment.path.write_bytes(plain)
    assert b"crc32=" not in plain and [group for _, group, _ in groups(segment.path)] == made


def test_a_record_that_cannot_be_decoded_costs_no_other(tmp_path: Path) -> None:
    """A power cut may leave the length of a record, and zeros for its content."""
    made = some(3)
    segment, _ = written(tmp_path, made)
    content = bytearray(segment.path.read_bytes())
    end = len(content) - len(encode(made[2], "train")) - 100
    content[end - 400 : end] = bytes(400)
    segment.path.write_bytes(content)
    found = read_groups(tmp_path, 1, range(4))
    assert found[0] == made[0] and found[2] == made[2]
    assert isinstance(found[1], ValueError) and "record 1 cannot be read" in str(found[1])
    assert isinstance(found[3], ValueError) and "there is none" in str(found[3])
