"""Links by the kernel's own sch_netem."""
