"""The user's own architectures as they were imported, so that they can travel with a model.

`registration` imports them and records them here; `hub/remote_code` writes them into an export.
"""

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGE_FOLDERS = ("site-packages", "dist-packages")
"""Names of folders of installed packages."""


@dataclass(slots=True)
class CustomCode:
    """What `model.custom` named."""

    module_names: list[str] = field(default_factory=list)
    """Modules that register architectures, in the order of their import."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents, when they were imported, of the files of modules that are not installed packages.

    By path relative to the folder from which they are imported, with slashes.
    """
    requirements: dict[str, str] = field(default_factory=dict)
    """By top-level name: the requirement of each installed package, as `pip install` takes it."""

    def record_source_files(
        self, module_name: str, source: Path, modules_before: Collection[str]
    ) -> None:
        """Records a file or package folder, and the neighbours that it has imported.

        Args:
            module_name: Name under which it was imported.
            source: A `.py` file or the folder of a package.
            modules_before: Names of the modules that were loaded before.
        """
        if module_name not in self.module_names:
            self.module_names.append(module_name)
        root = source.parent
        paths = [source] if source.is_file() else sorted(source.rglob("*.py"))
        for name in sys.modules.keys() - modules_before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and file.endswith(".py") and _is_user_file_below(Path(file), root):
                paths.append(Path(file))
        for path in paths:
            self.files[path.relative_to(root).as_posix()] = path.read_bytes()

    def record_installed_requirement(self, module_name: str) -> None:
        """Records a package that is installed, which an export names as a requirement."""
        if module_name not in self.module_names:
            self.module_names.append(module_name)
        top = module_name.partition(".")[0]
        distributions = metadata.packages_distributions().get(top)
        if distributions:
            version = metadata.version(distributions[0])
            self.requirements[top] = f"{distributions[0]}=={version}"
        else:
            self.requirements[top] = top

    def has_file_of(self, module_name: str) -> bool:
        """Whether a module was imported from one of the recorded files."""
        path = module_name.replace(".", "/")
        return f"{path}.py" in self.files or f"{path}/__init__.py" in self.files

    def has_class(self, class_: type) -> bool:
        """Whether a class is defined in one of the recorded files or packages."""
        module = class_.__module__
        return self.has_file_of(module) or module.partition(".")[0] in self.requirements


custom_code = CustomCode()
"""What this process has imported."""


def is_in_site_packages(file: Path) -> bool:
    """Whether a file belongs to an installed package."""
    return any(folder in file.parts for folder in PACKAGE_FOLDERS)


def _is_user_file_below(file: Path, root: Path) -> bool:
    return (
        file.is_relative_to(root)
        and not is_in_site_packages(file.relative_to(root))
        and file.relative_to(root).parts[0] not in ("fla", "flame_accel")
    )
