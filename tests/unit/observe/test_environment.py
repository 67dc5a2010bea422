"""What environment.json says of packages and of the source's revision."""

import importlib.metadata

from flame_accel.observe import environment
from flame_accel.observe.environment import git_commit_and_dirty, package_versions
from tests.helpers.runs import ROOT


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert package_versions() == {
        "torch": importlib.metadata.version("torch"),
        "no-such-package": None,
    }


def test_the_revision_is_that_of_the_checkout_and_none_outside(monkeypatch, tmp_path):
    revision = git_commit_and_dirty()
    if (ROOT / ".git").exists():
        assert revision and len(revision["commit"]) == 40 and isinstance(revision["dirty"], bool)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "a/b/c.py"))
    assert git_commit_and_dirty() is None
