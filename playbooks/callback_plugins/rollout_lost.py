# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The summary of provision.yml where the playbook itself can't print it.

When every host of a batch becomes unreachable Ansible ends the run at once: no rescue, no further play. The first
batch of a ramp is one node, so that is what a lost canary looks like. Ansible loads this by itself, since it lies
beside the playbook; it is silent unless a node has begun its turn and nothing was noted of its end.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout_lost
type: aggregate
short_description: The rollout's summary when all nodes of a batch were lost
version_added: 0.1.0
author:
  - The gpuops developers (@gpuops)
description:
  - Prints what became of each node when the playbook C(gpuops.k8s.provision) was ended by Ansible because all nodes of
    a batch became unreachable in their turn.
"""

from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

STARTED = "started"


class CallbackModule(CallbackBase):
    """Follows the fact ``rollout_outcome`` of each host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "rollout_lost"
    CALLBACK_NEEDS_ENABLED = False

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.why: dict[str, str] = {}
        self.play: Any = None
        self.rollout: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self.play = play

    def v2_runner_on_ok(self, result: Any) -> None:
        facts = result._result.get("ansible_facts")
        outcome = facts.get("rollout_outcome") if isinstance(facts, dict) else None
        if isinstance(outcome, dict):
            # One that was noted by another host of the batch says whose it is.
            self.outcomes[outcome.get("host") or result._host.get_name()] = outcome
            self.rollout = self.play

    def v2_runner_item_on_ok(self, result: Any) -> None:
        self.v2_runner_on_ok(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.why[result._host.get_name()] = str(result._result.get("msg", "unreachable")).strip()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        lost = [host for host, outcome in self.outcomes.items() if outcome.get("state") == STARTED]
        if not lost:
            return
        # A program that reads standard output as JSON is not disturbed.
        elsewhere = "json" in str(constants.DEFAULT_STDOUT_CALLBACK)
        for line in summary(self.hosts(), self.outcomes, self.why):
            self._display.display(line, stderr=elsewhere)

    def hosts(self) -> list[str]:
        """All hosts of the rollout, in its order."""
        found = self.rollout.get_variable_manager().get_vars(play=self.rollout).get("ansible_play_hosts_all")
        return list(found or self.outcomes)


def summary(hosts: list[str], outcomes: dict[str, dict[str, Any]], why: dict[str, str]) -> list[str]:
    """The lines: as the playbook's task "Summary" prints them, then what was lost and the next step."""
    lines = ["SUMMARY (Ansible ended the run, since no node of the batch could be reached any more)"]
    for host in hosts:
        outcome = outcomes.get(host, {"state": "untouched"})
        state = "lost in its turn" if outcome["state"] == STARTED else outcome["state"]
        files = outcome.get("files") or []
        counted = (
            f", {len(files)} files {'put back' if outcome.get('failed') else 'changed'}" if files else ""
        )
        lines.append(f"        {host:<20} {state}{counted}")
    lines += ["        The ramp stopped.", ""]
    for host in hosts:
        outcome = outcomes.get(host, {})
        if outcome.get("state") == STARTED:
            lines.append(f"{host}: {why.get(host, 'it did not answer any more')}")
            lines.append(f"    {outcome.get('reason', '')}")
            lines.append(f"    To keep new pods away meanwhile: kubectl cordon {outcome.get('node') or host}")
    return lines
