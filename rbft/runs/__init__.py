"""What a run leaves in its folder, and what it was made from."""
