"""Layout of the wheel: all that ships lies in one package, `wiretune`.

In the repository `testbed`, `nodes`, `methods` and the others stand at the top, where their readers
look for them. As top-level names of an environment they would collide with a user's own `methods`
or `cli.py`. So the wheel has them inside `wiretune`, and each of their absolute imports names that
package.
"""

import ast
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "wiretune"
ROOT_MODULE = """\
\"\"\"Wiretune: links of a given kind, federated fine-tuning over them, and what it takes.\"\"\"

__all__ = ["ConfigError", "LinkError", "MininetNetwork", "Network", "NotAsAsked", "Wiretune"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The command line has no use for them.
    from testbed.config_error import ConfigError
    from testbed.library.mininet import MininetNetwork, Wiretune
    from testbed.library.network import Network, NotAsAsked
    from testbed.links.interface import LinkError

    return locals()[name]
"""
PLUGIN = (
    "from testbed.library.pytest_plugin import pytest_configure, wiretune_network  # noqa: F401\n"
)
MAIN = """\
from testbed.processes import signals

# Before all else is imported, which takes a while.
signals.COMMAND.hear()

from cli import run  # noqa: E402

if __name__ == "__main__":
    run()
"""
FACADES = {"__init__.py": ROOT_MODULE, "__main__.py": MAIN, "pytest_plugin.py": PLUGIN}
"""Modules of the package that the repository has no file for: what others import."""
COMMAND = "from cli import main, run  # noqa: F401\n"
SHIPPED = ("cli.py", "experiments", "testbed", "nodes", "methods", "netem_profiles")
MODULES = {Path(name).stem for name in SHIPPED}


class WheelHook(BuildHookInterface[Any]):
    """Fills a wheel with the rewritten files, and an editable one with a way to the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._made = Path(tempfile.mkdtemp())
        package = self._made / NAME
        if version == "editable":
            package.mkdir()
            for name, text in {**FACADES, "cli.py": COMMAND}.items():
                (package / name).write_text(text)
            build_data["force_include_editable"] = {str(package): NAME}
        else:
            _lay_out(Path(self.root), package)
            build_data["force_include"] = {str(package): NAME}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._made)


def _lay_out(root: Path, package: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__")
    package.mkdir()
    for name in SHIPPED:
        if (root / name).is_dir():
            shutil.copytree(root / name, package / name, ignore=unwanted)
        else:
            shutil.copy2(root / name, package / name)
    for name, text in FACADES.items():
        (package / name).write_text(text)
    for path in package.rglob("*.py"):
        path.write_text(inside_package(path.read_text()))


def inside_package(source: str) -> str:
    """The same module with its absolute imports of the project's own modules out of ``wiretune``.

    ValueError for `import testbed.x`, which would bind another name.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        number = getattr(node, "lineno", 0) - 1
        if isinstance(node, ast.Import) and MODULES & {_top(each.name) for each in node.names}:
            if len(node.names) > 1 or "." in node.names[0].name:
                raise ValueError(f"{ast.unparse(node)}: write it as from ... import ...")
            lines[number] = lines[number].replace("import ", f"from {NAME} import ", 1)
        elif isinstance(node, ast.ImportFrom) and not node.level and _top(node.module) in MODULES:
            lines[number] = lines[number].replace("from ", f"from {NAME}.", 1)
    return "".join(lines)


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]
