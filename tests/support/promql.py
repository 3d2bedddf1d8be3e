"""PromQL expressions held against the metrics that a server exports: their names, their labels and their kinds.

Owns the rules: rates are taken of counters, quantiles of buckets that kept their `le`, and no label is made up.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import promql_parser as promql
from prometheus_client import CollectorRegistry

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""

OF_COUNTERS = {"rate", "irate", "increase"}


@dataclass(frozen=True, slots=True)
class Exported:
    """One name that a query may use: its family's type, and the labels it was seen with."""

    type: str
    labels: frozenset[str]

    @property
    def grows(self) -> bool:
        return self.type in ("counter", "histogram")


PROMETHEUS_OWN = {"up": Exported("gauge", frozenset())}


def exported(registry: CollectorRegistry) -> dict[str, Exported]:
    """Every name in one scrape of `registry`; a family of which nothing was counted yet has none."""
    found: dict[str, Exported] = {}
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[sample.name] = Exported(family.type, frozenset(sample.labels))
    return found


def faults(expression: str, known: Mapping[str, Exported]) -> list[str]:
    """What is wrong with `expression`; nothing if a server that exports `known` can answer it."""
    try:
        tree = promql.parse(expression)
    except ValueError as error:
        return [f"it does not parse: {error}"]
    known = {**PROMETHEUS_OWN, **known}
    return [fault for node in _nodes(tree) for fault in _faults_of(node, known)]


def names(expression: str) -> set[str]:
    """The metrics that `expression` reads."""
    return _names(promql.parse(expression))


def kept(expression: str) -> set[str]:
    """The labels that tell its series apart: those of its outermost aggregation; of a bare selector the instance."""
    return _kept(promql.parse(expression))


def _kept(tree: promql.Expr) -> set[str]:
    if isinstance(tree, promql.AggregateExpr):
        if tree.param is not None:  # topk and its kin keep what they are given
            return _kept(tree.expr)
        return set(tree.modifier.labels) if tree.modifier is not None else set()
    if isinstance(tree, promql.BinaryExpr):
        return _kept(tree.lhs)
    if isinstance(tree, promql.ParenExpr):
        return _kept(tree.expr)
    if isinstance(tree, promql.Call):
        return {label for each in tree.args for label in _kept(each)} - {"le"}
    return {"instance"} if isinstance(tree, promql.VectorSelector) else set()


def _names(tree: promql.Expr) -> set[str]:
    return {node.name for node in _nodes(tree) if isinstance(node, promql.VectorSelector) and node.name}


def _nodes(tree: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []

    def visit(node: promql.Expr) -> None:
        found.append(node)
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)

    promql.walk(tree, visit)
    return found


def _faults_of(node: promql.Expr, known: Mapping[str, Exported]) -> Iterator[str]:
    if isinstance(node, promql.VectorSelector):
        yield from _unknown(node, known)
    elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        for name in _names(node.expr) & known.keys():
            yield from _labels(name, node.modifier.labels, known)
    elif isinstance(node, promql.Call) and node.func.name in OF_COUNTERS:
        for name in _names(node.args[0]) & known.keys():
            if not known[name].grows:
                yield f"{node.func.name}() of {name}, which is a {known[name].type}"
    elif isinstance(node, promql.Call) and node.func.name == "histogram_quantile":
        yield from _quantile(node)


def _unknown(node: promql.VectorSelector, known: Mapping[str, Exported]) -> Iterator[str]:
    if node.name is None or node.name not in known:
        yield f"{node.name} is not exported"
    else:
        yield from _labels(node.name, [matcher.name for matcher in node.matchers.matchers], known)


def _labels(name: str, used: Collection[str], known: Mapping[str, Exported]) -> Iterator[str]:
    for label in set(used) - known[name].labels - SCRAPED:
        yield f"{name} has no label {label}"


def _quantile(node: promql.Call) -> Iterator[str]:
    buckets = node.args[1]
    for name in _names(buckets):
        if not name.endswith("_bucket"):
            yield f"a quantile of {name}, which has no buckets"
    if not (isinstance(buckets, promql.AggregateExpr) and buckets.modifier and "le" in buckets.modifier.labels):
        yield "a quantile of buckets that lost their `le`"
