"""Packages of which few tests need one, each imported when a test first asks for it.

All of them take some seconds, which otherwise each worker would spend as it collects.
"""

import importlib
from types import ModuleType

PACKAGES = {
    "accountants": "opacus.accountants",
    "datasets": "datasets",
    "parquet": "pyarrow.parquet",
    "peft": "peft",
    "peft_constants": "peft.utils.constants",
    "pyarrow": "pyarrow",
    "stats": "scipy.stats",
    "transformers": "transformers",
}


def __getattr__(name: str) -> ModuleType:
    if name not in PACKAGES:
        raise AttributeError(name)
    return importlib.import_module(PACKAGES[name])
