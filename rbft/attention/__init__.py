"""Attention maps (Figure 2): what the answer looks at, how much that means, and pictures of it."""
