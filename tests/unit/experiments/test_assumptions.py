"""What a row has that others lack, out of what its method declares."""

from experiments import assumptions
from testbed.run.config import RunConfig

PUBLIC = "400 public images, of the training set"


def of(method: str, **options: bool | float | str) -> list[str]:
    return assumptions.of(RunConfig(method=method, options=dict(options)))


def test_what_a_method_declares_is_told() -> None:
    assert of("fedavg") == []
    assert of("kdfft") == of("fedmd") == [PUBLIC, "a model of each client's own"]
    assert of("kdfft", public_source="glyphs", public_samples=300)[0] == "300 public images, drawn"
    assert of("split") == of("splitfed") == ["the server sees activations and labels"]
    assert of("split", labels="private") == of("sfprompt") == ["the server sees activations"]
    assert of("fedbuff") == ["rounds that wait for nobody"]
    ring = RunConfig(method="fedavg", transport="gloo")
    assert assumptions.of(ring) == ["clients speak to one another"]


def test_what_all_rows_have_none_has_alone() -> None:
    assert assumptions.alone([of("kdfft"), of("fedmd")]) == [[], []]
    assert assumptions.alone([of("kdfft"), of("fedavg")]) == [of("kdfft"), []]
    assert assumptions.alone([of("kdfft")]) == [[]] and assumptions.alone([]) == []


def test_public_text_is_in_sequences() -> None:
    config = RunConfig(method="kdfft", model="llama-docs", dataset="docs")
    assert assumptions.of(config)[0] == "400 public sequences, of the training set"
