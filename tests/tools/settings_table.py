"""The tables of docs/plugin-settings.md, from the plugin's own table of options.

`python tests/tools/settings_table.py` prints them, `--write` puts them into the page, and a test holds the page
against them.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "plugin-settings.md"
sys.path.insert(0, str(CHECKOUT / "files" / "plugin" / "src"))

from gpu_device_plugin.options import IGNORED, OPTIONS, Option  # noqa: E402
from gpu_device_plugin.xids import IGNORE, XIDS  # noqa: E402


def code(words: tuple[str, ...]) -> str:
    return "<br>".join(f"`{word}`" for word in words)


def values(option: Option) -> str:
    if option.choices:
        return ", ".join(option.choices)
    named = {
        "text": "text",
        "path": "absolute path",
        "bool": "true, false",
        "number": "seconds",
        "list": "list",
        "integers": "numbers",
        "address": "host:port",
        "yaml": "structure, below",
    }
    return named[option.kind]


def settings() -> str:
    lines = ["| file | flag | environment | default | values | what it does |", "|---|---|---|---|---|---|"]
    for option in OPTIONS:
        default = f"`{option.default_text}`" if option.default_text else ""
        what = option.help + (" (ours)" if option.ours else "")
        cells = (code(option.key), code(option.flags), code(option.env), default, values(option), what)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ignored() -> str:
    lines = ["| file | flag | environment | why |", "|---|---|---|---|"]
    lines += [f"| `{i.key}` | {code(i.flags)} | {code(i.env)} | {i.why} |" for i in IGNORED]
    return "\n".join(lines)


def xids() -> str:
    lines = ["| XID | class | hits | what it is |", "|---|---|---|---|"]
    for number, row in sorted(XIDS.items()):
        hits = (
            ""
            if row.kind == IGNORE
            else "the whole GPU"
            if row.whole_gpu
            else "the slice it names, else the GPU"
        )
        lines.append(f"| {number} | {row.kind} | {hits} | {row.text} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page's text with every table between its marks made anew."""
    for name, table in (("settings", settings()), ("ignored", ignored()), ("xids", xids())):
        begin, end = f"<!-- {name}: made by tests/tools/settings_table.py -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{PAGE}: the marks of {name} are missing")
        before, after = text.split(begin, 1)[0], text.split(end, 1)[1]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(settings(), ignored(), xids(), sep="\n\n")
