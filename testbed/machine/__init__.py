"""What this machine is and may do."""
