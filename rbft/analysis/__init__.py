"""Statistics of scores: intervals, comparisons of runs, calibration, thresholds."""
