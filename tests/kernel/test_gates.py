"""Both backends on the same links in one kernel: each keeps the gates, so they agree."""

import gates
import pytest
from uml import LIMIT_S

pytestmark = pytest.mark.timeout(LIMIT_S + 30)


@pytest.mark.parametrize("measure", gates.GATES)
@pytest.mark.parametrize("backend", ["netem", "userspace"])
def test_links_are_what_was_asked(found, backend, measure):
    told = found[backend][measure]
    assert "error" not in told, told["error"]
    problems = gates.problems(backend, measure, told["found"])
    if problems and (reason := gates.unfit(told["misses"])):
        pytest.skip(f"{problems}: {reason}")
    assert problems == []


@pytest.mark.parametrize("backend", ["netem", "userspace"])
def test_no_measure_broke_the_network(found, backend):
    assert found[backend]["failure"]["found"] is None
