"""What a fatal signal leaves on stderr."""

import signal
import subprocess
import sys

import pytest

CUT = """
import mmap, sys
from segsweep.commands import {module}

def read_of_the_cache(mapped):
    return mapped[5000]

{module}.main({argv})
with open(sys.argv[1], "r+b") as file:
    file.truncate(8192)
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    read_of_the_cache(mapped)
"""


@pytest.mark.parametrize(("module", "argv"), [("train", ["resume=nowhere"]), ("app", ["encoders", "nowhere"])])
def test_a_mapped_file_that_is_cut_is_a_signal_with_the_line_that_read_it(tmp_path, module, argv):
    (tmp_path / "pixels").touch()
    code = CUT.format(module=module, argv=argv)
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "pixels"], capture_output=True, text=True)
    assert run.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in run.stderr
    assert "in read_of_the_cache" in run.stderr
    assert run.stdout == ""
