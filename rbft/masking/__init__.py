"""Key objects (Table 5): where they are, and frames in which they or as much else are masked."""
