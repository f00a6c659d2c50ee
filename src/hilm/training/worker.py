"""One process of a run: trains, watches, and leaves the result with what it measured."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers import TrainerCallback

from hilm.errors import Cancelled, HilmError, StorageError, TrainingError, UsageError, VerificationError
from hilm.files import write_file
from hilm.models.resnet_bk import save_with_code
from hilm.models.resnet_bk.modeling_resnet_bk import ResNetBKPreTrainedModel
from hilm.store.reading import no_progress
from hilm.training.record import WHOLE, Journal, Run, seal
from hilm.training.trainers import build_trainer

if TYPE_CHECKING:
    from hilm.store.reading import Progress

PROBE = (2, 12)
"""Rows and tokens of the fixed input on which a run's result is compared later."""


class Watch(TrainerCallback):
    """Writes the journal, seals checkpoints, and stops the run where it has to.

    Args:
        journal: Where events go.
        progress: Told of every step.
    """

    def __init__(self, journal: Journal, progress: Progress) -> None:
        self.journal, self.progress, self.interrupted = journal, progress, False

    def interrupt(self, *_: object) -> None:
        """Ask for a checkpoint and the end, after the step at work."""
        self.interrupted = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002 - theirs
        """Forget what a run that is resumed logged behind its checkpoint."""
        if state.is_world_process_zero:
            self.journal.rewind(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002 - theirs
        """Show the step; end here if asked to."""
        last = state.log_history[-1] if state.log_history else {}
        detail = f", loss {last['loss']:.4g}" if "loss" in last else ""
        self.progress(state.global_step, state.max_steps, f"training{detail}")
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Write an event."""
        if not self.journal.add(state.global_step, logs, write=state.is_world_process_zero):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002 - theirs
        """Seal the checkpoint."""
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def train(run: Run, *, resume: bool, progress: Progress) -> dict[str, Any]:
    """Train as the run says; leaves the result, probe outputs and ``facts`` of the run in its folder.

    Raises:
        Cancelled: Interrupted; a checkpoint was saved.
        TrainingError: The loss is no number any more.
        StorageError: The disk does not take a checkpoint.
        VerificationError: Ranks ended with different weights.
    """
    config, begin, cpu = run.config, time.perf_counter(), time.process_time()
    transformers.set_seed(config.train.seed)
    watch = Watch(Journal(run), progress)
    trainer = build_trainer(run, watch)
    checkpoint = next(run.checkpoints(), (0, None))[1] if resume else None
    fresh = _digest(_model(trainer))
    before = signal.signal(signal.SIGINT, watch.interrupt)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except OSError as error:
        if isinstance(error, HilmError):
            raise
        raise StorageError(
            f"{run.folder}: {error.strerror or error}", hint="free some space, then --resume"
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)
    _check_end(run, trainer, watch)
    digest = _compare_ranks(trainer, _digest(_model(trainer)))
    if digest == fresh:
        raise TrainingError(
            "no trained value has changed", hint="is the reward always the same, or the learning rate 0?"
        )
    if trainer.is_world_process_zero():
        _leave(run, trainer, digest)
        spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        run.note(outcome="trained", metrics=watch.journal.summarise(), **spent)
    return run.facts


def _check_end(run: Run, trainer: Any, watch: Watch) -> None:  # noqa: ANN401 - a Trainer
    """Say why training ended early, if it did."""
    if watch.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise Cancelled(
            f"interrupted at step {trainer.state.global_step}; a checkpoint is saved",
            hint="the same command with --resume",
        )
    if watch.journal.wrong:
        sound = [path.name for step, path in run.checkpoints() if step < watch.journal.first_wrong]
        raise TrainingError(
            f"the loss is no number from step {watch.journal.first_wrong} on; the last sound checkpoint: "
            f"{sound[0] if sound else 'none'}",
            hint="lower train.learning_rate, or look at the rows",
        )


def _model(trainer: Any) -> Any:  # noqa: ANN401 - a Trainer, and its model
    """The model that is trained, without what wraps it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return getattr(model, "policy", model)


def _digest(model: Any) -> str:  # noqa: ANN401 - a model of transformers
    """SHA-256 of all trained values."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state.update(name.encode() + parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _compare_ranks(trainer: Any, digest: str) -> str:  # noqa: ANN401 - a Trainer
    """Exchange the digests of all processes; they have to be the same."""
    if trainer.args.world_size > 1:
        digests: list[Any] = [None] * trainer.args.world_size
        torch.distributed.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            raise VerificationError("the processes ended with different weights", hint="please report this")
    return digest


def _leave(run: Run, trainer: Any, digest: str) -> None:  # noqa: ANN401 - a Trainer
    """Save the result, its outputs on the fixed input as it is in memory, and what the trainer knows."""
    model = _model(trainer)
    place = run.folder / "report" / "probe.npy"
    place.parent.mkdir(exist_ok=True)
    np.save(place, probe(model))
    if isinstance(model, ResNetBKPreTrainedModel):
        save_with_code(model, run.result)
    else:
        model.save_pretrained(run.result)
    trainer.processing_class.save_pretrained(run.result)
    for home in (run.folder, run.result):
        (home / "README.md").unlink(missing_ok=True)  # TRL's is not true, PEFT's names local folders
    run.facts |= {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "trained_sha256": digest,
        "device": str(trainer.args.device),
        "world_size": trainer.args.world_size,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "checkpoints": {path.name: json.loads((path / WHOLE).read_text()) for _, path in run.checkpoints()},
    }


@torch.no_grad()
def probe(model: Any) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: ANN401 - a model of transformers
    """Outputs ``[rows, values]`` on a fixed random input."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, PROBE, generator=random).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    model.eval()
    for module in model.modules():
        if type(module).__module__ == "bitsandbytes.nn.modules":
            module.training = True  # in evaluation mode it repacks its weights on a CPU, some shapes wrongly
    with torch.autocast(model.device.type, enabled=False):
        logits = model(**inputs).logits
    values: np.ndarray[Any, np.dtype[np.float32]] = logits.float().cpu().flatten(1).numpy()
    return values


def main(arguments: list[str]) -> int:
    """Run one process that torchrun started: RUN, and perhaps ``--resume``."""
    run = Run.open(Path(arguments[0]))
    wanted, got = os.environ.get("HILM_WORLD", "1"), os.environ.get("WORLD_SIZE", "1")
    try:
        if wanted != got:
            raise UsageError(f"{wanted} processes are wanted and {got} run", hint="--nproc starts them")
        train(run, resume="--resume" in arguments, progress=no_progress)
    except HilmError as error:
        told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        write_file(run.folder / "error.json", json.dumps(told).encode())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
