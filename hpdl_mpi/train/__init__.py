"""From a job, or a few lines of Python, to a trained model: configuration, training, checkpoints, evaluation."""

from hpdl_mpi.train.job import Checkpoint, EarlyStopping, Job, Parallel
from hpdl_mpi.train.jobfile import load_job
from hpdl_mpi.train.run import open_run, run_job
from hpdl_mpi.train.source import Source
from hpdl_mpi.train.trainer import Trainer

__all__ = ["Checkpoint", "EarlyStopping", "Job", "Parallel", "Source", "Trainer", "load_job", "open_run", "run_job"]
