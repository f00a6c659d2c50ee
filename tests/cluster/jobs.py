"""Functions that worker processes can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from hilm.errors import HeaderError, NetworkError


def square(number):
    return number * number


def pid(_):
    return os.getpid()


def environment(name):
    return os.environ.get(name)


def ten_megabytes(byte):
    return bytes([byte]) * 10_000_000


def refuse(name):
    raise HeaderError("overlap", f"{name} is bad", hint="fetch it again")


def leak(token):
    raise ValueError(f"GET https://user:{token}@hub/x?a=1&X-Signature={token} with {token} failed")


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def die_while_answering(payload):
    """Unless harmless or tried before, answer more than a socket holds and die before it is read."""
    if payload is not None and note(payload) == 1:
        time.sleep(0.3)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(10_000_000) if payload else None


def raise_unpicklable(_):
    raise Unpicklable


def return_unpicklable(_):
    return threading.Lock()


def note(path):
    """Leave a mark in a file; return how many there are."""
    with Path(path).open("a") as marks:
        marks.write("x")
    return Path(path).stat().st_size


def flaky(payload):
    path, failures = payload
    if note(path) <= failures:
        raise NetworkError("reset by peer")
    return "done"


def die(payload):
    """Die the first few times; None is a harmless task."""
    if payload is None:
        time.sleep(0.02)
        return "alive"
    path, deaths = payload
    if note(path) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def hang(payload):
    if payload is not None:
        note(payload)
        time.sleep(600)
    return "quick"


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def spawn_sleeper(path):
    """Start a process of one's own, tell its id, and hang."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path).write_text(f"{os.getpid()} {sleeper.pid}")
    time.sleep(600)


def say(text):
    print(text, flush=True)  # noqa: T201 - tests where it goes
    return text
