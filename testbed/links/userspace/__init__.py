"""Links by one process that forwards packets between TUN devices."""
