import json
import shutil
import subprocess
import sys

import pytest
import torch

from glm_ext.train import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from glm_ext.train import checkpoint as module


def make(value=1.0, tokenizer="{}", head=None):
    return Checkpoint(
        model={"w": torch.full((3, 4), value)},
        config={"width": 4},
        tokenizer=tokenizer,
        optimizer={"w.exp_avg": torch.full((3, 4), -value)},
        rng=torch.get_rng_state(),
        state={"step": 5},
        head=head,
    )


def steps(run):
    return sorted(path.name for path in run.iterdir())


@pytest.mark.parametrize("tokenizer", ["{}", None])
@pytest.mark.parametrize("head", [{"w": torch.ones(2)}, None])
def test_what_was_saved_comes_back(tmp_path, tokenizer, head):
    saved = make(2.0, tokenizer, head)
    path = save_checkpoint(tmp_path, 5, saved, keep_last=2)
    loaded, folder = load_checkpoint(tmp_path)
    assert folder == path == tmp_path / "step-5"
    assert torch.equal(loaded.model["w"], saved.model["w"])
    assert torch.equal(loaded.optimizer["w.exp_avg"], saved.optimizer["w.exp_avg"])
    assert torch.equal(loaded.rng, saved.rng)
    assert (loaded.head is None) if head is None else torch.equal(loaded.head["w"], head["w"])
    assert (loaded.config, loaded.state, loaded.tokenizer) == (saved.config, saved.state, saved.tokenizer)


def test_the_last_ones_are_kept_by_number(tmp_path):
    for step in (8, 9, 10, 100):
        save_checkpoint(tmp_path, step, make(), keep_last=2)
    assert steps(tmp_path) == ["step-10", "step-100"]
    assert load_checkpoint(tmp_path)[1].name == "step-100"


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 5, make(1.0), keep_last=2)
    save_checkpoint(tmp_path, 5, make(2.0), keep_last=2)
    assert steps(tmp_path) == ["step-5"]
    assert load_checkpoint(tmp_path)[0].model["w"][0, 0] == 2.0


@pytest.mark.parametrize("failing", ["file_sha256", "_flush"])
def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 5, make(), keep_last=1)

    def disk_full(path):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, failing, disk_full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 6, make(), keep_last=1)
    monkeypatch.undo()
    assert steps(tmp_path) == ["step-5"]
    assert load_checkpoint(tmp_path)[1].name == "step-5"


@pytest.mark.parametrize("killed_at", ["file_sha256", "_flush", "_remove"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_earlier_one(tmp_path, killed_at):
    """A child process saves step 5, then dies without any cleaning up somewhere in the save of step 6."""
    code = f"""
import os, pathlib, sys
import torch
from glm_ext.train import Checkpoint, checkpoint, save_checkpoint
made = Checkpoint(model={{"w": torch.ones(3)}}, config={{}}, tokenizer=None, optimizer={{}},
                  rng=torch.get_rng_state(), state={{}})
run = pathlib.Path(sys.argv[1])
save_checkpoint(run, 5, made, keep_last=1)
checkpoint.{killed_at} = lambda path: os._exit(9)
save_checkpoint(run, 6, made, keep_last=1)
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert child.returncode == 9
    survivor = "step-6" if killed_at == "_remove" else "step-5"
    assert load_checkpoint(tmp_path)[1].name == survivor
    save_checkpoint(tmp_path, 7, make(), keep_last=1)
    assert steps(tmp_path) == ["step-7"]


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


def alter(folder):
    data = bytearray((folder / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "optimizer.safetensors").write_bytes(bytes(data))


def lose(folder):
    (folder / "rng.safetensors").unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def cut_manifest(folder):
    (folder / "manifest.json").write_text('{"model.safe')


def unlist(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["model.safetensors"], manifest["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [
    (truncate, "model.safetensors has"),
    (alter, "optimizer.safetensors was altered"),
    (lose, "rng.safetensors is missing"),
    (lose_manifest, "manifest.json is missing"),
    (cut_manifest, "manifest.json is unreadable"),
    (unlist, "manifest.json does not list model.safetensors, state.json"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_one_is_refused_and_the_last_good_one_named(tmp_path, damage, message):
    for step in (5, 6):
        save_checkpoint(tmp_path, step, make(step), keep_last=2)
    damage(tmp_path / "step-6")
    with pytest.raises(CheckpointError, match=f"{message}.*the last good checkpoint is .*step-5"):
        load_checkpoint(tmp_path / "step-6")
    with pytest.warns(UserWarning, match=message):
        loaded, folder = load_checkpoint(tmp_path)
    assert folder.name == "step-5" and loaded.model["w"][0, 0] == 5


def test_a_folder_is_known_by_where_it_is_not_by_how_it_is_written(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, 5, make(), keep_last=2)
    (tmp_path / "latest").symlink_to(path)
    monkeypatch.chdir(path)
    for name in (".", "../latest", "../step-5/"):
        assert load_checkpoint(module.Path(name))[0].state == {"step": 5}
    truncate(path)
    with pytest.raises(CheckpointError, match=r"\.: model.safetensors has .*no good checkpoint"):
        load_checkpoint(module.Path("."))


@pytest.mark.parametrize("name", ["step-one", "step-7"])
def test_a_run_may_be_called_like_a_checkpoint(tmp_path, name):
    run = tmp_path / name
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(module.NoCheckpoint):
        load_checkpoint(run)
    (run / "config.yaml").unlink()
    save_checkpoint(run, 5, make(), keep_last=1)
    assert load_checkpoint(run)[1] == run / "step-5"
    assert load_checkpoint(run / "step-5")[1] == run / "step-5"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_without_a_good_one_is_refused(tmp_path):
    save_checkpoint(tmp_path, 5, make(), keep_last=1)
    truncate(tmp_path / "step-5")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="the run has no good checkpoint"):
        load_checkpoint(tmp_path / "step-5")


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)


def test_nothing_is_pickled(tmp_path):
    path = save_checkpoint(tmp_path, 5, make(), keep_last=1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text()) == {"step": 5}
    moved = tmp_path / "elsewhere" / "step-5"
    shutil.copytree(path, moved)
    assert load_checkpoint(moved)[1] == moved
