# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""kubectl as a client: every call to the API server goes through here; its errors say what to do next."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from typing import Any, Callable, Sequence

from ansible.module_utils.basic import AnsibleModule

from . import _kubernetes_objects as objects

ARGUMENTS: dict[str, dict[str, Any]] = {
    "kubectl": {"type": "str", "default": "kubectl"},
    "kubeconfig": {"type": "path"},
    "context": {"type": "str"},
}
"""Of every module that calls kubectl; doc_fragments/kubectl.py describes them."""

# runs(arguments, standard input) -> exit status, standard output, standard error
Runner = Callable[[list[str], str], tuple[int, str, str]]

# Where installers leave an administrator's kubeconfig: kubeadm, k3s, rke2.
_ADMIN_KUBECONFIGS = (
    "/etc/kubernetes/admin.conf",
    "/etc/rancher/k3s/k3s.yaml",
    "/etc/rancher/rke2/rke2.yaml",
)
_POD_OWNERS = ("DaemonSet", "Deployment", "ReplicaSet", "StatefulSet", "Job", "CronJob")
_UNREACHABLE = (
    "was refused",
    "connection refused",
    "i/o timeout",
    "no route to host",
    "TLS handshake timeout",
    "EOF",
)


class KubectlError(Exception):
    """kubectl failed; ``str()`` names the object and the next step.

    ``unreachable`` is true when no API server answered.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


def default_kubeconfig(
    environment: dict[str, str], exists: Callable[[str], bool] = os.path.isfile
) -> str | None:
    """The installer's kubeconfig, for hosts where neither KUBECONFIG nor ~/.kube/config says anything.

    None leaves the choice to kubectl.
    """
    if environment.get("KUBECONFIG") or exists(
        os.path.join(environment.get("HOME", "/root"), ".kube", "config")
    ):
        return None
    return next((path for path in _ADMIN_KUBECONFIGS if exists(path)), None)


@dataclass
class Kubectl:
    """One way to one cluster.

    Attributes:
        run: starts a program; the module passes Ansible's run_command.
        command: kubectl as words, such as ``k3s kubectl``.
    """

    run: Runner
    command: str = "kubectl"
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    _shows_managers: bool = True

    def call(self, *arguments: str, stdin: str = "") -> str:
        """Standard output of one call.

        Raises:
            KubectlError: kubectl is missing, or exited with another status than 0.
        """
        words = shlex.split(self.command)
        if self.kubeconfig:
            words += ["--kubeconfig", self.kubeconfig]
        if self.context:
            words += ["--context", self.context]
        if self.namespace:
            words += ["--namespace", self.namespace]
        status, out, err = self.run([*words, *arguments], stdin)
        if status != 0:
            raise KubectlError(
                self._explained(err or out), unreachable=any(sign in err for sign in _UNREACHABLE)
            )
        return out

    def _explained(self, error: str) -> str:
        text = error.strip() or "kubectl failed and said nothing"
        if "no configuration has been provided" in text or "localhost:8080 was refused" in text:
            return (
                f"kubectl has no kubeconfig: set `kubeconfig`, or delegate to a control-plane host ({text})"
            )
        if "no matches for kind" in text:
            return f"{text}: is its CustomResourceDefinition installed, and this apiVersion served?"
        if "namespaces " in text and "not found" in text:
            return f"{text}\nCreate the namespace first; giving it in the same task will do."
        if "timed out waiting for the condition on" in text:
            return f"{text}: it is marked for deletion and still there. Do its pods end, has it finalizers?"
        if "Apply failed with" in text and "conflict" in text:
            return f"{text}\nSomebody else set these fields: settle it, or take them over with `force: true`."
        return text

    def parse(self, text: str) -> list[objects.Object]:
        """YAML or JSON documents as objects, parsed by kubectl: this host needs no YAML library."""
        return objects.decode(
            self.call("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-", stdin=text)
        )

    def get(self, wanted: Sequence[objects.Object]) -> list[objects.Object]:
        """Those of ``wanted`` that exist, as they are now, with the record of who manages their fields."""
        if not wanted:
            return []
        arguments = ["get", "--ignore-not-found", "-o", "json", "-f", "-"]
        return objects.decode(self._with_managers(arguments, _list(wanted)))

    def apply(
        self, wanted: Sequence[objects.Object], *, manager: str, force: bool, dry_run: bool
    ) -> list[objects.Object]:
        """Server-side apply; returns the objects as the server has (or, for a dry run, would have) them.

        Raises:
            KubectlError: refused, invalid, or in conflict with another manager and not ``force``.
        """
        if not wanted:
            return []
        arguments = ["apply", "--server-side", f"--field-manager={manager}", "-o", "json", "-f", "-"]
        if force:
            arguments.append("--force-conflicts")
        if dry_run:
            arguments.append("--dry-run=server")
        return objects.decode(self._with_managers(arguments, _list(wanted)))

    def delete(self, unwanted: Sequence[objects.Object], *, wait: bool, timeout: float) -> None:
        """Delete; with ``wait`` until the objects, and the pods that belong to them, are gone."""
        arguments = ["delete", "--ignore-not-found", "-o", "name", "-f", "-"]
        if wait:
            arguments += ["--wait=true", f"--timeout={int(timeout)}s"]
            # A DaemonSet that is gone while its pods still run would let two plugins own one resource.
            if any(obj["kind"] in _POD_OWNERS for obj in unwanted):
                arguments.append("--cascade=foreground")
        else:
            arguments.append("--wait=false")
        self.call(*arguments, stdin=_list(unwanted))

    def remove_conditions(self, node: str, types: Sequence[str]) -> None:
        """Take conditions out of a Node's status.

        By a replacement of the status as read just before, since kubectl learned to patch it in 1.24 only. The
        kubelet writes there too: a refusal for that reason is answered by another try.

        Raises:
            KubectlError: refused, or the kubelet came first ten times.
        """
        path = f"/api/v1/nodes/{node}"
        for last in (*[False] * 9, True):
            live = json.loads(self.call("get", "--raw", path))
            found = live["status"].get("conditions") or []
            live["status"]["conditions"] = [one for one in found if one.get("type") not in types]
            if len(live["status"]["conditions"]) == len(found):
                return
            try:
                self.call("replace", "--raw", f"{path}/status", "-f", "-", stdin=json.dumps(live))
                return
            except KubectlError as error:
                if last or "the object has been modified" not in str(error):
                    raise

    def wait(
        self, wanted: Sequence[objects.Object], *, timeout: float, sleep: float, clock: Any = time
    ) -> list[objects.Object]:
        """Poll until all of ``wanted`` are ready, and return them; waits for an absent API server too.

        Raises:
            KubectlError: not ready within ``timeout`` seconds, or never going to be; says what the pods say.
        """
        deadline = clock.monotonic() + timeout
        while True:
            late = clock.monotonic() >= deadline
            try:
                live = self.get(wanted)
            except KubectlError as error:
                if late or not error.unreachable:
                    raise
            else:
                judged = [(obj, objects.readiness(objects.find(objects.key_of(obj), live))) for obj in wanted]
                waiting = [(obj, state) for obj, state in judged if not state.ready]
                if not waiting:
                    return live
                if late or any(state.failed for _obj, state in waiting):
                    raise KubectlError(self._unready(waiting, live, timeout))
            clock.sleep(max(0.0, min(sleep, deadline - clock.monotonic())))

    def refusals(self, workload: objects.Object) -> list[str]:
        """Why the API server takes no pod of this workload, by its newest Event; [] when there is none to read."""
        key = objects.key_of(workload)
        chosen = [f"involvedObject.kind={key.kind}", f"involvedObject.name={key.name}", "reason=FailedCreate"]
        uid = workload["metadata"].get("uid")
        chosen += [f"involvedObject.uid={uid}"] if uid else []
        place = ["--namespace", key.namespace] if key.namespace and not self.namespace else []
        try:
            text = self.call(*place, "get", "events", "--field-selector", ",".join(chosen), "-o", "json")
            said = objects.refusal(objects.decode(text))
        except KubectlError:  # who asks has an error to tell already; this was only to say more
            return []
        return [said] if said else []

    def _unready(
        self,
        waiting: list[tuple[objects.Object, objects.Readiness]],
        live: list[objects.Object],
        timeout: float,
    ) -> str:
        hopeless = any(state.failed for _obj, state in waiting)
        lines = ["failed:" if hopeless else f"not ready after {timeout:g} s:"]
        for obj, state in waiting:
            lines.append(f"{objects.key_of(obj)}: {state.reason}")
            found = objects.find(objects.key_of(obj), live)
            if found is not None:
                lines.extend(f"  {line}" for line in self._pods_say(found))
        return "\n".join(lines)

    def _pods_say(self, workload: objects.Object) -> list[str]:
        selector = objects.selector_of(workload)
        key = objects.key_of(workload)
        if not selector or not key.namespace:
            return []
        place = ["--namespace", key.namespace]
        try:
            pods = objects.decode(self.call(*place, "get", "pods", "-l", selector, "-o", "json"))
            said = objects.pod_troubles(pods) + self.refusals(workload)
            for pod in pods:
                container = _ended_container(pod)
                if container:
                    tail = self.call(*place, "logs", pod["metadata"]["name"], "-c", container, "--tail=5")
                    said.extend(f"log of {pod['metadata']['name']}: {line}" for line in tail.splitlines())
                    break
        except KubectlError as error:  # the reason above is known already; this was only to say more
            return [f"(its pods could not be asked: {error})"]
        return said

    def _with_managers(self, arguments: list[str], stdin: str) -> str:
        # kubectl hides managedFields from 1.21 on unless asked; before, it lacks the flag and shows them.
        if self._shows_managers:
            try:
                return self.call(*arguments, "--show-managed-fields", stdin=stdin)
            except KubectlError as error:
                if "unknown flag" not in str(error):
                    raise
                self._shows_managers = False
        return self.call(*arguments, stdin=stdin)


def _list(wanted: Sequence[objects.Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(wanted)})


def _ended_container(pod: objects.Object) -> str | None:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((str(status["name"]) for status in statuses if status.get("restartCount")), None)


def through_kubectl(module: AnsibleModule, work: Callable[[Kubectl], dict[str, Any]]) -> None:
    """Ends the module with what ``work`` returns; a kubectl that fails, or can't be run, fails the task in words."""

    def run(arguments: list[str], stdin: str) -> tuple[int, str, str]:
        status, out, err = module.run_command(arguments, data=stdin or None, handle_exceptions=False)
        return status, out, err

    kubectl = Kubectl(
        run=run,
        command=module.params["kubectl"],
        kubeconfig=module.params["kubeconfig"] or default_kubeconfig(dict(os.environ)),
        context=module.params["context"],
        namespace=module.params["namespace"],
    )
    try:
        result = work(kubectl)
    except KubectlError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{module.params['kubectl']} can't be run: {error}. Install kubectl on this host, set "
            "`kubectl` to its path, or delegate the task to a control-plane host."
        )
    module.exit_json(**result)
