"""docs/plugin-settings.md and docs/moving-from-nvidia.md say what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from gpu_device_plugin.config_load import load
from gpu_device_plugin.options import OPTIONS

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "tools"))
settings_table = __import__("settings_table")

PAGES = ("plugin-settings.md", "moving-from-nvidia.md")


def blocks(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (CHECKOUT / "docs" / page).read_text(), re.DOTALL)


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    text = settings_table.PAGE.read_text()
    assert settings_table.page(text) == text, "run tests/tools/settings_table.py --write"
    for option in OPTIONS:
        assert f"| `{option.flags[0]}`" in text


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in PAGES for text in blocks(page)])
def test_every_example_is_accepted(page: str, text: str) -> None:
    assert load(["--config-file=example"], {}, lambda path: text).config_file == "example"


def test_both_pages_have_examples() -> None:
    assert [len(blocks(page)) for page in PAGES] == [6, 1]


def test_the_example_of_a_flag_is_accepted() -> None:
    (text,) = re.findall(r"--sharing-time-slicing='(.*?)'", settings_table.PAGE.read_text())
    assert load([f"--sharing-time-slicing={text}"], {}, lambda path: "").time_slicing is not None
