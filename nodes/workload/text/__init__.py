"""Language models and what they read: documentation, instructions, and files of users."""
