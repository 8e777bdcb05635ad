"""Models behind one seam: `generate` and `score`."""
