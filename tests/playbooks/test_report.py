"""report.yml's page in headless Chromium: on a phone, light and dark, on paper, and with names that try to be markup.

Skips what needs a browser where there is none; `tests/tools/chromium` installs Debian's. `make report-shots` makes the
pictures in docs/ by the same means (report_shots.py).
"""

from __future__ import annotations

import html
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import browser
import pytest
import report_fleet
import report_shots
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PHONES, WINDOWS = (320, 360, 412), (660, 800, 1100)

CHECKS = Path(__file__).with_name("page_checks.js").read_text()


def check(page: browser.Browser, expression: str) -> Any:
    """An expression that may call the functions of page_checks.js."""
    return page.ask(f"(() => {{ {CHECKS}; return {expression}; }})()")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    return report_shots.render(
        folder,
        {
            "fleet": (report_fleet.fleet(), report_fleet.pending()),
            "hostile": (
                report_fleet.hostile_fleet(),
                [report_fleet.pod(t, t, 1, t) for t in report_fleet.HOSTILE],
                [{"asked": t, "by": t, "command": t, "words": t, "reached": True} for t in report_fleet.HOSTILE],
            ),
            "empty": ([], []),
            "silent": (report_fleet.fleet()[:1], [], report_fleet.refused()),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    program = browser.found()
    if program is None:
        pytest.skip("no Chromium on this machine: tests/tools/chromium installs Debian's")
    with browser.Browser(program) as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_every_text_can_be_read(chromium, pages, scheme, width):
    chromium.look(width, 800, scheme)
    chromium.open(pages["fleet"])
    texts = check(chromium, "texts()")
    assert len(texts) > 200
    assert [text for text in texts if text["contrast"] < text["needs"]] == []
    assert [text for text in texts if text["size"] < 12] == []
    edges = check(chromium, "edges()")
    assert {kind for kind, _ in edges} >= {"good", "bad", "down", "held", "sick"}
    assert [edge for edge in edges if edge[1] < 3] == []


def test_the_page_follows_the_readers_scheme(chromium, pages):
    grounds = []
    for scheme in ("light", "dark"):
        chromium.look(1100, 800, scheme)
        chromium.open(pages["fleet"])
        grounds.append(chromium.ask("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


@pytest.mark.parametrize("page", ["fleet", "hostile", "empty"])
@pytest.mark.parametrize("width", PHONES)
def test_nothing_is_wider_than_a_phone(chromium, pages, page, width):
    chromium.look(width, 740)
    chromium.open(pages[page])
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    assert check(chromium, "overflow()") == []


@pytest.mark.parametrize("width", WINDOWS)
def test_nothing_is_wider_than_its_window(chromium, pages, width):
    chromium.look(width, 740)
    chromium.open(pages["fleet"])
    assert check(chromium, "overflow()") == []
    # Nor than the card that it stands in.
    assert check(chromium, "overfullCards()") == []


@pytest.mark.parametrize("page", ["fleet", "hostile"])
def test_the_page_asks_for_nothing_but_itself(chromium, pages, page):
    chromium.look(1100, 800)
    chromium.open(pages[page])
    assert chromium.requests() == [pages[page].as_uri()]
    assert chromium.complaints() == []


def test_paper_holds_everything_that_the_screen_does(chromium, pages):
    chromium.look(1100, 800)
    chromium.open(pages["fleet"])
    screen = [text["text"] for text in check(chromium, "texts()")]
    chromium.look(750, 1060, media="print")
    printed = check(chromium, "texts()")
    assert [text["text"] for text in printed] == screen
    assert [text for text in printed if text["contrast"] < text["needs"]] == []
    assert check(chromium, "overflow()") == []


def test_it_prints_on_a4_in_a_few_pages(chromium, pages):
    chromium.look(1100, 800)
    chromium.open(pages["fleet"])
    document = chromium.pdf()
    boxes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", document)
    assert document.startswith(b"%PDF-")
    assert 2 <= len(boxes) <= 6  # nine nodes; one each on a page of its own would be waste
    assert {(round(float(wide)), round(float(high))) for wide, high in boxes} <= {
        (595, 842),
        (596, 842),
        (595, 841),
    }


def test_no_tile_nor_heading_is_cut_by_the_edge_of_a_page(pages):
    style = pages["fleet"].read_text().partition("</style>")[0]
    assert "break-inside: avoid" in style
    assert "break-after: avoid" in style


def test_names_and_reasons_are_never_markup(chromium, pages):
    chromium.look(1100, 800)
    chromium.open(pages["hostile"])
    assert chromium.ask("document.title").startswith("GPU fleet")
    assert (
        chromium.ask("document.querySelectorAll('script, img, iframe, object, embed, form, link').length")
        == 0
    )
    assert chromium.ask("document.querySelectorAll('style').length") == 1
    assert check(chromium, "handlers()") == []
    # Every link stays on the page and finds its node.
    assert check(chromium, "strayLinks()") == []
    headings = chromium.ask("[...document.querySelectorAll('h3')].map(one => one.textContent)")
    assert sorted(headings) == sorted(report_fleet.HOSTILE)


def test_every_link_of_the_page_leads_to_its_node(chromium, pages):
    chromium.look(1100, 800)
    chromium.open(pages["fleet"])
    assert chromium.ask("document.links.length") > 20
    assert check(chromium, "strayLinks()") == []


def visible(page: Path) -> str:
    """The page's text without a browser."""
    body = page.read_text().partition("<body>")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def test_the_page_tells_what_an_administrator_asks(pages):
    text = visible(pages["fleet"])
    for part in (
        "6 in order, 2 need attention, 1 unreachable",
        "8 \u00d7 H100 80GB HBM3",
        "Unhealthy: XID 79 (GPU has fallen off the bus)",
        "drain it, then reset the GPU or reboot",  # the next step
        "research/llama-pretrain-worker-2",
        "0/9 nodes are available: 9 Insufficient nvidia.com/gpu.",
        "550.127.05 on 1 node: gpu-a100-02",
        "rolled back, cordoned",
        "/etc/containerd/config.toml (put back)",
        "connection refused",
        "The node does not answer",
    ):
        assert part in text, part


def test_what_needs_attention_comes_first(pages):
    text = visible(pages["fleet"]).partition("Node by node")[2]
    places = [text.index(name) for name in ("gpu-a100-03", "gpu-h100-03", "gpu-l40s-03", "gpu-a100-01")]
    assert places == sorted(places)


def test_a_report_of_hosts_that_are_no_gpu_nodes_or_do_not_answer_is_a_page_too(tmp_path):
    report_shots.collection(tmp_path)
    inventory = {
        "gpu_nodes": {
            "hosts": {
                "here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
                "away": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "nobody"},
            },
            "vars": {"device_plugin_kubelet_root_dir": str(tmp_path / "none")},
        }
    }
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = run(
        [program, "gpuops.k8s.report", "-i", "inventory.yml", "-e", f"report_file={tmp_path}/fleet.html"],
        cwd=tmp_path,
        env={**os.environ, **report_shots.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    text = visible(tmp_path / "fleet.html")
    assert "1 unreachable" in text, done.stdout
    assert "The node does not answer" in text
    assert str(tmp_path / "fleet.html") in done.stdout
    assert "from the API server" not in text  # nobody was named that could have asked it


def test_a_page_is_not_all_in_order_when_the_api_server_did_not_answer(pages):
    text = visible(pages["silent"])
    assert "all in order" not in text
    assert "1 node: 1 in order, not all is known from the API server" in text
    attention = text.partition("Needs attention")[2].partition("Node by node")[0]
    assert "which pods wait for GPUs: The connection to the server 10.0.0.1:6443 was refused" in attention
    assert "Next: on control-1 run `kubectl get nodes`" in attention
    assert "API server did not" not in visible(pages["fleet"])


# kubectl of three clusters: one that is away, one that lets us list nodes and no pods, and none at all.
AWAY = 'echo "The connection to the server 10.0.0.1:6443 was refused - is it <up>?" >&2; exit 1'
FORBIDDEN = """case "$*" in
*pods*) echo 'Error from server (Forbidden): pods is forbidden: User "view" cannot list resource "pods"' >&2; exit 1 ;;
*) echo '{"items": [{"kind": "Node", "metadata": {"name": "here"}, "spec": {"unschedulable": true}}]}' ;;
esac"""


@pytest.mark.parametrize(
    ("kubectl", "control", "parts"),
    [
        (AWAY, {}, ["did not say which nodes are cordoned", "nor which pods wait", "refused - is it <up>?"]),
        (FORBIDDEN, {}, ["did not say which pods wait for GPUs: Error from server (Forbidden): pods is forbidden"]),
        (None, {}, ["did not say which nodes are cordoned", "run `"]),
        (AWAY, {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9},
         ["Connection refused", "Next: is control (device_plugin_control_host) up"]),
    ],
    ids=["away", "forbidden", "no kubectl", "control host away"],
)  # fmt: skip
def test_what_kubectl_says_instead_of_an_answer_is_on_the_page(tmp_path, kubectl, control, parts):
    report_shots.collection(tmp_path)
    if kubectl:
        (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{kubectl}\n")
        (tmp_path / "kubectl").chmod(0o755)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    settings = {
        "device_plugin_kubelet_root_dir": str(tmp_path / "none"),
        "device_plugin_control_host": "control",
        "device_plugin_kubectl": str(tmp_path / "kubectl"),
        "device_plugin_node_name": "here",
    }
    inventory = {
        "all": {"hosts": {"control": {**local, **control}}},
        "gpu_nodes": {"hosts": {"here": local}, "vars": settings},
    }
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    done = run(
        [Path(sys.executable).with_name("ansible-playbook"), "gpuops.k8s.report", "-i", "inventory.yml"],
        cwd=tmp_path,
        env={**os.environ, **report_shots.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and (tmp_path / "gpu-report.html").exists(), done.stdout
    text = visible(tmp_path / "gpu-report.html")
    assert "not all is known from the API server" in text
    for part in parts:
        assert part in text, part
    # What was answered is not lost with the rest.
    assert ("Needs attention, cordoned" in text) == (kubectl == FORBIDDEN)
