"""Programs of others on several hosts."""
