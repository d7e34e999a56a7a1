"""The README's Python runs, one block after the other, as a reader would type it."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in BLOCKS:
        quick = re.sub(r"max_epochs(\W+)\d+", r"fast_dev_run\g<1>True", block)
        exec(compile(quick, "README.md", "exec"), namespace)
    assert len(namespace["forecast"]) == len(namespace["future"])


def test_links_inside_the_repository_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
