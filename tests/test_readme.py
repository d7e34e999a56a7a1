"""The README's Python runs, one block after the other, as a reader would type it."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCKS:
        quick = re.sub(r"max_epochs(\W+)\d+", r"fast_dev_run\g<1>True", block)
        exec(compile(quick, "README.md", "exec"), namespace)
    assert len(namespace["forecast"]) == len(namespace["future"])


def test_the_printed_table_is_what_the_first_block_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"^```text\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    header, *rows = shown.splitlines()
    namespace = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), namespace)
    names = header.split()[3:]
    table = np.array([row.split()[5:] for row in rows], dtype=float)
    assert names == list(namespace["forecast"].columns[3:])
    # The last digit may differ on another processor.
    np.testing.assert_allclose(namespace["forecast"][names], table, atol=0.02)


def test_links_inside_the_repository_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
