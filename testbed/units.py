"""Numbers as people read them."""


def human_seconds(seconds: float) -> str:
    """ "3.2 s", "12 min", "4.1 h" """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
