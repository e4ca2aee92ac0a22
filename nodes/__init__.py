"""What runs inside a node's process: models, data, and the two ends of the round loop."""
