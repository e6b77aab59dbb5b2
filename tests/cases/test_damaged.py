"""Decoded pixels that a power cut, a bad disk or a full one has damaged: the right ones come out, or a line."""

import os
import re

import pytest
from scenes import coded, noise, opened, pixels, same, seen, truths, written

from segsweep.errors import DataError

N = 6
KINDS = ("images.bin", "masks.bin")


@pytest.fixture
def folder(tmp_path):
    """Images of noise and masks of 0 and 255."""
    return written(tmp_path / "data", [coded(truth, [0, 255]) for truth in truths(N)])


def stored(outputs, name):
    """The one file of this name in the store."""
    (path,) = (outputs / "cache" / "stores").rglob(name)
    return path


def right(dataset):
    return same(pixels(dataset), [noise(i) for i in range(N)]) and same(seen(dataset), truths(N))


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def overwrite(path, start, content):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def zeroed(path):
    overwrite(path, 0, bytes(path.stat().st_size))


def flipped(path):
    """One bit of the byte in the middle."""
    middle = path.stat().st_size // 2
    overwrite(path, middle, bytes([path.read_bytes()[middle] ^ 1]))


def tail_zeroed(path):
    overwrite(path, path.stat().st_size - 4096, bytes(4096))


def halved(path):
    os.truncate(path, path.stat().st_size // 2)


def one_byte_less(path):
    os.truncate(path, path.stat().st_size - 1)


def emptied(path):
    os.truncate(path, 0)


def removed(path):
    path.unlink()


DAMAGES = (zeroed, flipped, tail_zeroed, halved, one_byte_less, emptied, removed)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pixels_are_healed_and_told(folder, outputs, caplog, damage, name):
    assert right(opened(folder))
    damage(stored(outputs, name))
    assert right(opened(folder))
    assert told(caplog)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_healed_stays_healed(folder, outputs, caplog, damage, name):
    opened(folder)
    damage(stored(outputs, name))
    assert right(opened(folder))
    caplog.clear()
    assert right(opened(folder))
    assert not told(caplog)


def test_both_files_may_be_damaged(folder, outputs, caplog):
    opened(folder)
    for name in KINDS:
        zeroed(stored(outputs, name))
    assert right(opened(folder))
    assert told(caplog)


@pytest.mark.parametrize("content", ["", "cut", "nul", "[]", "{}", "null", '{"rows": []}', "\x80 no text"])
def test_a_damaged_manifest_is_written_again(folder, outputs, caplog, content):
    opened(folder)
    manifest = stored(outputs, "manifest.json")
    whole = manifest.read_bytes()
    manifest.write_bytes({"cut": whole[: len(whole) // 2], "nul": bytes(len(whole))}.get(content, content.encode()))
    assert right(opened(folder))
    assert told(caplog)
    assert stored(outputs, "manifest.json").read_bytes() == whole


@pytest.mark.parametrize("content", ["", "cut"])
def test_a_damaged_manifest_without_pixels_is_written_again(folder, outputs, caplog, content):
    """`data.cache=none` keeps a manifest alone."""
    opened(folder, cache="none")
    manifest = stored(outputs, "manifest.json")
    whole = manifest.read_bytes()
    manifest.write_bytes({"cut": whole[: len(whole) // 2]}.get(content, b""))
    assert right(opened(folder, cache="none"))
    assert told(caplog)


def test_a_sound_store_is_opened_as_it_is(folder, outputs, caplog):
    first = opened(folder)
    before = [stored(outputs, name).stat() for name in KINDS]
    again = opened(folder)
    assert right(again)
    assert not told(caplog)
    assert again.store.digest == first.store.digest
    after = [stored(outputs, name).stat() for name in KINDS]
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]


def test_a_healed_store_has_the_digest_it_had(folder, outputs):
    digest = opened(folder).store.digest
    zeroed(stored(outputs, "images.bin"))
    assert opened(folder).store.digest == digest


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", [emptied, halved])
def test_a_file_cut_while_it_is_open_ends_in_a_line(folder, outputs, name, damage):
    """In a child process: today a signal ends whoever reads memory that its file no longer has."""
    dataset = opened(folder)
    damage(stored(outputs, name))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            for i in range(N):
                dataset.store.image(i).clone()
                dataset.store.mask(i).clone()
            answer = "read it all"
        except DataError as error:
            answer = f"DataError: {error}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    assert not os.WIFSIGNALED(status), f"ended by signal {os.WTERMSIG(status)}"
    assert re.fullmatch("DataError: [^\n]+", answer), answer
