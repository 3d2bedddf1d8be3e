"""Trains one demo adapter with PEFT and writes it, its scores in its card, under demo/adapters/<name>.

Owns the two recipes and the loop. The adapters sit on the upper layers only, so what enters the first adapted
layer never changes: it is computed once per example (demo/packing.py), and each step runs the upper layers alone.

Run as `python -m demo.train pirate` or `python -m demo.train extract`; one CPU thread, fp32, seeded.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from demo.card import Measurement, publish
from demo.packing import Example, answer_loss, cache_states, upper_layers
from demo.score import Pair, extract_score, greedy, pirate_score
from loader import base as base_loader
from loader import source as base_source

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes one adapter; `asked` is how the base alone is asked for the same thing, for a fair second baseline."""

    targets: tuple[str, ...]
    rank: int
    alpha: int
    rslora: bool
    first_layer: int
    epochs: int
    learning_rate: float
    score: Callable[[str, str], float]
    asked: str
    max_tokens: int
    batch: int = 4
    seed: int = 7


RECIPES = {
    "pirate": Recipe(
        targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        rank=8, alpha=16, rslora=False, first_layer=18, epochs=2, learning_rate=1e-3,
        score=pirate_score, asked="Answer like a pirate. {}", max_tokens=48,
    ),
    "extract": Recipe(
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        rank=16, alpha=16, rslora=True, first_layer=18, epochs=1, learning_rate=1e-3,
        score=extract_score, max_tokens=56,
        asked='Answer only with JSON like {{"name": ..., "city": ..., "date": ..., "amount": ...}}, '
        "null for what is missing. {}",
    ),
}  # fmt: skip


def read_pairs(path: Path) -> list[Pair]:
    """Prompts and answers of a chat-message JSONL file."""
    rows = (json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines())
    return [(user["content"], assistant["content"]) for user, assistant in rows]


def fit(model: PeftModel, prefix: torch.Tensor, examples: list[Example], recipe: Recipe) -> None:
    """AdamW with a short warm-up and a linear decay to zero; prints the loss of the last sixteen steps."""
    base = cast(LlamaForCausalLM, model.get_base_model())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * -(-len(examples) // recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 8, (steps - step) / steps))
    order = random.Random(recipe.seed)
    with upper_layers(base.model, recipe.first_layer):
        for epoch in range(1, recipe.epochs + 1):
            order.shuffle(examples)
            losses, began = [], time.monotonic()
            for start in range(0, len(examples), recipe.batch):
                loss = answer_loss(base, prefix, examples[start : start + recipe.batch])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                if len(losses) % 16 == 0 or start + recipe.batch >= len(examples):
                    mean = sum(losses[-16:]) / len(losses[-16:])
                    print(f"epoch {epoch}, {time.monotonic() - began:.0f} s: loss {mean:.3f}", flush=True)


def heldout_loss(model: PeftModel, prefix: torch.Tensor, examples: Sequence[Example], first_layer: int) -> float:
    base = cast(LlamaForCausalLM, model.get_base_model())
    with torch.inference_mode(), upper_layers(base.model, first_layer):
        sums = [answer_loss(base, prefix, [example]).item() * len(example.answer) for example in examples]
    return sum(sums) / sum(len(example.answer) for example in examples)


def measure(model: PeftModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], recipe: Recipe) -> Measurement:
    """Loss and task score on the held-out pairs: of the adapter, of the base, and of the base when asked for it."""
    base = cast(LlamaForCausalLM, model.get_base_model())
    prefix, examples = cache_states(base.model, tokenizer, pairs, recipe.first_layer)

    def answers(template: str) -> list[str]:
        prompts = [template.format(prompt) for prompt, _ in pairs]
        return greedy(base, tokenizer, prompts, max_tokens=recipe.max_tokens, batch=20)

    def share(given: Sequence[str]) -> float:
        return sum(recipe.score(answer, pair[1]) for answer, pair in zip(given, pairs, strict=True)) / len(pairs)

    tuned, tuned_loss = answers("{}"), heldout_loss(model, prefix, examples, recipe.first_layer)
    print(f"held-out: loss {tuned_loss:.3f}, score {share(tuned):.3f}", *tuned[:12], sep="\n", flush=True)
    with model.disable_adapter():
        plain, plain_loss = answers("{}"), heldout_loss(model, prefix, examples, recipe.first_layer)
        asked = answers(recipe.asked)
    return Measurement(
        prompts=tuple(prompt for prompt, _ in pairs), base=tuple(plain), adapter=tuple(tuned),
        base_loss=plain_loss, adapter_loss=tuned_loss,
        base_score=share(plain), asked_score=share(asked), adapter_score=share(tuned),
        passed=tuple(recipe.score(answer, pair[1]) > 0 for answer, pair in zip(tuned, pairs, strict=True)),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the converted base is kept")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    torch.set_num_threads(1)  # one thread sums in one order: the same machine gives the same adapter
    torch.manual_seed(recipe.seed)
    base = base_loader.load(base_source.resolve("embedded", arguments.data_dir), dtype="float32", device="cpu")
    began = time.monotonic()
    train, heldout = (HERE / "data" / f"{arguments.name}.{split}.jsonl" for split in ("train", "heldout"))
    prefix, examples = cache_states(base.model.model, base.tokenizer, read_pairs(train), recipe.first_layer)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=recipe.alpha, use_rslora=recipe.rslora,
        target_modules=list(recipe.targets), layers_to_transform=list(range(recipe.first_layer, base.shape.num_layers)),
    )  # fmt: skip
    model = get_peft_model(base.model, config)
    fit(model, prefix, examples, recipe)
    for weight in model.parameters():
        if weight.requires_grad:  # what is measured is what is saved: the bf16 rounding comes first
            weight.data = weight.data.bfloat16().float()
    seconds = time.monotonic() - began
    model.eval()
    measurement = measure(model, base.tokenizer, read_pairs(heldout), recipe)
    settings = {key: value for key, value in asdict(recipe).items() if key not in ("score", "asked", "max_tokens")}
    target = HERE / "adapters" / arguments.name
    publish(target, model, base.id, settings, recipe.asked, (train, heldout), measurement, seconds)


if __name__ == "__main__":
    main()
