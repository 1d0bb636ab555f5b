# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes two objects the same, when a change counts, and when a workload is ready."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubernetes_objects as objects


def manifest(kind="ConfigMap", name="a", api="v1", namespace="ns", **more):
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **more}


def daemonset(generation=2, observed=2, strategy="RollingUpdate", **status):
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "plugin", "namespace": "kube-system", "generation": generation},
        "spec": {"updateStrategy": {"type": strategy}},
        "status": {"observedGeneration": observed, **status},
    }


class TestCheck:
    def test_lists_in_any_form_are_flattened_and_empty_documents_dropped(self):
        wrapped = {"apiVersion": "v1", "kind": "List", "items": [manifest(name="b")]}
        found = objects.check([None, manifest(), wrapped, [manifest(name="c")]])
        assert [obj["metadata"]["name"] for obj in found] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("document", "complaint"),
        [
            ("text", "document 1 is str, not a mapping"),
            ({"kind": "Pod", "metadata": {"name": "a"}}, "document 1 has no apiVersion"),
            ({"apiVersion": "v1", "metadata": {"name": "a"}}, "document 1 has no kind"),
            ({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "a-"}}, "no metadata.name"),
            ([manifest(), {"kind": "Pod"}], "document 1, item 2 has no apiVersion"),
        ],
    )
    def test_what_kubectl_could_not_place_is_refused_by_its_position(self, document, complaint):
        with pytest.raises(ValueError, match=complaint):
            objects.check([document])

    def test_the_same_object_given_twice_is_refused(self):
        with pytest.raises(ValueError, match="ConfigMap a in namespace ns is given twice"):
            objects.check([manifest(), manifest(data={"other": "text"})])


class TestQuantities:
    def test_numbers_become_text_where_the_api_wants_quantities_and_nowhere_else(self):
        resources = {"limits": {"nvidia.com/gpu": 2, "memory": "1Gi"}, "requests": {"cpu": 0.5}}
        spec = {"replicas": 3, "containers": [{"name": "a", "resources": resources, "ports": [{"port": 80}]}]}
        found = objects.check([manifest("Pod", spec=spec)])[0]["spec"]
        assert found["containers"][0]["resources"] == {
            "limits": {"nvidia.com/gpu": "2", "memory": "1Gi"},
            "requests": {"cpu": "0.5"},
        }
        assert found["replicas"] == 3 and found["containers"][0]["ports"] == [{"port": 80}]
        assert resources["limits"]["nvidia.com/gpu"] == 2, "what the caller gave is left alone"


class TestKeys:
    def test_the_version_of_the_api_does_not_make_another_object(self):
        old, new = (
            objects.key_of(manifest("Ingress", api=f"networking.k8s.io/{v}")) for v in ("v1beta1", "v1")
        )
        assert old == new

    def test_an_object_without_namespace_is_found_where_kubectl_put_it(self):
        bare = manifest()
        del bare["metadata"]["namespace"]
        assert objects.find(objects.key_of(bare), [manifest(namespace="default")]) is not None

    @pytest.mark.parametrize("other", [manifest(name="b"), manifest("Secret"), manifest(namespace="other")])
    def test_another_name_kind_or_namespace_is_another_object(self, other):
        assert objects.find(objects.key_of(manifest()), [other]) is None


class TestDecode:
    def test_nothing_one_a_list_and_a_row_of_objects_are_all_read(self):
        one, two = manifest(), manifest(name="b")
        assert objects.decode("") == []
        assert objects.decode(json.dumps(one)) == [one]
        assert objects.decode(json.dumps({"kind": "List", "items": [one, two]})) == [one, two]
        assert objects.decode(json.dumps(one) + "\n" + json.dumps(two, indent=2) + "\n") == [one, two]


class TestMeaning:
    def test_what_the_server_writes_is_no_change(self):
        before = manifest(data={"a": "1"})
        after = manifest(data={"a": "1"}, status={"seen": True})
        after["metadata"].update(
            resourceVersion="7",
            generation=3,
            uid="x",
            annotations={"deprecated.daemonset.template.generation": "3"},
        )
        assert objects.changed_fields(objects.meaning(before), objects.meaning(after)) == []

    def test_changed_added_and_removed_fields_are_named(self):
        before = manifest(data={"same": "1", "changed": "1", "gone": "1"})
        after = manifest(data={"same": "1", "changed": "2", "new": "1"})
        fields = objects.changed_fields(objects.meaning(before), objects.meaning(after))
        assert fields == ["data.changed", "data.gone", "data.new"]

    def test_the_values_of_a_secret_are_never_shown(self):
        shown = objects.shown(
            manifest("Secret", data={"password": "c2VjcmV0"}, stringData={"token": "secret"})
        )
        assert shown["data"] == {"password": "(not shown)"}
        assert shown["stringData"] == {"token": "(not shown)"}

    def test_only_our_own_apply_counts_as_ours(self):
        def managed(manager, operation):
            obj = manifest()
            obj["metadata"]["managedFields"] = [{"manager": manager, "operation": operation}]
            return obj

        assert objects.applied_by(managed("gpuops.k8s", "Apply"), "gpuops.k8s")
        assert not objects.applied_by(managed("gpuops.k8s", "Update"), "gpuops.k8s")
        assert not objects.applied_by(managed("kubectl", "Apply"), "gpuops.k8s")
        assert not objects.applied_by(None, "gpuops.k8s")


class TestReadiness:
    @pytest.mark.parametrize(
        ("obj", "reason"),
        [
            (daemonset(observed=1, desiredNumberScheduled=0), "has not seen the change"),
            (
                daemonset(desiredNumberScheduled=3, updatedNumberScheduled=2, numberAvailable=3),
                "2 of 3 .* newest",
            ),
            (
                daemonset(desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=1),
                "1 of 3 .* available",
            ),
            (
                manifest("Deployment", spec={"replicas": 2}, status={"updatedReplicas": 2}),
                "0 of 2 .* available",
            ),
            (
                manifest(
                    "Deployment",
                    spec={"replicas": 1},
                    status={"replicas": 2, "updatedReplicas": 1, "availableReplicas": 1},
                ),
                "1 old pods",
            ),
            (manifest("StatefulSet", spec={}, status={"updatedReplicas": 1}), "0 of 1 pods are available"),
            (manifest("Job", status={}), "not complete"),
            (manifest("Pod", status={"phase": "Pending"}), "phase Pending"),
            (manifest("Namespace", status={"phase": "Terminating"}), "Terminating, not Active"),
            (
                manifest(
                    "Node",
                    status={"conditions": [{"type": "Ready", "status": "False", "message": "no runtime"}]},
                ),
                "no runtime",
            ),
            (None, "does not exist"),
        ],
    )
    def test_what_is_not_ready_says_why(self, obj, reason):
        judged = objects.readiness(obj)
        assert not judged.ready and not judged.failed
        assert re.search(reason, judged.reason), judged.reason

    @pytest.mark.parametrize(
        "obj",
        [
            daemonset(desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=3),
            daemonset(strategy="OnDelete", desiredNumberScheduled=3, numberReady=3, numberAvailable=3),
            manifest(
                "Deployment", spec={}, status={"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
            ),
            manifest("Job", status={"conditions": [{"type": "Complete", "status": "True"}]}),
            manifest("Pod", status={"phase": "Succeeded"}),
            manifest("Pod", status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
            manifest("ConfigMap"),
        ],
    )
    def test_what_is_ready_is_ready(self, obj):
        assert objects.readiness(obj) == objects.READY

    @pytest.mark.parametrize(
        "obj",
        [
            manifest(
                "Job", status={"conditions": [{"type": "Failed", "status": "True", "reason": "Deadline"}]}
            ),
            manifest("Pod", status={"phase": "Failed", "reason": "UnexpectedAdmissionError"}),
            manifest(
                "Deployment",
                spec={},
                status={"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]},
            ),
        ],
    )
    def test_what_can_never_become_ready_is_not_waited_for(self, obj):
        assert objects.readiness(obj).failed


class TestPodTroubles:
    def test_each_container_says_where_it_is_and_what_ails_it(self):
        pod = manifest(
            "Pod",
            name="plugin-x",
            spec={"nodeName": "gpu-2"},
            status={
                "containerStatuses": [
                    {"name": "well", "ready": True, "state": {"running": {}}},
                    {
                        "name": "plugin",
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
                    },
                ]
            },
        )
        assert objects.pod_troubles([pod]) == [
            "pod plugin-x on gpu-2: container plugin: CrashLoopBackOff: back-off 10s",
            "pod plugin-x on gpu-2: container plugin: ended with exit code 1 (Error)",
        ]

    def test_a_pod_that_fits_nowhere_repeats_the_schedulers_words(self):
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        condition["message"] = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        pod = manifest("Pod", name="nine", status={"conditions": [condition]})
        assert objects.pod_troubles([pod]) == [f"pod nine: Unschedulable: {condition['message']}"]
