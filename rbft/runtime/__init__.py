"""What any program needs: screen, files, locks, signals."""
