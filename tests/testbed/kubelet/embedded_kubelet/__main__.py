"""``python -m embedded_kubelet kubelet [flags]`` and ``python -m embedded_kubelet pod run|ls|rm|node``."""

from __future__ import annotations

import sys


def main() -> int:
    """Dispatch; imports follow the verb so that ``--version`` and ``pod`` stay quick."""
    verb, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if verb == "kubelet":
        from .program import main as kubelet  # noqa: PLC0415

        return kubelet(arguments)
    if verb == "pod":
        from .podcli import main as pod  # noqa: PLC0415

        return pod(arguments)
    print("usage: python -m embedded_kubelet kubelet [flags] | pod run|ls|rm|node ...", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
