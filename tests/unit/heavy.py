"""Packages, and modules of ours that import one, which few tests need: each is imported when a test
first asks for it.

All of them take some seconds, which otherwise each worker would spend as it collects.
"""

import importlib
from types import ModuleType

PACKAGES = {
    "accountants": "opacus.accountants",
    "datasets": "datasets",
    "dp_budget": "methods.privacy.budget",
    "dp_client": "methods.privacy.client",
    "dp_sample": "methods.privacy.sample",
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
