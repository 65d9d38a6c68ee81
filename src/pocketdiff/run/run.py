"""A run: claims its folder, trains or continues, logs, draws, scores, saves."""

import contextlib
import logging
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import filelock
import torch
from pydantic import ValidationError

from pocketdiff.checkpoint import (
    Checkpoint,
    RunConfig,
    load,
    newest_checkpoint,
    read_checkpoint,
    read_run_config,
    remove_others,
    restore_checkpoint,
    save_checkpoint,
)
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.errors import CheckpointError, RunError
from pocketdiff.files import remove_leftovers, write_file
from pocketdiff.folder import RunFolder
from pocketdiff.methods import METHODS
from pocketdiff.methods.loop import StepReport, train
from pocketdiff.progress import Progress, silent
from pocketdiff.records import Interval, Summary, commit, fp32_peak, hardware, peak_memory, versions
from pocketdiff.run.gallery import Gallery
from pocketdiff.run.log import MetricsLog
from pocketdiff.run.scoring import Scoring, check_scoring
from pocketdiff.tensors import read_tensors

TRAINING_PASSES = 3.0
"""A training step on an image takes about as long as three network passes over it: one forward, one backward."""
_log = logging.getLogger(__name__)


class Run:
    """A training run in a folder. Iterate over it to train; the same arguments continue an unfinished run, and a config
    with a greater length continues a finished one.

    ```python
    run = Run(PRESETS["quick"], load_data("mnist"), "runs/mine")
    for report in run:
        print(report.seen, report.losses["loss"])
    run.model([3, 1, 4])
    ```

    Leaving the loop at any point is safe: the state is saved, and a new `Run` with the same arguments, or the same
    object, continues bit for bit on the same CPU. While the loop runs, the folder is locked.

    A greater length adds a part to a finished run: the learning rate rises again and falls to zero in it. A finished
    run whose model file is missing or damaged makes it anew from its last checkpoint.

    Args:
        config: What to train.
        data: The data set. Its source is recorded in the config.
        folder: Where everything goes: config, log, pictures, checkpoints, model file, summary.
        device: Where to train.
        resume: ``auto``, to continue an unfinished run; ``never``, to refuse its folder; or the path of a checkpoint.
        cache: Where classifiers of other data than MNIST are kept, for scores during training; None: nowhere.
        progress: Called during all work but training steps. It may raise: the loop then ends safely.

    Raises:
        RunError: If the folder holds another run or other files, cannot be made, or another loop trains in it; or if a
            run is to become shorter, or longer before it is finished.
        TrainingError: In the loop, if a loss, a gradient or a weight is not finite.
        CheckpointError: If no checkpoint of the run can be used, or that of a finished run without its model file.
        EvaluationError: If the run asks for scores that its data do not allow.
        RequestError: If the method needs a teacher and the config does not name one that fits.
    """

    def __init__(
        self, config: MethodConfig, data: Dataset, folder: Path | str, *, device: torch.device | str = "cpu",
        resume: str = "auto", cache: Path | None = None, progress: Progress = silent,
    ) -> None:  # fmt: skip
        self.folder, self.data, self.device, self.progress = RunFolder(folder), data, torch.device(device), progress
        self._method, self._resume, self._cache = METHODS.find(config.kind), resume, cache
        self._load = partial(load, device=self.device)
        config = self._method.complete(config.model_copy(update={"data": data.source}), self._load)
        check_scoring(config, data)
        self.state = self._method.new_state(config, data.info, self.device, self._load)
        """Weights, optimizers and position."""
        with self._locked():
            self.run_config = self._claim(RunConfig(train=config, data=data.info))
        self.config: MethodConfig = self.run_config.train
        """The config, with what it takes from the data, from other models and from the run's earlier parts."""
        self.length = self.run_config.ends[-1]  # Training images in the run, repeats counted.
        self.model = self._method.model(self.state.ema, self.config, data.info)
        """Draws with the averaged weights, as they are at the time."""
        self.training_seconds = 0.0  # Time in training steps so far, over all sessions.
        self.resumed_from: Path | None = None  # The checkpoint that this run continued from.
        self.saved: Path | None = None  # The newest checkpoint.
        self.written: list[Path] = []  # The files that the end of the run wrote.
        self._log = MetricsLog(self.folder, self.config.log_every, self.run_config.ends)
        self._gallery = Gallery(self.folder, self.model, data.train)
        self._parts: list[Gallery | Scoring] = [self._gallery]  # What the run does beside training.
        self._pictures: list[Path] = []
        self._began, self._seconds_before, self._in_step = time.perf_counter(), 0.0, False
        with self._locked():
            if self.finished:
                self._open()
            else:
                self._restore(
                    self._newest_checkpoint() if resume in {"auto", "never"} else read_checkpoint(Path(resume))
                )

    @property
    def finished(self) -> bool:
        """Whether the run is complete: its model file and summary are written."""
        return self.summary is not None

    @property
    def summary(self) -> Summary | None:
        """What the finished run took; None if it is not finished."""
        return self._summary_at(self.length)

    def work(self) -> tuple[float, float]:
        """The work so far and that of the whole run, with pictures and scores, in network passes over one image."""
        done, total = TRAINING_PASSES * self.state.seen, TRAINING_PASSES * self.length
        others, other_total = zip(*((part.done, part.passes(self.length)) for part in self._parts), strict=True)
        return done + sum(others), total + sum(other_total)

    def __repr__(self) -> str:
        done = "finished" if self.finished else f"{self.state.seen:,} of {self.length:,} images"
        return f"Run({self.config.kind}, {str(self.folder)!r}, {done})"

    def __iter__(self) -> Generator[StepReport, None, None]:
        """Trains to the end of the run and yields a report after each step."""
        with self._locked():
            if self.finished:
                self._open()  # Perhaps another process finished the run.
                return
            if self._in_step or self.folder.saved_checkpoints() != self._known:
                self._restore(
                    self._newest_checkpoint()
                )  # This object was interrupted inside a step, or another process went further.
            remove_leftovers(self.folder.path)
            scoring = Scoring(self.data, self.model, self._log, self._cache, self.progress)
            self._parts = [self._gallery, scoring]
            try:
                yield from self._train(scoring)
            finally:
                saved_already = self.finished or self.saved == self.folder.checkpoint(self.state.step)
                if self.state.seen and not self._in_step and not saved_already:
                    self._save()

    def _train(self, scoring: Scoring) -> Iterator[StepReport]:
        images, every, seen = self.data.train.to(self.device), self.config.checkpoint_every, self.state.seen
        if seen:  # A run that was stopped while it drew or scored does that first.
            batch = min(self.config.batch, len(images)) if self.config.epochs else self.config.batch
            self._look(max(0, seen - batch), scoring)
        for report in self._timed(train(self._method, self.state, images, self.config)):
            due = self._gallery.due(seen, report.seen) or scoring.due(seen, report.seen)
            if due or seen // every < report.seen // every:
                self._save()
            yield report
            if due:
                self._look(seen, scoring)
            seen = report.seen
        self._finish(scoring)

    def _timed(self, steps: Iterator[StepReport]) -> Iterator[StepReport]:
        """Logs the steps and counts their time. It notes an interrupt inside a step: such a state is not saved."""
        while True:
            before = self.state.seen
            self._in_step, entered = True, time.perf_counter()
            report = next(steps, None)
            self.training_seconds += time.perf_counter() - entered
            if report is not None:
                self._log.add(report, before, self.training_seconds)
            self._in_step = False
            if report is None:
                return
            yield report

    def _look(self, before: int, scoring: Scoring) -> None:
        """Draws and scores what is due now, after a step that began with ``before`` images seen."""
        after = self.state.seen
        for part in self._parts:
            part.done = part.passes(before)
        if due := self._gallery.due(before, after):
            self._pictures = self._gallery.draw(due, self.progress)
        if scoring.due(before, after):
            scoring.score(self.state.step, after, self.progress)
        for part in self._parts:
            part.done = part.passes(after)

    def _finish(self, scoring: Scoring) -> None:
        """Writes the model file, and then the summary, which marks the run as finished."""
        self.progress("saving the model", 0, 1)
        self.model.save(self.folder.model)
        self.written = [*self._pictures, *scoring.plot(self.folder), self._log.path]
        weights = list(self.state.net.parameters())
        self.progress("measuring the machine's speed", 0, 1)
        summary = Summary(
            steps=self.state.step,
            images_seen=self.state.seen,
            parameters=sum(weight.numel() for weight in weights),
            training_seconds=self.training_seconds,
            other_seconds=self.other_seconds,
            images_per_second=self.state.seen / max(self.training_seconds, 1e-9),
            peak_memory_bytes=peak_memory(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if weights[0].is_cuda else None,
            fp32_peak_flops=fp32_peak(self.device),
            hardware=hardware(self.device),
            versions=versions(),
            commit=commit(),
        )
        if self.saved is not None:
            remove_others(self.folder, self.saved)  # A process that was killed may have left older ones.
        write_file(self.folder.summary, summary.model_dump_json(indent=2) + "\n")
        self.written += [self.folder.summary, self.folder.model]

    @property
    def other_seconds(self) -> float:
        """Time for everything else so far, over all sessions: pictures, scores, checkpoints, start."""
        return self._seconds_before + time.perf_counter() - self._began - self.training_seconds

    def _save(self) -> None:
        times = self.training_seconds, self.other_seconds
        self.saved = save_checkpoint(self.folder, self.state, self.run_config, *times, self._log.interval)
        self._known = self.folder.saved_checkpoints()

    def _claim(self, given: RunConfig) -> RunConfig:
        """Makes the folder this run's, or a finished run longer; the run's config, with its parts.

        Raises RunError if the folder belongs to something else, or the run cannot have that length.
        """
        found = read_run_config(self.folder)
        if found is None:
            own = {self.folder.lock, *self.folder.path.glob(".config.json.*.tmp")}
            if set(self.folder.path.iterdir()) - own:
                raise RunError(f"{self.folder}: holds files that are not a run's; use another --out folder")
            write_file(self.folder.config, given.to_json())
            return given
        if self._resume == "never":
            raise RunError(f"{self.folder}: already holds a run, and --resume is never; use another --out folder")
        parts, (*_, present), (*_, wanted) = found.train.parts, found.ends, given.ends
        given = given.model_copy(update={"train": given.train.model_copy(update={"parts": parts})})
        if not (differences := ", ".join(found.differences(given))):
            return found
        if given.with_length_of(found) != found or wanted == present:
            raise RunError(f"{self.folder}: holds a run that differs in {differences}; use another --out folder")
        if wanted < present:
            fault = f"holds a run of {present:,} images, which cannot be shortened to {wanted:,}"
            raise RunError(f"{self.folder}: {fault}; use another --out folder")
        if self._summary_at(present) is None:
            fault = f"holds an unfinished run of {present:,} images; finish it first, at that length"
            raise RunError(f"{self.folder}: {fault}, and then continue it to {wanted:,}")
        last = self._newest_checkpoint()
        if last is None or last.position.seen != present:
            fault = f"the checkpoint at {present:,} images is gone, so the run cannot be continued"
            raise RunError(f"{self.folder}: {fault}; use another --out folder")
        longer = RunConfig(train=given.train.replace(parts=(*parts, present)), data=given.data)
        write_file(self.folder.config, longer.to_json())
        return longer

    def _summary_at(self, length: int) -> Summary | None:
        """The summary of the run at this length; None if there is none, or it is damaged."""
        with contextlib.suppress(FileNotFoundError, ValidationError):
            found = Summary.model_validate_json(self.folder.summary.read_bytes())
            return found if found.images_seen == length else None
        return None

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The newest valid checkpoint, with a warning for each newer one; None if there is no checkpoint at all."""
        found, faults = newest_checkpoint(self.folder) or (None, [])
        for fault in faults:
            _log.warning(fault)
        return found

    def _open(self) -> None:
        """Loads the finished run's model. A file that is missing or damaged is made anew from the last checkpoint."""
        remove_leftovers(self.folder.path)
        try:
            read_tensors(self.folder.model)
        except CheckpointError as error:
            fault = "is damaged" if self.folder.model.exists() else "is missing"
            found = self._newest_checkpoint()
            if found is None or found.position.seen != self.length:
                fault = f"{fault}, and so is the checkpoint at the end of the run; use a new --out folder"
                raise CheckpointError(f"{self.folder.model}: {fault}") from error
            self._restore(found)
            self._method.model(self.state.ema, self.config, self.data.info).save(self.folder.model)
            _log.warning("%s: was %s, and was made anew from %s", self.folder.model, fault[3:], found.path)
        self.model = self._load(self.folder.path)

    def _restore(self, found: Checkpoint | None) -> None:
        """Goes to a checkpoint; to the start if there is none."""
        interval = self._log.interval
        if found is not None:
            interval = found.position.interval
            restore_checkpoint(found, self.state, self.run_config)
            self.resumed_from = self.saved = found.path
            self.training_seconds = found.position.training_seconds
            self._seconds_before = self.training_seconds + found.position.other_seconds
        elif self._in_step:
            start = self._method.new_state(self.config, self.data.info, self.device, self._load)
            for name, module in self.state.modules.items():
                module.load_state_dict(start.modules[name].state_dict())
            for optimizer in self.state.optimizers:
                optimizer.state.clear()
            self.state.step, self.state.seen, self.training_seconds = 0, 0, 0.0
            interval = Interval()
        self._in_step = False
        self._known = self.folder.saved_checkpoints()
        self._log.resume(self.state.step, interval)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the folder, or raises RunError; the lock ends with the process, however it ends."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder.lock)
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            fault = "another process is training there; wait for it"
            raise RunError(f"{self.folder}: {fault}, or use another --out folder") from error
        except OSError as error:
            fault = "is a file" if isinstance(error, FileExistsError) else f"cannot be used ({error.strerror})"
            raise RunError(f"{self.folder}: {fault}; use another --out folder") from error
        try:
            yield
        finally:
            lock.release()
