"""Hold the pinned versions against the known advisories, and say plainly what was and was not looked at.

Run as `python .ci/audit.py PIP_AUDIT REQUIREMENTS [--strict]`. Exit code 1 means that a version has a known
vulnerability. An advisory service that does not answer, or knows none of the packages, is warned of and fails nothing,
so that work goes on without it; with `--strict`, for a pipeline that must not pass unaudited, that is exit code 2.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

TIMEOUT_S = 600


def main(pip_audit: str, requirements: str, strict: bool) -> int:
    silent = 2 if strict else 0
    command = [pip_audit, "-r", requirements, "--no-deps", "--disable-pip", "--format", "json"]
    try:
        ended = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return _not_done(f"no answer within {TIMEOUT_S} s", silent)
    except (ValueError, KeyError):
        return _not_done((ended.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1], silent)
    return _judged(packages, silent)


def _judged(packages: Sequence[dict[str, Any]], silent: int) -> int:
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return _not_done(f"the advisory service knows none of the {len(packages)} packages", silent)
    found = [(package, fault) for package in packages for fault in package.get("vulns", ())]
    print(f"pip-audit: {len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} advisories.")
    for package in skipped:
        print(f"  not audited: {package['name']}: {package['skip_reason']}")
    for package, fault in found:
        fixed = ", ".join(fault.get("fix_versions", ())) or "no version"
        print(f"  {package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
    return 1 if found else 0


def _not_done(reason: str, code: int) -> int:
    print(f"pip-audit: WARNING: NOT DONE, no version was held against the advisories: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hold pinned versions against the known advisories.")
    parser.add_argument("pip_audit")
    parser.add_argument("requirements")
    parser.add_argument("--strict", action="store_true", help="exit with 2 when the audit could not be done")
    sys.exit(main(**vars(parser.parse_args())))
