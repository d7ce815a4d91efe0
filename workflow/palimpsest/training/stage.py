"""One stage: load the parent, learn the last step of the lineage, hand the checkpoint on."""

from __future__ import annotations

import heapq
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from palimpsest.attempts import MEMORY, NEAR_LIMIT, SIGNALLED, Attempts
from palimpsest.config import CONFIG, Method, Model, load
from palimpsest.data.example import Example, Turn, black
from palimpsest.data.shards import read_examples, write_examples
from palimpsest.files import sha256, whole_directory, write_json
from palimpsest.launch import REQUEUE
from palimpsest.lineage import Stage
from palimpsest.methods.adapter import Adapter
from palimpsest.methods.regulariser import Regulariser
from palimpsest.models import checkpoint
from palimpsest.models import load as load_model
from palimpsest.models.lmm import IGNORE, LMM, Encoded
from palimpsest.provenance import commit, versions
from palimpsest.study import check_record, identity, initial_of, method_of, stage_fingerprint
from palimpsest.tasks import Examples
from palimpsest.training import engine as zero
from palimpsest.training import loop, memory, order
from palimpsest.training.examples import EMPTY, Buffer, Curriculum, first_buffer
from palimpsest.training.phases import Phases
from palimpsest.training.progress import Progress, peak_memory, recorded_losses
from palimpsest.training.resume import Resume

MARGIN = 0.1  # share of the time left that is kept for the last checkpoint,
MOST_MARGIN = 600.0  # but no more than this many seconds
FINAL = 20  # steps over which the final loss is averaged
LONGEST = 16  # examples, by characters, of which the longest by tokens is looked for
BUFFER = "rehearsal.arrow"
METRICS = "metrics.jsonl"
RECORD = "stage.json"


Probe = Callable[[LMM, int], dict[str, float]]


def train(
    stage: Stage, results: Path, seconds_left: float | None = None, probe: Probe | None = None
) -> int:
    """Train a stage and write its directory; return 0, or REQUEUE if it was stopped before.

    `seconds_left` is how long the job may run: well before, as on SIGTERM, the stage checkpoints.
    `probe` asks the model after a step, and gives the scores of some tasks, or {}.
    """
    out, attempts = stage.directory(results), Attempts(stage.resume(results))
    if (out / RECORD).exists():
        check_record(out / RECORD, stage)
        print(f"{out}: already trained with this config")
        return 0
    stopped = _stop_signal(seconds_left)
    model, method = load(Model, stage.model), method_of(stage)
    torch.set_num_threads(model.resources.threads)
    try:
        return _StageRun(stage, results, model, method, attempts, probe).run(stopped)
    except Exception as error:
        with suppress(OSError):  # the disk may be full
            attempts.end(_reason(error, stage))
        raise


class _StageRun:
    """A stage with its parent loaded, on one rank."""

    def __init__(
        self,
        stage: Stage,
        results: Path,
        model: Model,
        method: Method,
        attempts: Attempts,
        probe: Probe | None,
    ) -> None:
        self.stage, self.results, self.model, self.method = stage, results, model, method
        self.attempts, self.probe = attempts, probe
        self.begun = time.monotonic()
        self.world = zero.join(model, method.training.batch)
        torch.manual_seed(order.step_seed(stage.seed, stage.lineage, "adapter"))
        self.lmm, self.adapter = self._as_parent_left()
        self.curriculum, self.lengths = self._curriculum()
        ranks = {"ranks": self.world.size, "zero_stage": model.zero_stage}
        self.resume = Resume(
            stage.resume(results), {"fingerprint": stage_fingerprint(stage), **ranks}
        )

    def run(self, stopped: Callable[[], str | None]) -> int:
        """Take the phases and steps that are left; return the exit code."""
        self.lmm.module.to(self.world.device)
        phases = Phases(self.stage, self.results, self.method, self.lmm, self.world, self.resume)
        self.estimate = self._estimate(phases.protector)
        self._say(f"memory of a rank, estimated: {self.estimate}")
        self.beside = phases.before(self.curriculum.pool, sharded=self.model.zero_stage == 3)
        self.shares_looking = self.model.zero_stage == 3 or any(
            p.requires_grad and name.startswith(f"{self.model.projector}.")
            for name, p in self.lmm.module.named_parameters()
        )
        if not self._learn(phases, stopped):
            zero.leave()
            return REQUEUE
        learnt = zero.gather(self.lmm.module, self.model.zero_stage, self.adapter.owns)
        learnt = phases.settled(learnt)
        if phases.weighs:
            phases.remember(self._as_learnt(learnt), self._trained(learnt))
        if self.world.rank == 0:
            self._hand_on(learnt, phases)
            self.resume.clear()
        zero.leave()
        return 0

    def _estimate(self, protector: Regulariser | None) -> memory.Estimate:
        """Return what memory this stage will take, and choose by it what its config leaves open.

        The choice is kept beside the checkpoints: an attempt goes on as the first began.
        """
        longest = heapq.nlargest(LONGEST, range(len(self.lengths)), self.lengths.__getitem__)
        held = protector.bytes_held if protector else 0
        needs = memory.needs(self.lmm, [self.curriculum[i] for i in longest], held)
        batch, world = self.method.training.batch, self.world
        if self.model.left_open:
            kept = self.resume.once(
                "sharing", lambda: memory.choose(needs, self.model, batch, world)
            )
            chosen = {name: int(kept[name]) for name in self.model.left_open}
            self.model = self.model.model_copy(update=chosen)
            micro = self.model.micro_batches_of(batch, world.size)[0]
            accumulation = batch // (micro * world.size)
            self.world = replace(world, micro_batch=micro, accumulation=accumulation)
        return needs.of(self.world.micro_batch, self.model.zero_stage, world.size)

    def _learn(self, phases: Phases, stopped: Callable[[], str | None]) -> bool:
        """Take the steps that are left; return whether it was not stopped before the end."""
        num_steps = self.curriculum.num_steps
        factor = loop.schedule(self.method.training, num_steps)
        adapter = self.adapter if self.adapter.penalises else None
        protectors = [part for part in (adapter, phases.protector) if part]
        objective = loop.AnswerLoss(self.lmm.module, *protectors)
        engine = zero.start(objective, self.model, self.method, self.world, factor)
        first = self._resumed(engine)
        progress = self._progress(first) if self.world.rank == 0 else None
        every = self.model.resources.checkpoint_steps
        loader, asked = self._loader(first), lambda: bool(stopped())
        steps = loop.steps(engine, loader, self.world, self._noise, asked, first, num_steps)
        for step in steps:
            if progress:
                beside = {"penalty": step.penalty} if protectors else {}
                beside |= self._probed(step.done)
                rate = self.method.training.learning_rate * factor(step.done - 1)
                progress.step(step.done, step.tokens, loss=step.loss, **beside, learning_rate=rate)
            if step.done == num_steps and not phases.weighs:
                break
            if step.done % every == 0 or step.done == num_steps or step.stop:
                self.resume.save(engine, {"step": step.done, "seconds": self._seconds()})
            if step.stop:
                if why := stopped():
                    self.attempts.end(why)
                self._say(f"stopped after step {step.done} of {num_steps}, with a checkpoint")
                return False
        if progress:
            progress.close()
        return True

    def _probed(self, step: int) -> dict[str, dict[str, float]]:
        """Return the scores of a probe after a step; the other ranks wait meanwhile."""
        scores = self.probe(self.lmm, step) if self.probe else {}
        return {"probes": scores} if scores else {}

    def _as_parent_left(self) -> tuple[LMM, Adapter]:
        """Load the model with what the parent has learnt, and with room for what is to come."""
        lmm = load_model(self.model)
        adapter = checkpoint.attach(lmm, self.model, self.method)
        parent = self.stage.parent
        if parent.parent:
            directory = parent.directory(self.results)
            check_record(directory / RECORD, parent)
            checkpoint.load(lmm, directory, self.model, self.method, adapter)
        adapter.grow(lmm.module)
        return lmm, adapter

    def _as_learnt(self, learnt: dict[str, torch.Tensor]) -> LMM:
        """Return the plain model with what has been learnt; ZeRO-3 has it in pieces, so anew."""
        if self.model.zero_stage < 3:
            return self.lmm
        lmm, _ = self._as_parent_left()
        for name, parameter in lmm.module.named_parameters():
            if name in learnt:
                parameter.data.copy_(learnt[name])
        lmm.module.to(self.world.device)
        return lmm

    def _trained(self, learnt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return, of what an adapter owns, what this stage has trained."""
        module = self.lmm.module
        return {n: learnt[n] for n, p in module.named_parameters() if p.requires_grad}

    def _buffer(self) -> Buffer:
        """Return the rehearsal buffer as the parent left it, or as the base's initial tasks do."""
        stage, parent = self.stage, self.stage.parent
        if not self.method.rehearsal:
            return EMPTY
        if parent.parent is None:
            initial = Examples(self.results, stage.benchmark, initial_of(stage), "train")
            return first_buffer(initial, self.method, stage.seed, stage.benchmark)
        directory = parent.directory(self.results)
        seen = check_record(directory / RECORD, parent)["examples_seen"]
        return Buffer(read_examples(directory / BUFFER), seen)

    def _curriculum(self) -> tuple[Curriculum, list[int]]:
        """Return the samples of the stage and the length of each in characters."""
        stage = self.stage
        new = Examples(self.results, stage.benchmark, stage.lineage.last, "train")
        if self.world.rank == 0:
            new.verify()
        curriculum = Curriculum(new, self._buffer(), self.method, stage.seed, str(stage.lineage))
        return curriculum, curriculum.characters(new.characters())

    def _loader(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's micro-batches from step `first` on."""
        batches = order.batches(
            self.lengths, self.method.training.batch, self.stage.seed, self.stage.lineage
        )
        world = self.world
        micro_batches = [
            share
            for batch in batches[first:]
            for share in order.share_of_rank(batch, world.rank, world.size, world.micro_batch)
        ]
        samples = _Encoded(self.curriculum, self.lmm, self.beside)
        return iter(
            DataLoader(
                samples,
                batch_sampler=micro_batches,
                collate_fn=self._collated,
                num_workers=self.model.resources.workers,
            )
        )

    def _collated(self, rows: list[Encoded]) -> dict[str, torch.Tensor]:
        """Collate; in a batch without pictures one is looked at, of which nothing is learnt.

        Ranks that share the parameters on a picture's way must all go it, or none: else ZeRO adds
        up and gathers what does not belong together.
        """
        if self.shares_looking and not any(row.pictures for row in rows):
            shown = self.lmm.encode(Example("blank", black((64, 64)), (Turn("", ""),), ()))
            shown = replace(shown, labels=[IGNORE] * len(shown.labels))
            blank = {name: torch.zeros_like(x_N[:1]) for name, x_N in self.beside.items()}
            rows = [*rows, _told(shown, blank)]
        return self.lmm.collate(rows, "right")

    def _noise(self, step: int) -> int:
        return order.step_seed(self.stage.seed, self.stage.lineage, step, self.world.rank)

    def _resumed(self, engine: zero.Engine) -> int:
        """Restore the newest checkpoint; return the step after which to go on."""
        saved = self.resume.load(engine) or {"step": 0, "seconds": 0.0}
        self.seconds_before = saved["seconds"]
        if self.world.rank == 0:
            self.attempts.note(after_step=saved["step"], num_steps=self.curriculum.num_steps)
        if saved["step"]:
            self._say(f"{self.stage}: resumed from step {saved['step']}")
        return saved["step"]

    def _progress(self, first: int) -> Progress:
        return Progress(
            metrics=self.resume.directory / METRICS,
            name=str(self.stage),
            first=first,
            last=self.curriculum.num_steps,
            batch=self.method.training.batch,
            parameters=sum(p.numel() for p in self.lmm.module.parameters()),
        )

    def _say(self, text: str) -> None:
        if self.world.rank == 0:
            print(text, flush=True)

    def _seconds(self) -> float:
        """Return the wall time of this stage, finished attempts up to their checkpoint included."""
        return self.seconds_before + time.monotonic() - self.begun

    def _hand_on(self, learnt: dict[str, torch.Tensor], phases: Phases) -> None:
        """Write the stage directory; it stands under its name only when it is whole."""
        buffer = self.curriculum.next_buffer()
        losses = recorded_losses(self.resume.directory / METRICS)
        resources = self.model.resources
        with whole_directory(self.stage.directory(self.results)) as out:
            checkpoint.save(learnt, out, self.lmm, self.model, self.adapter)
            phases.save(out)
            if self.method.rehearsal:
                write_examples(out / BUFFER, buffer.examples)
            shutil.copy(self.resume.directory / METRICS, out / METRICS)
            record = {
                "lineage": str(self.stage.lineage),
                "fingerprint": stage_fingerprint(self.stage),
                "identity": identity(self.stage),
                "seed": self.stage.seed,
                "samples": len(self.curriculum),
                "steps": self.curriculum.num_steps,
                "examples_seen": buffer.seen,
                "final_loss": sum(losses[-FINAL:]) / len(losses[-FINAL:]),
                "wall_seconds": round(self._seconds(), 1),
                "gpu_seconds": round(self._seconds() * resources.nodes * resources.gpus, 1),
                "core_seconds": round(self._seconds() * resources.nodes * resources.cores, 1),
                "peak_memory_bytes": peak_memory(),
                "estimated_memory_bytes": self.estimate.total,
                "attempts": self.attempts.finished(),
                "ranks": self.world.size,
                "commit": commit(),
                "versions": versions(),
                "data": self._data(),
                "files": {
                    str(file.relative_to(out)): sha256(file)
                    for file in sorted(out.rglob("*"))
                    if file.is_file()
                },
            }
            write_json(out / RECORD, record)
            # A copy out of Snakemake's reach, which removes outputs: see launch.run_stage.
            shutil.copy2(out / RECORD, self.resume.directory / RECORD)

    def _data(self) -> dict[str, str]:
        """Return the checksum of the manifest of each task that was learnt, or looked back on."""
        tasks = (*initial_of(self.stage), *self.stage.lineage.last)
        manifests = {t: self.results / "data" / t / "manifest.json" for t in tasks}
        return {task: sha256(manifest) for task, manifest in manifests.items()}


class _Encoded(Dataset):
    """Samples as the model reads them."""

    def __init__(self, curriculum: Curriculum, lmm: LMM, beside: dict[str, torch.Tensor]) -> None:
        self.curriculum, self.lmm, self.beside = curriculum, lmm, beside

    def __len__(self) -> int:
        return len(self.curriculum)

    def __getitem__(self, position: int) -> Encoded:
        row = self.curriculum.order[position]
        beside = {name: x_N[row : row + 1] for name, x_N in self.beside.items()}
        return _told(self.lmm.encode(self.curriculum[position]), beside)


def _told(encoded: Encoded, beside: dict[str, torch.Tensor]) -> Encoded:
    """Give inputs to go beside an example's picture, and how many answer tokens it has."""
    if not (beside and encoded.pictures):
        return encoded
    answers = torch.tensor([sum(label != IGNORE for label in encoded.labels[1:])])
    return replace(encoded, pictures={**encoded.pictures, **beside, "answers": answers})


def _stop_signal(seconds_left: float | None) -> Callable[[], str | None]:
    """Return a question whose answer is why to stop, after SIGTERM or when the limit is near."""
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    limit = float("inf") if seconds_left is None else seconds_left
    deadline = time.monotonic() + limit - min(MARGIN * limit, MOST_MARGIN)

    def why() -> str | None:
        if terminated:
            return SIGNALLED
        return NEAR_LIMIT if time.monotonic() > deadline else None

    return why


def _reason(error: Exception, stage: Stage) -> str:
    """Return why an attempt ended, by the exception that ended it."""
    if isinstance(error, torch.OutOfMemoryError):  # more of the host's memory would not help
        return f"out of GPU memory: lower micro_batch in {CONFIG}/models/{stage.model}.yaml"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return MEMORY
    return f"{type(error).__name__}: {error}"
