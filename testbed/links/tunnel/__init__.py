"""Tunnels between the link processes of a run's hosts: frames sent early, held until their time."""
