"""What a command does, one file each."""
