"""The report's page of the made-up fleet, and its pictures for docs/: light, dark, phone, and the print as a PDF.

report_shots.py [--output docs]     writes fleet-report-{light,dark,phone}.png, and fleet-report.pdf below build/
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import browser
import report_fleet

CHECKOUT = Path(__file__).resolve().parents[2]
Fleet = tuple[list[dict[str, Any]], ...]  # nodes, pods, and by choice how the API server answered


def collection(folder: Path) -> None:
    """The checkout as an installed collection below ``folder``/collections."""
    root = folder / "collections/ansible_collections/gpuops/k8s"
    root.mkdir(parents=True, exist_ok=True)
    for name in ("playbooks", "plugins", "roles", "galaxy.yml", "meta"):
        (root / name).symlink_to(CHECKOUT / name)


def environment(folder: Path) -> dict[str, str]:
    """What ansible-playbook needs to find the collection and to write nothing elsewhere."""
    return {
        "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }


def render(folder: Path, fleets: dict[str, Fleet]) -> dict[str, Path]:
    """Name -> page, by Ansible itself with the playbook's own template."""
    collection(folder)
    for name, (nodes, pods, *api) in fleets.items():
        (folder / f"{name}.json").write_text(
            json.dumps({"nodes": nodes, "pods": pods, "api": api[0] if api else []})
        )
    play = {
        "hosts": "localhost",
        "vars": {"ansible_python_interpreter": sys.executable},
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.template": {
                    "src": str(CHECKOUT / "playbooks/templates/report.html.j2"),
                    "dest": f"{folder}/{{{{ item }}}}.html",
                    "mode": "0644",
                },
                "loop": list(fleets),
                "vars": {
                    # By a lookup, as by a registered result: such text is never a template.
                    "gathered": f"{{{{ lookup('ansible.builtin.file', '{folder}/' ~ item ~ '.json') | from_json }}}}",
                    "report_nodes": "{{ gathered.nodes }}",
                    "report_pending_pods": "{{ gathered.pods }}",
                    "report_api_answers": "{{ gathered.api }}",
                    "report_time": "2026-11-23 10:00 UTC",
                },
            }
        ],
    }
    (folder / "render.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", folder / "render.yml"],
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return {name: folder / f"{name}.html" for name in fleets}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs")
    options = parser.parse_args()
    program = browser.found()
    if program is None:
        sys.exit("report_shots: no Chromium here; tests/tools/chromium installs Debian's")
    built = CHECKOUT / "build"
    built.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser.Browser(program) as running:
        page = render(Path(folder), {"fleet": (report_fleet.fleet(), report_fleet.pending())})["fleet"]
        for name, width, scheme in (
            ("light", 1100, "light"),
            ("dark", 1100, "dark"),
            ("phone", 390, "light"),
        ):
            running.look(width, 1500 if width > 600 else 1400, scheme)
            running.open(page)
            place = options.output / f"fleet-report-{name}.png"
            place.write_bytes(running.picture(whole=False))
            print(f"{place}: {place.stat().st_size // 1024} KiB")
        running.look(1100, 800)
        running.open(page)
        (built / "fleet-report.pdf").write_bytes(running.pdf())
        (built / "fleet-report.html").write_bytes(page.read_bytes())
        print(f"{built / 'fleet-report.pdf'}\n{built / 'fleet-report.html'}")


if __name__ == "__main__":
    main()
