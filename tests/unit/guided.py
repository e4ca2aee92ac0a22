"""Coverage-guided fuzzing, by atheris, of the readers that test_fuzzed_inputs.py changes inputs of.

    pip install atheris
    python tests/unit/guided.py KIND [SECONDS]        # KIND: "wire", or one of KINDS there

It begins with their corpus, keeps what reaches new code, and ends at once, with the input in a file
crash-* here, where a reader raises anything but its own refusal. That input is then a test.
"""

import hashlib
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

UNIT = Path(__file__).parent
SECONDS = 60
BETWEEN = b"--frame--"
MOST_MB = 4096

sys.path[:0] = [str(UNIT), str(UNIT.parents[1])]
with atheris.instrument_imports(include=["testbed", "nodes", "experiments"]):
    from mutations import corpus
    from test_fuzzed_inputs import KINDS

    from testbed.transport.wire import WireError, decode


def wire(content: bytes, folder: Path) -> None:
    """A message, its header not deflated, which no guide would find its way through."""
    header, *buffers = content.split(BETWEEN)
    decode([memoryview(zlib.compress(header, 1)), *map(memoryview, buffers)])


def messages() -> list[bytes]:
    return [BETWEEN.join([zlib.decompress(header), *rest]) for header, *rest in corpus()]


def main(kind: str, seconds: int) -> None:
    all_ = {**KINDS, "wire": (wire, messages(), (WireError,))}
    take, begin, refusals = all_[kind]
    with tempfile.TemporaryDirectory() as place:
        found, folder = Path(place) / "found", Path(place) / "folder"
        found.mkdir()
        folder.mkdir()
        for each in begin:
            (found / hashlib.sha256(each).hexdigest()).write_bytes(each)

        def one(content: bytes) -> None:
            try:
                take(content, folder)
            except refusals:
                pass
            finally:
                for path in folder.iterdir():
                    path.unlink()

        limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MOST_MB}", "-timeout=20"]
        atheris.Setup([sys.argv[0], *limits, str(found)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else SECONDS)
