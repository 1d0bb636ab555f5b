"""kubectl and an API server in a JSON file (EXAMPLE_STORE): what the modules' examples need of both, and no more.

Server-side apply keeps who set which field, so that a field that its only owner gives up goes. A DaemonSet becomes
ready as soon as it is applied, and a pod that is given new images runs them at once. The real thing is met by the
integration targets and by tests/cluster.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

STORE = Path(os.environ.get("EXAMPLE_STORE", "/nowhere"))
Object = dict[str, Any]
Path_ = tuple[str, ...]


def leaves(value: Any, path: Path_ = ()) -> dict[Path_, Any]:
    """Path -> value of everything that is no mapping; lists are values."""
    if isinstance(value, dict) and value:
        return {p: v for key, one in value.items() for p, v in leaves(one, (*path, key)).items()}
    return {path: value}


def owned(obj: Object) -> dict[Path_, Any]:
    """What an applied configuration claims: all but the object's name."""
    names = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
    return {path: value for path, value in leaves(obj).items() if path not in names and value != {}}


def put(obj: Object, path: Path_, value: Any) -> None:
    for key in path[:-1]:
        obj = obj.setdefault(key, {})
    obj[path[-1]] = copy.deepcopy(value)


def drop(obj: Object, path: Path_) -> None:
    if len(path) > 1:
        drop(obj.get(path[0], {}), path[1:])
    else:
        obj.pop(path[0], None)


def same(one: Object, other: Object) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


class Server:
    """The objects that there are."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def find(self, kind: str, name: str) -> Object:
        for one in self.objects:
            if (one["kind"].lower(), one["metadata"]["name"]) == (kind, name):
                return one
        sys.exit(f'Error from server (NotFound): {kind}s "{name}" not found')

    def apply(self, wanted: Object, manager: str) -> Object:
        """The object after a server-side apply by this manager."""
        live = next((one for one in self.objects if same(one, wanted)), None)
        if live is None:
            live = {"metadata": {"uid": f"uid-{len(self.objects)}", "generation": 0}}
            self.objects.append(live)
        before = copy.deepcopy(live.get("spec"))
        entries = live["metadata"].setdefault("managedFields", [])
        claims = {entry["manager"]: {tuple(path) for path in entry["fieldsV1"]["paths"]} for entry in entries}
        others = {path for name, paths in claims.items() if name != manager for path in paths}
        fields = owned(wanted)
        for path in claims.get(manager, set()) - set(fields) - others:
            drop(live, path)
        for path, value in leaves(wanted).items():
            if value != {}:
                put(live, path, value)
        claims[manager] = set(fields)
        live["metadata"]["managedFields"] = [
            {"manager": name, "operation": "Apply", "fieldsV1": {"paths": sorted(map(list, paths))}}
            for name, paths in sorted(claims.items())
            if paths
        ]
        if live.get("spec") != before:
            live["metadata"]["generation"] += 1
        if live["kind"] == "DaemonSet":
            numbers = ("desiredNumberScheduled", "updatedNumberScheduled", "numberReady", "numberAvailable")
            live["status"] = {
                "observedGeneration": live["metadata"]["generation"],
                **dict.fromkeys(numbers, 1),
            }
        return live

    def patch(self, kind: str, name: str, change: Object) -> None:
        """A merge; containers by name, and a pod's new images run at once."""
        live = self.find(kind, name)
        for container in change.get("spec", {}).pop("containers", []):
            for one in live["spec"]["containers"]:
                if one["name"] == container["name"]:
                    one.update(container)
                    for status in live["status"]["containerStatuses"]:
                        status["containerID"] += "+" if status["name"] == one["name"] else ""
        for path, value in owned(change).items():
            put(live, path, value)


def option(words: list[str], *names: str) -> str | None:
    """Takes an option with its value out of the words."""
    for name in names:
        for place, word in enumerate(words):
            if word.startswith(name + "="):
                return words.pop(place).partition("=")[2]
            if word == name:
                words.pop(place)
                return words.pop(place)
    return None


def answer(items: list[Object]) -> None:
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def main() -> None:
    words = sys.argv[1:]
    kubeconfig = option(words, "--kubeconfig")
    if kubeconfig and not Path(kubeconfig).exists():
        sys.exit(f"error: stat {kubeconfig}: no such file or directory")
    option(words, "--namespace"), option(words, "--context")
    server = Server(json.loads(STORE.read_text()))
    before = copy.deepcopy(server.objects)
    verb, keep = words.pop(0), True
    raw, text = option(words, "--raw"), option(words, "-p", "--patch")
    selector, manager = option(words, "-l", "--selector"), option(words, "--field-manager")
    field = option(words, "--field-selector")
    output = option(words, "-o", "--output")
    for name in ("--type", "--timeout", "--cascade"):
        option(words, name)
    listed = json.load(sys.stdin) if option(words, "-f") else {}
    items = listed.get("items", [])
    if verb == "get" and raw:
        print(json.dumps(server.find("node", raw.rpartition("/")[2])))
    elif verb == "replace" and raw:
        name = raw.split("/")[-2]
        server.find("node", name)["status"] = listed["status"]
    elif verb == "get" and items:
        answer([one for one in server.objects if any(same(one, wanted) for wanted in items)])
    elif verb == "get" and selector:
        kind = words[0].rstrip("s")
        node = (field or "").partition("spec.nodeName=")[2]
        found = [
            one for one in server.objects
            if one["kind"].lower() == kind and (not node or one["spec"]["nodeName"] == node)
        ]  # fmt: skip
        if output == "jsonpath={.items[*].spec.nodeName}":
            print(*(one["spec"]["nodeName"] for one in found), end="")
        else:
            answer(found)
    elif verb == "get":
        print(json.dumps(server.find(words[0], words[1])))
    elif verb == "apply":
        keep = "--dry-run=server" not in words
        answer([server.apply(wanted, manager or "kubectl") for wanted in items])
    elif verb == "delete":
        server.objects = [one for one in server.objects if not any(same(one, wanted) for wanted in items)]
    elif verb == "patch":
        server.patch(words[0], words[1], json.loads(text or "{}"))
    else:
        sys.exit(f"error: the examples' kubectl can't {verb} {' '.join(words)}")
    if keep and server.objects != before:
        STORE.write_text(json.dumps(server.objects, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
