"""Sums over a server's Prometheus metrics.

Owns just enough of the text format to add up one name's samples. Knows no name.
"""

import httpx


def total(url: str, name: str, *labels: str) -> float:
    """The sum of `name` over all samples that carry every one of `labels`, each as `key="value"`; 0 without any."""
    lines = httpx.get(f"{url}/metrics").raise_for_status().text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return sum(
        float(value)
        for sample, value in samples
        if sample.partition("{")[0] == name and all(label in sample for label in labels)
    )
