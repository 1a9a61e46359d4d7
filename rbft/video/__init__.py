"""From a video file to frames, and the caches of frames and of vision features."""
