"""The small model that comes with the project: its training, and the card that says how good it is."""
