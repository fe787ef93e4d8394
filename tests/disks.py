"""Small file systems for tests. Where none may be mounted, the test is skipped in so many words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def tmpfs(directory: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes in memory, in a directory that is made for it."""
    directory.mkdir()
    with _mounted("tmpfs", directory, "-t", "tmpfs", "-o", f"size={size}"):
        yield directory


@contextmanager
def ext4(directory: Path, size: int) -> Iterator[Path]:
    """An ext4 of `size` bytes in a file beside the directory, which is made for it."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    directory.mkdir()
    image = directory.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with _mounted(str(image), directory, "-o", "loop"):
        yield directory


@contextmanager
def _mounted(what: str, directory: Path, *options: str) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(["mount", *options, what, str(directory)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # a test that failed may hold a file open


def remount(directory: Path, option: str) -> None:
    """`ro`, where nothing is open for writing, or `abort`: what ext4 does after an error."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(directory)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all the room that there is, but for about `leave` bytes, by one file, which may be there already."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        found = os.statvfs(disk)
        size = file.tell() + found.f_bavail * found.f_frsize - leave
        file.truncate(min(size, file.tell()))
        if leave:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            with suppress(OSError):
                while file.write(bytes(4096)):
                    pass
    return ballast
