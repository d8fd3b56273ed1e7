"""Tests that the check of words finds each kind of offence and that the project has none."""

import subprocess
import sys
from pathlib import Path

import pytest
import words

pytestmark = pytest.mark.fixed


def test_the_project_has_no_offence():
    done = subprocess.run([sys.executable, words.__file__], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "words: no offence\n")


PLANTED = {
    "a docstring begins with 'Of'": ("latentlab/a.py", 'SIZE = 1\n"""Of the window."""\n'),
    "'whatever' in a docstring": ("latentlab/a.py", 'def f():\n    """Take whatever comes."""\n'),
    "a message says what must be": ("latentlab/a.py", "raise DataError(f'{x} must be positive.')\n"),
    "a sentence of 27 words": ("README.md", "# Title\n\n" + "Word " * 26 + "word.\n"),
    "README.md: 'knew'": ("README.md", "The posterior knew.\n"),
}


@pytest.mark.parametrize("said", PLANTED)
def test_each_offence_is_found(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name, text = PLANTED[said]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(words, "ROOT", tmp_path)
    found = list(words.offences())
    assert len(found) == 1
    assert said in found[0]


def test_code_tables_and_good_sentences_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "A short one. `a` must not count.\n\n| " + "word " * 40 + "|\n\n```bash\n" + "word " * 40 + "\n```\n"
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "latentlab").mkdir()
    (tmp_path / "latentlab" / "a.py").write_text('"""Size of the window."""\nraise DataError(f\'`n` must be 1; got {n}.\')\n')
    monkeypatch.setattr(words, "ROOT", tmp_path)
    assert list(words.offences()) == []
