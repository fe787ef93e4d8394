"""Names that peers have chosen, as the log shows them."""

from __future__ import annotations

import pytest

from broker.names import shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "''"),
        ("meter-7", "'meter-7'"),
        ("it's", '"it\'s"'),
        ("a\nforged line\x1b[2J", "'a\\nforged line\\x1b[2J'"),
        ("x" * 64, f"'{'x' * 64}'"),
        ("x" * 65, f"'{'x' * 64}'..."),
        ("\n" * 65535, "'" + "\\n" * 64 + "'..."),
    ],
)
def test_a_name_is_quoted_escaped_and_cut(name: str, expected: str) -> None:
    assert shown(name) == expected
