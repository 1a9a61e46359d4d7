"""What the model writes and which class it finds likeliest, and how that is scored."""
