"""Threads of this process, told by the kernel's numbers and so whoever started them."""

import psutil


def threads() -> set[int]:
    """Those there are now. Compare by difference: what earlier tests left may end at any time."""
    return {each.id for each in psutil.Process().threads()}
