"""Memory is kept between pictures, where the C library can be asked to, and the user did not say otherwise."""

import platform
import subprocess
import sys

import pytest

from milr import memory

IS_GLIBC = platform.libc_ver()[0] == "glibc"
FAULTS = """
import resource, milr
model = milr.load("lab", device="cpu")
picture = [tuple(range(64))]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    model.pixels(picture)
before = faults()
for _ in range(4):
    model.pixels(picture)
print((faults() - before) // 4)
"""


@pytest.mark.parametrize("name", memory.CHOICES)
def test_what_the_user_chose_stays(name):
    assert not memory.keep({name: "/usr/lib/libjemalloc.so"})


def test_it_is_kept_where_glibc_is():
    assert memory.keep({}) == IS_GLIBC
    assert memory.keep({"LD_PRELOAD": " "}) == IS_GLIBC, "set to nothing says nothing"


def test_another_c_library_stays_as_it_is(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(memory.os, "confstr", unknown, raising=False)
    assert not memory.keep({})


@pytest.mark.skipif(not IS_GLIBC, reason="another C library")
def test_pixels_ask_for_no_new_pages():
    """4,000 faults a picture otherwise."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000
