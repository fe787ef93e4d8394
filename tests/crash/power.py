"""The witness `power.c` from Python: compiled, put before a command, and checked; and disks made of what it wrote.

    python -m tests.crash.power --base DIR --journal FILE --root DIR --seed SEED --out DIR

makes the disk of one power cut again, from what a run has kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.crash.disk import Disk

SOURCE: Final = Path(__file__).with_name("power.c")
FLAGS: Final = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")


def missing() -> str:
    """Why there can be no power cuts here, in words; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "the layer that simulates power cuts is for Linux"
    if _compiler() is None:
        return (
            "there is no C compiler for the layer that simulates power cuts (on Debian: apt-get install gcc libc6-dev)"
        )
    return ""


def build(directory: Path) -> Path:
    """Compile the witness; the library to preload."""
    library = directory / "power.so"
    compiler = _compiler()
    assert compiler is not None, missing()
    subprocess.run([compiler, *FLAGS, "-o", str(library), str(SOURCE), "-ldl", "-pthread"], check=True, timeout=120)
    return library


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@dataclass(frozen=True, slots=True)
class Power:
    """A directory whose power can fail: `live` is what a process sees, `base` is what the disk held when it started.

    `ordered_names` and `syncs` are those of `Disk`.
    """

    library: Path
    live: Path
    base: Path
    journal: Path
    ordered_names: bool = True
    syncs: bool = True

    def watched(self, command: Sequence[str]) -> list[str]:
        """The command, so that what it does to `live` is written down."""
        environment = {"LD_PRELOAD": self.library, "POWER_ROOT": self.live, "POWER_JOURNAL": self.journal}
        return ["env", *(f"{name}={value}" for name, value in environment.items()), *command]

    def begin(self) -> None:
        """What is in `live` is what the disk holds, and nothing has been done to it yet."""
        shutil.rmtree(self.base, ignore_errors=True)
        self.live.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.live, self.base)
        self.journal.unlink(missing_ok=True)

    def disk(self) -> Disk:
        """The disk as it is now, with all that need not last.

        Raises:
            StrangeError: the process did something that can't be followed.
        """
        disk = Disk.read(self.base, self.live, ordered_names=self.ordered_names, syncs=self.syncs)
        disk.replay(self.journal)
        return disk

    def cut(self, seed: str) -> None:
        """The process has been killed, and the power is gone: `live` is what may be left, and a new beginning."""
        disk = self.disk()
        shutil.rmtree(self.live)
        disk.cut(self.live, Random(seed))
        self.begin()

    def differences(self) -> list[str]:
        """Files of `live` that are not what the journal, applied in full, makes of `base`, but for `-shm`.

        Where there are any, the witness has missed something. Nothing may be running.
        """
        expected = self.base.with_name("expected")
        shutil.rmtree(expected, ignore_errors=True)
        self.disk().write_all(expected)
        here, there = (_names(directory) for directory in (self.live, expected))
        wrong = sorted(here ^ there)
        for name in sorted(here & there):
            one, other = self.live / name, expected / name
            if one.is_file() != other.is_file() or (one.is_file() and one.read_bytes() != other.read_bytes()):
                wrong.append(name)
        return wrong


def _names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.name.endswith("-shm")}


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.power", description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="what the disk held when the process started")
    parser.add_argument("--journal", type=Path, required=True, help="what the process did")
    parser.add_argument("--root", type=Path, required=True, help="where the process saw the directory")
    parser.add_argument("--seed", required=True, help="of the power cut")
    parser.add_argument("--out", type=Path, required=True, help="where the disk is made; must not exist")
    parser.add_argument("--strict-names", action="store_true", help="only syncing a directory keeps names in it")
    arguments = parser.parse_args()
    disk = Disk.read(arguments.base, arguments.root, ordered_names=not arguments.strict_names)
    disk.replay(arguments.journal)
    disk.cut(arguments.out, Random(arguments.seed))
    print(", ".join(f"{operation.name} {count}" for operation, count in sorted(disk.operations.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
