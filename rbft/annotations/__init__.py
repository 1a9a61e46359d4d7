"""Rows and files as other people write them, before they are clips."""
