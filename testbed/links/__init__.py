"""Access links that really are there, by one of three backends."""
