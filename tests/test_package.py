"""What `pip install` of the wheel gives: exactly our packages, and a node that runs outside the checkout."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.berm.helpers import Client
from tests.node import Node

ROOT = Path(__file__).parents[1]
PACKAGES = {"broker", "bridge", "processors", "storage", "berm"}
INSTALL_SECONDS = 300
UNREACHABLE = "NewConnectionError"
"""What pip says where it has no network."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode and UNREACHABLE in done.stderr:
        pytest.skip("the package index, which has the build backend, can't be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_exactly_our_packages_each_with_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    (info,) = {name.split("/")[0] for name in names} - PACKAGES
    assert re.fullmatch(r"berm-[0-9.]+\.dist-info", info)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    ours = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    assert not [name for name in names if name.split("/")[0] in PACKAGES and not name.endswith((".py", "py.typed"))]


def test_the_wheel_says_what_it_is_and_under_which_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
        names = archive.namelist()
    assert (metadata["Name"], metadata["License-Expression"]) == ("berm", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_it_runs_in_an_empty_environment_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed with what it asks for and nothing else, `berm run` takes a message from a client and keeps it."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, system_site_packages=False)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    installed = subprocess.run(
        [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if installed.returncode and UNREACHABLE in installed.stderr:
        pytest.skip("the package index can't be reached")
    assert installed.returncode == 0, installed.stderr
    berm = str(environment / "bin" / "berm")
    with Node(tmp_path / "node", command=(berm,)) as node:
        with Client(node.port, "subscriber") as subscriber, Client(node.port, "device") as device:
            subscriber.subscribe("plant/#")
            device.publish("plant/a", b"1", b"2")
            subscriber.wait_for({b"1", b"2"})
        assert node.stop() == 0
    done = subprocess.run([berm, "replay"], cwd=node.directory, env=clean, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    where = [str(environment / "bin" / "python"), "-c", "import berm, broker; print(berm.__file__, broker.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True).stdout
    assert found.count(str(environment)) == 2
