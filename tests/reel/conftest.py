from __future__ import annotations

import resource

import pytest

from hilm.reel.records import Kind
from hilm.reel.writer import ReelWriter
from tests.reel.documents import manifest_of, sample_of
from tests.reel.files import MP4, grow, write


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("reel") / "small.reel.mp4"
    write(out, [b"head %d" % i for i in range(3)], [bytes(range(i, 60 + i)) for i in range(3)], MP4)
    return out.read_bytes()


@pytest.fixture
def grown(tmp_path):
    """Two generations of a sampled reel."""
    with ReelWriter(tmp_path / "s") as writer:
        writer.add_record(Kind.HEAD, b"head", 0)
        writer.add_record(Kind.SAMPLES, b"first", 100)
        writer.finish(manifest_of(mode="sample", source=None, samples=[sample_of()]))
    first = (tmp_path / "s").read_bytes()
    samples = [sample_of(), sample_of(1, 50, 2)]
    manifest = manifest_of(mode="sample", source=None, samples=samples, generation=2)
    return first, grow(first, [(Kind.HEAD, b"HEAD", 0), (Kind.SAMPLES, b"second", 50)], manifest)


@pytest.fixture
def full_disk():
    """Files may not grow beyond 100 kB: the operating system's own refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
