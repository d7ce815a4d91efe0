"""Answers of one stage to the questions of its cells: batched, greedy, one model load."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from palimpsest.config import Evaluation, Model, load
from palimpsest.data.example import Example
from palimpsest.evaluation import prefix
from palimpsest.evaluation.score import METADATA
from palimpsest.files import whole_file
from palimpsest.lineage import Stage
from palimpsest.methods import router
from palimpsest.models import checkpoint
from palimpsest.models import load as load_model
from palimpsest.models.lmm import LMM, Encoded
from palimpsest.models.routing import ROUTER, Routing
from palimpsest.provenance import commit
from palimpsest.study import Manner, check_record, history, manner_of, method_of, stage_fingerprint
from palimpsest.tasks import Examples

T = TypeVar("T")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("prediction", pa.string()),
        ("references", pa.list_(pa.string())),
        ("num_tokens", pa.int32()),
        ("stop_reason", pa.string()),  # end: the model ended its answer; length: it was cut off
        ("expert", pa.string()),  # the step that a router sent the question to, if there is one
    ]
)


def evaluate(stage: Stage, tasks: Sequence[str], results: Path, evaluation: Evaluation) -> None:
    """Answer every question of the given cells and write the predictions of each.

    Errors: ValueError if the stage or the shards belong to another config.
    """
    begun = time.monotonic()
    lmm = load_stage(stage, results)
    routing = load_routing(stage, results, lmm)
    print(f"{stage}: loaded in {time.monotonic() - begun:.1f} s", flush=True)
    for task in tasks:
        examples = Examples(results, stage.benchmark, [task], evaluation.split, evaluation.sample)
        examples.verify()
        manner = manner_of(stage.model, task, evaluation.generation)
        rows, counters = answer(lmm, examples, manner, evaluation.batch, routing)
        counters["model_loads"] = int(task == tasks[0])  # one for all cells of this job
        about = {
            "stage_fingerprint": stage_fingerprint(stage),
            "evaluation": evaluation.name,
            "commit": commit(),
            **counters,
        }
        path = stage.cell(results, evaluation.name, task) / "predictions.parquet"
        schema = SCHEMA.with_metadata({METADATA: json.dumps(about)})
        with whole_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(rows, schema), partial)
        print(
            f"{stage} on {task}: {counters['questions']} questions, "
            f"{counters['questions'] / counters['seconds']:.0f} a second, "
            f"{counters['padded_tokens'] / counters['prompt_tokens']:.0%} padding, "
            f"{counters['prefix_tokens_saved'] / counters['prompt_tokens']:.0%} shared"
            f"{_retrieved(rows, task, routing)}",
            flush=True,
        )


def load_stage(stage: Stage, results: Path) -> LMM:
    """Load a model as a stage left it, with what can be merged folded into the base weights."""
    model = load(Model, stage.model)
    torch.set_num_threads(model.resources.threads)
    lmm = load_model(model)
    if stage.method is not None:
        directory = stage.directory(results)
        check_record(directory / "stage.json", stage)
        method = method_of(stage)
        adapter = checkpoint.attach(lmm, model, method)
        checkpoint.load(lmm, directory, model, method, adapter)
        if adapter.mergeable:
            adapter.merge(lmm.module)
    lmm.module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return lmm


def load_routing(stage: Stage, results: Path, lmm: LMM) -> Routing | None:
    """Load what sends questions to a stage's experts; None if its method has no router."""
    if stage.method is None or method_of(stage).router is None:
        return None
    state = load_file(stage.directory(results) / ROUTER)
    steps = ["+".join(step) for step in (*history(stage), stage.lineage.last)]
    return Routing(lmm, router.build(method_of(stage).router, state), steps)


@torch.inference_mode()
def answer(
    lmm: LMM, examples: Examples, manner: Manner, batch: int, routing: Routing | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Answer questions greedily, prompts of similar length together; rows in the given order.

    Questions about one picture come together, and what their prompts begin with is computed once,
    if the model can do so and no router sends them to different experts. The counters say what it
    cost: questions, pictures decoded, tokens of the prompts, of these those that were not computed
    again, tokens of padding, seconds. The model keeps the manner until it is given another.
    """
    begun = time.monotonic()
    lmm.config = lmm.config.model_copy(update=manner.of_model)
    order = _order(lmm, examples)
    rows: dict[int, dict[str, Any]] = {}
    counters = Counter(questions=len(order))
    starts = range(0, len(order), batch)
    batches = ({i: examples[i] for i in order[start : start + batch]} for start in starts)
    encoded = ((asked, [lmm.encode_prompt(e) for e in asked.values()]) for asked in batches)
    with tqdm(total=len(order), desc=manner.task, unit="question", disable=None) as bar:
        for asked, prompts in _ahead(encoded):
            sent = routing.send([*asked.values()], prompts) if routing else [None] * len(asked)
            cut = None if routing else prefix.cut(prompts, lmm.picture_id)
            answers = _generate(lmm, prompts, cut, manner.max_new_tokens)
            for (i, example), tokens, expert in zip(asked.items(), answers, sent, strict=True):
                rows[i] = _row(lmm, example, tokens, manner) | {"expert": expert}
            counters.update(_cost(prompts, cut))
            bar.update(len(asked))
    counters["seconds"] = round(time.monotonic() - begun, 2)
    return [rows[i] for i in range(len(order))], dict(counters)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Have a thread make the next item while the last is worked with: else a GPU would wait."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _order(lmm: LMM, examples: Examples) -> list[int]:
    """Return the order of questions: the longest first, as they show whether a batch fits.

    Where the model can share a picture, its questions follow the longest about it.
    """
    lengths = examples.characters()
    first = list(range(len(examples)))  # of the questions about the same picture
    if lmm.picture_id is not None:
        numbers: dict[int, int] = {}
        for i in range(len(examples)):
            if (image := examples[i].image) is not None:
                first[i] = numbers.setdefault(hash(image), i)
    longest = Counter()
    for i, length in enumerate(lengths):
        longest[first[i]] = max(longest[first[i]], length)
    return sorted(range(len(examples)), key=lambda i: (-longest[first[i]], first[i], -lengths[i]))


def _generate(
    lmm: LMM, prompts: list[Encoded], cut: prefix.Cut | None, max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens of each row, its end token included where it has one."""
    inputs = prefix.begun(lmm, cut) if cut else prefix.on_device(lmm, prompts, "left")
    tokens_BL = lmm.module.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=lmm.end_id,
        pad_token_id=lmm.pad_id,
    )
    new = tokens_BL[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(lmm.end_id) + 1] if lmm.end_id in row else row for row in new]


def _cost(prompts: list[Encoded], cut: prefix.Cut | None) -> dict[str, int]:
    """Count what a batch of prompts takes, whole or cut."""
    parts = [cut.heads, cut.tails] if cut else [prompts]
    lengths = [[len(encoded.input_ids) for encoded in part] for part in parts]
    prompt_tokens = sum(len(prompt.input_ids) for prompt in prompts)
    return {
        "pictures_decoded": len({id(prompt.pictures) for prompt in prompts if prompt.pictures}),
        "prompt_tokens": prompt_tokens,
        "prefix_tokens_saved": prompt_tokens - sum(map(sum, lengths)),
        "padded_tokens": sum(max(part) * len(part) - sum(part) for part in lengths),
    }


def _row(lmm: LMM, example: Example, tokens: list[int], manner: Manner) -> dict[str, Any]:
    text = lmm.decode(tokens)
    return {
        "id": example.id,
        "prompt": example.turns[-1].question,
        "prediction": text[1:] if manner.drop_first else text.strip(),
        "references": list(example.references),
        "num_tokens": len(tokens),
        "stop_reason": "end" if tokens[-1:] == [lmm.end_id] else "length",
    }


def _retrieved(rows: list[dict[str, Any]], task: str, routing: Routing | None) -> str:
    """Say how many of a task's questions were sent to the step that learnt it, if there is one."""
    own = [step for step in routing.steps if task in step.split("+")] if routing else []
    if not own:
        return ""
    return f", {sum(row['expert'] in own for row in rows) / len(rows):.1%} sent to their own expert"
