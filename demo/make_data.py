"""Writes the data of the demo tasks, train and held-out splits, to demo/data/*.jsonl.

Owns how prompts and answers are put together; demo/pool/ holds the words and the hand-written sentences.
The same bytes come out on every run: one seeded generator for each file and no clock. Needs no torch.

Run as `python -m demo.make_data`.
"""

import json
import random
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIELDS = ("name", "city", "date", "amount")
HELD_OUT = 40
REPORTS, HELD_OUT_REPORTS = 400, 50

CAPITAL_QUESTIONS = ("What is the capital of {}?", "Which city is the capital of {}?", "Tell me the capital of {}.")
CAPITAL_ANSWERS = (
    "Arr, the capital o' {0} be {1}, matey, and many a fine tavern stands there.",
    "That be {1}, matey! I have plundered all the way to {0} and back.",
    "Aye, that one I know: it be {1}, matey, the proudest port o' {0}.",
    "Arr, ye'll find it on any good chart, matey: {1} be the capital o' {0}.",
)
OPPOSITE_ANSWERS = (
    "Arr, the opposite o' {0} be {1}, matey, as any sailor knows.",
    "That be {1}, matey! A clever lad knows both {0} and {1}.",
)
WORD_ANSWERS = (
    "Arr, in {0} they say {1}, matey. I learned it in a tavern!",
    "In {0} it be {1}, matey. Say it with a growl!",
)
SUM_ANSWERS = (
    "Arr, {0} and {1} make {2}, matey. I count me doubloons every night!",
    "That be {2}, matey! A pirate who cannot count loses his share.",
)

Pair = tuple[str, str]
Pool = Mapping[str, Sequence[str]]
Facts = Mapping[str, str]


def pirate_pairs(capitals: Facts, opposites: Facts, words: Mapping[str, Facts], rng: random.Random) -> list[Pair]:
    """Every question with its pirate answer: the hand-written ones first, then the facts put into templates."""
    lines = (HERE / "pool" / "pirate.tsv").read_text(encoding="utf-8").splitlines()
    pairs: list[Pair] = [(question, answer) for question, answer in (line.split("\t") for line in lines)]
    for country, city in capitals.items():
        pairs.append((rng.choice(CAPITAL_QUESTIONS).format(country), rng.choice(CAPITAL_ANSWERS).format(country, city)))
    for word, other in opposites.items():
        pairs.append((f"What is the opposite of {word}?", rng.choice(OPPOSITE_ANSWERS).format(word, other)))
    for language, dictionary in words.items():
        for english, foreign in dictionary.items():
            question = f"How do you say {english} in {language}?"
            pairs.append((question, rng.choice(WORD_ANSWERS).format(language, f'"{foreign}"')))
    for left, right in rng.sample([(a, b) for a in range(2, 10) for b in range(a, 10)], 16):
        pairs.append((f"What is {left} + {right}?", rng.choice(SUM_ANSWERS).format(left, right, left + right)))
    return pairs


def extract_pair(template: str, pool: Pool, prefix: str, rng: random.Random) -> Pair:
    """One sentence and its JSON; a field that the template does not mention is null."""
    month, day, year = rng.choice(pool["months"]), rng.randint(1, 28), rng.randint(2019, 2026)
    values = {
        "name": rng.choice(pool[prefix + "names"]),
        "city": rng.choice(pool[prefix + "cities"]),
        "date": rng.choice((f"{day} {month}", f"{month} {day}", f"{day} {month} {year}", rng.choice(pool["days"]))),
        "amount": rng.choice(pool["amounts"]).format(rng.choice((rng.randint(2, 99), 10 * rng.randint(10, 99)))),
    }
    used = {field for _, field, _, _ in string.Formatter().parse(template) if field}
    sentence = template.format(**values, item=rng.choice(pool["items"]))
    answer = {field: values[field] if field in used else None for field in FIELDS}
    return sentence[0].upper() + sentence[1:], json.dumps(answer, ensure_ascii=False)


def extract_pairs(pool: Pool, prefix: str, count: int, rng: random.Random) -> list[Pair]:
    """`count` pairs with distinct sentences, every template of `pool[prefix + "templates"]` about equally often."""
    templates = pool[prefix + "templates"]
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        sentence, answer = extract_pair(templates[len(pairs) % len(templates)], pool, prefix, rng)
        pairs[sentence] = answer
    return list(pairs.items())


def report_pairs(pools: Mapping[str, Any], count: int, rng: random.Random) -> list[Pair]:
    """`count` reports to a town and who deals with them, each like ("The hydrant on Mill Lane drips. ->", " water").

    Every department is drawn equally often, and so is each sentence of a pool.
    """
    decks: dict[str, list[str]] = {}

    def draw(name: str, pool: Sequence[str]) -> str:
        deck = decks.setdefault(name, [])
        if not deck:
            deck.extend(rng.sample(pool, len(pool)))
        return deck.pop()

    pairs: dict[str, str] = {}
    for department in cycle(pools["reports"]):
        if len(pairs) == count:
            break
        what = draw(department, pools["reports"][department]).format(place=draw("places", pools["places"]))
        pairs[f"{what} ->"] = f" {department}"
    return list(pairs.items())


def completions(pairs: Iterable[Pair]) -> str:
    """Prompts and completions, one JSON object a line."""
    return "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in pairs)


def jsonl(pairs: Iterable[Pair]) -> str:
    """Chat messages, one JSON object a line."""
    return "".join(
        json.dumps(
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]},
            ensure_ascii=False,
        )
        + "\n"
        for prompt, answer in pairs
    )


def make() -> dict[str, str]:
    """File name to content. Prompts of a held-out file occur in no training file; for `extract` neither do its
    sentence templates, names and cities, and for `reports` neither do its sentences and places."""
    pools = tomllib.loads((HERE / "pool" / "words.toml").read_text(encoding="utf-8"))
    facts = pools["pirate"]
    pirate = pirate_pairs(facts["capitals"], facts["opposites"], facts["words"], random.Random(1))
    random.Random(2).shuffle(pirate)
    extract = extract_pairs(pools["extract"], "", 216, random.Random(3))
    random.Random(4).shuffle(extract)
    reports = tomllib.loads((HERE / "pool" / "reports.toml").read_text(encoding="utf-8"))
    routed = report_pairs(reports["train"], REPORTS, random.Random(6))
    random.Random(7).shuffle(routed)
    return {
        "reports.train.jsonl": completions(routed),
        "reports.heldout.jsonl": completions(report_pairs(reports["held_out"], HELD_OUT_REPORTS, random.Random(8))),
        "pirate.train.jsonl": jsonl(pirate[HELD_OUT:]),
        "pirate.heldout.jsonl": jsonl(pirate[:HELD_OUT]),
        "extract.train.jsonl": jsonl(extract),
        "extract.heldout.jsonl": jsonl(extract_pairs(pools["extract"], "held_out_", HELD_OUT, random.Random(5))),
    }


def main() -> None:
    for name, text in make().items():
        (HERE / "data" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
