"""Trainings as processes: locks, threads, error messages. Complete studies: tests/system/test_compare.py."""

import subprocess
import sys

import pytest

from ssl_zoo.study.training import _last_error, _lock, threads_per_job


def is_free(path) -> bool:
    lock = _lock(path)
    if lock is not None:
        lock.close()
    return lock is not None


def test_a_lock_is_held_while_a_process_that_inherits_it_lives(tmp_path):
    path = tmp_path / "locks" / "a"
    with _lock(path) as lock:
        assert not is_free(path) and is_free(tmp_path / "locks" / "b")
        command = [sys.executable, "-c", "input()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock.fileno()], text=True)
    assert not is_free(path)
    child.communicate("\n")
    assert is_free(path)


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("step 1\nerror: no such\n  file\n", 1, "no such file"),
        ("error: first\nstep 2\nerror: last\n", 1, "last"),
        ("Traceback\nValueError: x\n", 1, "ValueError: x"),
        ("", 3, "exited with status 3; last output: none"),
        ("step 7\n", -9, "killed by signal 9; last output: step 7"),
    ],
)
def test_a_failure_is_reported_with_the_last_error_of_its_start(tmp_path, output, status, message):
    log = tmp_path / "log.txt"
    log.write_text("error: of an earlier start\n")
    start = log.stat().st_size
    with open(log, "a") as file:
        file.write(output)
    assert _last_error(log, start, status) == message


def test_jobs_share_the_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert [threads_per_job(jobs) for jobs in (1, 2, 4, 9)] == [None, 3, 1, 1]
