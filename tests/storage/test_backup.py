"""A backup beside a node that goes on has everything up to one commit, and copies only what it has not yet."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from storage import backup as module
from storage import snapshot
from storage.backup import Options, Report, back_up
from storage.database import DATABASE
from storage.interface import CURSORS, META, SESSIONS, Event
from storage.manifest import BackupError, Manifest, NotOursError, manifests
from storage.restore import choose, restore
from storage.sealed import Files
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.storage.contract import State, event, read_all

NOW = 1_790_000_000_000_000
SMALL = Policy(bytes=50_000, age=1 << 62)


class Plant:
    """An engine that seals often, and what was committed to it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.engine = SQLiteEngine(self.data, policy=SMALL)
        self.events: list[Event] = []
        self.payload: Callable[[int], bytes] = lambda seq: b"%d" % seq * 20

    def commit(self, groups: int, *, seal: bool = True) -> None:
        """Some groups of a hundred events, and a row of state with each."""
        for _ in range(groups):
            first = len(self.events) + 1
            events = [event(seq, f"plant/{seq % 7}", self.payload(seq)) for seq in range(first, first + 100)]
            state: State = {
                CURSORS: {("reader",): (first + 99,)},
                META: {("node",): ("edge",), ("at",): (str(first + 99),)},
            }
            self.engine.commit(events, state, True)
            self.events += events
            while seal and self.engine.upkeep():
                pass

    @property
    def segments(self) -> list[str]:
        """Their names."""
        return sorted(path.name for path in (self.data / "segments").glob("*.segment"))


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.engine.close()


USUAL = Options()


def _back_up(plant: Plant, target: Path, now: int = NOW, options: Options = USUAL) -> Report:
    return back_up(plant.data, target, now, "1.2.3", options)


@contextmanager
def _restored(target: Path, directory: Path, at: int | None = None) -> Iterator[SQLiteEngine]:
    restore(target, choose(target, at), directory, NOW)
    engine = SQLiteEngine(directory, policy=SMALL)
    try:
        yield engine
    finally:
        engine.close()


# -- all of it


def test_a_backup_has_every_event_and_all_state(tmp_path: Path, plant: Plant) -> None:
    plant.commit(30)
    plant.commit(2, seal=False)
    assert len(plant.segments) > 3
    report = _back_up(plant, tmp_path / "backup")
    assert (report.manifest.first, report.manifest.last) == (1, 3200)
    assert (report.manifest.node, report.manifest.version, report.manifest.taken) == ("edge", "1.2.3", NOW)
    assert report.problems == []
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events
        assert ("at", "3200") in engine.rows(META)


def test_a_backup_of_a_stopped_node_and_of_a_log_without_events_is_one_too(tmp_path: Path, plant: Plant) -> None:
    _back_up(plant, tmp_path / "empty")
    with _restored(tmp_path / "empty", tmp_path / "nothing") as engine:
        assert read_all(engine) == []
    plant.commit(3)
    plant.engine.close()
    _back_up(plant, tmp_path / "stopped")
    with _restored(tmp_path / "stopped", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events


def test_what_is_sealed_and_deleted_at_any_moment_of_a_backup_is_in_it(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_ROWS", 60)
    plant.commit(12, seal=False)
    target = tmp_path / "backup"
    copy = snapshot._Copying._copy_rows
    finish = snapshot._Copying._finish
    acknowledged: list[int] = []

    def goes_on(copying: snapshot._Copying, upto: int) -> None:
        copy(copying, upto)
        if len(plant.events) < 6000:
            plant.commit(1)

    def last(copying: snapshot._Copying, upto: int, sealed: Files) -> snapshot.Snapshot:
        acknowledged.append(upto)
        plant.commit(3)
        return finish(copying, upto, sealed)

    monkeypatch.setattr(snapshot._Copying, "_copy_rows", goes_on)
    monkeypatch.setattr(snapshot._Copying, "_finish", last)
    report = _back_up(plant, target)
    monkeypatch.undo()
    assert len(plant.segments) > 2, "it was sealed beside the backup"
    assert report.manifest.last == acknowledged[-1] < len(plant.events)
    with _restored(target, tmp_path / "new") as engine:
        assert read_all(engine) == plant.events[: report.manifest.last], (
            "the state of one commit, and no event after it"
        )
        assert ("at", str(report.manifest.last)) in engine.rows(META)


def test_a_log_of_which_all_is_sealed_is_backed_up_whole(tmp_path: Path, plant: Plant) -> None:
    plant.commit(10)
    with closing(sqlite3.connect(plant.data / DATABASE)) as tool:
        (first,) = tool.execute("SELECT min(seq) FROM tail").fetchone()
        tool.execute("DELETE FROM tail")
        tool.commit()
    report = _back_up(plant, tmp_path / "backup")
    assert report.manifest.last == first - 1
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events[: first - 1]


def test_beside_a_thread_that_commits_without_a_pause_a_backup_ends_and_misses_nothing(
    tmp_path: Path, plant: Plant
) -> None:
    plant.commit(5)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set() and len(plant.events) < 200_000:
            plant.commit(1)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        before = len(plant.events)
        report = _back_up(plant, tmp_path / "backup")
    finally:
        stop.set()
        thread.join()
    assert report.manifest.last >= before
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events[: report.manifest.last]


def test_ids_of_topics_that_are_given_anew_meanwhile_mix_nothing_up(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_ROWS", 100)
    plant.commit(4, seal=False)
    copy = snapshot._Copying._copy_rows
    done: list[int] = []

    def swapped(copying: snapshot._Copying, upto: int) -> None:
        copy(copying, upto)
        if not done:
            done.append(upto)
            with closing(sqlite3.connect(plant.data / DATABASE)) as tool:
                tool.execute("DELETE FROM tail WHERE seq <= ?", (upto,))
                tool.execute("UPDATE topics SET id = id + 100")
                tool.execute("UPDATE tail SET topic = topic + 100")
                tool.execute("INSERT INTO topics SELECT id - 100, 'other/' || id FROM topics")
                tool.commit()

    monkeypatch.setattr(snapshot._Copying, "_copy_rows", swapped)
    _back_up(plant, tmp_path / "backup")
    monkeypatch.undo()
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events


# -- again and again


def test_the_next_backup_copies_only_segments_that_are_new(tmp_path: Path, plant: Plant) -> None:
    target = tmp_path / "backup"
    plant.commit(20)
    first = _back_up(plant, target)
    before = {path: path.stat().st_mtime_ns for path in (target / "segments").iterdir()}
    plant.commit(10)
    second = _back_up(plant, target, NOW + 1)
    assert second.reused == len(before) > 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert second.manifest.stamp > first.manifest.stamp
    for manifest, events in ((first.manifest, plant.events[:2000]), (second.manifest, plant.events)):
        directory = tmp_path / manifest.stamp
        restore(target, manifest, directory, NOW)
        engine = SQLiteEngine(directory)
        assert read_all(engine) == events
        engine.close()


def test_of_many_backups_the_last_ones_are_kept_and_what_only_others_need_is_removed(
    tmp_path: Path, plant: Plant
) -> None:
    target = tmp_path / "backup"
    for number in range(4):
        plant.commit(10)
        (plant.data / "segments" / plant.segments[0]).unlink()
        report = _back_up(plant, target, NOW + number, Options(keep=2))
    assert report.removed == 1
    found, problems = manifests(target)
    assert [manifest.taken for manifest in found] == [NOW + 2, NOW + 3]
    assert problems == []
    needed = {entry.file for manifest in found for entry in manifest.files} | {manifest.name for manifest in found}
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == needed


def test_a_segment_that_an_erasure_has_written_anew_is_copied_anew(tmp_path: Path, plant: Plant) -> None:
    target = tmp_path / "backup"
    plant.commit(20)
    _back_up(plant, target)
    path = plant.data / "segments" / plant.segments[0]
    _rewrite(path, lambda each: each.topic != "plant/3")
    report = _back_up(plant, target, NOW + 1)
    assert report.reused == len(plant.segments) - 1
    with _restored(target, tmp_path / "new") as engine:
        last = int(path.name[21:41])
        assert read_all(engine) == [each for each in plant.events if each.seq > last or each.topic != "plant/3"]


def _rewrite(path: Path, wanted: object) -> None:
    from storage.segment import Segment
    from storage.segment_writer import write_segment

    assert callable(wanted)
    with Segment.open(path) as segment:
        events, _ = segment.read(0, 1 << 60, 1 << 30)
    new = path.with_name("new")
    write_segment(new, [each for each in events if wanted(each)])
    os.replace(new, path)


def test_what_retention_or_an_erasure_does_meanwhile_is_followed(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.commit(30)
    first, second, third, *_ = plant.segments
    copied: list[str] = []
    segment = module._Backup._segment

    def meanwhile(backup: module._Backup, name: str) -> object:
        entry = segment(backup, name)
        copied.append(name)
        if copied == [first]:
            _rewrite(plant.data / "segments" / first, lambda each: each.topic != "plant/3")
            (plant.data / "segments" / second).unlink()
        if name == third:
            (plant.data / "segments" / third).unlink()
        return entry

    monkeypatch.setattr(module._Backup, "_segment", meanwhile)
    report = _back_up(plant, tmp_path / "backup")
    assert copied.count(first) == 2
    assert report.problems == []
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        gone = range(int(second[:20]), int(third[21:41]) + 1)
        erased = range(int(first[:20]), int(first[21:41]) + 1)
        assert read_all(engine) == [
            each
            for each in plant.events
            if each.seq not in gone and not (each.seq in erased and each.topic == "plant/3")
        ]


def test_a_backup_whose_clock_was_set_back_is_the_last_one_all_the_same(tmp_path: Path, plant: Plant) -> None:
    plant.commit(1)
    _back_up(plant, tmp_path / "backup", NOW)
    plant.commit(1)
    report = _back_up(plant, tmp_path / "backup", NOW - 1000)
    assert choose(tmp_path / "backup", None) == report.manifest


def test_links_take_no_room_and_are_made_only_when_asked_for(tmp_path: Path, plant: Plant) -> None:
    plant.commit(20)
    _back_up(plant, tmp_path / "copied")
    report = _back_up(plant, tmp_path / "linked", options=Options(link=True))
    inodes = {path.stat().st_ino for path in (plant.data / "segments").iterdir()}
    assert {path.stat().st_ino for path in (tmp_path / "linked" / "segments").iterdir()} == inodes
    assert not inodes & {path.stat().st_ino for path in (tmp_path / "copied" / "segments").iterdir()}
    assert report.written < sum(path.stat().st_size for path in (plant.data / "segments").iterdir()) + 200_000
    with _restored(tmp_path / "linked", tmp_path / "new") as engine:
        assert read_all(engine) == plant.events


# -- cut short, or in trouble


def test_a_backup_that_was_cut_short_leaves_the_earlier_ones_and_the_next_goes_on_with_its_segments(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    plant.commit(10)
    first = _back_up(plant, target)
    plant.commit(20)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Backup, "_write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            _back_up(plant, target, NOW + 1)
    (target / "segments" / "x.segment.partial").touch()
    assert choose(target, None) == first.manifest
    report = _back_up(plant, target, NOW + 2)
    assert report.reused == len(plant.segments)
    assert not list(target.rglob("*.partial"))
    assert len(list(target.glob("database-*"))) == 2
    with _restored(target, tmp_path / "new") as engine:
        assert read_all(engine) == plant.events


def test_a_sector_that_can_not_be_read_costs_itself(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.payload = lambda seq: random.Random(seq).randbytes(100)
    plant.commit(20)
    pread = os.pread

    def bad(descriptor: int, size: int, place: int) -> bytes:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path == str(plant.data / "segments" / plant.segments[1]) and place <= 4096 < place + size and size > 128:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, place)

    monkeypatch.setattr("storage.backup.os.pread", bad)
    report = _back_up(plant, tmp_path / "backup")
    monkeypatch.undo()
    assert report.problems == [f"{plant.data / 'segments' / plant.segments[1]}: the disk can't read 4096 bytes at 4096"]
    with _restored(tmp_path / "backup", tmp_path / "new") as engine:
        found = read_all(engine)
        assert 1000 < len(found) < 2000
        assert {each.seq for each in found} <= set(range(1, 2001))


def test_a_copy_that_is_not_what_was_written_is_found_when_asked_for(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.commit(20)
    target = tmp_path / "backup"
    write = module._write

    def broken(descriptor: int, data: bytes) -> None:
        write(descriptor, data[:-1] + bytes((data[-1] ^ 1,)))

    monkeypatch.setattr(module, "_write", broken)
    with pytest.raises(BackupError, match="its checksum does not match; the backup was not kept"):
        _back_up(plant, target, options=Options(check=True))
    assert manifests(target) == ([], [])


def test_a_full_disk_is_one_line_and_earlier_backups_are_whole(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    plant.commit(10)
    first = _back_up(plant, target)
    plant.commit(20)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(
        BackupError, match="No space left on device; earlier backups are whole; see whether there is room"
    ):
        _back_up(plant, target, NOW + 1)
    assert choose(target, None) == first.manifest


def test_only_one_backup_at_a_time_goes_to_a_directory(tmp_path: Path, plant: Plant) -> None:
    from storage.manifest import held

    (tmp_path / "backup").mkdir()
    with held(tmp_path / "backup", alone=True), pytest.raises(BackupError, match="is in use by another backup"):
        _back_up(plant, tmp_path / "backup")


@pytest.mark.parametrize("where", ["data", "data/backups"])
def test_a_backup_into_the_data_directory_is_refused(tmp_path: Path, plant: Plant, where: str) -> None:
    with pytest.raises(NotOursError, match="is in the data directory"):
        _back_up(plant, tmp_path / where)


def test_a_backup_into_the_data_directory_of_another_node_is_refused(tmp_path: Path, plant: Plant) -> None:
    SQLiteEngine(tmp_path / "other").close()
    with pytest.raises(NotOursError, match="is a node's data directory"):
        _back_up(plant, tmp_path / "other")


def test_a_directory_without_a_log_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotOursError, match=r"berm\.db: there is no log"):
        back_up(tmp_path, tmp_path / "backup", NOW, "1")
    assert not (tmp_path / "backup").exists()


def test_of_a_damaged_database_there_is_no_backup_but_a_line(tmp_path: Path, plant: Plant) -> None:
    plant.commit(6, seal=False)
    plant.engine.commit([], {SESSIONS: {(f"c{n}",): (5, 0, 0, 0, 0, b"", b"", b"", "") for n in range(500)}}, True)
    plant.engine.close()
    data = bytearray((plant.data / DATABASE).read_bytes())
    with closing(sqlite3.connect(plant.data / DATABASE)) as tool:
        pages = [
            page for (page,) in tool.execute("SELECT pageno FROM dbstat WHERE name = 'tail' AND pagetype = 'leaf'")
        ]
    data[(pages[5] - 1) * 4096 : pages[5] * 4096] = b"\xee" * 4096
    (plant.data / DATABASE).write_bytes(data)
    with pytest.raises(BackupError, match="`berm log verify` tells whether it is damaged"):
        _back_up(plant, tmp_path / "backup")
    assert manifests(tmp_path / "backup") == ([], [])


# -- manifests


def test_a_manifest_that_was_changed_is_found_out(tmp_path: Path, plant: Plant) -> None:
    plant.commit(3)
    manifest = _back_up(plant, tmp_path / "backup").manifest
    path = tmp_path / "backup" / manifest.name
    content = path.read_bytes()
    assert Manifest.unpack(content, path) == manifest
    for number in range(0, len(content), 7):
        data = bytearray(content)
        data[number] ^= 0x04
        found = None
        with suppress(NotOursError):
            found = Manifest.unpack(bytes(data), path)
        assert found in (None, manifest), "white space may be anything"


@pytest.mark.parametrize("name", ["../berm.db", "/etc/passwd", "segments/../../x", ""])
def test_a_manifest_that_leads_out_of_its_directory_is_refused(tmp_path: Path, plant: Plant, name: str) -> None:
    from dataclasses import replace

    plant.commit(1)
    manifest = _back_up(plant, tmp_path / "backup").manifest
    entry = replace(manifest.files[0], name=name)
    bad = replace(manifest, files=(entry,))
    with pytest.raises(NotOursError, match="names files that no backup has"):
        Manifest.unpack(bad.pack(), tmp_path)


def test_a_manifest_of_a_newer_berm_is_refused(tmp_path: Path, plant: Plant) -> None:
    plant.commit(1)
    manifest = _back_up(plant, tmp_path / "backup").manifest
    whole = json.loads(manifest.pack())
    whole["backup"]["format"] = 2
    from storage.manifest import _checksum

    whole["sha256"] = _checksum(whole["backup"])
    with pytest.raises(NotOursError, match="newer Berm"):
        Manifest.unpack(json.dumps(whole).encode(), tmp_path)


def test_what_was_set_aside_is_left_out_unless_it_is_asked_for(tmp_path: Path, plant: Plant) -> None:
    plant.commit(3)
    (plant.data / "berm.db.damaged-17").write_bytes(b"damaged")
    plain = _back_up(plant, tmp_path / "backup").manifest
    more = _back_up(plant, tmp_path / "backup", NOW + 1, Options(quarantined=True)).manifest
    assert not [entry for entry in plain.files if "damaged" in entry.name]
    restore(tmp_path / "backup", more, tmp_path / "new", NOW)
    assert (tmp_path / "new" / "berm.db.damaged-17").read_bytes() == b"damaged"
    shutil.rmtree(tmp_path / "new")
