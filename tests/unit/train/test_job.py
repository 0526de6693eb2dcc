"""Jobs: what a file may say, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

import hpdl_mpi as hp
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Layer
from hpdl_mpi.parallel.feedback import Compression
from hpdl_mpi.train import EarlyStopping, load_job
from hpdl_mpi.train.choices import make_loss, make_model, read_job
from hpdl_mpi.train.run import make_source

JOBS = sorted(Path("jobs").glob("*.toml"))
LENET = Path("jobs/lenet_mnist.toml")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_of_the_repository_is_valid(path):
    job = read_job(path)
    assert isinstance(make_model(job), Layer)
    assert path.stem == job.name.replace("-", "_")


def test_overrides_are_toml_values_or_strings():
    job = load_job(LENET, ["optimizer.lr=0.5", "model.channels=[4, 8]", "training.loss=huber", "data.shuffle=none"])
    assert job.optimizer.keywords["lr"] == 0.5
    assert job.model.keywords["channels"] == [4, 8]
    assert job.training.loss.name == "huber"


def test_training_aids_are_keys_of_a_job():
    aids = ["training.ema=0.999", "training.early_stopping={metric='accuracy', patience=3, min_delta=0}"]
    job = read_job(LENET, [*aids, "training.loss={name='cross_entropy', label_smoothing=0.1}", "init.file='w'"])
    assert job.training.ema == 0.999
    assert job.training.early_stopping == EarlyStopping(metric="accuracy", patience=3)
    assert make_loss(job).label_smoothing == 0.1
    assert (job.init.file, job.init.skip) == ("w", ())


@pytest.mark.parametrize(
    ("settings", "inputs", "targets", "bucket"),
    [
        ("", "x", "y", False),
        (", context=8", "tokens", "tokens", False),
        (", context=8, inputs='ids'", "ids", "ids", False),
        (", pairs=true", "source", "target", True),
        (", pairs=true, targets='other', bucket=false", "source", "other", False),
    ],
)
def test_arrays_of_text_have_names_by_default(settings, inputs, targets, bucket):
    source = make_source(load_job(LENET, [f"data={{train='a'{settings}}}"]))
    assert (source.inputs, source.targets, source.bucket) == (inputs, targets, bucket)
    assert (source.context, source.pairs) == (8 if "context" in settings else None, "pairs" in settings)


def test_none_removes_a_key():
    job = load_job(LENET, ["training.epochs=none", "training.steps=7"])
    assert (job.training.epochs, job.training.steps) == (None, 7)


@pytest.mark.parametrize("none", ["none", '"none"'])
def test_none_is_a_value_where_a_key_has_that_word(none):
    keys = ("data.shuffle", "parallel.shared_memory", "parallel.sharding", "parallel.recompute")
    job = load_job(LENET, [f"{key}={none}" for key in keys])
    parallel = job.parallel
    assert [job.data.shuffle, parallel.shared_memory, parallel.sharding, parallel.recompute] == ["none"] * 4
    assert load_job(LENET, [f"parallel.compression={none}"]).parallel.compression is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hp.Checkpoint(every=0), "Checkpoint.every: input should be greater than or equal to 1; found 0."),
        (lambda: hp.EarlyStopping(), "EarlyStopping.patience: missing."),
        (lambda: hp.Parallel(pp="two"), "Parallel.pp: input should be a valid integer; found 'two'."),
    ],
)
def test_a_section_made_in_python_is_refused_in_words(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


BAD_KEYS = [
    ("optimizer.lrr=0.1", "optimizer.lrr: unknown key"),
    (
        "optimizer.name=newton",
        "optimizer.name: unknown name. Found 'newton'; expected adam or adamw or lamb or lars or sgd",
    ),
    ("optimizer.lr='fast'", "optimizer.lr: input should be a valid number; found 'fast'"),
    ("optimizer.lr=-1", "optimizer.lr: out of range. Found -1"),
    ("optimizer.lr=none", "optimizer.lr: missing"),
    ("optimizer.lr=nan", "optimizer.lr: input should be a finite number"),
    ("optimizer.momentum=1.5", "optimizer.momentum: out of range"),
    ("training.epoch=3", "training.epoch: unknown key"),
    ("training.steps=3", "training: give either epochs or steps (--set training.epochs=none removes that key)"),
    ("training.epochs=none", "training: give either epochs or steps"),
    ("training.global_batch_size=0", "training.global_batch_size: input should be greater than or equal to 1"),
    ("training.global_batch_size=1.5", "training.global_batch_size: input should be a valid integer"),
    ("training.loss=hinge", "training.loss.name: unknown name"),
    (
        "training.loss={name='cross_entropy', label_smoothing=2}",
        "training.loss.label_smoothing: out of range. Found 2.0",
    ),
    ("training.loss={name='huber', delta='one'}", "training.loss.delta: input should be a valid number; found 'one'"),
    ("training.loss={name='huber', delta=-1}", "training.loss.delta: out of range. Found -1.0"),
    ("training.dtype=float16", "training.dtype: input should be 'float32' or 'float64'"),
    ("training.clip_norm=0", "training.clip_norm: input should be greater than 0"),
    ("training.ema=1.0", "training.ema: input should be less than 1"),
    ("training.early_stopping={metric='loss'}", "training.early_stopping.patience: missing"),
    ("training.early_stopping={patience=0}", "training.early_stopping.patience: input should be greater than or equal"),
    ("training.early_stopping={patience=1, metric='f1'}", "training.early_stopping.metric: input should be 'loss'"),
    ("training.early_stopping={patience=1, min_delta=-1}", "training.early_stopping.min_delta: input should be great"),
    ("init.skip=['fc.*']", "init: says what is left out of no file: give init.file (--init)"),
    ("init={file='x', skip=[3]}", "init.skip.0: input should be a valid string"),
    ("lr_schedule.warmup_steps=-1", "lr_schedule.warmup_steps: out of range"),
    ("lr_schedule.every=3", "lr_schedule.every: unknown key"),
    ("model.outputs='ten'", "model.outputs: input should be a valid integer"),
    ("model.width=3", "model.width: unknown key"),
    ("model.name=none", "model: give either name or factory"),
    ("model={name='mlp', dropout=2.0}", "model: layer Dropout: rate out of range. Found 2.0"),
    ("model.name=", "model.name: string should have at least 1 character"),
    ("optimizer.name=", "optimizer.name: string should have at least 1 character"),
    ("data.train=", "data.train: string should have at least 1 character"),
    ("data.test=", "data.test: string should have at least 1 character"),
    ("data.inputs=", "data.inputs: string should have at least 1 character"),
    ("data.targets=", "data.targets: string should have at least 1 character"),
    ("data.context=0", "data.context: input should be greater than or equal to 1"),
    ("data.pairs=1", "data.pairs: input should be a valid boolean"),
    ("data.bucket=true", "data: bucket = true is of pairs: give pairs = true, or leave it out"),
    ("data.masking={mask=1, vocabulary=9}", "data: masking is of running text: give context"),
    ("data.masking={mask=1}", "data.masking.vocabulary: "),
    ("data.masking={mask=1, vocabulary=9, token=1}", "data.masking.token: unknown key"),
    (
        "data={train='a', context=8, masking={mask=1, vocabulary=2}}",
        "data.masking.vocabulary: out of range. Found 2; expected an integer above 2, the number of specials",
    ),
    ("data={train='a', context=8, pairs=true}", "data: context is of running text, pairs = true of pairs"),
    ("data={train='a', context=8, targets='y'}", "data: the targets of windows are what follows in 'tokens'"),
    ("data.train=3", "data.train: input should be a valid string"),
    ("data.transform.scale=0", "data.transform.scale: out of range. Found 0.0"),
    ("data.transform.mean=nan", "data.transform.mean: input should be a finite number or a valid list; found nan."),
    ("data.transform.mean=[nan]", "data.transform.mean.0: input should be a finite number; found nan."),
    ("data.target_transform.std=[0]", "data.target_transform.std: out of range. Found [0.0]"),
    ("data.transform.layout=nchw", "data.transform.layout: input should be 'hwc', 'hw' or 'chw'"),
    ("data.augment.crops=3", "data.augment.crops: unknown key"),
    (
        "data.augment.crop=0",
        "data.augment.crop: out of range. Found 0; expected an integer of 1 to 32768, or two: height and width",
    ),
    ("data.augment.crop=[8, 8, 8]", "data.augment.crop: out of range. Found [8, 8, 8]"),
    ("data.augment.crop=true", "data.augment.crop: out of range. Found True"),
    ("data.augment={crop=8, resized_crop=8}", "data.augment.crop and resized_crop: both say how images"),
    ("data.augment.pad=2", "data.augment.pad: a border is for what is cropped"),
    ("data.augment.cutout=0", "data.augment.cutout: out of range. Found 0; expected an integer of 1 to 32768"),
    ("data.augment.mixup=2.0", "data.augment.mixup: out of range. Found 2.0; expected a number of 0.001 to 1"),
    ("data.augment.jitter.hue=0.7", "data.augment.jitter.hue: out of range. Found 0.7; expected a number of 0 to 0.5"),
    ("data.augment.jitter={light=1.0}", "data.augment.jitter.light: unknown key"),
    ("parallel.pp=0", "parallel.pp: input should be greater than or equal to 1"),
    ("parallel.cuts=[0]", "parallel.cuts.0: input should be greater than or equal to 1"),
    ("parallel.recompute=all", "parallel.recompute: input should be 'none', 'stage' or 'block'"),
    ("parallel.memory_limit=much", "parallel.memory_limit: could not parse value and unit from byte string"),
    ("parallel.threads=0", "parallel.threads: input should be greater than or equal to 1"),
    ("parallel.algorithm=window", "parallel.algorithm: input should be 'auto', 'library', 'ring'"),
    ("checkpoint.keep=0", "checkpoint.keep: input should be greater than or equal to 1"),
    ("checkpoint.signal=SIGKILL", "checkpoint.signal: input should be 'SIGUSR1'"),
    ("name='../elsewhere'", "name: string should match pattern"),
    ("seed=-1", "seed: input should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("override", "message"), BAD_KEYS, ids=[override for override, _ in BAD_KEYS])
def test_a_bad_key_is_named_with_its_file_and_its_whole_path(override, message):
    with pytest.raises(InputError) as caught:
        read_job(LENET, [override])
    assert str(caught.value).startswith(f"{LENET}: {message}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("compression=top-k", "algorithm=ring"), "compression = 'top-k' has an algorithm of its own: leave out algo"),
        (("compression=top-k", "algorithm=library"), "compression = 'top-k' has an algorithm of its own: leave out"),
        (("compression=powersgd", "algorithm=library"), "algorithm = 'library' leaves the messages to MPI: leave out"),
        (("compression=bf16", "algorithm=library"), "algorithm = 'library' leaves the messages to MPI: leave out"),
        (("compression=fp16", "algorithm=library"), "algorithm = 'library' leaves the messages to MPI: leave out"),
        (("compression=top-k", "sharding=optimizer"), "compression = 'top-k' needs the sums of whole buckets"),
        (("shared_memory=gradients", "algorithm=ring"), "shared_memory = 'gradients' has an algorithm of its own"),
        (("shared_memory=parameters", "algorithm=tree"), "shared_memory = 'parameters' has an algorithm of its own"),
        (("compression_rank=4",), "compression_rank = 4 is of compression = 'powersgd': take that, or leave out comp"),
        (("compression_density=0.1",), "compression_density = 0.1 is of compression = 'top-k': take that, or leave"),
        (("compression=top-k", "compression_rank=2"), "compression_rank = 2 is of compression = 'powersgd': take"),
        (("compression=powersgd", "compression_density=1.0"), "compression_density = 1.0 is of compression = 'top-k'"),
    ],
)
def test_ways_to_sum_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(InputError) as caught:
        read_job(LENET, [f"parallel.{setting}" for setting in settings])
    assert str(caught.value).startswith(f"{LENET}: parallel: {message}")
    assert "\n" not in str(caught.value)


def test_ways_to_sum_that_go_together_are_taken():
    for settings in (
        {"compression": "top-k"},
        {"compression": "top-k", "compression_density": 0.1},
        {"compression": "powersgd", "algorithm": "ring"},
        {"compression": "powersgd", "compression_rank": 2},
        {"compression": "bf16", "algorithm": "tree"},
        {"compression": "bf16", "algorithm": "tree", "sharding": "gradients"},
        {"sharding": "optimizer", "algorithm": "library"},
    ):
        taken = hp.Parallel(**settings)
        assert {key: getattr(taken, key) for key in settings} == settings
        assert read_job(LENET, [f"parallel.{key}={value}" for key, value in settings.items()]).parallel == taken


def test_a_compression_is_as_strong_as_it_says_or_as_by_default():
    assert hp.Parallel(compression="powersgd").feedback == Compression("powersgd", rank=4)
    assert hp.Parallel(compression="top-k").feedback == Compression("top-k", density=0.01)
    assert hp.Parallel(compression="powersgd", compression_rank=2).feedback == Compression("powersgd", rank=2)
    assert hp.Parallel(compression="top-k", compression_density=0.1).feedback == Compression("top-k", density=0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [("data.train.x=1", "--set: not a section"), ("optimizer.lr", "--set: not an override")],
)
def test_a_bad_override_is_quoted(override, message):
    with pytest.raises(InputError, match=message):
        load_job(LENET, [override])


def test_all_bad_keys_are_named_at_once():
    with pytest.raises(InputError, match=r"^jobs/lenet_mnist\.toml: seed: .*; training\.epochs: "):
        load_job(LENET, ["seed=-1", "training.epochs=0"])


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml: no such job file"):
        load_job(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = !")
    with pytest.raises(InputError, match=r"broken\.toml: not a valid job file\. Found .*line 1"):
        load_job(broken)


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000], ids=["list", "number", "cut off", "deep"])
def test_json_that_is_no_job_is_refused(tmp_path, text):
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"job\.json: not a valid job file\. Found "):
        load_job(path)


FACTORY = """
from hpdl_mpi import nn
def tiny(width: int = 3):
    return nn.Sequential(nn.Flatten(), nn.Linear(width))
def wrong():
    return 3
"""


@pytest.fixture
def factory_job(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    (tmp_path / "own_model.py").write_text(FACTORY)
    job = tmp_path / "own.toml"
    job.write_text(LENET.read_text().replace('name = "lenet"\n', 'factory = "own_model:tiny"\n'))
    return job


def test_a_factory_is_found_beside_the_job_and_takes_keywords(factory_job):
    model = make_model(read_job(factory_job, ["model.width=7"]))
    model.build((2, 2, 1))
    assert model.output_shape((2, 2, 1)) == (7,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.factory=nowhere:tiny", "model.factory: no such module. Found nowhere"),
        ("model.factory=own_model:huge", "model.factory: no such function. Found huge"),
        ("model.factory=own_model:wrong", "model.factory: the factory returned no Layer. Found int"),
        ("model.factory=os:system", "model.factory: no such function. Found system; expected a function in os"),
        ("model.factory=own_model", "model.factory: string should match pattern"),
        ("model.width=wide", "model.width: input should be a valid integer"),
    ],
)
def test_a_bad_factory_is_explained(factory_job, override, message):
    with pytest.raises(InputError) as caught:
        read_job(factory_job, [override])
    assert str(caught.value).startswith(f"{factory_job}: {message}")


@pytest.mark.parametrize(
    ("settings", "packs"),
    [
        ({}, True),
        ({"pack_weights": False}, False),
        ({"memory_limit": "2 GiB"}, False),
        ({"shared_memory": "parameters"}, False),
        ({"shared_memory": "gradients"}, True),
    ],
)
def test_weights_are_packed_where_memory_is_not_counted(settings: dict[str, object], packs: bool) -> None:
    assert hp.Parallel(**settings).packs is packs
