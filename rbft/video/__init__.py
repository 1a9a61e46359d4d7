"""From a video file to frames, and what is kept of them."""
