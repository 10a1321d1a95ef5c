"""A disk that is full at any write: no release without its record, a clear error, and a folder to continue from."""

import errno
import json
import os
import resource
import signal

import pytest
import torch

from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.training.update import Update
from monitors.errors import DPModelError
from monitors.events import event_from_dict
from monitors.ledger import Ledger

from ..journey import SETTINGS as TINY
from .test_record import WHERE, fit, folders

#: Number of flushes of a whole training, by case.
_WRITES = {}


class Full:
    """Every flush fails from the ``first`` on, for ``times`` flushes, as on a disk that is full for a while."""

    def __init__(self, monkeypatch, first=None, times=None):
        self.count = 0
        self.released = Ledger()
        fsync, update = os.fsync, Update.__call__

        def flush(handle):
            self.count += 1
            past = -1 if first is None else self.count - first
            if past >= 0 and (times is None or past < times):
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        def release(own, summed, step):
            self.released.record(own.plan.event(step))
            update(own, summed, step)

        monkeypatch.setattr("os.fsync", flush)
        monkeypatch.setattr(Update, "__call__", release)


def require_covered_and_continued(where, released):
    """What was released is stated; the next attempt succeeds, from the state or from a folder left as found."""
    for folder in folders(where):
        stated = Ledger.load(folder.ledger) if folder.ledger.exists() else Ledger()
        assert stated.covers(released)
        assert released.total or not folder.in_use
    if released.total == 0:
        fit(where)
    elif where["keeper"] is not None:
        fit({**where, "output": where["output"] if where["output"] == where["keeper"] else None}, resume=True)
        assert Ledger.load(where["keeper"] / "ledger.json").covers(released)


@pytest.mark.parametrize("times", [None, 1], ids=["for good", "once"])
@pytest.mark.parametrize("name", ["output", "both", "apart"])
@pytest.mark.parametrize("part", range(12))
@pytest.mark.sample(78)
def test_a_full_disk_at_any_write_leaves_a_record_and_a_way_to_continue(name, times, part, tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_MARKS", "off")  # a mark that cannot be written stops nothing
    if name not in _WRITES:
        with monkeypatch.context() as patch:
            whole = Full(patch)
            fit(WHERE[name](tmp_path / "whole"))
        _WRITES[name] = whole.count
    first = 1 + part * _WRITES[name] // 12
    where = WHERE[name](tmp_path / "full")
    with monkeypatch.context() as patch:
        full = Full(patch, first, times)
        with pytest.raises((OSError, DPModelError), match=r"No space left on device: '.*full/\w+/?") as caught:
            fit(where)
    assert "\n" not in str(caught.value)
    require_covered_and_continued(where, full.released)


@pytest.mark.parametrize("limit", [40, 700, 2500, 5000, 20_000])
@pytest.mark.sample(6)
def test_files_that_cannot_grow_leave_a_record_and_a_way_to_continue(limit, tmp_path):
    where = WHERE["both"](tmp_path)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 9
        try:
            signal.alarm(60)
            torch.set_num_threads(1)
            update = Update.__call__

            def release(own, summed, step):
                os.write(writing, json.dumps(own.plan.event(step).to_dict()).encode() + b"\n")
                update(own, summed, step)

            Update.__call__ = release
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            fit(where)
            status = 0
        except OSError as error:
            status = 1 if str(where["output"]) in str(error) else 8
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        lines = stream.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    released = Ledger()
    for line in lines:
        released.record(event_from_dict(json.loads(line)))
    require_covered_and_continued(where, released)


@pytest.mark.slow
def test_a_state_that_cannot_be_saved_at_first_leaves_the_folder_as_found(tmp_path):
    class Unsaved:
        def on_train_step_end(self, run):
            pass

        def state_dict(self):
            return {"strange": object()}

        def load_state_dict(self, state):
            pass

    where = WHERE["both"](tmp_path)
    with pytest.raises(DPModelError, match="save_every_steps: null"):
        fit(where, Unsaved())
    assert not RunFolder(tmp_path / "run").path.exists()
    fit(where)


@pytest.mark.parametrize("part", range(10))
@pytest.mark.sample(12)
def test_a_run_from_a_configuration_on_a_full_disk_can_be_started_again_or_resumed(part, tmp_path, monkeypatch):
    config, folder = make_config(TINY), RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        full = Full(patch, first=(1, 2, 3, 4, 5, 6, 8, 12, 15, 20)[part])
        with pytest.raises((OSError, DPModelError), match=r"No space left on device: '.*run/\w+/?"):
            train_from_config(config, folder.path, callbacks=[Silence()])
    if full.released.total == 0:
        assert not folder.path.exists()
    else:
        assert Ledger.load(folder.ledger).covers(full.released)
    train_from_config(config, folder.path, resume=full.released.total > 0, callbacks=[Silence()])
    assert Ledger.load(folder.ledger).covers(full.released)
