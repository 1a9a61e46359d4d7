"""Text generation, classification and its metrics."""
