"""Short names: readable, and never the same of two things."""

import pytest

from testbed import naming


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["vit-glyphs", "/data/my models/large"], ["vit-glyphs", "large"]),
        (["/a/vit", "/b/vit", "/b/other"], ["a/vit", "b/vit", "other"]),
        (["/a/vit", "/vit"], ["a/vit", "/vit"]),
        (["vit-glyphs", "/own/vit-glyphs"], ["vit-glyphs", "own/vit-glyphs"]),
        (["google/vit", "/x/google/vit"], ["google/vit", "vit"]),
        (["./vit", "on:9,off:1", "250", "/"], ["./vit", "on:9,off:1", "250", "/"]),
    ],
)
def test_a_path_is_no_longer_than_tells_it_from_the_others(
    texts: list[str], found: list[str]
) -> None:
    assert naming.short([*texts, *texts]) == dict(zip(texts, found, strict=True))
