"""What is trained on what: models, data sets and their weights."""
