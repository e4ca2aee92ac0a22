"""Which features of a device join packets."""

import pytest

from testbed.links.linux import offload


@pytest.mark.parametrize(
    "feature",
    [
        "tx-generic-segmentation",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
        "tx-udp-segmentation",
        "tx-gso-list",
        "rx-gro",
        "rx-gro-list",
        "rx-udp-gro-forwarding",
        "rx-lro",
    ],
)
def test_a_feature_that_joins_packets_is_known(feature):
    assert offload.aggregates(feature)


@pytest.mark.parametrize(
    "feature",
    ["tx-checksum-ip-generic", "rx-checksum", "tx-scatter-gather", "highdma", "tx-gso-robust"],
)
def test_others_stay_as_they_are(feature):
    assert not offload.aggregates(feature)
