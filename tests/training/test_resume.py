"""A killed run resumes to bitwise the same weights as an uninterrupted run, in one process and in two."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import psutil
import torch
from support.drawn_datasets import write_rafdb
from support.small_training import SMALL, command, environment, quiet, same, weights
from torch import nn

from pal_fast.nn import Conv2d
from pal_fast.training import TrainingConfig, train
from pal_fast.training.machine import make_accelerator
from pal_fast.training.networks import build_network
from pal_fast.training.run_folder import RunFolder, read_state, write_state
from pal_fast.training.set_up import prepare
from pal_fast.training.trained import evaluate

#: Runs the command and kills itself when half of its n-th checkpoint is written.
DIES_WRITING = """
import contextlib, os, signal, sys
from pal_fast import cli
from pal_fast.training import run_folder
left, whole = int(sys.argv.pop(1)), run_folder.atomic_write
class Torn:
    def __init__(self, file):
        self.file = file
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
@contextlib.contextmanager
def atomic_write(path):
    global left
    left -= path.name == "checkpoint.pt"
    with whole(path) as file:
        yield file if left else Torn(file)
run_folder.atomic_write = atomic_write
sys.exit(cli.main(sys.argv[1:]))
"""


def history(folder: Path) -> list[dict]:
    """The run's history without its timings, which differ between runs."""
    return [entry | {"seconds": 0} for entry in json.loads(RunFolder(folder).history.read_text())]


def signal_all(process: psutil.Popen, what: str) -> list[psutil.Process]:
    """Applies `suspend`, `resume` or `kill` to the process and to torchrun's workers, which have their own sessions."""
    members = [*process.children(recursive=True), process]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(member, what)()
    return members


def kill_in_the_middle_of_an_epoch(words: list[str], folder: Path) -> int:
    """Starts a run, kills all its processes at its first checkpoint within an epoch, and returns that step."""
    checkpoint = RunFolder(folder).checkpoint
    process = psutil.Popen(words, env=environment(), cwd=folder.parent, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if checkpoint.exists():
                # Suspended, so that the checkpoint read here is the one left behind.
                signal_all(process, "suspend")
                if step := read_state(checkpoint, "checkpoint")["step"]:
                    break
                signal_all(process, "resume")
            time.sleep(0.005)
        else:
            raise AssertionError(f"no checkpoint within an epoch; the process returned {process.poll()}")
    finally:
        if process.poll() is None:
            psutil.wait_procs(signal_all(process, "kill"))
    assert not RunFolder(folder).result.exists()
    return step


def test_a_run_killed_twice_once_while_writing_a_checkpoint_resumes_exactly(tmp_path):
    config = TrainingConfig(**SMALL | {"epochs": 5, "workers": 1}, weight=1, accumulate=2, checkpoint_every=1)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    step = kill_in_the_middle_of_an_epoch(command(config, killed, "-m", "pal_fast"), killed)
    assert 0 < step < 4

    torn = command(config, killed, "-c", DIES_WRITING, "6")
    done = subprocess.run(torn, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert f", step {step} of the next" in done.stdout
    (partial,) = killed.glob(".checkpoint.pt.*.partial")
    assert 0 < partial.stat().st_size < RunFolder(killed).checkpoint.stat().st_size

    lines: list[str] = []
    result = train(config, killed, say=lines.append)
    assert any(line.startswith("resuming after") for line in lines)
    assert result["seconds"] > 0
    uninterrupted = train(config, whole, say=quiet)
    assert same(weights(killed), weights(whole))
    assert {**result, "seconds": 0} == {**uninterrupted, "seconds": 0}
    assert history(killed) == history(whole)
    assert not list(killed.rglob("*.partial"))


def test_resuming_with_another_number_of_processes_is_reported(tmp_path):
    config = TrainingConfig(**SMALL | {"gallery": 0}, weight=0)

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", say=stop)
    checkpoint = RunFolder(tmp_path / "run").checkpoint
    state = read_state(checkpoint, "checkpoint")
    assert state["processes"] == 1
    write_state(checkpoint, state | {"processes": 4})
    with pytest.warns(UserWarning, match="was trained in 4 processes and resumes in 1"):
        train(config, tmp_path / "run", say=quiet)
    assert read_state(checkpoint, "checkpoint")["processes"] == 1


def test_accelerate_launch_produces_the_same_weights(tmp_path):
    config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0}, weight=1)
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    words = command(config, tmp_path / "launched", *launch, "--mixed_precision", "no", "-m", "pal_fast")
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(config, tmp_path / "here", say=quiet)
    assert same(weights(tmp_path / "launched"), weights(tmp_path / "here"))


def test_two_processes_killed_and_resumed_match_an_uninterrupted_run(tmp_path):
    write_rafdb(tmp_path / "faces", 48, 14)
    data = {"data": "rafdb", "root": str(tmp_path / "faces")}
    config = TrainingConfig(**SMALL | data, weight=1, checkpoint_every=1, sync_batchnorm=True, prepare_head=True)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pal_fast")
    kill_in_the_middle_of_an_epoch(command(config, killed, *torchrun), killed)
    for folder in (killed, whole):
        words = command(config, folder, *torchrun)
        done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1, "only one process reports"
    assert json.loads(RunFolder(whole).environment.read_text())["processes"] == 2
    assert same(weights(killed), weights(whole))
    assert history(killed) == history(whole)

    # Evaluating the two-process run in one process gives the figures in its result.json.
    result = json.loads(RunFolder(whole).result.read_text())
    found = evaluate(whole, workers=0, device="cpu", alignment=True, say=quiet).to_mapping()
    assert found["cross_entropy"] == pytest.approx(result["cross_entropy"])
    assert found["alignment"]["body"] == pytest.approx(result["alignment"]["body"])
    for name in ("images", "confusion", "undefined"):
        assert found[name] == result[name]

    # One process with the same config sees the same images in the same order, and both use batch statistics of the
    # whole batch: the losses differ only by rounding.
    train(config, tmp_path / "one", say=quiet)
    for one, two in zip(history(tmp_path / "one"), history(whole), strict=True):
        assert one["train"]["cross_entropy"] == pytest.approx(two["train"]["cross_entropy"], rel=1e-3)
        assert one["validation"]["images"] == two["validation"]["images"] == 14


def stop_between_epochs_and_resume(config: TrainingConfig, folder: Path) -> None:
    """Asserts that a run stopped and resumed in folder / "stopped" ends with the weights of one in folder / "whole"."""

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, folder / "stopped", say=stop)
    for name in ("stopped", "whole"):
        train(config, folder / name, say=quiet)
    assert same(weights(folder / "stopped"), weights(folder / "whole"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_bfloat16_run_stopped_between_epochs_resumes_exactly(device, tmp_path):
    config = TrainingConfig(**SMALL | {"device": device}, weight=1, precision="bf16")
    stop_between_epochs_and_resume(config, tmp_path)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_with_a_prepared_head_resumes_exactly(precision, tmp_path):
    config = TrainingConfig(**SMALL | {"gallery": 0}, weight=1, prepare_head=True, precision=precision)
    stop_between_epochs_and_resume(config, tmp_path)
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_preparing_the_head_before_the_first_step_has_no_side_effects(precision):
    config = TrainingConfig(**SMALL, weight=1, prepare_head=True, precision=precision).resolved()
    accelerator = make_accelerator("cpu", precision)
    network = build_network("small", 7, 32)
    network.head.append(nn.Dropout(0.5))
    modes = [module.training for module in network.train().modules()]
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    prepare(config, network, 32, accelerator)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(network.state_dict(), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == modes
    assert any(type(module) is Conv2d for module in network.modules()), "prepared before any step"


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_state(path, {"kind": "checkpoint", "value": torch.arange(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: .*kept"):
            write_state(path, {"kind": "checkpoint", "value": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_state(path, "checkpoint")["value"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_file_that_is_not_a_checkpoint_is_named_in_the_error(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"no zip file", b"<!doctype html>", pickle.dumps(Path("code"))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable file") as refusal:
            read_state(path, "checkpoint")
        # torch's own error is long and advises loading the file with weights_only=False.
        assert "weights_only" not in str(refusal.value)
        assert "\n" not in str(refusal.value)
    torch.save({"kind": "checkpoint", "value": Path("code")}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable file of tensors, so not a checkpoint"):
        read_state(path, "checkpoint")
    torch.save({"kind": "model"}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of pal-fast train"):
        read_state(path, "checkpoint")
