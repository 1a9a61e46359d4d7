"""What happens around the steps: hand-off, checks, figures, files."""
