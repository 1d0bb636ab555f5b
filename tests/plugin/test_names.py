"""Resource names (K4)."""

from __future__ import annotations

import pytest
from gpu_device_plugin.names import bad_name, bad_prefix, qualify


@pytest.mark.parametrize(
    "name",
    [
        "nvidia.com/gpu",
        "nvidia.com/mig-1g.10gb.me",
        "a/b",
        "a.b.c/" + "x" * 63,
        "n" * 63 + ".com/A_b.C-d",
        "a1/0",
    ],
)
def test_names_the_kubelet_takes(name: str) -> None:
    assert bad_name(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpu", "'gpu' has no '/': write it as example.com/gpu"),
        ("nvidia.com/", "'nvidia.com/': nothing after the '/'"),
        ("/gpu", "'' is no domain name (lower case letters, digits, '-' and '.')"),
        ("nvidia.com/" + "x" * 64, f"{'x' * 40!r}... is 64 characters long; 63 is the most after the '/'"),
        ("kubernetes.io/gpu", "'kubernetes.io': kubernetes.io is kept for Kubernetes itself"),
        ("x.kubernetes.io/gpu", "'x.kubernetes.io': kubernetes.io is kept for Kubernetes itself"),
        ("requests.nvidia.com/gpu", "'requests.nvidia.com': a name must not begin with 'requests.'"),
        ("NVIDIA.com/gpu", "'NVIDIA.com' is no domain name (lower case letters, digits, '-' and '.')"),
        ("-a/gpu", "'-a' is no domain name (lower case letters, digits, '-' and '.')"),
        ("a..b/gpu", "'a..b' is no domain name (lower case letters, digits, '-' and '.')"),
    ],
)
def test_names_the_kubelet_refuses_and_why(name: str, why: str) -> None:
    assert bad_name(name) == why


@pytest.mark.parametrize("name", ["a/-x", "a/x-", "a/x y", "a/b/c", "a/x+me", "a/\u0661", "a/x\n"])
def test_what_comes_after_the_slash_is_letters_digits_and_a_little_more(name: str) -> None:
    assert "must be letters, digits" in (bad_name(name) or "")


def test_the_prefix_leaves_room_for_requests() -> None:
    label = "a" * 60
    long = ".".join([label] * 4)
    assert len(long) == 243
    assert bad_prefix(long) is None
    assert bad_prefix(long + "a") is None
    assert bad_prefix(long + "aa") == f"{label[:40]!r}... is longer than 244 characters"


def test_names_without_a_prefix_get_it() -> None:
    assert qualify("gpu", "nvidia.com") == "nvidia.com/gpu"
    assert qualify("example.com/gpu", "nvidia.com") == "example.com/gpu"
