"""Hold the pinned versions against the known advisories, and say plainly what was and was not looked at.

Run as `python .ci/audit.py PIP_AUDIT REQUIREMENTS`. Exit code 1 means that a version has a known vulnerability. An
advisory service that does not answer, or knows none of the packages, fails nothing: the audit is then told as not done.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

TIMEOUT_S = 600


def main(pip_audit: str, requirements: str) -> int:
    command = [pip_audit, "-r", requirements, "--no-deps", "--disable-pip", "--format", "json"]
    try:
        ended = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return _not_done(f"no answer within {TIMEOUT_S} s")
    except (ValueError, KeyError):
        return _not_done((ended.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])
    return _judged(packages)


def _judged(packages: Sequence[dict[str, Any]]) -> int:
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return _not_done(f"the advisory service knows none of the {len(packages)} packages")
    found = [(package, fault) for package in packages for fault in package.get("vulns", ())]
    print(f"pip-audit: {len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} advisories.")
    for package in skipped:
        print(f"  not audited: {package['name']}: {package['skip_reason']}")
    for package, fault in found:
        fixed = ", ".join(fault.get("fix_versions", ())) or "no version"
        print(f"  {package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
    return 1 if found else 0


def _not_done(reason: str) -> int:
    print(f"pip-audit: NOT DONE, no version was held against the advisories: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
