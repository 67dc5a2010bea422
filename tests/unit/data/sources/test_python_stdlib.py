"""The sources of the standard library: split by file, and nothing but the library."""

from flame_accel.data.sources.python_stdlib import VALIDATION_BYTES, read_stdlib_sources
from tests.helpers.datasets_on_disk import opened, texts


def test_the_standard_library_is_split_by_file():
    train, validation = read_stdlib_sources("train"), read_stdlib_sources("validation")
    assert not set(train) & set(validation)
    assert sum(map(len, train)) > 5_000_000
    assert VALIDATION_BYTES / 2 < sum(len(text.encode()) for text in validation) <= VALIDATION_BYTES
    assert texts(opened("python-stdlib", streaming=True)) == train
    assert texts(opened("python-stdlib", section="evaluation")) == validation


def test_the_corpus_leaves_out_what_is_not_the_library(tmp_path):
    for name in ("a.py", "b/c.py", "test/d.py", "site-packages/e.py", "b/tests/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "empty.py").write_bytes(b"")
    found = read_stdlib_sources("train", tmp_path) + read_stdlib_sources("validation", tmp_path)
    assert sorted(found) == ["a.py", "b/c.py"]
