"""The training loop: steps and epochs, evaluation, checkpoints, and an orderly end when one is asked for."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.data import Batch, Loader
from hpdl_mpi.nn import Loss
from hpdl_mpi.optim import Optimizer, Schedule
from hpdl_mpi.parallel import ProcessGrid, Replica, StepReport, TrainingStep
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.job import Checkpoint, EarlyStopping
from hpdl_mpi.train.metrics import Meter, Metrics
from hpdl_mpi.train.progress import Progress
from hpdl_mpi.train.report import Reporter
from hpdl_mpi.train.runfolder import MetricsLog, RunFolder
from hpdl_mpi.train.signals import Stopped, StopSignals
from hpdl_mpi.train.tracing import Recorder


@dataclass
class TrainingLoop:
    """Everything that a run consists of, put together by `Trainer`. `run` is collective.

    Attributes
    ----------
    grid : ProcessGrid
    num_steps : int
        Length of the whole run.
    eval_every : int or None
        Steps between evaluations; None for one after every epoch.
    early_stopping : EarlyStopping or None
        When evaluations end the run; it needs an evaluator.
    progress : Progress
        Where the run begins; kept up to date.
    log : MetricsLog or None
        On the writing rank, if there is a run folder.
    meter : Meter
    recorder : Recorder or None
    began : float
        When the run did, by `time.perf_counter`.
    """

    grid: ProcessGrid
    replica: Replica
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    step: TrainingStep
    loader: Loader
    evaluator: Evaluator | None
    num_steps: int
    eval_every: int | None
    early_stopping: EarlyStopping | None
    checkpoints: Checkpoint
    folder: RunFolder | None
    progress: Progress
    log: MetricsLog | None
    reporter: Reporter
    signals: StopSignals
    meter: Meter
    recorder: Recorder | None
    began: float
    _lap: float = field(default=0.0, init=False)

    def run(self) -> Metrics | None:
        """Train to the end and return the last evaluation's metrics, if there is something to evaluate on.

        Raises
        ------
        Stopped
            A signal asked for an end; the state is saved.
        TrainingError
            The loss is not finite.
        """
        progress = self.progress
        self._wall_before = progress.wall_seconds
        self._evaluated: tuple[int, Metrics] | None = None
        self.grid.comm.barrier()  # the first step's time shall not hold the wait for ranks that started later
        self._take_lap()
        self._epoch_began = progress.samples, progress.seconds
        if self.early_stopping:
            self._watch_again()
        while self.replica.step < self.num_steps and not self.stopped_early:
            self._epoch()
        if self.recorder:
            self.recorder.finish()
        self._evaluate()
        if self.early_stopping and self.stopped_early:
            self._note_early_stop(self.early_stopping)
        self._note_wall_seconds()
        metrics = self._evaluated[1] if self._evaluated else None
        self._check_end(metrics)
        return metrics

    @property
    def stopped_early(self) -> bool:
        """Whether evaluations have ended the run."""
        return self.early_stopping is not None and self.progress.watch.over(self.early_stopping)

    def _epoch(self) -> None:
        """Go on to the end of the present epoch, or of the run."""
        with closing(self.loader.epoch(self.progress.epoch, self.progress.offset)) as batches:
            for batch in batches:
                report = self._step(batch)
                step = self.replica.step
                ended = self.progress.offset == self.loader.dataset.num_samples
                last, stopping = step == self.num_steps, any(report.votes)
                line = self._end_epoch() if ended else ""
                if last and self.progress.sums.weight:  # the run ends within an epoch
                    self.progress.train_loss = self.meter(self.progress.sums).loss
                asked = last or self._asks(ended)
                due = ended or last or stopping or _due(step, self.checkpoints.every)
                # Before the evaluation, which may fail or take long; an epoch's end stands at the start of the next.
                saved = self._save() if due or (asked and self.early_stopping) else None
                tested = self._evaluate() if asked else ""
                if ended or tested:
                    self.reporter.say((line or f"step {step}") + tested)
                if last or self.stopped_early:
                    break
                if stopping:
                    raise self._stopped(report, saved)

    def _step(self, batch: Batch) -> StepReport:
        number, progress = self.replica.step, self.progress
        lr = self.optimizer.lr * self.schedule.scale(progress.recipe.global_batch_size)
        lr *= self.schedule.factor(number, self.num_steps)
        with self.loader.dataset.naming_files():
            report = self.step(batch, epoch=progress.epoch, lr=lr, flags=self.signals.flags)
        if not report.finite:
            self._refuse(report, number)
        seconds = self._take_lap()
        progress.count(report.sums, batch.global_size, seconds)
        if self.recorder:
            self.recorder.advance()
            self._take_lap()
        if self.log:
            metrics = asdict(self.meter(report.sums))
            self.log.write(kind="step", step=number + 1, epoch=progress.epoch, lr=lr, seconds=seconds, **metrics)
        rate = progress.samples / progress.seconds
        self.reporter.step(number + 1, self.meter(progress.sums), rate)
        return report

    def _refuse(self, report: StepReport, number: int) -> None:
        saved = self.folder and checkpoint.latest(self.folder.checkpoints)
        raise TrainingError(
            f"the loss is {report.sums.loss} in step {number + 1} of epoch {self.progress.epoch + 1}",
            where="training",
            expected="a finite number",
            remedy="lower optimizer.lr, set training.clip_norm, or look for bad values with `hpdl data verify`"
            + (f"; {saved} is intact" if saved else ""),
            shared=True,
        )

    def _check_end(self, metrics: Metrics | None) -> None:
        """Raise a TrainingError if what the run has reached is no number, or not every rank's doing."""
        if metrics is not None and not metrics.finite:
            raise TrainingError(
                f"the test {metrics}",
                where="training",
                expected="finite numbers",
                remedy="look for bad values in the test data with `hpdl data verify`; what was saved is intact",
                shared=True,
            )
        self.grid.axis("dp").compare_calls()  # steps compare those before them, and none follows the last
        checkpoint.require_finite(self.replica, self.grid.comm)

    def _end_epoch(self) -> str:
        """Note that the epoch is over, and return what there is to say about it."""
        progress = self.progress
        metrics = self.meter(progress.sums)
        progress.train_loss = metrics.loss
        progress.end_epoch()
        samples, seconds = self._epoch_began
        rate = (progress.samples - samples) / (progress.seconds - seconds)
        self._epoch_began = progress.samples, progress.seconds
        if self.log:
            values = asdict(metrics) | {"samples_per_second": rate}
            self.log.write(kind="epoch", step=self.replica.step, epoch=progress.epoch, **values)
        return f"epoch {progress.epoch:3d}  {metrics}  {rate:.0f} samples/s"

    def _asks(self, ended: bool) -> bool:
        """Return whether there is to be an evaluation at this step, which may have ended an epoch."""
        return ended if self.eval_every is None else _due(self.replica.step, self.eval_every)

    def _evaluate(self) -> str:
        """Evaluate unless this step's parameters have been, and return what there is to say about it."""
        if self.evaluator is None:
            return ""
        if self._evaluated is None or self._evaluated[0] != self.replica.step:
            metrics = self.evaluator()
            self._evaluated = self.replica.step, metrics
            if self.log:
                weights = "ema" if self.replica.average else "trained"
                place = {"step": self.replica.step, "epoch": self.progress.epoch, "weights": weights}
                self.log.write(kind="test", **place, **asdict(metrics))
            if self.early_stopping:
                self._watch(metrics, self.early_stopping)
            self._take_lap()
        of_average = " (ema)" if self.replica.average else ""
        return f"  test{of_average} {self._evaluated[1]}"

    def _watch(self, metrics: Metrics, settings: EarlyStopping) -> None:
        """Let early stopping see an evaluation; the checkpoint of the best one so far is named."""
        step = self.replica.step
        watch = self.progress.watch = self.progress.watch.after(step, metrics, settings)
        if watch.best_step == step:
            self._name_best()

    def _watch_again(self) -> None:
        """Repeat the evaluation that followed the checkpoint of a resumed run, whose result is not in there."""
        self._name_best()
        step = self.replica.step
        if step == self.num_steps or (step > 0 and self._asks(self.progress.offset == 0)):
            self._evaluate()

    def _name_best(self) -> None:
        if self.folder:
            checkpoint.name_best(self.folder.checkpoints, self.progress.watch.best_step, self.grid.comm)

    def _note_early_stop(self, settings: EarlyStopping) -> None:
        progress, watch = self.progress, self.progress.watch
        if progress.sums.weight:  # the run ends within an epoch
            progress.train_loss = self.meter(progress.sums).loss
        self.reporter.say(watch.describe(settings))
        if self.log:
            self.log.write(kind="early_stopping", epoch=self.progress.epoch, **asdict(watch))

    def _save(self) -> Path | None:
        """Write a checkpoint, if there is a run folder."""
        if self.folder is None:
            return None
        self._note_wall_seconds()
        if self.log:
            self.progress.metrics_bytes = self.log.flush()
        best = self.progress.watch.best_step if self.early_stopping else None
        path = checkpoint.save(
            self.folder.checkpoints, self.replica, self.progress, self.grid, keep=self.checkpoints.keep, best=best
        )
        self._take_lap()
        return path

    def _stopped(self, report: StepReport, saved: Path | None) -> Stopped:
        number = next(number for number, votes in zip(self.signals.numbers, report.votes, strict=True) if votes)
        return Stopped(number, self.replica.step, saved)

    def _note_wall_seconds(self) -> None:
        self.progress.wall_seconds = self._wall_before + time.perf_counter() - self.began

    def _take_lap(self) -> float:
        """Return the seconds since the last call: evaluation and checkpoints do not count as training."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
