"""What is done with rationales once they are written: filter, select, check, read, judge."""
